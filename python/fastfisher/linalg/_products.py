# SPDX-License-Identifier: Apache-2.0
"""Products with float64 vectors that stay where an operator is, for what needs products alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._arrays import Array, from_numpy, namespace, packed, to_dtype, to_numpy
from fastfisher.linalg._operators import Operator, operator

Host = np.ndarray[Any, Any]


def single(A: Any, n: int | None, like: Array | None = None) -> Operator:
    """Operator of one matrix, not of a batch."""
    a = operator(A, n, like=like)
    if not a.single:
        raise ValueError("A: expected one matrix or operator, got a batch")
    return a


def product(a: Operator, x: Array) -> Array:
    """Scaled product with rows, in float64: see `Operator.scale`."""
    rows = to_dtype(packed(x), str(a.dtype))[None]
    return to_dtype(a.apply(rows)[0], "float64")


def signs(a: Operator, rng: np.random.Generator, count: int) -> Array:
    """Random signs (count, n), the same on every device."""
    return from_numpy(rng.choice([-1.0, 1.0], (count, a.n)), a.like)


def inner(*pairs: tuple[Array, Array]) -> Host:
    """``<x[k], y[k]>`` of each pair (pairs, k), read back at once."""
    xp = namespace(pairs[0][0])
    return to_numpy(xp.stack([xp.einsum("kn,kn->k", x, y) for x, y in pairs]))
