# SPDX-License-Identifier: Apache-2.0
"""Linear algebra on a GPU; and on CPU tensors that pass for a device, which shows hidden copies."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _arrays, _native, reference
from fastfisher.errors import ConvergenceWarning, NonFiniteError, NotPositiveDefiniteError
from test_linalg import CLUSTERS, assert_pairs, rotated, symmetric

WHICH = ["LA", "SA", "LM", "BE"]


@pytest.fixture
def pretended():
    """Pretended device with the CPU's kernels, and what was read back from it."""
    pytest.importorskip("torch")
    import pretend_device

    with pretend_device.pretend():
        yield pretend_device


@pytest.fixture(params=["pretended", "torch", "cupy"])
def to_device(request):
    if request.param == "pretended":
        return request.getfixturevalue("pretended").moved
    device = request.getfixturevalue("cuda_device")
    library = pytest.importorskip(request.param)
    if request.param == "cupy":
        return library.asarray
    return lambda host: library.from_numpy(host).to(device)


def on_host(found: ff.linalg.EigshResult) -> ff.linalg.EigshResult:
    values, vectors, norms = map(
        _arrays.to_numpy, (found.values, found.vectors, found.residual_norms)
    )
    return ff.linalg.EigshResult(
        values, vectors, norms, found.converged, found.certified, found.matvecs
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (129, 8), (700, 11), (1500, 41)])
def test_symm_equals_reference(n, k, dtype, rng, to_device):
    a = symmetric(rng, n, dtype, 2)
    x, scale = rng.standard_normal((2, k, n)).astype(dtype), np.array([0.5, 4.0])
    expected = reference.symm(a, x, scale)
    moved, columns, sizes = to_device(a), to_device(x), to_device(scale)
    wide = to_device(np.repeat(a, 2, axis=2))
    size = np.abs(a) @ np.abs(x).transpose(0, 2, 1)
    bound = np.sqrt(n) * np.finfo(dtype).eps * (scale**2)[:, None, None] * size.transpose(0, 2, 1)
    first = None
    # In row-major order, in column-major order, with gaps that no kernel copies in one piece.
    for given in (moved, moved, moved.swapaxes(1, 2), wide[:, :, ::2], wide[:, :, 1::2]):
        out = _arrays.empty((2, k, n), columns)
        _native.symm(given, columns, sizes, out)
        host = _arrays.to_numpy(out)
        assert (np.abs(host - expected) <= bound + np.finfo(dtype).tiny).all()
        first = host if first is None else first
        np.testing.assert_array_equal(host, first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_symmetry_equals_reference(dtype, rng, to_device):
    for n in (1, 31, 600):
        a = rng.standard_normal((3, n, n)).astype(dtype)
        moved = to_device(a)
        out = _arrays.empty((3, 2), moved, "float64")
        for given in (moved, moved.swapaxes(1, 2)):
            _native.symmetry(given, out)
            np.testing.assert_array_equal(_arrays.to_numpy(out), reference.symmetry(a))
    a[1, 0, n - 1] = np.nan
    _native.symmetry(to_device(a), out)
    assert list(np.isfinite(_arrays.to_numpy(out)[:, 0])) == [True, False, True]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "i", "j"), [(1, 1, 1), (511, 7, 3), (5000, 132, 8), (4096, 21, 72)])
def test_panel_steps_equal_reference(n, i, j, dtype, rng, to_device):
    x, y = (rng.standard_normal((2, m, n)).astype(dtype) for m in (i, j))
    weights, eps = rng.standard_normal((2, j, i)), np.finfo(dtype).eps
    columns, rows, small = to_device(x), to_device(y), to_device(weights)
    out = _arrays.empty((2, j, i), columns, "float64")
    _native.panel_dots(columns, rows, out)
    size = np.linalg.norm(y, axis=2)[:, :, None] * np.linalg.norm(x, axis=2)[:, None, :]
    apart = np.abs(_arrays.to_numpy(out) - reference.panel_dots(x, y))
    assert (apart <= 4 * eps * size).all()
    for keep in (True, False):
        got = to_device(y)
        _native.panel_combine(small, columns, got, keep=keep)
        expected = reference.panel_combine(weights, x, keep, y)
        bound = 8 * eps * (np.abs(weights) @ np.abs(x) + np.abs(y))
        assert (np.abs(_arrays.to_numpy(got) - expected) <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_panel_remove_equals_reference(dtype, rng, to_device):
    for i, n in ((0, 5001), (1, 5001), (21, 5001), (9, 100003)):
        q = [np.linalg.qr(rng.standard_normal((n, i)))[0].T for _ in range(2)]
        x, y = np.stack(q).astype(dtype, "C"), rng.standard_normal((2, 8, n)).astype(dtype)
        basis, rest = to_device(x), to_device(y)
        small = _arrays.empty((2, 8, i + 8), rest, "float64")
        _native.panel_remove(basis, rest, small)
        expected, expected_small = reference.panel_remove(x, y)
        bound = 100 * np.finfo(dtype).eps
        np.testing.assert_allclose(_arrays.to_numpy(rest), expected, atol=bound)
        np.testing.assert_allclose(
            _arrays.to_numpy(small), expected_small, atol=bound * np.abs(expected_small).max()
        )
        assert np.abs(reference.panel_dots(x, _arrays.to_numpy(rest))).max(initial=0) <= bound


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "first", "b"), [(40, 0, 1), (301, 5, 3), (3000, 20, 8)])
def test_lanczos_steps_equal_reference(n, first, b, dtype, fresh, rng, to_device):
    count, eps = 3, np.finfo(dtype).eps
    a, scale = symmetric(rng, n, dtype, 2), np.array([0.5, 1.0])
    basis = np.zeros((2, first + 5 * b, n))
    basis[:, : first + b] = [np.linalg.qr(m.T)[0].T for m in rng.standard_normal((2, first + b, n))]
    if fresh:
        basis[:, first : first + b] = rng.standard_normal((2, b, n))
    basis = basis.astype(dtype)
    given, rows = to_device(a), to_device(basis)
    small = _arrays.empty((count + 1, 2, b, first + (count + 1) * b + 2), rows, "float64")
    seed = 5 if fresh and first else -1
    _native.lanczos_steps(given, to_device(scale), rows, first, small, fresh=fresh, seed=seed)
    if seed > 0:
        basis[:, first : first + b] = reference.drawn_rows(seed, 2, b, n)
    found = _arrays.to_numpy(small)
    expected, steps = reference.lanczos_steps(a, scale, basis, first, count, b, fresh=fresh)
    norm = 2 * np.linalg.norm(a[0]) / np.sqrt(n)
    np.testing.assert_allclose(_arrays.to_numpy(rows), expected, atol=2e3 * eps)
    for step in range(0 if fresh else 1, count + 1):
        p = first + step * b
        size = norm if step else np.sqrt(n)
        part, r = steps[step]
        np.testing.assert_allclose(found[step, :, :, :p], part, atol=1e3 * eps * size)
        np.testing.assert_allclose(found[step, :, :, p : p + b], r, atol=1e3 * eps * size)
        assert (found[step, :, :, -1] < 1e-3).all()


def test_lanczos_steps_say_what_is_singular(rng, to_device):
    a = np.zeros((2, 300, 300))
    a[0] = symmetric(rng, 300)
    a[1, :10, :10] = symmetric(rng, 10)
    basis = np.zeros((2, 40, 300))
    basis[:, :8] = np.linalg.qr(rng.standard_normal((300, 8)))[0].T
    small = _arrays.empty((4, 2, 8, 33), to_device(basis), "float64")
    _native.lanczos_steps(
        to_device(a), to_device(np.ones(2)), to_device(basis), 0, small, fresh=False
    )
    apart = _arrays.to_numpy(small)[1:, :, :, -1].max(2)
    assert (apart[:, 0] < 1e-3).all()
    assert apart[0, 1] < 1e-3 < apart[1, 1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"first": 20}, "basis: expected room for 44 vectors, got 40"),
        ({"small": np.empty((3, 1, 9, 40))}, "small: expected blocks of 1 to 8 vectors, got 9"),
        ({"small": np.empty((3, 1, 8, 24))}, "small: expected a last extent above 24, got 24"),
        ({"basis": np.empty((1, 40, 99))}, "basis"),
        ({"first": -1}, "small"),
    ],
)
def test_lanczos_steps_refuse(changes, text):
    given = {
        "a": np.eye(100)[None],
        "scale": np.ones(1),
        "basis": np.zeros((1, 40, 100)),
        "first": 0,
        "small": np.empty((3, 1, 8, 40)),
    }
    with pytest.raises(ValueError, match=text):
        _native.lanczos_steps(**(given | changes), fresh=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigsh_of_few_directions(dtype, rng, to_device):
    # The blocks run out of directions: what was queued behind that is thrown away.
    b = rng.standard_normal((1000, 30))
    a = ((b @ b.T) / 1000).astype(dtype)
    for options in ({}, {"v0": np.ones((1000, 3))}, {"block": 5}):
        found = on_host(ff.linalg.eigsh(to_device(a), 12, max_iter=500, **options))
        exact = np.linalg.eigvalsh(b.T @ b / 1000)[::-1][:12]
        np.testing.assert_allclose(found.values, exact, atol=50 * np.finfo(dtype).eps)
        assert found.certified is True
        assert found.converged.all()
        assert_pairs(a, found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", WHICH)
def test_eigsh_equals_cpu(which, dtype, rng, to_device):
    values = np.sort(rng.standard_normal(600) ** 3)
    a = rotated(rng, values, dtype)
    given = to_device(a)
    for options in ({}, {"max_iter": 5000}):  # by a decomposition, by iteration
        expected = ff.linalg.eigsh(a, 6, which=which, **options)
        found = ff.linalg.eigsh(given, 6, which=which, **options)
        assert type(found.vectors) is type(given)
        assert _arrays.device_name(found.values) == _arrays.device_name(given)
        again = on_host(ff.linalg.eigsh(given, 6, which=which, **options))
        found = on_host(found)
        np.testing.assert_array_equal(again.vectors, found.vectors)
        np.testing.assert_array_equal(again.values, found.values)
        scale = np.abs(values).max()
        bound = 50 * np.finfo(dtype).eps * scale
        np.testing.assert_allclose(found.values, expected.values, atol=bound)
        assert found.certified is True
        assert found.converged.all()
        assert (found.matvecs > 0) == bool(options)
        assert_pairs(a, found)
        exact = np.linalg.norm(
            a.astype(float) @ found.vectors - found.vectors.astype(float) * found.values, axis=0
        )
        np.testing.assert_allclose(found.residual_norms, exact, rtol=0.5, atol=bound)


@pytest.mark.parametrize("name", CLUSTERS)
def test_all_copies_are_found(name, rng, to_device):
    values, k = CLUSTERS[name]
    given = to_device(rotated(rng, values))
    expected = np.sort(values)[::-1][:k]
    for options in ({}, {"max_iter": 5000}):
        found = on_host(ff.linalg.eigsh(given, k, **options))
        if found.certified:
            np.testing.assert_allclose(found.values, expected, atol=1e-12)
        assert found.certified or (name.startswith("ten") and options)
        assert found.converged.all()


def test_hard_sizes_and_scales(rng, to_device):
    for n in (1, 2, 7, 310):
        a = symmetric(rng, n)
        for k in (0, 1, n, n + 3):
            found = on_host(ff.linalg.eigsh(to_device(a), k))
            assert found.vectors.shape == (n, min(k, n))
            assert found.certified is True
            assert_pairs(a, found)
    assert ff.linalg.eigsh(to_device(np.zeros((0, 0))), 2).values.shape == (0,)
    assert ff.linalg.eigsh(to_device(np.zeros((0, 3, 3))), 2).values.shape == (0, 2)
    a = rotated(rng, np.logspace(0, -8, 1000))
    for size in (1e-290, 1e290):
        found = on_host(ff.linalg.eigsh(to_device(a * size), 3))
        np.testing.assert_allclose(found.values, np.logspace(0, -8, 1000)[:3] * size, rtol=1e-12)


def test_batch_is_solved_in_step(rng, to_device):
    a = symmetric(rng, 400, "float32", 3)
    for options in ({}, {"block": 4}):
        found = on_host(ff.linalg.eigsh(to_device(a), 2, which="BE", **options))
        assert found.values.shape == (3, 2)
        assert found.certified.shape == (3,)
        for matrix, values in zip(a, found.values, strict=True):
            exact = np.linalg.eigvalsh(matrix.astype(float))
            np.testing.assert_allclose(values, exact[[-1, 0]], rtol=1e-5)


def test_jacobians_and_callables(rng, to_device):
    values = np.logspace(0, -6, 700)
    matrix = to_device(rotated(rng, values))
    for options in ({"like": matrix}, {"v0": matrix[:, 0]}):
        found = ff.linalg.eigsh(lambda v: matrix @ v, 3, n=700, **options)
        assert type(found.vectors) is type(matrix)
        np.testing.assert_allclose(_arrays.to_numpy(found.values), values[:3], atol=1e-13)
    j = rng.standard_normal((80, 10, 900))
    layer = ff.Explicit(to_device(j))
    jacobian = ff.Jacobian.from_factors([layer])
    found = ff.linalg.eigsh(jacobian, 4)
    flat = j.reshape(800, 900)
    exact = np.linalg.eigvalsh(flat @ flat.T)[::-1][:4]
    np.testing.assert_allclose(_arrays.to_numpy(found.values), exact, rtol=1e-10)
    with pytest.raises(TypeError, match="expected a product of library"):
        ff.linalg.eigsh(lambda v: np.zeros(v.shape), 3, n=700, like=matrix)
    with pytest.raises(ValueError, match="expected a product of shape"):
        ff.linalg.eigsh(lambda v: v[:4], 3, n=700, like=matrix)
    with pytest.raises(NonFiniteError, match="finite products"):
        ff.linalg.eigsh(lambda v: v * np.inf, 3, n=700, like=matrix)
    with pytest.raises(ValueError, match="expected a symmetric operator"):
        ff.linalg.eigsh(lambda v: v.cumsum(0), 3, n=70, like=matrix)


def test_refusals_and_warnings(rng, to_device):
    a = symmetric(rng, 40)
    bad = a.copy()
    bad[3, 5] = np.nan
    with pytest.raises(NonFiniteError, match=r"A: .* at index \(3, 5\)"):
        ff.linalg.eigsh(to_device(bad), 2)
    bad[3, 5] = 9
    with pytest.raises(ValueError, match=r"symmetric matrix, got A\[5, 3\]"):
        ff.linalg.eigsh(to_device(bad), 2)
    for given, error, match in (
        (a[:3], ValueError, "A: expected shape"),
        (a.astype("float16"), TypeError, "dtype"),
        (a.astype("int64"), TypeError, "dtype"),
    ):
        with pytest.raises(error, match=match):
            ff.linalg.eigsh(to_device(given), 1)
    with pytest.raises(TypeError, match="v0: expected an array on cpu"):
        ff.linalg.eigsh(a, 1, v0=to_device(np.ones(40)))
    with pytest.raises(TypeError, match="b: expected an array of library"):
        ff.linalg.cg(to_device(a), np.ones(40))
    with pytest.raises(NonFiniteError, match=r"b: .* nan at index \(1,\)"):
        ff.linalg.cg(to_device(np.eye(3)), to_device(np.array([1.0, np.nan, 0.0])))
    with pytest.warns(ConvergenceWarning, match="did not reach"):
        found = ff.linalg.eigsh(to_device(symmetric(rng, 1200)), 3, max_iter=3)
    assert not found.converged.all()
    assert found.certified is False


def test_estimates_and_solves_equal_cpu(rng, to_device):
    values = np.logspace(0, -3, 300)
    a = rotated(rng, values)
    given, b = to_device(a), rng.standard_normal((300, 3))
    for call in (
        lambda m: ff.linalg.trace(m).value,
        lambda m: ff.linalg.trace(m, matvecs=300).value,
        lambda m: ff.linalg.logdet(m, damping=0.1).value,
        lambda m: ff.linalg.spectral_density(m).mean,
        lambda m: ff.linalg.spectral_density(m).second_moment,
    ):
        assert call(given) == pytest.approx(call(a), rel=1e-8)
    solved = ff.linalg.cg(given, to_device(b), tol=1e-10, preconditioner=lambda r: r * 1.5)
    assert type(solved.x) is type(given)
    assert solved.converged.all()
    np.testing.assert_allclose(a @ _arrays.to_numpy(solved.x), b, atol=1e-7)
    one = ff.linalg.cg(lambda v: given @ v, to_device(b[:, 0]), n=300)
    assert one.x.shape == (300,)
    assert one.converged is True
    estimate = ff.linalg.trace(lambda v: given @ v, n=300, like=given)
    assert estimate.value == pytest.approx(ff.linalg.trace(a).value, rel=1e-8)
    with pytest.warns(ConvergenceWarning, match="cg"):
        ff.linalg.cg(given, to_device(b), max_iter=2)
    for call in (lambda: ff.linalg.cg(-given, to_device(b)), lambda: ff.linalg.logdet(-given)):
        with pytest.raises(NotPositiveDefiniteError):
            call()


def test_few_reads_a_step(rng, pretended):
    a = pretended.moved(rotated(rng, np.arange(1, 1601) ** -1.0, "float32"))
    found = ff.linalg.eigsh(a, 10)
    passes = found.matvecs / 8
    assert found.certified
    assert sum(pretended.reads.values()) <= 2.6 * passes + 8


def test_cuda_takes_any_stream(rng, cuda_device):
    torch = pytest.importorskip("torch")
    a = rotated(rng, np.logspace(0, -6, 1300), "float32")
    given = torch.from_numpy(a).to(cuda_device)
    torch.cuda.synchronize()
    first = on_host(ff.linalg.eigsh(given, 5))
    with torch.cuda.stream(torch.cuda.Stream()):
        other = on_host(ff.linalg.eigsh(given, 5))
    np.testing.assert_array_equal(first.vectors, other.vectors)
    assert_pairs(a, first)
    assert given.requires_grad_(True) is given
    with_gradients = on_host(ff.linalg.eigsh(given, 5))
    np.testing.assert_array_equal(first.values, with_gradients.values)
