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


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    above: bool = False,
    high: float = math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a float: a finite real number, an array of one too, but no bool.

    At least `low`, or `above` it; at most `high`, and `below` a limit.

    Raises
    ------
    ValueError
        Something else.
    """
    # Arrays of one number are numbers.
    scalar = getattr(value, "shape", None) == () and hasattr(value, "__float__")
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        found = float(value) if scalar or real else math.nan
    except (OverflowError, TypeError, ValueError):
        found = math.nan
    within = (found > low if above else found >= low) and found <= high and found < below
    if not (math.isfinite(found) and within):
        bounds = [f"{'>' if above else '>='} {low:g}"] if math.isfinite(low) else []
        bounds += [f"<= {high:g}"] if math.isfinite(high) else []
        bounds += [f"< {below:g}"] if math.isfinite(below) else []
        expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return found
