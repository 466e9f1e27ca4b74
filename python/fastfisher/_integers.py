# SPDX-License-Identifier: Apache-2.0
"""Counts, seeds and sizes that a caller gives."""

from __future__ import annotations

from numbers import Integral
from typing import Any

__all__ = ["integer"]


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
