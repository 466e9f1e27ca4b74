# SPDX-License-Identifier: Apache-2.0
"""Products with a Jacobian and second moments on a GPU: the CPU's cases against the reference."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from cases import assert_close
from fastfisher import _arrays, _by_library, _native, reference
from product_cases import CASES, PARTS, Case, Spec, conv, layer_of

# Many of the CPU's cases differ in what its tiles make of them, or take the reference long.
IDS = [
    "dense-off-the-tile",
    "shared-long",
    "shared-separable",
    "conv1-strided",
    "conv2-all-options",
    "conv2-depthwise",
    "conv2-only-padding",
    "conv2-separable",
    "conv3",
    "all-forms",
    "no-samples",
    "no-outputs",
    "no-inputs",
    "no-positions",
    "no-parameters",
]
EVERY = [case for case in CASES if case.id in IDS]
MIXED = next(case for case in CASES if case.id == "all-forms")
# Tiles of 128, vectors of 16 bytes, shares of the depth, more columns than are read at once.
LARGE = [
    Case("aligned", (Spec("dense", 132, 160, bias=True),), n=260, c=3),
    Case("outputs", (Spec("dense", 60, 40, bias=True), Spec("explicit", 700)), n=9, c=19),
    Case("images", (conv(9, 8, i=16, o=32, kernel=3, padding=1, bias=True),), n=20, c=2),
]


@pytest.fixture(params=["torch", "cupy"])
def to_device(request, cuda_device):
    library = pytest.importorskip(request.param)
    if request.param == "cupy":
        return library.asarray
    return lambda host: library.from_numpy(host).to(cuda_device)


@pytest.fixture
def to_torch(cuda_device):
    torch = pytest.importorskip("torch")
    return lambda host: torch.from_numpy(host).to(cuda_device)


@pytest.fixture(autouse=True)
def _no_library(monkeypatch):
    """Fail where the caller's library would be asked in the native op's place."""

    def refuse(*_):
        raise AssertionError("the native op was not used")

    monkeypatch.setattr(_by_library, "jvp", refuse)
    monkeypatch.setattr(_by_library, "vjp", refuse)


def on_device(case, arrays, to_device) -> ff.Jacobian:
    moved = [{name: to_device(x) for name, x in given.items()} for given in arrays]
    pairs = zip(case.specs, moved, strict=True)
    return ff.Jacobian.from_factors([layer_of(spec, given) for spec, given in pairs])


def compare(case, dtype, columns, rng, to_device, factors=None, change=lambda x: x) -> None:
    """Both products twice: within the tolerance of the reference, and the same to the bit."""
    arrays = case.draw(rng, lambda x: x.astype(factors or dtype))
    jacobian, plain = on_device(case, arrays, lambda x: change(to_device(x))), case.plain(arrays)
    n, c, (rows, parameters) = case.n, case.c, jacobian.shape
    v = rng.standard_normal((parameters, columns)).astype(dtype)
    u = rng.standard_normal((rows, columns)).astype(dtype)
    positions = max(max(s.t, int(np.prod(s.output() if s.space else 1))) for s in case.specs)
    results = []
    for _ in range(2):
        out = jacobian @ change(to_device(v))
        back = jacobian.T @ change(to_device(u))
        assert type(out) is type(back) is type(to_device(v))
        results.append((_arrays.to_numpy(out), _arrays.to_numpy(back)))
    (out, back), again = results
    np.testing.assert_array_equal(out, again[0])
    np.testing.assert_array_equal(back, again[1])
    expected = reference.jvp(plain, v).reshape(rows, columns)
    assert_close(out, expected, terms=parameters * positions, dtype=dtype)
    expected = reference.vjp(plain, u.reshape(n, c, columns))
    assert_close(back, expected, terms=rows * positions, dtype=dtype)


def test_the_cpu_needs_no_library() -> None:
    assert not _by_library.is_needed_for_products([ff.Explicit(np.zeros((1, 1, 1)))])


def test_a_gpu_without_a_backend_needs_the_library(monkeypatch) -> None:
    monkeypatch.setattr(_by_library, "device_name", lambda _: "cuda:0")
    layers = [ff.Explicit(np.zeros((1, 1, 1)))]
    for available in (False, True):
        info = {"backends": {"cuda": {"available": available}}}
        monkeypatch.setattr(_native, "build_info", lambda info=info: info)
        assert _by_library.is_needed_for_products(layers) is not available


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_cuda_products_equal_reference(case, to_torch, rng) -> None:
    compare(case, "float32", 3, rng, to_torch)


@pytest.mark.parametrize(("dtype", "columns"), [("float32", 1), ("float32", 8), ("float64", 40)])
@pytest.mark.parametrize("case", [*LARGE, *PARTS[:1], *PARTS[4:5]], ids=str)
def test_cuda_products_of_many_tiles(case, dtype, columns, to_torch, rng) -> None:
    compare(case, dtype, columns, rng, to_torch)


def test_cuda_products_of_both_libraries(to_device, rng) -> None:
    compare(MIXED, "float64", 2, rng, to_device)
    compare(MIXED, "float32", 1, rng, to_device, factors="float16")


def test_cuda_widens_bfloat16(to_torch, rng) -> None:
    torch = pytest.importorskip("torch")

    def narrowed(x):  # numbers that bfloat16 holds exactly
        return torch.from_numpy(x).bfloat16().float().numpy()

    arrays = MIXED.draw(rng, lambda x: narrowed(x.astype("float32")))
    jacobian = on_device(MIXED, arrays, lambda x: to_torch(x).bfloat16())
    v = rng.standard_normal((jacobian.shape[1], 3)).astype("float32")
    got = _arrays.to_numpy(jacobian @ to_torch(v))
    expected = reference.jvp(MIXED.plain(arrays), v).reshape(got.shape)
    assert_close(got, expected, terms=30 * len(v), dtype="float32")


@pytest.mark.parametrize("how", ["turned", "gaps"])
def test_cuda_products_take_any_strides_and_streams(how, to_torch, rng) -> None:
    torch = pytest.importorskip("torch")

    def change(x):
        if how == "turned":
            axes = tuple(range(x.ndim))[::-1]
            return x.permute(axes).contiguous().permute(axes)
        return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]

    with torch.cuda.stream(torch.cuda.Stream()):
        for case in (MIXED, LARGE[2]):
            compare(case, "float32", 4, rng, to_torch, change=change)


def test_cuda_products_name_bad_input(to_torch, rng) -> None:
    arrays = MIXED.draw(rng, lambda x: x.astype("float32"))
    jacobian = on_device(MIXED, arrays, to_torch)
    rows, parameters = jacobian.shape
    v, u = to_torch(np.ones(parameters, "float32")), to_torch(np.ones((rows, 2), "float32"))
    v[7] = v[9] = np.nan
    u[5, 1] = np.inf
    with pytest.raises(ff.errors.NonFiniteError, match=r"^v: expected finite .* index \(7,\)"):
        jacobian @ v
    with pytest.raises(ff.errors.NonFiniteError, match=r"^u: expected finite .* index \(5, 1\)"):
        jacobian.T @ u
    v[:], u[:] = 1, 1
    jacobian.layers[1].g[2, 1, 3, 0] = np.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"^layers\[1\], g: .* index \(2, 1, 3, 0\)"):
        jacobian @ v
    with pytest.raises(ff.errors.NonFiniteError, match=r"^layers\[1\], g: .* index \(2, 1, 3, 0\)"):
        jacobian.T @ u


def test_cuda_products_report_overflow(to_torch) -> None:
    full = [to_torch(np.full(shape, 1e30, "float32")) for shape in ((2, 3), (2, 1, 4))]
    jacobian = ff.Jacobian.from_factors([ff.Dense(*full)])
    with pytest.raises(ff.errors.NumericalError, match="J @ v: the result overflows float32"):
        jacobian @ to_torch(np.ones(12, "float32"))
    with pytest.raises(ff.errors.NumericalError, match=r"J.T @ u: the result overflows float32"):
        jacobian.T @ to_torch(np.ones(2, "float32"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_moments_equal_reference(dtype, to_device, rng) -> None:
    sizes = [(1, 1), (0, 3), (3, 0), (257, 95), (600, 193), (90, 400), (5000, 64), (33, 130)] * 9
    hosts = [rng.standard_normal(shape).astype(dtype) for shape in sizes]
    ones = [k % 2 == 0 for k in range(len(sizes))]
    scales = [0.7 + k for k in range(len(sizes))]
    results = []
    for _ in range(2):
        arrays = [to_device(a) for a in hosts]
        arrays[3] = arrays[3].T.T if dtype == "float32" else arrays[3]
        outs = [
            to_device(np.full((a.shape[1] + one,) * 2, np.nan, dtype))
            for a, one in zip(hosts, ones, strict=True)
        ]
        _native.moments(arrays, outs, scales)
        results.append([_arrays.to_numpy(out) for out in outs])
    for a, out, again, scale, one in zip(hosts, *results, scales, ones, strict=True):
        np.testing.assert_array_equal(out, again)
        np.testing.assert_array_equal(out, out.T)
        assert_close(out, reference.moments(a, scale, one=one), terms=len(a), dtype=dtype)


def test_cuda_moments_show_what_is_not_finite(to_torch, rng) -> None:
    a = rng.standard_normal((300, 70)).astype("float32")
    a[280, 33] = np.inf
    out = to_torch(np.zeros((71, 71), "float32"))
    _native.moments([to_torch(a)], [out], [1.0])
    diagonal = np.diagonal(_arrays.to_numpy(out))
    assert not np.isfinite(diagonal[33])
    assert np.isfinite(diagonal).sum() == 70


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (130, 257, 65), (300, 0, 4), (256, 512, 128)])
def test_cuda_matmul(shape, dtype, to_torch, rng) -> None:
    n, k, m = shape
    a, b = (rng.standard_normal(x).astype(dtype) for x in ((n, k), (k, m)))
    out = to_torch(np.full((n, m), np.nan, dtype))
    _native.matmul(to_torch(a), to_torch(b), out)
    expected = a.astype("float64") @ b.astype("float64")
    assert_close(_arrays.to_numpy(out), expected, terms=k, dtype=dtype)
    _native.matmul(to_torch(a), to_torch(np.ascontiguousarray(b.T)).T, out)
    assert_close(_arrays.to_numpy(out), expected, terms=k, dtype=dtype)
