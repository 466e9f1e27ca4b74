# SPDX-License-Identifier: Apache-2.0
"""`matmul`, the yardstick of the floors."""

from __future__ import annotations

import numpy as np
import pytest

from cases import assert_close
from fastfisher import _native, reference


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 0, 3), (0, 4, 3), (7, 300, 5), (129, 65, 257)], ids=str
)
def test_matmul_equals_reference(shape, dtype, rng):
    n, k, m = shape
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((n, k), (k, m)))
    for left, right in [
        (a, b),
        (np.asfortranarray(a), np.asfortranarray(b)),
        (a[::-1], b[:, ::-1]),
    ]:
        out = np.full((n, m), np.nan, dtype)
        _native.matmul(left, right, out)
        assert_close(out, reference.matmul(left, right), terms=k, dtype=dtype)


def test_matmul_refuses_what_does_not_fit(rng):
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((5, 2))
    with pytest.raises(ValueError, match="matmul: b: got shape"):
        _native.matmul(a, b, np.empty((3, 2)))
    with pytest.raises(TypeError, match="matmul: b: expected dtype float64"):
        _native.matmul(a, b[:4].astype("float32"), np.empty((3, 2)))
    with pytest.raises(ValueError, match="out: is read-only"):
        _native.matmul(a, b[:4], np.broadcast_to(0.0, (3, 2)))
