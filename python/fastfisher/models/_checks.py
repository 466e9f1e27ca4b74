# SPDX-License-Identifier: Apache-2.0
"""Checks of a model's arguments: every message names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastfisher._arrays import Array, dtype_name, namespace, to_numpy
from fastfisher._layer import FLOATS
from fastfisher.errors import NonFiniteError


def checked_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Require widths of at least one layer."""
    try:
        checked = tuple(int(width) for width in widths if width == int(width))
    except (TypeError, ValueError):
        checked = ()
    if len(checked) < 2 or len(checked) != len(widths) or min(checked) < 1:
        raise ValueError(f"widths: expected two or more integers >= 1, got {widths!r}")
    return checked


def checked_dtype(dtype: str) -> Any:
    """Require a dtype that a model may have."""
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected 'float32' or 'float64', got {dtype!r}")
    return dtype


def require_member(name: str, value: object, allowed: Any) -> None:
    """Require one of the names `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")


def require_dtype(name: str, x: Array, dtype: str) -> None:
    """Require the model's dtype."""
    if dtype_name(x) != dtype:
        raise TypeError(f"{name}: expected the model's dtype {dtype}, got dtype {dtype_name(x)}")


def require_finite(name: str, x: Array) -> None:
    """Require finite numbers."""
    finite = namespace(x).isfinite(x)
    if not bool(finite.all()):
        index = np.argwhere(~to_numpy(finite))[0].tolist()
        raise NonFiniteError(f"{name}: NaN or infinity at index {index}; expected finite numbers")
