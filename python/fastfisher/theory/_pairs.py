# SPDX-License-Identifier: Apache-2.0
"""Forward recursion of wide networks for all pairs of two sets of samples, layer by layer.

    q^1 = sigma_w2 X Y^T / M_0 + sigma_b2,    q^{l+1} = sigma_w2 E[phi(u) phi(v)] + sigma_b2

with (u, v) of the variances of the two samples in layer l and of covariance q^l.

The slope of ``relu`` has a kink where two samples are parallel: arccos of a rounded correlation is
good to 1e-8 only. So ``relu`` carries the angle theta between the samples' representations, started
from differences of normalised samples and passed on as 1 - cos theta, never as cos theta: samples
that are in both sets, or are multiples of each other, are exact without being looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats
from fastfisher.theory._tanh import LARGEST
from fastfisher.theory.gaussian import pair_overlap, same_overlaps

__all__ = ["Layer", "finite", "pair_layers", "recursion", "single_layers", "single_recursion"]

_NEAR = 1e-4  # 1 - |cos| below which a rounded cosine costs more than 1e-14 of the angle
_STILL = 16 * float(np.finfo(np.float64).eps)
_AT_ONCE = 1 << 21  # components of differences held at a time, 16 MiB


def finite(values: Floats, depth: int) -> None:
    """Require covariances, or kernels made of them, without overflow."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"depth: kernels of {depth} layers overflow, expected fewer layers, or smaller samples "
            "or sigma_w2"
        )


class Layer(NamedTuple):
    """Layer l of the recursion; arrays (n, m), or (n,) for single samples.

    overlap is qh^{l-1} of what enters the layer, covariance q^l, slope E[phi'(u) phi'(v)] of its
    pre-activations (absent in the last layer).
    """

    overlap: Floats
    covariance: Floats
    slope: Floats | None


def pair_layers(
    x: Floats, y: Floats | None, *, depth: int, activation: str, w: float, b: float
) -> Iterator[Layer]:
    """Layers 1, ..., L for all pairs of rows of x and y (of x itself if None)."""
    other = x if y is None else y
    with np.errstate(over="ignore", invalid="ignore"):
        overlap = x @ other.T / x.shape[1]
        variances = [w * np.einsum("ij,ij->i", s, s) / x.shape[1] + b for s in (x, other)]
    for name, values in zip(("x", "y"), variances, strict=True):
        if not np.isfinite(values).all():
            index = int(np.argmin(np.isfinite(values)))
            raise ValueError(f"{name}: sample {index} is too large, its square overflows")
        if activation == "tanh" and depth > 1 and (values > LARGEST).any():
            raise ValueError(
                f"{name}: 'tanh' takes pre-activations of variance up to {LARGEST:g}, got "
                f"{values.max():.6g} (sigma_w2 x.x / M_0 + sigma_b2); expected smaller samples"
            )
    covariance = w * overlap + b
    if y is None:  # symmetric bit for bit, and the diagonal that of one sample
        covariance = (covariance + covariance.T) / 2
        np.fill_diagonal(covariance, variances[0])
    angle = _angles(x, other, w, b) if activation == "relu" else None
    sides = (variances[0][:, None], variances[1])
    start = (overlap, covariance, angle)
    yield from recursion(start, sides, depth=depth, activation=activation, w=w, b=b, same=y is None)


def single_layers(x: Floats, *, depth: int, activation: str, w: float, b: float) -> Iterator[Layer]:
    """Layers 1, ..., L for each row of x with itself."""
    overlap = np.einsum("ij,ij->i", x, x) / x.shape[1]
    if not np.isfinite(overlap).all():
        index = int(np.argmin(np.isfinite(overlap)))
        raise ValueError(f"x: sample {index} is too large, its square overflows")
    return single_recursion(overlap, depth=depth, activation=activation, w=w, b=b)


def single_recursion(
    overlap: Floats, *, depth: int, activation: str, w: ArrayLike, b: ArrayLike
) -> Iterator[Layer]:
    """Layers from mean squares of samples, entry by entry."""
    w, b = np.asarray(w, np.float64), np.asarray(b, np.float64)
    for layer in range(depth):
        variance = w * overlap + b
        if layer + 1 == depth:
            yield Layer(overlap, variance, None)
            return
        value, slope = same_overlaps(activation, variance)
        yield Layer(overlap, variance, slope)
        overlap = value


def recursion(
    start: tuple[Floats, Floats, Floats | None],
    variances: tuple[Floats, Floats],
    *,
    depth: int,
    activation: str,
    w: ArrayLike,
    b: ArrayLike,
    same: bool = False,
    known: list[Layer] | None = None,
) -> Iterator[Layer]:
    """Layers from the overlap, covariance and (for relu) angle of the first; entry by entry.

    Variances of both sides broadcast to the covariance, and so do w and b. With `same` the
    diagonal pairs equal samples. `known` are the layers of single samples, if at hand.
    """
    overlap, covariance, angle = start
    w, b = np.asarray(w, np.float64), np.asarray(b, np.float64)
    series = _Series()
    for layer in range(depth):
        if layer + 1 == depth:
            yield Layer(overlap, covariance, None)
            return
        left, right = variances
        if known is None:
            own = [same_overlaps(activation, left)]
            own.append(own[0] if right is left else same_overlaps(activation, right))
        else:
            own = [(known[layer + 1].overlap, left)] * 2
        if angle is not None:
            yield Layer(overlap, covariance, (np.pi - angle) / (2 * np.pi))
            halves = (own[0][0], own[1][0])
            overlap, angle = _relu(angle, halves, w, b)
        else:
            finite(left, depth)
            finite(right, depth)
            if activation == "tanh" and right is left:
                value, slope = series(left, covariance)
            else:
                value, slope = pair_overlap(activation, left, right, covariance)
            if same:
                assert known is None
                np.fill_diagonal(value, own[0][0])
                np.fill_diagonal(slope, own[0][1])
            yield Layer(overlap, covariance, slope)
            overlap = value
        covariance = w * overlap + b
        following = w * own[0][0] + b
        variances = (following, following if right is left else w * own[1][0] + b)


class _Series:
    """Averages of tanh in deep networks: only where a layer's input still differs from before.

    Most networks of a sweep reach their fixed point in some ten layers, to rounding.
    """

    def __init__(self) -> None:
        self.kept: tuple[Floats, Floats, Floats, Floats] | None = None

    def __call__(self, variance: Floats, covariance: Floats) -> tuple[Floats, Floats]:
        if self.kept is None:
            found = pair_overlap("tanh", variance, variance, covariance)
            # Arrays of their own, also of single numbers: they are written to below.
            value, slope = (np.array(values) for values in found)
            self.kept = (np.array(variance), np.array(covariance), value, slope)
            return found
        tolerance = _STILL * variance
        moved = np.abs(variance - self.kept[0]) > tolerance
        moved |= np.abs(covariance - self.kept[1]) > tolerance
        a, b = np.asarray(variance)[moved], np.asarray(covariance)[moved]
        for kept, new in zip(self.kept, (a, b, *pair_overlap("tanh", a, a, b)), strict=True):
            kept[moved] = new
        return self.kept[2].copy(), self.kept[3].copy()


def _relu(
    angle: Floats, halves: tuple[Floats, Floats], w: Floats, b: Floats
) -> tuple[Floats, Floats]:
    """E[phi phi] of samples at that angle with E[phi^2] = halves, and the next layer's angle."""
    roots = [np.sqrt(h) for h in halves]
    scale = roots[0] * roots[1]
    overlap = scale / np.pi * (np.sin(angle) + (np.pi - angle) * np.cos(angle))
    largest = np.sqrt(w * halves[0] + b) * np.sqrt(w * halves[1] + b)
    # largest - covariance, without the cancellation between them
    gap = w * b * np.square(roots[0] - roots[1])
    tiny = np.finfo(np.float64).tiny
    gap = gap / np.maximum(largest + w * scale + b, tiny) + w * scale * _deficit(angle)
    half = np.where(largest > 0, gap / np.maximum(2 * largest, tiny), np.sin(angle / 2) ** 2)
    return overlap, 2 * np.arcsin(np.sqrt(half.clip(0, 1)))


def _deficit(angle: Floats) -> Floats:
    """``1 - (sin t + (pi - t) cos t) / pi``, to full relative accuracy."""
    square = angle * angle
    series = angle * square * (1 / 3 - square * (1 / 30 - square / 840))
    rest = np.where(angle < 0.05, series, np.sin(angle) - angle * np.cos(angle))
    return 2 * np.sin(angle / 2) ** 2 - rest / np.pi


def _angles(x: Floats, y: Floats, w: float, b: float) -> Floats:
    """Angles between the rows of [sqrt(w / M_0) x, sqrt(b)], exact where they vanish."""
    left, right = (_normalised(s, w, b) for s in (x, y))
    cosine = (left @ right.T).clip(-1, 1)
    angle: Floats = np.arccos(cosine)
    rows, columns = np.nonzero(1 - np.abs(cosine) < _NEAR)
    step = max(1, _AT_ONCE // left.shape[1])
    for start in range(0, rows.size, step):
        i, j = rows[start : start + step], columns[start : start + step]
        sign = np.sign(cosine[i, j])
        apart = left[i] - sign[:, None] * right[j]
        chord = np.sqrt(np.einsum("ij,ij->i", apart, apart))
        small = 2 * np.arcsin((chord / 2).clip(0, 1))
        angle[i, j] = np.where(sign > 0, small, np.pi - small)
    # Two samples of zeros are one and the same sample.
    zeros = [~s.any(1) for s in (left, right)]
    angle[np.ix_(*zeros)] = 0
    return angle


def _normalised(x: Floats, w: float, b: float) -> Floats:
    rows = np.empty((x.shape[0], x.shape[1] + 1))
    rows[:, :-1] = x * np.sqrt(w / x.shape[1])
    rows[:, -1] = np.sqrt(b)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    unit: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
