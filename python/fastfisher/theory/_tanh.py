# SPDX-License-Identifier: Apache-2.0
"""Gaussian averages of tanh: of one sample by the trapezoid rule, of two by a Hermite series.

With r_k(s) = E[tanh(s z) He_k(z)] / (s sqrt(k!)), k odd, and correlation c (Mehler's formula)

    E[tanh(u) tanh(v)] = b sum_k c^{k-1} r_k(s_1) r_k(s_2),     b = c s_1 s_2
    E[tanh'(u) tanh'(v)] = sum_k k c^{k-1} r_k(s_1) r_k(s_2)

The poles of tanh(s z), at distance pi / (2 s) of the real axis, let r_k fall like
exp(-pi sqrt(k) / (2 s)) and set the step of the trapezoid rule. Since s^2 sum_k r_k^2 and
sum_k k r_k^2 are the averages of one sample, what is left out after any k is known and bounded by
Cauchy and Schwarz: the series ends at a certified error. A pair costs some 60 s^2 terms where
nodes in two directions, of the same step, would be 3,000 s^2.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice

import numpy as np

from fastfisher.theory._checks import Floats

__all__ = ["LARGEST", "fourth", "one", "two"]

LARGEST = 1000.0
"""Variance up to which pairs are computed: beyond it the series is long."""

_ERROR = 1e-13
_ROUNDING = 5e-15  # of what is left out: less is not known to be left
_BLOCK = 16  # terms at a time
_RANGE = 12.0  # e^{-z^2 / 4} is 2e-16 there

_KEPT = 4.0  # widest standard deviation whose Hermite functions are kept: 1.5 MB

_STEEP = 5.0  # standard deviation from which nodes go with u, not with z = u / s
_ARGUMENTS = np.arange(0.0, 20.0, 0.1)
_SQUARES = np.tanh(_ARGUMENTS) ** 2


def one(a: Floats) -> tuple[Floats, Floats]:
    """``E[tanh^2]`` and ``E[tanh'^2]`` for u ~ N(0, a), entry by entry."""
    return _averages(a, lambda square: (square, (1 - square) ** 2))


def fourth(a: Floats) -> Floats:
    """``E[tanh'^4]``."""
    return _averages(a, lambda square: ((1 - square) ** 4, square))[0]


def _averages(
    a: Floats, functions: Callable[[Floats], tuple[Floats, Floats]]
) -> tuple[Floats, Floats]:
    """Averages of two functions of tanh(u)^2."""
    flat = np.sqrt(a).ravel()
    results = np.empty((2, flat.size))
    steep = flat > _STEEP
    gentle = flat[~steep]
    step = 0.2 / max(1.0, float(gentle.max(initial=0.0)))
    z = np.arange(0.0, 10.0, step)
    weights = np.exp(-z * z / 2) * (2 * step / math.sqrt(2 * math.pi))
    weights[0] /= 2
    t = np.tanh(gentle[:, None] * z)
    results[:, ~steep] = [f @ weights for f in functions(t * t)]
    # Beyond |u| = 20 tanh^2 is 1, however wide u is.
    s = flat[steep, None]
    narrow = np.exp(-np.square(_ARGUMENTS / s) / 2) * (0.2 / math.sqrt(2 * math.pi)) / s
    narrow[:, 0] /= 2
    limits = functions(np.ones(1))
    for row, f, limit in zip(results, functions(_SQUARES), limits, strict=True):
        row[steep] = limit + narrow @ (f - limit)
    value, second = (r.reshape(a.shape) for r in results)
    return value, second


def two(a1: Floats, a2: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Averages of pairs of correlation c, to whose shape the variances broadcast."""
    if c.size == 0:
        return np.zeros(c.shape), np.zeros(c.shape)
    sides = [np.maximum(np.sqrt(a), 1e-100) for a in (a1, a2)]
    # Half-octaves: functions of the same nodes serve many calls.
    wide = np.ceil(2 * np.log2(np.maximum(np.maximum(*sides), 0.5)))
    if c.size > 1 and a1.shape == a2.shape == c.shape:
        # Narrow pairs need fewer nodes and terms than the widest one.
        total, slope = np.empty(c.shape), np.empty(c.shape)
        for octave in np.unique(wide):
            some = wide == octave
            left = a1[some]
            right = left if a1 is a2 else a2[some]
            total[some], slope[some] = _series(left, right, c[some], 2 ** (octave / 2))
        return total, slope
    return _series(a1, a2, c, 2 ** (float(wide.max()) / 2))


def _series(a1: Floats, a2: Floats, c: Floats, widest: float) -> tuple[Floats, Floats]:
    """`two` for standard deviations up to `widest`."""
    sides = [np.maximum(np.sqrt(a), 1e-100) for a in (a1, a2)]
    z, blocks = _functions(widest) if widest <= _KEPT else _nodes_and_blocks(widest)
    if a1 is a2:
        sides = sides[:1]
    values = [np.tanh(z[:, None] * s.ravel()) / s.ravel() for s in sides]
    left_out = [one(a)[1] for a in (a1, a2)[: len(sides)]]
    total, slope = np.zeros(c.shape), np.zeros(c.shape)
    square, power = np.square(c), np.ones(c.shape)  # power = c^{k-1}
    each = all(side.shape == c.shape for side in sides)
    for first, functions in blocks:
        k = np.arange(first, first + 2 * _BLOCK, 2.0)
        r = [(functions @ v).reshape(-1, *s.shape) for v, s in zip(values, sides, strict=True)]
        left_out = [rest - np.tensordot(k, p * p, 1) for rest, p in zip(left_out, r, strict=True)]
        if each:  # all terms of a block at once
            powers = np.empty((_BLOCK, *c.shape))
            powers[0] = power
            powers[1:] = square
            np.multiply.accumulate(powers, 0, out=powers)
            power = powers[-1] * square
            powers *= r[0]
            powers *= r[-1]
            total += powers.sum(0)
            slope += np.tensordot(k, powers, 1)
        else:
            for index in range(_BLOCK):
                term = r[0][index] * r[-1][index] * power
                total += term
                term *= k[index]
                slope += term
                power *= square
        # The sum of k r_k^2 over later k, and |c|^{k-1} at most what it is now.
        bound = np.sqrt(left_out[0].clip(_ROUNDING) * left_out[-1].clip(_ROUNDING)) * power
        if float(bound.max()) < _ERROR:
            break
    return total * c * np.sqrt(a1) * np.sqrt(a2), slope


class _Blocks:
    """Blocks of an iterator that are kept for the next to ask."""

    def __init__(self, make: Callable[[], Iterator[tuple[int, Floats]]]) -> None:
        self._make, self._source, self._lock = make, make(), threading.Lock()
        self._blocks: list[tuple[int, Floats]] = []

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        index = 0
        while True:
            with self._lock:
                if index == len(self._blocks):
                    self._blocks.append(self._next())
            yield self._blocks[index]
            index += 1

    def _next(self) -> tuple[int, Floats]:
        try:
            return next(self._source)
        except BaseException:  # an interrupted generator is over: another one goes on from here
            self._source = islice(self._make(), len(self._blocks), None)
            raise


def _nodes_and_blocks(widest: float) -> tuple[Floats, Iterable[tuple[int, Floats]]]:
    """Nodes of the trapezoid rule up to this standard deviation, and `_blocks` there."""
    step = 0.25 / max(widest, 1.0)
    z = np.arange(step, _RANGE, step)
    return z, _blocks(z, step)


@lru_cache(maxsize=8)
def _functions(widest: float) -> tuple[Floats, Iterable[tuple[int, Floats]]]:
    return _nodes_and_blocks(widest)[0], _Blocks(lambda: iter(_nodes_and_blocks(widest)[1]))


def _blocks(z: Floats, step: float) -> Iterator[tuple[int, Floats]]:
    """First k of a block, and weighted normalised Hermite functions (terms, nodes) of odd k.

    Odd functions on z > 0 stand for both sides. The recursion goes with e^{-z^2 / 4}, which keeps
    its values in range at all k; the other half of the Gaussian density is in the weights.
    """
    below, here = np.zeros_like(z), np.exp(-z * z / 4)
    weights = here * (2 * step / math.sqrt(2 * math.pi))
    k = 0
    while True:
        block = np.empty((_BLOCK, z.size))
        for index in range(_BLOCK):
            for _ in range(2 if k else 1):
                below, here = here, (z * here - math.sqrt(k) * below) / math.sqrt(k + 1)
                k += 1
            block[index] = here * weights
        yield k - 2 * _BLOCK + 2, block
