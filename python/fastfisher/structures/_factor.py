# SPDX-License-Identifier: Apache-2.0
"""Cholesky factors in the native library's own form: `sandwich` multiplies by their inverses.

A third of the work of inverses, where these are not asked for themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import device_name, dtype_name, empty
from fastfisher._native import PsdItem

__all__ = ["factors", "has_factors"]

Host = np.ndarray[Any, Any]

_LINE = 64


def has_factors(matrix: Host) -> bool:
    """Whether there are factors of matrices like this one."""
    return device_name(matrix) == "cpu" and dtype_name(matrix) in ("float32", "float64")


def factors(matrices: list[Host], dampings: list[float]) -> list[Host | None]:
    """Factors of ``matrix + damping I``, of one dtype; None for one that is not positive definite.

    They mean something to this processor only.
    """
    if not matrices:
        return []
    outs = [_aligned(len(m), m) for m in matrices]
    items = [PsdItem(k, 0, k, 0, -1, 0, damping, False) for k, damping in enumerate(dampings)]
    reports = _native.psd("factor", matrices, outs, items, sizes=[len(m) for m in matrices])
    good = _native.PSD_KINDS.index("ok")
    return [out if one.kind == good else None for out, one in zip(outs, reports, strict=True)]


def _aligned(n: int, like: Host) -> Host:
    """Memory of a factor of n rows, where panels do not straddle cache lines."""
    size = _native.psd_factor_size(n, dtype_name(like), cuda=False)
    whole: Host = empty((size + _LINE // like.itemsize,), like)
    start = -whole.ctypes.data % _LINE // like.itemsize
    return whole[start : start + size]
