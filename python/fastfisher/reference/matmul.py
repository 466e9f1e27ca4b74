# SPDX-License-Identifier: Apache-2.0
"""Reference of `matmul` and `row_product`."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def matmul(a: Array, b: Array) -> Array:
    """Product of `a` (n, k) and `b` (k, m) in float64."""
    return np.asarray(np.einsum("nk,km->nm", a.astype(np.float64), b.astype(np.float64)))


def row_product(a: Array, b: Array) -> Array:
    """Product of each matrix of `a` (e, n, k) and of `b` (e, k, m) in float64.

    Where one has fewer than e, a divisor of it, its matrices come again and again.
    """
    count = max(len(a), len(b)) if len(a) and len(b) else 0
    pairs = (matmul(a[k % len(a)], b[k % len(b)]) for k in range(count))
    return np.array(list(pairs)).reshape(count, a.shape[1], b.shape[2])
