# SPDX-License-Identifier: Apache-2.0
"""Counts, seeds, sizes and real numbers that a caller gives."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["integer", "number"]


def integer(name: str, value: Any, *, least: int) -> int:
    """`value` as an int, of any integer type but bool.

    Raises
    ------
    ValueError
        Something else, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def number(name: str, value: Any, *, least: float | None = None, below: float = math.inf) -> float:
    """`value` as a float, of any finite real number but bool.

    Raises
    ------
    ValueError
        Something else, less than `least`, or not `below` the limit.
    """
    expected = "a finite number"
    if least is not None:
        expected += f" of at least {least:g}"
    if below != math.inf:
        expected += f" below {below:g}"
    # Arrays of one number are numbers.
    scalar = getattr(value, "shape", None) == () and hasattr(value, "__float__")
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        found = float(value) if scalar or real else math.nan
    except (OverflowError, TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or found >= below or (least is not None and found < least):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return found
