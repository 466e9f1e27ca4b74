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
    """Both with layers that fit in pairs; what does not fit is written out, module by module."""
    if fit(left, right):
        return left, right
    first, second = _Parts(left), _Parts(right)
    for group in dict.fromkeys((*first.groups, *second.groups)):
        ours, theirs = first.of(group), second.of(group)
        known = {second.key(k): k for k in theirs}
        pairs = [(k, known[first.key(k)]) for k in ours if first.key(k) in known]
        for a, b in pairs:
            first.keep(a)
            second.keep(b)
        rest = [k for k in ours if k not in {a for a, _ in pairs}]
        other = [k for k in theirs if k not in {b for _, b in pairs}]
        if rest or other:
            union = np.unique(
                np.concatenate(
                    [first.columns[k] for k in rest] + [second.columns[k] for k in other]
                )
            )
            first.write_out(rest, union, group)
            second.write_out(other, union, group)
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

    def of(self, group: str) -> list[int]:
        return [k for k, name in enumerate(self.groups) if name == group]

    def key(self, k: int) -> tuple[Any, ...]:
        layer = self.source.layers[k]
        return (*layer.signature, layer.w is None, self.columns[k].tobytes())

    def keep(self, k: int) -> None:
        self._add(self.source.layers[k], self.columns[k], self.groups[k])

    def write_out(self, which: Sequence[int], union: np.ndarray[Any, Any], group: str) -> None:
        """Put layers `which` into one explicit layer over the columns `union`."""
        j, like = self.source, self.source.layers[0].g
        total = torch.zeros(
            (j.samples, j.n_outputs, len(union)), dtype=like.dtype, device=like.device
        )
        for k in which:
            where = torch.from_numpy(np.searchsorted(union, self.columns[k])).to(like.device)
            total.index_add_(2, where, j.layers[k].block())
        self._add(Explicit(total, label=f"{group} (written out)"), union, group)

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
