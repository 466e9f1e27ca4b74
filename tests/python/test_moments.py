# SPDX-License-Identifier: Apache-2.0
"""`moments`, the sums behind Kronecker factors."""

from __future__ import annotations

import numpy as np
import pytest

from cases import LAYOUTS, assert_close
from fastfisher import _native, reference

ALL = LAYOUTS | {
    # Of integers: roundings of equal terms would all go one way.
    "broadcast": lambda a: np.broadcast_to(np.round(a[:1]), a.shape),
}


def moments_of(a: np.ndarray, scale: float, *, one: bool, threads: int = 0) -> np.ndarray:
    size = a.shape[1] + one
    out = np.full((size, size), np.nan, a.dtype)
    _native.moments([a], [out], [scale], threads=threads)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("one", [False, True], ids=["plain", "with-ones"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (0, 3), (3, 0), (1, 40), (7, 16), (256, 33), (257, 95), (600, 193), (90, 400)],
    ids=str,
)
def test_moments_equals_reference(shape, one, dtype, rng):
    for layout in ALL.values():
        a = layout(rng.standard_normal(shape).astype(dtype))
        expected = reference.moments(a, 0.7, one=one)
        got = [moments_of(a, 0.7, one=one, threads=threads) for threads in (1, 2)]
        assert_close(got[0], expected, terms=shape[0], dtype=dtype)
        assert (got[0] == got[0].T).all()
        assert (got[0] == got[1]).all(), "the bits depend on the threads"


def test_moments_by_hand():
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    expected = np.array([[10, 14, 4], [14, 20, 6], [4, 6, 2]])
    assert (moments_of(a, 0.5, one=True) == expected / 2).all()


def test_moments_of_a_list(rng):
    sizes = [(40, 5), (3, 130), (0, 2), (300, 17), (9, 0)]
    arrays = [rng.standard_normal(shape) for shape in sizes]
    ones = [True, False, True, False, False]
    outs = [
        np.full((a.shape[1] + one, a.shape[1] + one), np.nan)
        for a, one in zip(arrays, ones, strict=True)
    ]
    scales = [1.0, -2.0, 3.0, 0.0, 1.0]
    _native.moments(arrays, outs, scales)
    for a, out, scale, one in zip(arrays, outs, scales, ones, strict=True):
        assert (out == moments_of(a, scale, one=one)).all(), "a neighbour changes the bits"
        assert_close(out, reference.moments(a, scale, one=one), terms=len(a), dtype="float64")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_shows_on_the_diagonal(bad, rng):
    a = rng.standard_normal((300, 70)).astype("float32")
    a[280, 33] = bad
    out = moments_of(a, 1.0, one=True)
    assert not np.isfinite(out[33, 33])
    assert np.isfinite(np.diagonal(out)).sum() == 70


def test_moments_refuses_what_does_not_fit(rng):
    a = rng.standard_normal((5, 3))
    for shape in ((2, 2), (5, 5), (3, 4)):
        with pytest.raises(ValueError, match=r"moments: out\[0\]: got shape"):
            _native.moments([a], [np.empty(shape)], [1.0])
    with pytest.raises(ValueError, match="expected packed rows"):
        _native.moments([a], [np.empty((3, 6))[:, ::2]], [1.0])
    with pytest.raises(TypeError, match=r"out\[0\]: expected dtype float64"):
        _native.moments([a], [np.empty((3, 3), "float32")], [1.0])
    with pytest.raises(TypeError, match=r"moments: a\[1\]: expected dtype float64"):
        _native.moments([a, a.astype("float32")], [np.empty((3, 3)), np.empty((3, 3))], [1.0, 1.0])
    with pytest.raises(TypeError, match="expected dtype float32 or float64"):
        _native.moments([a.astype("float16")], [np.empty((3, 3), "float16")], [1.0])
    with pytest.raises(ValueError, match=r"scale\[0\]: expected a finite number"):
        _native.moments([a], [np.empty((3, 3))], [np.nan])
    with pytest.raises(ValueError, match="overlaps"):
        _native.moments([a[:3]], [a[:3]], [1.0])
