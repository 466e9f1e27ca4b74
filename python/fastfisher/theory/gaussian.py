# SPDX-License-Identifier: Apache-2.0
"""Gaussian averages of activation functions, in closed form where there is one.

For (u, v) Gaussian with mean zero, variances a1, a2 and covariance b, s = sqrt(a1 a2), c = b / s:

    linear     E[phi phi] = b                                      E[phi' phi'] = 1
    relu       s (sqrt(1 - c^2) + c (pi - arccos c)) / (2 pi)      (pi - arccos c) / (2 pi)
    erf        (2 / pi) arcsin(2 b / r),                           (4 / pi) / sqrt(r^2 - 4 b^2),
               r^2 = (1 + 2 a1) (1 + 2 a2)
    erf-sqrt2  (2 / pi) arcsin(b / r),                             (2 / pi) / sqrt(r^2 - b^2),
               r^2 = (1 + a1) (1 + a2)
    tanh       trapezoid rule for one sample: its error falls exponentially, while Gauss-Hermite
               nodes are only good to 4e-5 at a = 3.6 since the poles of tanh come close to the
               real axis; for two, a Hermite series with a certified error
    hard-tanh  one sample only
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory import _tanh
from fastfisher.theory._checks import Floats, array, member, number

__all__ = [
    "ACTIVATIONS",
    "active_fraction",
    "mean_activation",
    "pair_overlap",
    "same_overlap",
    "same_overlaps",
    "slope_fourth_moment",
]

ACTIVATIONS = ("tanh", "relu", "erf", "erf-sqrt2", "linear", "hard-tanh")
"""Names; ``erf`` is erf(u) as in `fastfisher.models.MLP`, ``erf-sqrt2`` is erf(u / sqrt(2))."""


def same_overlap(activation: str, a: float) -> tuple[float, float]:
    """``E[phi(u)^2]`` and ``E[phi'(u)^2]`` for u ~ N(0, a).

    Parameters
    ----------
    activation : "tanh" | "relu" | "erf" | "erf-sqrt2" | "linear" | "hard-tanh"
        phi.
    a : float
        Variance, >= 0.

    Returns
    -------
    tuple of two floats

    Examples
    --------
    >>> same_overlap("relu", 3.0)
    (1.5, 0.5)
    """
    member("activation", activation, ACTIVATIONS)
    a = number("a", a, least=0)
    value, slope = same_overlaps(activation, np.array(a))
    return float(value), float(slope)


def same_overlaps(activation: str, a: Floats) -> tuple[Floats, Floats]:
    """`same_overlap` of each of many variances."""
    if activation == "linear":
        return a.copy(), np.ones_like(a)
    if activation == "relu":
        return a / 2, np.full_like(a, 0.5)
    if activation == "tanh":
        return _tanh.one(a)
    if activation == "hard-tanh":
        edge = 1 / np.sqrt(np.maximum(a, 1e-300))
        inside = np.vectorize(math.erf, otypes=[float])(edge / math.sqrt(2))
        density = np.exp(-(np.minimum(edge, 1e3) ** 2) / 2) / math.sqrt(2 * math.pi)
        return a * (inside - 2 * edge * density) + 1 - inside, inside
    return _erf(2.0 if activation == "erf" else 1.0, a, a, a)


def pair_overlap(
    activation: str, a1: ArrayLike, a2: ArrayLike, b: ArrayLike
) -> tuple[Floats, Floats]:
    """``E[phi(u) phi(v)]`` and ``E[phi'(u) phi'(v)]`` for two correlated Gaussians.

    Parameters
    ----------
    activation : "tanh" | "relu" | "erf" | "erf-sqrt2" | "linear"
        phi. ``hard-tanh`` has no closed form for two samples.
    a1, a2, b : float or array
        Variances and covariance, broadcast against each other. Correlations are clipped to
        [-1, 1]. Where both arguments are one and the same sample `same_overlap` is exact, while
        ``relu`` here loses half the digits as the correlation nears 1.

    Returns
    -------
    tuple of two arrays

    Examples
    --------
    >>> value, slope = pair_overlap("relu", 1.0, 1.0, 0.0)
    >>> round(float(value), 6), float(slope)
    (0.159155, 0.25)
    """
    member("activation", activation, [a for a in ACTIVATIONS if a != "hard-tanh"])
    arrays = [np.asarray(value, np.float64) for value in (a1, a2, b)]
    for name, value in zip(("a1", "a2", "b"), arrays, strict=True):
        array(name, value.ravel(), rank=1)
        if name != "b" and value.size and value.min() < 0:
            raise ValueError(f"{name}: expected variances >= 0, got {value.min()}")
    a, a_other, covariance = arrays
    scale = np.sqrt(a) * np.sqrt(a_other) * np.ones_like(covariance)
    if activation == "linear":
        return covariance * np.ones_like(scale), np.ones_like(scale)
    if activation in ("erf", "erf-sqrt2"):
        return _erf(2.0 if activation == "erf" else 1.0, a, a_other, covariance)
    c = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0).clip(-1, 1)
    if activation == "relu":
        angle = np.pi - np.arccos(c)
        return scale * (np.sqrt(1 - c * c) + c * angle) / (2 * np.pi), angle / (2 * np.pi)
    for name, value in (("a1", a), ("a2", a_other)):
        if value.size and value.max() > _tanh.LARGEST:
            raise ValueError(
                f"{name}: 'tanh' takes pairs of variances up to {_tanh.LARGEST:g}, "
                f"got {value.max():g}"
            )
    return _tanh.two(a, a_other, c)


def mean_activation(activation: str, a: float) -> float:
    """``E[phi(u)]`` for u ~ N(0, a): zero for all activations here but ``relu``.

    Examples
    --------
    >>> round(mean_activation("relu", 1.0) ** 2 * 2 * np.pi, 12)
    1.0
    """
    member("activation", activation, ACTIVATIONS)
    return math.sqrt(number("a", a, least=0) / (2 * math.pi)) if activation == "relu" else 0.0


def slope_fourth_moment(activation: str, a: float) -> float:
    """``E[phi'(u)^4]`` for u ~ N(0, a).

    Examples
    --------
    >>> slope_fourth_moment("linear", 2.0)
    1.0
    """
    member("activation", activation, ACTIVATIONS)
    a = number("a", a, least=0)
    if activation == "tanh":
        return float(_tanh.fourth(np.array(a)))
    if activation == "erf":
        return 16 / math.pi**2 / math.sqrt(1 + 8 * a)
    if activation == "erf-sqrt2":
        return 4 / math.pi**2 / math.sqrt(1 + 4 * a)
    return active_fraction(activation, a)  # slopes 0 and 1


def active_fraction(activation: str, a: float) -> float:
    """``P(phi'(u) != 0)`` for u ~ N(0, a): 1/2 for ``relu``, 1 for smooth activations.

    Examples
    --------
    >>> round(active_fraction("hard-tanh", 0.1), 5)
    0.99843
    """
    member("activation", activation, ACTIVATIONS)
    a = number("a", a, least=0)
    if activation == "hard-tanh":
        return math.erf(1 / math.sqrt(2 * a)) if a > 0 else 1.0
    return 0.5 if activation == "relu" else 1.0


def _erf(k: float, a1: Floats, a2: Floats, b: ArrayLike) -> tuple[Floats, Floats]:
    """erf(sqrt(k / 2) u): k = 2 is erf(u), k = 1 is erf(u / sqrt(2))."""
    b = np.asarray(b, np.float64)
    # (1 + k a1)(1 + k a2) - (k b)^2, without cancellation; arcsin(x / r) as an arctan likewise.
    rest = 1 + k * (a1 + a2) + k * k * np.maximum(a1 * a2 - b * b, 0)
    root = np.sqrt(rest)
    return 2 / np.pi * np.arctan2(k * b, root), 2 * k / np.pi / root
