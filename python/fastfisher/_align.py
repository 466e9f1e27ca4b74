# SPDX-License-Identifier: Apache-2.0
"""Layers of one model for two sets of samples that took different ways through it, made alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastfisher._arrays import put_rows, take_rows, zeros
from fastfisher._layer import Layer
from fastfisher._parameters import Parameters
from fastfisher.factors import Explicit

Held = tuple[tuple[Layer, ...], Parameters]
"""Layers, and where their columns stand among the parameters."""


def aligned(left: Held, right: Held) -> tuple[Held, Held]:
    """Both with layers that fit in pairs, and the same product.

    Layers that do not fit are written out, those columns of them that both sides have: others meet
    zeros.
    """
    if fit(left, right):
        return left, right
    first, second = _Parts(left), _Parts(right)
    known = {second.key(k): k for k in range(len(second.source))}
    pairs = [(k, known[key]) for k in range(len(first.source)) if (key := first.key(k)) in known]
    for a, b in pairs:
        first.keep(a)
        second.keep(b)
    ours, theirs = first.others([a for a, _ in pairs]), second.others([b for _, b in pairs])
    common = np.intersect1d(first.touched(ours), second.touched(theirs))
    if len(common) or not pairs:
        first.write_out(ours, common)
        second.write_out(theirs, common)
    return first.held(), second.held()


def fit(left: Held, right: Held) -> bool:
    """Whether layers fit in pairs as they are."""
    (ours, own), (theirs, other) = left, right
    if len(ours) != len(theirs) or any(
        x.signature != y.signature or (x.w is None) != (y.w is None)
        for x, y in zip(ours, theirs, strict=True)
    ):
        return False
    if own.order is None or other.order is None:
        return own.order is other.order
    return np.array_equal(own.order, other.order)


class _Parts:
    """Layers under way to another list of layers."""

    def __init__(self, held: Held) -> None:
        self.source, self.parameters = held
        self.columns = self.parameters.columns([layer.parameters for layer in self.source])
        self.layers: list[Layer] = []
        self.order: list[np.ndarray[Any, Any]] = []

    def others(self, which: Sequence[int]) -> list[int]:
        """Layers beside `which`."""
        return [k for k in range(len(self.source)) if k not in set(which)]

    def touched(self, which: Sequence[int]) -> np.ndarray[Any, Any]:
        """Columns of the layers `which`."""
        return np.concatenate([np.empty(0, np.int64)] + [self.columns[k] for k in which])

    def key(self, k: int) -> tuple[Any, ...]:
        """Equal for layers that fit."""
        layer = self.source[k]
        return (*layer.signature, layer.w is None, self.columns[k].tobytes())

    def keep(self, k: int) -> None:
        """Take a layer as it is."""
        self.layers.append(self.source[k])
        self.order.append(self.columns[k])

    def write_out(self, which: Sequence[int], wanted: np.ndarray[Any, Any]) -> None:
        """Put the columns `wanted` of layers `which` into one explicit layer."""
        first = self.source[0]
        total = zeros((len(wanted), first.n_outputs, first.samples), first.g)
        for k in which:
            taken = np.flatnonzero(np.isin(self.columns[k], wanted))
            if len(taken):
                rows = take_rows(self.source[k].block().swapaxes(0, 2), taken)
                where = np.searchsorted(wanted, self.columns[k][taken])
                total = put_rows(rows, where, total)
        self.layers.append(Explicit(total.swapaxes(0, 2), label="(written out)"))
        self.order.append(wanted)

    def held(self) -> Held:
        """Layers taken so far."""
        parameters = replace(self.parameters, order=np.concatenate(self.order))
        return tuple(self.layers), parameters
