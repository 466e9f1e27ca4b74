# SPDX-License-Identifier: Apache-2.0
"""eigsh and its native steps: residuals, orthonormality, copies, scales and refusals."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.errors import ConvergenceWarning, NonFiniteError


def symmetric(rng, n: int, dtype: str = "float64", batch: int | None = None) -> np.ndarray:
    a = rng.standard_normal((batch or 1, n, n)).astype(dtype)
    a += a.transpose(0, 2, 1).copy()
    return a if batch else a[0]


def rotated(rng, values: np.ndarray, dtype: str = "float64") -> np.ndarray:
    """Symmetric matrix with these eigenvalues, by a few reflections."""
    n = len(values)
    q = np.eye(n)
    for _ in range(3):
        v = rng.standard_normal(n)
        v /= np.linalg.norm(v)
        q -= 2 * np.outer(v, v @ q)
    a = (q * values) @ q.T
    return np.asarray((a + a.T) / 2, dtype)


def assert_pairs(a: np.ndarray, found, ratio: float = 30) -> None:
    """Backward error and orthonormality, in units of LAPACK's tests."""
    a = a.astype(np.longdouble)
    values, vectors = (np.asarray(x).astype(np.longdouble) for x in (found.values, found.vectors))
    n, eps = len(a), np.finfo(np.asarray(found.vectors).dtype).eps
    norm = np.sqrt((a**2).sum(1)).max()
    residual = a @ vectors - vectors * values
    if norm > 0:
        worst = np.sqrt(((residual / norm) ** 2).sum(0)).max(initial=0)
        assert worst <= ratio * n * eps
    gram = vectors.T @ vectors
    assert np.abs(gram - np.eye(gram.shape[0])).max(initial=0) <= ratio * n * eps


# By reduction, and by iteration.
ROUTES = {"reduced": {}, "iterated": {"max_iter": 5000}}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_eigsh_finds_the_wanted_ends(which, dtype, route, rng):
    n = 600
    values = np.sort(rng.standard_normal(n) ** 3)
    a = rotated(rng, values, dtype)
    found = ff.linalg.eigsh(a, 6, which=which, **ROUTES[route])
    down = values[::-1]
    expected = {
        "LA": down[:6],
        "SA": values[:6],
        "LM": values[np.argsort(-np.abs(values))][:6],
        "BE": np.r_[down[:3], down[-3:]],
    }[which]
    scale = np.abs(values).max()
    np.testing.assert_allclose(found.values, expected, atol=50 * np.finfo(dtype).eps * scale)
    assert found.certified is True
    assert found.converged.all()
    assert (found.matvecs > 0) == (route == "iterated")
    assert found.values.dtype == found.vectors.dtype == np.dtype(dtype)
    assert_pairs(a, found)


CLUSTERS = {
    "identity": (np.ones(600), 4),
    "zero": (np.zeros(600), 4),
    "ten-equal": (np.r_[np.ones(10), np.linspace(0, 0.5, 590)], 20),
    "ten-equal-some": (np.r_[np.ones(10), np.linspace(0, 0.5, 590)], 10),
    "triple-1e-9": (np.r_[1, 1 - 1e-9, 1 - 2e-9, np.linspace(0, 0.9, 597)], 5),
    "rank-one": (np.r_[3.0, np.zeros(599)], 3),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", CLUSTERS)
def test_all_copies_are_found(name, route, rng):
    values, k = CLUSTERS[name]
    found = ff.linalg.eigsh(rotated(rng, values), k, **ROUTES[route])
    expected = np.sort(values)[::-1][:k]
    if found.certified:
        np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.certified or (name.startswith("ten") and route == "iterated")
    assert found.converged.all()


@pytest.mark.parametrize("log_condition", [0, 4, 8, 12, 15.6])
@pytest.mark.parametrize("size", [1.0, 1e-290, 1e290])
def test_every_condition_and_scale(log_condition, size, rng):
    graded = np.logspace(0, -log_condition, 400)
    a = rotated(rng, graded) * size
    for which in ("LA", "SA"):
        found = ff.linalg.eigsh(a, 3, which=which)
        assert_pairs(a / size, ff.linalg.EigshResult(
            found.values / size, found.vectors, None, None, None, 0
        ))  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 7, 310])
def test_sizes_at_the_edges(n, rng):
    a = symmetric(rng, n)
    for k in (0, 1, n, n + 3):
        found = ff.linalg.eigsh(a, k)
        assert found.values.shape == (min(k, n),)
        assert found.vectors.shape == (n, min(k, n))
        assert found.certified is True
        assert_pairs(a, found)
    assert ff.linalg.eigsh(np.zeros((0, 0)), 2).values.shape == (0,)


def test_batch_is_solved_in_step(rng):
    a = symmetric(rng, 400, "float32", 3)
    found = ff.linalg.eigsh(a, 2, which="BE")
    assert found.values.shape == (3, 2)
    assert found.certified.shape == (3,)
    for matrix, values in zip(a, found.values, strict=True):
        exact = np.linalg.eigvalsh(matrix.astype(float))
        np.testing.assert_allclose(values, exact[[-1, 0]], rtol=1e-5)


def test_operators_and_jacobians(rng):
    sparse = pytest.importorskip("scipy.sparse.linalg")
    a = rotated(rng, np.logspace(0, -6, 500))
    expected = np.logspace(0, -6, 500)[:3]
    for given, more in ((sparse.aslinearoperator(a), {}), (lambda v: a @ v, {"n": 500})):
        np.testing.assert_allclose(ff.linalg.eigsh(given, 3, **more).values, expected, atol=1e-13)
    x = rng.standard_normal((60, 8))
    model = ff.models.MLP((8, 512, 512, 10), activation="relu", sigma_w2=2.0, sigma_b2=0.1)
    jacobian = ff.jacobian(model, x)
    found = ff.linalg.eigsh(jacobian, 12)
    exact = np.linalg.eigvalsh(jacobian.gram().reshape(600, 600))[::-1]
    np.testing.assert_allclose(found.values, exact[:12], rtol=1e-10)


def test_same_bits_for_any_threads_and_again(rng, monkeypatch):
    a = symmetric(rng, 1100, "float32")
    results = []
    for threads in ("1", "2", "3", "3"):
        monkeypatch.setenv("FASTFISHER_NUM_THREADS", threads)
        results.append(ff.linalg.eigsh(a, 3, tol=1e-3))
    for other in results[1:]:
        assert np.array_equal(other.vectors, results[0].vectors)
        assert np.array_equal(other.values, results[0].values)
    workers = [threading.Thread(target=ff.linalg.eigsh, args=(a, 3)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_libraries(xp, rng):
    a = rotated(rng, np.logspace(0, -4, 330))
    found = ff.linalg.eigsh(xp.array(a), 2)
    assert isinstance(found.values, xp.kind())
    np.testing.assert_allclose(xp.host(found.values), np.logspace(0, -4, 330)[:2], atol=1e-13)


def test_iterations_run_out(rng):
    a = symmetric(rng, 600)
    with pytest.warns(ConvergenceWarning, match="did not reach"):
        found = ff.linalg.eigsh(a, 3, max_iter=3)
    assert not found.converged.all()
    assert found.certified is False
    with pytest.warns(ConvergenceWarning):
        ff.linalg.eigsh(rotated(rng, np.logspace(0, -9, 600)), 2, tol=1e-19)


def test_refusals(rng):
    a = symmetric(rng, 40)
    bad = a.copy()
    bad[3, 5] = np.nan
    with pytest.raises(NonFiniteError, match=r"A: .* at index \(3, 5\)"):
        ff.linalg.eigsh(bad, 2)
    bad[3, 5] = 9
    with pytest.raises(ValueError, match=r"symmetric matrix, got A\[5, 3\]"):
        ff.linalg.eigsh(bad, 2)
    for given, more, error, match in (
        (a[:3], {}, ValueError, "A: expected shape"),
        (a.astype("float16"), {}, TypeError, "dtype"),
        (a, {"which": "XX"}, ValueError, "which"),
        (a, {"v0": np.ones(3)}, ValueError, "v0"),
        (a, {"tol": -1}, ValueError, "tol"),
        (lambda v: v, {}, ValueError, "n: expected"),
        ([[1.0]], {}, TypeError, "A: expected"),
    ):
        with pytest.raises(error, match=match):
            ff.linalg.eigsh(given, 1, **more)
    with pytest.raises(ValueError, match="k: expected"):
        ff.linalg.eigsh(a, -1)


def test_trace_logdet_density_cg(rng):
    values = np.logspace(0, -3, 300)
    a = rotated(rng, values)
    got = ff.linalg.trace(a)
    assert abs(got.value - values.sum()) <= 5 * got.error
    assert ff.linalg.trace(a, matvecs=300).error == 0
    got = ff.linalg.logdet(a, damping=0.1, probes=32)
    assert abs(got.value - np.log(values + 0.1).sum()) <= 5 * got.error
    density = ff.linalg.spectral_density(a)
    assert abs(np.trapezoid(density.density, density.grid) - 1) < 1e-3
    assert abs(density.mean - values.mean()) <= 5 * density.mean_error
    assert abs(density.second_moment - (values**2).mean()) <= 5 * density.second_moment_error
    b = rng.standard_normal((300, 3))
    solved = ff.linalg.cg(a, b, tol=1e-10, preconditioner=lambda r: r / a.diagonal()[:, None])
    assert np.linalg.norm(a @ solved.x - b) <= 1e-9 * np.linalg.norm(b)
    with pytest.warns(ConvergenceWarning, match="cg"):
        ff.linalg.cg(a, b, max_iter=2)
    with pytest.raises(ff.errors.NotPositiveDefiniteError):
        ff.linalg.cg(-a, b)
    with pytest.raises(ff.errors.NotPositiveDefiniteError):
        ff.linalg.logdet(-a)


def test_no_pairs_of_a_large_operator_need_no_product():
    def never(x):
        raise AssertionError("a product was asked for")

    result = ff.linalg.eigsh(never, 0, n=10**9)
    assert result.values.shape == (0,)
    assert result.vectors.shape == (10**9, 0)
    assert result.certified
    assert result.matvecs == 0


def test_cg_names_bad_numbers_of_the_right_hand_side():
    with pytest.raises(
        NonFiniteError, match=r"b: expected finite numbers, got nan at index \(1,\)"
    ):
        ff.linalg.cg(np.eye(3), np.array([1.0, np.nan, 0.0]))


@pytest.mark.parametrize(("copies", "seed"), [(6, 194), (5, 326), (4, 7), (5, 0), (6, 1)])
def test_blocks_without_a_direction_of_their_own(copies, seed):
    # The rest of the block is rounding that its Gram matrix cannot tell from a direction.
    a = np.diag(np.r_[np.full(copies, 3.0), np.ones(520 - copies)])
    found = ff.linalg.eigsh(a, 5, max_iter=3, block=8, seed=seed)
    expected = np.r_[np.full(copies, 3.0), np.ones(5)][:5]
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-12)
    assert (found.residual_norms < 1e-12).all()


@pytest.mark.parametrize("copies", [3, 9, 12])
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_on_its_way_leaves_the_wanted_ones_converged(copies, seed, rng):
    """The look for missed copies meets a further one: Ritz vectors turn towards it."""
    clusters = [np.full(10, 2.3), np.full(10, 0.3), np.full(10, 0.1), np.zeros(260)]
    a = rotated(rng, np.concatenate([np.full(copies, 9.8), *clusters]))
    n = len(a)
    found = ff.linalg.eigsh(lambda v: a @ v, 2, n=n, dtype="float64", seed=seed)
    assert found.converged.all()
    assert found.certified
    np.testing.assert_array_less(found.residual_norms, 9.8 * 4 * np.finfo(float).eps * n**0.5)
