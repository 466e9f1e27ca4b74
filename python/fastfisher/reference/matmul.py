# SPDX-License-Identifier: Apache-2.0
"""Reference of `matmul` and `bmm`."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def matmul(a: Array, b: Array) -> Array:
    """Product of `a` (n, k) and `b` (k, m) in float64."""
    return np.asarray(np.einsum("nk,km->nm", a.astype(np.float64), b.astype(np.float64)))


def bmm(a: Array, b: Array) -> Array:
    """Product of each matrix of `a` (e, n, k) and its partner in `b` (e, k, m) in float64."""
    products = [matmul(left, right) for left, right in zip(a, b, strict=True)]
    return np.array(products).reshape(len(a), a.shape[1], b.shape[2])
