# SPDX-License-Identifier: Apache-2.0
"""eigh_ends: residuals, orthonormality and completeness where inverse iteration is hardest."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _native, reference


def ends(a: np.ndarray, which: str, k: int, scale: np.ndarray | None = None, threads: int = 0):
    """Ascending values, vectors as rows, residual norms, norm."""
    e, n = a.shape[:2]
    values, norms, norm = np.empty((e, k)), np.empty((e, k)), np.empty(e)
    vectors = np.empty((e, k, n), a.dtype)
    scale = np.ones(e) if scale is None else scale
    _native.eigh_ends(a, scale, which, values, vectors, norms, norm, threads=threads)
    order = np.argsort(values, 1, kind="stable")
    return (
        np.take_along_axis(values, order, 1),
        np.take_along_axis(vectors, order[:, :, None], 1),
        np.take_along_axis(norms, order, 1),
        norm,
    )


def assert_ends(a: np.ndarray, which: str, k: int, scale: np.ndarray | None = None) -> None:
    values, vectors, norms, norm = ends(a, which, k, scale)
    scale = np.ones(len(a)) if scale is None else scale
    exact, _ = reference.eigh_ends(a, scale, which, k)
    n, eps = a.shape[1], float(np.finfo(a.dtype).eps)
    lower = np.tril(a.astype(np.float64)) * scale[:, None, None] ** 2
    full = lower + np.tril(lower, -1).transpose(0, 2, 1)
    sizes = np.abs(np.linalg.eigvalsh(full)).max(1, initial=0)
    wide = vectors.astype(np.float64)
    bound = 4 * eps * (np.sqrt(n) + 4)
    for m in range(len(a)):
        assert norm[m] == pytest.approx(sizes[m], rel=2e-3, abs=2e-3)
        if which == "LM":  # ties between the two ends are decided by roundings
            got, expected = np.sort(np.abs(values[m])), np.sort(np.abs(exact[m]))
        else:
            got, expected = values[m], exact[m]
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound * sizes[m])
        residual = np.linalg.norm(wide[m] @ full[m] - values[m][:, None] * wide[m], axis=1)
        assert residual.max(initial=0) <= bound * sizes[m]
        np.testing.assert_allclose(norms[m], residual, rtol=1e-2, atol=bound * sizes[m])
        np.testing.assert_allclose(wide[m] @ wide[m].T, np.eye(k), atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 31, 64, 65, 200])
def test_eigh_ends_equals_reference(n, which, dtype, rng):
    a = rng.standard_normal((3, n, n)).astype(dtype)
    a += a.transpose(0, 2, 1).copy()
    scale = np.array([1.0, 0.5, 4.0])
    for k in {1, min(n, 5), n}:
        assert_ends(a, which, k, scale)
    for given in (a.transpose(0, 2, 1), a[:, ::-1, ::-1], np.repeat(a, 2, axis=2)[:, :, ::2]):
        assert_ends(given, which, min(n, 2))


@pytest.mark.parametrize("triangle", ["upper", "lower"])
def test_one_triangle_is_read(triangle, rng):
    a = rng.standard_normal((2, 40, 40))
    a += a.transpose(0, 2, 1).copy()
    expected = ends(a, "LA", 3)
    a[:, *np.triu_indices(40, 1)] = np.nan
    given = a if triangle == "upper" else np.ascontiguousarray(a).transpose(0, 2, 1)
    for got, wanted in zip(ends(given, "LA", 3), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def wilkinson(n: int) -> np.ndarray:
    half = (n - 1) / 2
    return np.diag(np.abs(np.arange(n) - half)) + np.diag(np.ones(n - 1), 1) + np.diag(
        np.ones(n - 1), -1
    )  # fmt: skip


def hard(name: str, n: int, rng) -> np.ndarray:
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    spectra = {
        "zero": np.zeros(n),
        "identity": np.ones(n),
        "half-equal": np.r_[np.ones(n // 2), np.linspace(0, 0.5, n - n // 2)],
        "plus-minus": np.r_[np.ones(n // 2), -np.ones(n - n // 2)],
        "close": 1 + 1e-14 * np.arange(n),
        "graded": np.logspace(0, -200, n),
        "rank-one": np.r_[np.zeros(n - 1), 3.0],
        "tiny-rest": np.r_[1.0, np.full(n - 1, 1e-160)],
    }
    if name == "wilkinson":
        return wilkinson(n)
    if name == "glued":
        a = np.kron(np.eye(n // 21), wilkinson(21))
        side = np.arange(20, len(a) - 1, 21)
        a[side, side + 1] = a[side + 1, side] = 1e-14
        return a
    if name == "diagonal":
        return np.diag(np.repeat(np.arange(n // 4), 4).astype(float))
    if name == "arrow":
        a = np.diag(np.ones(n))
        a[0], a[:, 0] = 1e-9, 1e-9
        return a
    a = (q * spectra[name]) @ q.T
    return (a + a.T) / 2


HARD = [
    "zero", "identity", "half-equal", "plus-minus", "close", "graded", "rank-one", "tiny-rest",
    "wilkinson", "glued", "diagonal", "arrow",
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", HARD)
def test_clusters_are_complete_and_orthonormal(name, dtype, rng):
    a = hard(name, 84, rng).astype(dtype)[None]
    for which in ("LA", "SA", "LM", "BE"):
        for k in (1, 7, 21, a.shape[1]):
            assert_ends(a, which, k)


@pytest.mark.parametrize("name", ["plus-minus", "rank-one", "graded", "tiny-rest", "close"])
def test_no_draw_of_a_cluster_loses_digits(name):
    for seed in range(30):
        a = hard(name, 84, np.random.default_rng(seed))[None]
        assert_ends(a, "LA", 84)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float64", 1e150), ("float64", 1e-150), ("float64", 1e300), ("float64", 1e-300),
     ("float32", 1e30), ("float32", 1e-30)],
)  # fmt: skip
def test_entries_near_the_ends_of_the_range(dtype, size, rng):
    a = rng.standard_normal((2, 60, 60))
    a += a.transpose(0, 2, 1).copy()
    found = ff.linalg.eigsh((a * size).astype(dtype), 4, which="BE")
    expected, vectors = np.linalg.eigh(a)
    bound = 100 * float(np.finfo(dtype).eps) * np.abs(expected).max()
    np.testing.assert_allclose(
        found.values.astype(np.float64) / size, expected[:, [-1, -2, 1, 0]], rtol=0, atol=bound
    )
    aligned = np.einsum("eni,eni->ei", found.vectors, vectors[:, :, [-1, -2, 1, 0]])
    np.testing.assert_allclose(np.abs(aligned), 1, atol=1e-4)
    assert found.converged.all()
    assert found.certified.all()


def test_ten_equal_largest_of_a_thousand_are_certified(rng):
    values = np.r_[np.full(10, 2.0), np.linspace(0, 1, 990)]
    q = np.linalg.qr(rng.standard_normal((1000, 1000)))[0]
    a = (q * values) @ q.T
    found = ff.linalg.eigsh((a + a.T) / 2, 10)
    assert found.certified is True
    assert found.converged.all()
    np.testing.assert_allclose(found.values, 2, atol=1e-12)
    projected = q[:, :10].T @ found.vectors
    np.testing.assert_allclose(np.linalg.svd(projected)[1], 1, atol=1e-10)


def test_bits_depend_on_the_matrix_alone(rng):
    a = rng.standard_normal((5, 130, 130)).astype(np.float32)
    a += a.transpose(0, 2, 1).copy()
    expected = ends(a, "BE", 4, threads=1)
    for threads in (2, 3):
        for got, wanted in zip(ends(a, "BE", 4, threads=threads), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(ends(a[3:4], "BE", 4), expected, strict=True):
        np.testing.assert_array_equal(got, wanted[3:4])
    failures = []

    def work():
        if not np.array_equal(ends(a, "BE", 4)[1], expected[1]):
            failures.append(threading.get_ident())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_eigh_ends_refuses(rng):
    a = rng.standard_normal((2, 9, 9))

    def call(values=(2, 3), vectors=(2, 3, 9), norms=(2, 3), norm=(2,), dtype="float64"):
        outs = [np.empty(s) for s in (values, norms, norm)]
        rows = np.empty(vectors, dtype)
        _native.eigh_ends(a, np.ones(2), "LA", outs[0], rows, outs[1], outs[2])

    call()
    for more, error, match in (
        ({"values": (2, 10), "vectors": (2, 10, 9), "norms": (2, 10)}, ValueError, "pairs"),
        ({"values": (1, 3)}, ValueError, "values"),
        ({"vectors": (2, 3, 8)}, ValueError, "vectors"),
        ({"norms": (2, 2)}, ValueError, "residual_norms"),
        ({"norm": (3,)}, ValueError, "norm"),
        ({"dtype": "float32"}, TypeError, "dtype"),
    ):
        with pytest.raises(error, match=match):
            call(**more)
