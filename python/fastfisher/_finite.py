# SPDX-License-Identifier: Apache-2.0
"""Largest magnitudes of arrays in numpy's words, which tell whether all entries are finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastfisher import _native

__all__ = ["is_finite", "largest"]

Host = np.ndarray[Any, Any]


def largest(arrays: list[Host]) -> list[float]:
    """``max |x|`` of each array; not finite if an entry is not, 0 if there is none."""
    found: list[Any] = []
    for x in arrays:
        if _is_native(x):
            found.append(_native.largest(x))
        elif x.size == 0:
            found.append(0.0)
        else:  # a minimum or maximum keeps NaN and shows infinity, without a temporary array
            found.append(np.maximum(x.max(), -x.min()))
    # One number an array is read back from a device, those of a kind at once.
    kinds: dict[str, list[int]] = {}
    for k, one in enumerate(found):
        if not isinstance(one, float):
            kinds.setdefault(str(one.dtype), []).append(k)
    for alike in kinds.values():
        for k, one in zip(alike, np.stack([found[k] for k in alike]).tolist(), strict=True):
            found[k] = float(one)
    return found


def is_finite(x: Host) -> bool:
    """Whether no entry is NaN or infinite."""
    return math.isfinite(largest([x])[0])


def _is_native(x: Host) -> bool:
    return (
        isinstance(x, np.ndarray)
        and x.dtype in (np.float32, np.float64)
        and x.flags.aligned
        and all(stride % x.itemsize == 0 for stride in x.strides)
    )
