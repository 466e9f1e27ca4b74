# SPDX-License-Identifier: Apache-2.0
"""Cauchy transform of the conditional Fisher matrix along its parameter om (`conditional_density`).

z_L, G_L and their derivatives for om go through the layers together; z_L(om) = z is solved by
Newton's method, from neighbouring point to neighbouring point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher.errors import NumericalError
from fastfisher.theory._checks import Floats
from fastfisher.theory.conditional import ConditionalLaw

__all__ = ["Branch", "edge"]

_RESIDUAL = 1e-11  # of z_L(om) against its target, relative


@dataclass(slots=True)
class _Point:
    """z_L and G_L at a parameter om, d z_L / d om, and chi of each layer that needs one."""

    z: complex
    g: complex
    dz: complex
    chi: list[complex]


class Branch:
    """The solution om(z) of z_L(om) = z, followed along a path in the upper half-plane."""

    def __init__(self, law: ConditionalLaw, start: complex) -> None:
        self._law = law
        first = _first(law)
        # Far from the spectrum w is z_l times the mean of the squared slopes.
        gain = float(np.prod(law.sigma_w2 * law.slope_moment(1)[first:]))
        om = start / gain if gain > 0 else start
        point = _evaluate(law, om, None)
        found = None if point is None else self._newton(om, point, start)
        if found is None:
            raise NumericalError("conditional_density: no start far from the spectrum")
        self._om, self._point = found
        self._at = start

    def follow(self, target: complex, depth: int = 0) -> complex:
        """Move to z = `target`, in as many steps as it takes, and return G there."""
        found = self._newton(self._om, self._point, target)
        if found is None:
            if depth > 40:
                raise NumericalError(
                    f"conditional_density: lost the branch at {target:.6g}; "
                    "expected a larger smoothing"
                )
            self.follow((self._at + target) / 2, depth + 1)
            return self.follow(target, depth + 1)
        self._om, self._point = found
        self._at = target
        return self._point.g

    def _newton(self, om: complex, point: _Point, target: complex) -> tuple[complex, _Point] | None:
        """Newton's method from a neighbouring point; None unless it converges straight away."""
        before = abs(point.z - target)
        for _ in range(12):
            residual = abs(point.z - target)
            if residual <= _RESIDUAL * abs(target):
                return (om, point) if point.g.imag <= 0 else None
            if residual > 2 * before or point.dz == 0:
                return None
            before = residual
            om -= (point.z - target) / point.dz
            if om.imag <= 0:
                return None
            following = _evaluate(self._law, om, point.chi)
            if following is None:
                return None
            point = following
        return None


def edge(law: ConditionalLaw) -> float:
    """Upper edge z_L(om) at the largest real om with d z_L / d om = 0; infinity if there is none.

    Above the edge z_L grows with om.
    """
    base = float(law.qh[_first(law)])
    if base == 0:
        return 0.0
    above = None
    for step in np.arange(9.2, -25.0, -0.05):
        below = base * (1 + float(np.exp(step)))
        point = _evaluate(law, below, None)
        if point is None or point.dz.real <= 0:
            break
        above = below
    else:
        return float("inf")
    if above is None:
        raise NumericalError("conditional_lambda_max: no start far from the spectrum")
    for _ in range(60):
        middle = (above + below) / 2
        point = _evaluate(law, middle, None)
        if point is None or point.dz.real <= 0:
            below = middle
        else:
            above = middle
    end = _evaluate(law, above, None)
    return float("inf") if end is None else end.z.real


def _first(law: ConditionalLaw) -> int:
    """First layer with qh > 0: what is below it adds nothing."""
    positive = np.flatnonzero(law.qh > 0)
    return int(positive[0]) if positive.size else law.depth - 1


def _evaluate(law: ConditionalLaw, om: complex, chi: list[complex] | None) -> _Point | None:
    """Go through the layers; None where an equation for chi is not solved."""
    first = _first(law)
    z: complex = om
    g = 1 / (om - float(law.qh[first]))
    dz: complex = 1.0
    dg = -g * g
    found: list[complex] = []
    for layer in range(first, law.depth - 1):
        atoms, weights = law.atoms[layer], law.weights[layer]
        qh, s = float(law.qh[layer + 1]), law.sigma_w2
        top = float(atoms.max())
        if not ((atoms == 0) | (atoms == top)).all():
            y, dy = z * g - 1, dz * g + z * dg
            start = None if chi is None else chi[len(found)]
            solved = _solve_chi(atoms, weights, y, start)
            if solved is None or y == 0:
                return None
            value, slope = solved
            found.append(value)
            w = z * y / (value * (1 + y))
            dw = w * (dz / z + dy / y - dy / slope / value - dy / (1 + y))
            g, dg = (1 + y) / (s * w), (dy - (1 + y) * dw / w) / (s * w)
        else:
            s *= top
            lost = 1 - float(weights[atoms == top].sum()) if top > 0 else 1.0
            if s == 0 or lost == 1:  # nothing passes: H = qh I
                z, dz, g, dg = qh + om, 1.0, 1 / om, -1 / (om * om)
                continue
            w, dw = z - lost / g, dz + lost * dg / (g * g)
            g, dg = g / s + lost / (s * w), dg / s - lost * dw / (s * w * w)
        z, dz = qh + s * w, s * dw
    return _Point(complex(z), complex(g), complex(dz), found)


def _solve_chi(
    t: Floats, p: Floats, y: complex, start: complex | None
) -> tuple[complex, complex] | None:
    """Solve ``E[chi t / (1 - chi t)] = y``; also return the derivative of the left side."""
    pt = p * t
    mean = float(pt.sum())
    real = isinstance(y, float)
    low, high = 0.0, 1 / float(t.max())
    chi: Any = start
    if real:
        chi = low = y.real / (mean + y.real * float(t.max()))  # f is convex: low is below the root
    elif chi is None:
        chi = y / mean
    for _ in range(100):
        if not np.isfinite(chi):  # lost: the caller takes a smaller step
            return None
        d = 1 / (1 - chi * t)
        pd = pt * d
        f, slope = chi * pd.sum() - y, (pd * d).sum()
        step = f / slope
        following = chi - step
        if abs(step) <= 1e-13 * abs(chi):
            return following, slope
        if real:
            low, high = (chi, high) if f < 0 else (low, chi)
            following = following if low < following < high else (low + high) / 2
        chi = following
    return None
