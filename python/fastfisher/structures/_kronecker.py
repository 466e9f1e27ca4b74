# SPDX-License-Identifier: Apache-2.0
"""Kronecker factors A and G of each weight, from the rows of a Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from fastfisher import _native
from fastfisher._arrays import device_name, empty
from fastfisher._device_array import as_array
from fastfisher._lookup import Lookup
from fastfisher.factors import Dense
from fastfisher.structures._place import Place
from fastfisher.structures._weights import Weight

Host = np.ndarray[Any, Any]

EXACT = 1024

KEPT = 1 << 28
"""Most bytes of factors, and of their inverses, that are kept for the next ones: where a loop makes
them anew in each step, half of the time would go into fresh pages."""


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Block ``G (x) A`` of one weight; `a` may be the diagonal of A only.

    Attributes
    ----------
    place : Place
        Positions (o, i) in the parameter vector.
    a : array, shape (i, i) or (i,)
        `activation_factor`.
    g : array, shape (o, o)
        `gradient_factor`.
    exact : bool
        Whether `a` is the block itself and `g` one.
    count : int
        Vectors that `a` is the mean over.
    """

    name: str
    place: Place
    a: Host
    g: Host
    exact: bool = False
    count: int = 0

    @property
    def columns(self) -> Host:
        """Positions (o, i) in the parameter vector."""
        return self.place.columns

    def times_a(self, v: Host, a: Host | None = None) -> Host:
        """``V A`` for v (o, i, k)."""
        return along(self.a if a is None else a, v, 1)


class Deferred(Sequence[Block]):
    """Blocks that are made when the first one is asked for."""

    def __init__(self, make: Callable[[], list[Block]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> list[Block]:
        return self._make()

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        return self._made[index]


def split_dampings(
    pairs: list[tuple[Host, Host]], damping: float, split: str
) -> list[tuple[float, float]]:
    """Say what each A (or its diagonal) and G get (Martens and Grosse 2015, section 6.3).

    From a device all traces are read back at once.
    """
    if split == "plain" or not pairs:
        return [(damping, damping)] * len(pairs)
    traces = np.stack([x.sum() if x.ndim == 1 else np.trace(x) for pair in pairs for x in pair])
    found = iter(traces.tolist())
    result = []
    for a, g in pairs:
        mean_a, mean_g = next(found) / max(1, len(a)), next(found) / max(1, len(g))
        pi = math.sqrt(mean_a / mean_g) if mean_a > 0 and mean_g > 0 else 1.0
        result.append((math.sqrt(damping) * pi, math.sqrt(damping) / pi))
    return result


def blocks_of(found: list[Weight], scale: float, weight_sharing: str) -> list[Block]:
    """Blocks of all weights; what dense layers need is one native call."""
    moments = Moments()
    blocks = []
    for weight in found:
        n, kind = weight.layer.samples, weight.layer.g.dtype
        if not weight.factored:
            blocks.append(_exact_block(weight, scale, moments))
        elif type(weight.layer) is Dense:
            a = moments.of(weight.layer.a, 1 / max(1, n), one=weight.layer.bias)
            g = moments.of(_rows(weight.layer.g), scale)
            blocks.append(Block(weight.name, weight.place, a, g, count=n))
        elif isinstance(weight.layer, Lookup):
            # Unit vectors: A is diagonal, each position counts by itself.
            i, count = weight.in_features, n * weight.positions
            uses = np.bincount(weight.layer.index.reshape(-1), minlength=i)
            a = np.asarray((uses / max(1, count)).astype(kind), like=weight.layer.g)
            g = moments.of(_rows(weight.layer.g), scale)
            blocks.append(Block(weight.name, weight.place, a, g, count=count))
        else:
            blocks.append(_shared_block(weight, scale, weight_sharing))
    moments.run()
    return blocks


def _shared_block(weight: Weight, scale: float, weight_sharing: str) -> Block:
    """Block of a weight that is used at several positions, some samples at a time."""
    n, kind = weight.layer.samples, weight.layer.g.dtype
    o, i, s = weight.out_features, weight.in_features, weight.positions
    like = weight.layer.g
    a, g = np.zeros((i, i), kind, like=like), np.zeros((o, o), kind, like=like)
    for piece in weight.pieces(formed=False):
        inputs, cotangents = weight.factors(piece)
        if weight_sharing == "reduce":
            inputs, cotangents = inputs.mean(1), cotangents.sum(2)
        moments = Moments()
        of_a = moments.of(inputs.reshape(-1, i), 1.0)
        of_g = moments.of(cotangents.reshape(-1, o), 1.0)
        moments.run()
        a += of_a
        g += of_g
    count = n * s if weight_sharing == "expand" else n
    a *= kind.type(1 / max(1, count))
    g *= kind.type(scale)
    return Block(weight.name, weight.place, a, g, count=count)


class Moments:
    """Second moments ``scale x^T x`` that are put down first and computed together."""

    def __init__(self) -> None:
        self._calls: dict[Any, list[tuple[Host, Host, float]]] = {}

    def of(self, x: Host, scale: float, *, one: bool = False) -> Host:
        """Array (i, i) that `run` fills for rows `x` (n, i); with `one` of those and a 1 behind."""
        size = x.shape[1] + one
        out: Host = empty((size, size), x)
        self._calls.setdefault(x.dtype, []).append((x, out, scale))
        return out

    def run(self) -> None:
        """Compute what was put down."""
        for calls in self._calls.values():
            arrays, outs, scales = zip(*calls, strict=True)
            try:
                _native.moments(list(arrays), list(outs), list(scales))
            except NotImplementedError:  # a device without that kernel
                if device_name(outs[0]) == "cpu":
                    raise
                for x, out, scale in calls:
                    _by_library(x, out, scale)
        self._calls.clear()


def _by_library(x: Host, out: Host, scale: float) -> None:
    """``scale [x 1]^T [x 1]``, or without the 1, by the caller's library."""
    if len(out) > x.shape[1]:
        x = np.concatenate([x, np.ones((len(x), 1), x.dtype, like=x)], 1)
    out[...] = scale * (x.T @ x)


def _rows(g: Host) -> Host:
    """Cotangents (n, r, ..., o) as rows (-1, o), in any order of n and r that needs no copy."""
    turned = g.swapaxes(0, 1)
    return (turned if turned.flags.c_contiguous else g).reshape(-1, g.shape[-1])


def _exact_block(weight: Weight, scale: float, moments: Moments) -> Block:
    kind = weight.layer.g.dtype
    rows = weight.layer.g.reshape(-1, weight.out_features)
    one, columns = np.ones((1, 1), kind, like=rows), weight.columns.T
    if weight.out_features > EXACT:
        diagonal = np.einsum("rp,rp->p", rows, rows)
        return Block(weight.name, Place.at(columns), diagonal * kind.type(scale), one, exact=True)
    return Block(weight.name, Place.at(columns), moments.of(rows, scale), one, exact=True)


def along(m: Host, v: Host, axis: int) -> Host:
    """Product of a matrix, or of the diagonal of one, with an axis of v (o, i, k)."""
    if m.ndim == 1:
        return m.reshape([-1 if axis == k else 1 for k in range(3)]) * v
    if axis == 0:
        return (m @ v.reshape(len(v), -1)).reshape(len(m), *v.shape[1:])
    if v.shape[2] == 1:
        return (v[:, :, 0] @ m.T)[:, :, None]
    return as_array(m @ v)
