# SPDX-License-Identifier: Apache-2.0
"""How much of a mode is learned after some steps of gradient descent, or some time of its flow.

A mode of curvature w has ``(1 - eta w)^t`` of its residual left after t steps, ``exp(-w s)`` after
the time s of the flow; what it has moved is ``(1 - left) / w``, which tends to eta t or s for
w -> 0.
"""

from __future__ import annotations

import math

import numpy as np

from fastfisher.errors import NotPositiveDefiniteError, NumericalError
from fastfisher.regression._eigen import regular, rounding
from fastfisher.theory._checks import Floats, number

__all__ = ["moments", "progress"]

LEARNED = "time that is finite, or a kernel with jitter"
# Share of a mode of curvature zero that may be learned because rounding made it positive.
_LEARNED_BY_ROUNDING = 1e-6


def moments(
    lr: float | None, steps: object, time: object, *, several: bool
) -> tuple[float | None, Floats]:
    """Learning rate (None for the flow) and times asked for; a number of steps means 0 to it."""
    if (time is None) == (steps is None) or (lr is None) != (steps is None):
        raise ValueError(
            f"steps: expected lr and steps, or else time, got lr={lr!r}, steps={steps!r}, "
            f"time={time!r}"
        )
    name, value = ("steps", steps) if time is None else ("time", time)
    try:
        times = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers, got {value!r}") from None
    if times.ndim > int(several) or np.isnan(times).any() or (times < 0).any():
        kind = "numbers >= 0" if several else "a number >= 0"
        raise ValueError(f"{name}: expected {kind}, got {value!r}")
    if lr is not None:
        lr = number("lr", lr, above=0)
        if several and times.ndim == 0:
            if not float(times).is_integer():
                raise ValueError(f"steps: expected an integer or an array, got {steps!r}")
            times = np.arange(float(times) + 1)
    return lr, times.reshape(-1)


def progress(values: Floats, lr: float | None, times: Floats) -> tuple[Floats, Floats]:
    """Find what is left, and what has moved, (T, n) each, of modes of curvature `values` (n,)."""
    left, moved = np.empty((2, times.size, values.size))
    slow = np.abs(values) <= np.finfo(np.float64).tiny
    divisor = np.where(slow, 1.0, values)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, t in enumerate(times):
            if math.isinf(t):
                _check_limit(values, lr)
                left[index], moved[index] = 0.0, 1 / values
                continue
            _check_known(values, float(t) * (lr or 1.0))
            exponents = _exponents(values, lr, float(t))
            left[index] = np.exp(exponents)
            moved[index] = np.where(slow, t * (lr or 1.0), -np.expm1(exponents) / divisor)
            if lr is not None:
                fast = lr * values >= 1
                powers = np.power(1 - lr * values[fast], t)
                left[index, fast], moved[index, fast] = powers, (1 - powers) / values[fast]
    if not (np.isfinite(left).all() and np.isfinite(moved).all()):
        raise NumericalError("lr: training diverges beyond the largest float64 number")
    return left, moved


def _exponents(values: Floats, lr: float | None, t: float) -> Floats:
    if lr is None:
        return -values * t
    fast = lr * values >= 1
    if fast.any() and not t.is_integer():
        raise ValueError(
            f"steps: expected an integer where lr times the largest curvature is >= 1 "
            f"(it is {lr * values.max():.3g}), got {t:g}"
        )
    exponents: Floats = t * np.log1p(np.where(fast, 0.0, -lr * values))
    return exponents


def _check_known(values: Floats, time: float) -> None:
    """Modes whose curvature is rounding must stay where they are as long as is looked at."""
    least = rounding(values)
    if least * time > _LEARNED_BY_ROUNDING and (np.abs(values) <= least).any():
        raise NotPositiveDefiniteError(
            f"kernel: singular, curvatures down to rounding ({least:.3g}), which is learned after "
            f"a time of {time:.3g}; expected less than {_LEARNED_BY_ROUNDING / least:.3g}, or a "
            "kernel with jitter"
        )


def _check_limit(values: Floats, lr: float | None) -> None:
    regular("kernel", values, LEARNED)
    if lr is not None and lr * values.max() >= 2:
        raise ValueError(
            f"lr: training does not converge, expected less than 2 / {values.max():.6g} = "
            f"{2 / values.max():.6g}, got {lr:g}"
        )
