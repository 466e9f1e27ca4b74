# SPDX-License-Identifier: Apache-2.0
"""The dense Gram on a GPU, and the parts of its way there that need none."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _arrays

OUTPUTS = ["full", "trace", "diagonal"]


def factors(rng, n, c, i, o, dtype):
    return rng.normal(size=(n, i)).astype(dtype), rng.normal(size=(n, c, o)).astype(dtype)


def test_workspace_crosses_by_dlpack(rng) -> None:
    torch = pytest.importorskip("torch")
    # Not an import statement: only _native.py imports this module. A torch tensor is no buffer.
    core = importlib.import_module("fastfisher._core")
    a, g = factors(rng, 5, 2, 3, 4, np.float32)
    out = np.empty((5, 5), np.float32)

    def call(workspace):
        layer = (0, a, g, None, False, None, -1)
        return core.gram([layer], [], out, workspace, None, 1, 0, False, 1 << 24, 0, 1)

    assert call(torch.empty(1 << 20, dtype=torch.uint8))[0] == 0
    np.testing.assert_array_equal(out, ff.gram(a, g, outputs="trace"))
    with pytest.raises(TypeError, match="workspace: expected dtype uint8"):
        call(torch.empty(1 << 20, dtype=torch.float32))
    with pytest.raises(ValueError, match="workspace: expected one packed axis"):
        call(torch.empty(1 << 21, dtype=torch.uint8)[::2])
    with pytest.raises(MemoryError, match="workspace"):
        call(torch.empty(8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="workspace"):
        call(None)


def test_scratch_on_cpu_is_numpy(xp) -> None:
    if xp.on_device:
        pytest.skip("about arrays on the CPU")
    scratch = _arrays.scratch(7, xp.array(np.zeros(2)))
    assert isinstance(scratch, np.ndarray)
    assert (scratch.shape, scratch.dtype) == ((7,), np.uint8)


@pytest.fixture(params=["torch", "cupy"])
def to_device(request, cuda_device):
    library = pytest.importorskip(request.param)
    if request.param == "cupy":
        return library.asarray
    return lambda host: library.from_numpy(host).to(cuda_device)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("square", [True, False], ids=["square", "cross"])
# One tile, edges of tiles, many tiles; few and many outputs.
@pytest.mark.parametrize(
    ("n", "c", "i", "o"), [(1, 1, 1, 1), (70, 1, 33, 65), (33, 10, 7, 5), (300, 3, 129, 40)]
)
def test_cuda_equals_cpu(rng, to_device, n, c, i, o, square, outputs, dtype) -> None:
    left, right = factors(rng, n, c, i, o, dtype), factors(rng, n + 3, c, i, o, dtype)
    other = None if square else right
    expected = ff.gram(*left, other=other, outputs=outputs, bias=True)
    moved = None if square else tuple(map(to_device, right))
    device = [to_device(x) for x in left]
    got = ff.gram(*device, other=moved, outputs=outputs, bias=True)
    assert type(got) is type(device[0])
    host = _arrays.to_numpy(got)
    error = np.linalg.norm(host - expected) / np.linalg.norm(expected)
    assert error <= np.sqrt(i * o * c) * np.finfo(dtype).eps
    if square:
        axes = {"full": (2, 3, 0, 1), "trace": (1, 0), "diagonal": (1, 0, 2)}[outputs]
        np.testing.assert_array_equal(host, host.transpose(axes))
    again = ff.gram(*device, other=moved, outputs=outputs, bias=True)
    np.testing.assert_array_equal(host, _arrays.to_numpy(again))


def test_cuda_takes_any_strides_and_streams(rng, cuda_device) -> None:
    torch = pytest.importorskip("torch")
    a, g = factors(rng, 65, 3, 20, 9, np.float32)
    expected = ff.gram(a, g)
    on_device = [torch.from_numpy(x).to(cuda_device) for x in (a, g)]
    slanted = [x.mT.contiguous().mT for x in on_device]
    with torch.cuda.stream(torch.cuda.Stream()):
        out = torch.empty((65, 3, 65, 6), device=cuda_device)[..., ::2]
        assert ff.gram(*slanted, out=out) is out
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=2e-4, atol=2e-4)


def test_cuda_reports_bad_input(rng, to_device) -> None:
    a, g = factors(rng, 6, 2, 3, 4, np.float32)
    big = to_device(np.full_like(a, 3e30)), to_device(np.full_like(g, 3e30))
    with pytest.raises(ff.errors.NumericalError, match="overflow"):
        ff.gram(*big)
    g[4, 1, 2] = np.inf
    g[5, 0, 0] = np.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"g: .* at index \(4, 1, 2\)"):
        ff.gram(to_device(a), to_device(g))


def test_cuda_scales_small_and_large_factors(rng, to_device) -> None:
    a, g = factors(rng, 9, 2, 5, 4, np.float32)
    expected = ff.gram(a, g)
    # Powers of two beyond float32's products: exact in both directions.
    got = ff.gram(to_device(a * np.float32(2.0**100)), to_device(g * np.float32(2.0**-100)))
    np.testing.assert_allclose(_arrays.to_numpy(got), expected, rtol=1e-4, atol=1e-4)
