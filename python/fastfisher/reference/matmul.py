# SPDX-License-Identifier: Apache-2.0
"""Reference of `matmul`."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def matmul(a: Array, b: Array) -> Array:
    """Product of `a` (n, k) and `b` (k, m) in float64."""
    return np.asarray(np.einsum("nk,km->nm", a.astype(np.float64), b.astype(np.float64)))
