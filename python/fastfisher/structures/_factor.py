# SPDX-License-Identifier: Apache-2.0
"""Cholesky factors in the native library's own form: `sandwich` multiplies by their inverses.

A third of the work of inverses, where these are not asked for themselves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import device_name, dtype_name, empty
from fastfisher._native import PsdItem

__all__ = ["factors", "form", "has_factors"]

Host = np.ndarray[Any, Any]

_LINE = 64


@lru_cache(maxsize=1)
def form() -> str:
    """Name of the form that factors have here: those of another one mean nothing."""
    return f"1 {_native.build_info()['simd']}"


def has_factors(matrix: Host) -> bool:
    """Whether there are factors of matrices like this one."""
    return device_name(matrix) == "cpu" and dtype_name(matrix) in ("float32", "float64")


def factors(matrices: list[Host], dampings: list[float]) -> list[Host | None]:
    """Factors of ``matrix + damping I``; None for one that is not positive definite.

    Those of one dtype are one call. They mean something to processors of this `form` only.
    """
    found: list[Host | None] = [None] * len(matrices)
    for kind in {m.dtype for m in matrices}:
        alike = [k for k, m in enumerate(matrices) if m.dtype == kind]
        mine = [matrices[k] for k in alike]
        outs = [_aligned(len(m), m) for m in mine]
        items = [PsdItem(k, 0, k, 0, -1, 0, dampings[at], False) for k, at in enumerate(alike)]
        reports = _native.psd("factor", mine, outs, items, sizes=[len(m) for m in mine])
        for at, out, one in zip(alike, outs, reports, strict=True):
            if one.kind == _native.PSD_KINDS.index("ok"):
                found[at] = out
    return found


def _aligned(n: int, like: Host) -> Host:
    """Memory of a factor of n rows, where panels do not straddle cache lines."""
    size = _native.psd_factor_size(n, dtype_name(like), cuda=False)
    whole: Host = empty((size + _LINE // like.itemsize,), like)
    start = -whole.ctypes.data % _LINE // like.itemsize
    return whole[start : start + size]
