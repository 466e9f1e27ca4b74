# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: every message names the argument, what came and what is expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfisher._arrays import device_name

__all__ = ["array", "count", "member", "number", "on_cpu", "symmetric", "widths"]

Floats = NDArray[np.float64]

ASYMMETRY = 1e-6  # relative: kernels may come in float32


def member(name: str, value: object, allowed: Collection[object]) -> None:
    """Require one of the `allowed` names."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")


def number(
    name: str, value: float, *, above: float | None = None, least: float | None = None
) -> float:
    """Require a finite number, larger than `above` or at least `least`."""
    bound = "" if above is None else f" > {above:g}"
    if least is not None:
        bound = f" >= {least:g}"
    try:
        checked = float(value)
    except (TypeError, ValueError):
        checked = math.nan
    low = (above is not None and not checked > above) or (least is not None and checked < least)
    if low or not math.isfinite(checked):
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return checked


def count(name: str, value: int, *, least: int = 1) -> int:
    """Require an integer of at least `least`."""
    try:
        whole = not isinstance(value, bool) and int(value) == value and value >= least
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    return int(value)


def widths(value: Sequence[int]) -> tuple[int, ...]:
    """Require widths (M_0, ..., M_L) of at least one layer."""
    try:
        checked = tuple(int(width) for width in value if width == int(width))
    except (TypeError, ValueError, OverflowError):
        checked = ()
    if len(checked) < 2 or len(checked) != len(value) or min(checked) < 1:
        raise ValueError(f"widths: expected two or more integers >= 1, got {value!r}")
    return checked


def on_cpu(name: str, value: object) -> None:
    """Refuse arrays on a device: theory, kernels and regressions are numpy's."""
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        try:
            where = device_name(value)
        except TypeError:  # of a library that is not known here: numpy says what it makes of it
            return
        if where != "cpu":
            raise TypeError(
                f"{name}: expected an array on the CPU, got one on {where}; pass x.cpu()"
            )


def array(
    name: str, value: ArrayLike, *, rank: int, shape: tuple[int, ...] | None = None
) -> Floats:
    """Require a finite real array of `rank` axes, and of `shape` where given."""
    on_cpu(name, value)
    try:
        given: NDArray[Any] = np.asarray(value)
        checked = None if np.iscomplexobj(given) else np.asarray(given, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch, with gradients
        raise ValueError(
            f"{name}: expected an array of numbers, got a {type(value).__name__} that numpy does "
            f"not take ({error})"
        ) from None
    if checked is None:
        raise TypeError(f"{name}: expected real numbers, got dtype {given.dtype}")
    if checked.ndim != rank:
        raise ValueError(f"{name}: expected {rank} axes, got shape {checked.shape}")
    if shape is not None and checked.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {checked.shape}")
    if not np.isfinite(checked).all():
        index = np.argwhere(~np.isfinite(checked))[0].tolist()
        raise ValueError(f"{name}: expected finite numbers, got {checked[tuple(index)]} at {index}")
    return checked


def symmetric(name: str, matrix: ArrayLike) -> Floats:
    """Require a finite symmetric matrix (n, n) with n > 0; its symmetric part."""
    checked = array(name, matrix, rank=2)
    n = checked.shape[0]
    if checked.shape != (n, n) or n == 0:
        raise ValueError(f"{name}: expected shape (n, n) with n > 0, got {checked.shape}")
    apart = float(np.abs(checked - checked.T).max())
    if apart > ASYMMETRY * float(np.abs(checked).max()):
        raise ValueError(f"{name}: expected a symmetric matrix, got entries {apart:.3g} apart")
    half: Floats = checked / 2
    return half + half.T
