# SPDX-License-Identifier: Apache-2.0
"""`largest`: the largest magnitude of an array, which tells whether all entries are finite."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastfisher import _native, reference
from fastfisher._finite import is_finite, largest

SHAPES = [(), (1,), (7,), (0, 3), (40, 33), (3, 1, 5, 2), (600_000,), (3, 300_001), (1000, 1300)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_largest_equals_reference(shape, dtype, rng):
    x = np.asarray(rng.standard_normal(shape), dtype)
    for layout in (x, x.T, x[::-1] if x.ndim else x, np.broadcast_to(x, (2, *x.shape))):
        expected = reference.largest(layout)
        assert _native.largest(layout, threads=1) == expected
        assert _native.largest(layout, threads=3) == expected
        assert largest([layout]) == [expected]
        assert is_finite(layout)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite(dtype, bad, rng):
    for size in (1, 50, 1_500_000):
        for place in {0, size // 2, size - 1}:
            x = rng.standard_normal(size).astype(dtype)
            x[place] = bad
            assert not math.isfinite(_native.largest(x))
            assert not is_finite(x)


def test_ends_of_the_range():
    for dtype in ("float32", "float64"):
        info = np.finfo(dtype)
        for value in (info.max, -info.max, info.smallest_subnormal, -0.0):
            assert _native.largest(np.full(5, value, dtype)) == abs(float(value))


def test_arrays_that_the_native_op_does_not_take(rng):
    packed = np.zeros(9, np.dtype([("pad", "u1"), ("x", "f4")]))["x"]
    packed[:] = rng.standard_normal(9)
    packed[4] = -8
    integers, swapped = np.array([3, -7, 2]), np.array([1.0, -2.5], ">f8")
    assert largest([packed, integers, swapped, np.zeros(0, int)]) == [8.0, 7.0, 2.5, 0.0]
    packed[2] = np.nan
    assert not is_finite(packed)
    with pytest.raises(TypeError, match="x: expected"):
        _native.largest(integers)
