# SPDX-License-Identifier: Apache-2.0
"""What two Kronecker factors do to a weight and its bias, on the CPU and on devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import device_name
from fastfisher._native import SandwichItem

__all__ = ["SandwichItem", "sandwich"]


def sandwich(items: list[SandwichItem]) -> None:
    """``[out out_b] = left [w b] right`` of every item; arrays are in numpy's words."""
    kinds: dict[Any, list[SandwichItem]] = {}
    for item in items:  # of one dtype, with matrices or with factors
        kinds.setdefault((item.out.dtype, item.left.ndim), []).append(item)
    for alike in kinds.values():
        try:
            _native.sandwich(alike)
        except NotImplementedError:  # a device without that kernel
            if device_name(alike[0].out) == "cpu":
                raise
            for item in alike:
                _by_library(item)


def _by_library(item: SandwichItem) -> None:
    """Products between the arrays as they lie: weight and bias put together would be copied."""
    left, w, b, right, out, out_b = item
    o, i = w.shape
    inner = np.empty((o, len(right)), w.dtype, like=w)
    np.matmul(left, w, out=inner[:, :i])
    if len(right) > i:
        inner[:, i:] = left @ b[:, None]
        out_b[...] = (inner @ right[:, i:])[:, 0]
    np.matmul(inner, right[:, :i], out=out)
