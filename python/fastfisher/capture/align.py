# SPDX-License-Identifier: Apache-2.0
"""Two Jacobians of one model whose samples took different ways through it, layer by layer alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastfisher._jacobian import Jacobian, Parameters
from fastfisher.factors import Explicit, Layer


def aligned(left: Jacobian, right: Jacobian) -> tuple[Jacobian, Jacobian]:
    """Both with layers that fit in pairs, and the same product.

    Layers that do not fit are written out, those columns of them that both sides have: others meet
    zeros.
    """
    if fit(left, right):
        return left, right
    first, second = _Parts(left), _Parts(right)
    known = {second.key(k): k for k in range(len(right.layers))}
    pairs = [(k, known[key]) for k in range(len(left.layers)) if (key := first.key(k)) in known]
    for a, b in pairs:
        first.keep(a)
        second.keep(b)
    ours, theirs = first.others([a for a, _ in pairs]), second.others([b for _, b in pairs])
    common = np.intersect1d(first.touched(ours), second.touched(theirs))
    if len(common) or not pairs:
        first.write_out(ours, common)
        second.write_out(theirs, common)
    return first.jacobian(), second.jacobian()


class _Parts:
    """Layers of a Jacobian under way to another list of layers."""

    def __init__(self, source: Jacobian) -> None:
        assert source.parameters is not None
        self.source, self.parameters = source, source.parameters
        self.groups = source.parameters.groups
        self.columns = _columns(source)
        self.layers: list[Layer] = []
        self.order: list[np.ndarray[Any, Any]] = []
        self.owners: list[str] = []

    def others(self, which: Sequence[int]) -> list[int]:
        """Layers beside `which`."""
        return [k for k in range(len(self.columns)) if k not in set(which)]

    def touched(self, which: Sequence[int]) -> np.ndarray[Any, Any]:
        """Columns of the layers `which`."""
        return np.concatenate([np.empty(0, np.int64)] + [self.columns[k] for k in which])

    def key(self, k: int) -> tuple[Any, ...]:
        layer = self.source.layers[k]
        return (*layer.signature, layer.w is None, self.columns[k].tobytes())

    def keep(self, k: int) -> None:
        self._add(self.source.layers[k], self.columns[k], self.groups[k])

    def write_out(self, which: Sequence[int], wanted: np.ndarray[Any, Any]) -> None:
        """Put the columns `wanted` of layers `which` into one explicit layer."""
        j, like = self.source, self.source.layers[0].g
        total = torch.zeros(
            (j.samples, j.n_outputs, len(wanted)), dtype=like.dtype, device=like.device
        )
        group = ""
        for k in which:
            taken = np.flatnonzero(np.isin(self.columns[k], wanted))
            if len(taken):
                group = group or self.groups[k]
                where = torch.from_numpy(np.searchsorted(wanted, self.columns[k][taken]))
                block = j.layers[k].block()
                if len(taken) < block.shape[2]:
                    block = block[..., torch.from_numpy(taken).to(like.device)]
                total.index_copy_(2, where.to(like.device), block)
        self._add(Explicit(total, label="(written out)"), wanted, group)

    def _add(self, layer: Layer, columns: np.ndarray[Any, Any], group: str) -> None:
        self.layers.append(layer)
        self.order.append(columns)
        self.owners.append(group)

    def jacobian(self) -> Jacobian:
        table = Parameters(self.parameters.shapes, np.concatenate(self.order), tuple(self.owners))
        return Jacobian(tuple(self.layers), self.source.outputs, parameters=table)


def fit(left: Jacobian, right: Jacobian) -> bool:
    """Whether layers fit in pairs as they are."""
    return (
        len(left.layers) == len(right.layers)
        and all(
            x.signature == y.signature and (x.w is None) == (y.w is None)
            for x, y in zip(left.layers, right.layers, strict=True)
        )
        and _same_order(left, right)
    )


def _same_order(left: Jacobian, right: Jacobian) -> bool:
    a, b = left.parameters, right.parameters
    assert a is not None
    assert b is not None
    if a.order is None or b.order is None:
        return a.order is b.order
    return np.array_equal(a.order, b.order)


def _columns(jacobian: Jacobian) -> list[np.ndarray[Any, Any]]:
    """Columns of each layer in the parameter vector."""
    parameters = jacobian.parameters
    assert parameters is not None
    ends = np.cumsum([layer.parameters for layer in jacobian.layers])
    order = parameters.order
    return [
        np.arange(end - layer.parameters, end)
        if order is None
        else order[end - layer.parameters : end]
        for layer, end in zip(jacobian.layers, ends, strict=True)
    ]
