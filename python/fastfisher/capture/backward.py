# SPDX-License-Identifier: Apache-2.0
"""Backward pass of an existing graph for many cotangents at once, on a leading axis.

Every node has a rule by its name, in `backward_rules`, or the graph is unsupported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.autograd.graph import get_gradient_edge

from fastfisher.capture import graph as ag
from fastfisher.capture.backward_rules import (
    JOINS,
    PRODUCTS,
    RULES,
    Gradient,
    Part,
    Product,
    Step,
    cat_starts,
    plain_product,
)
from fastfisher.capture.graph import Edge, Node

_DTYPES = (torch.float32, torch.float64)


class Unsupported(Exception):
    """A graph with a node that has no rule, or with numbers other than real floats."""


class Backward:
    """Backward pass from y to edges, prepared once, for any cotangents and from any threads.

    Raises Unsupported where a node
    between y and the edges has no rule.
    """

    def __init__(
        self, y: torch.Tensor, edges: Sequence[Edge], product: Product = plain_product
    ) -> None:
        self._edges, self._device = tuple(edges), y.device.type
        self._top: Edge | None = None
        if y.requires_grad:
            node, number = get_gradient_edge(y)[:2]
            self._top = node, number
        self._steps = _steps(y, self._top, self._edges, product)

    def __call__(self, cotangents: torch.Tensor) -> list[torch.Tensor | None]:
        """Gradients (C, *result) for cotangents (C, *y.shape), to be read only: they may overlap.

        None where y does not depend on an edge.
        """
        if self._top is None:
            return [None] * len(self._edges)
        sums = _Sums(len(cotangents))
        wanted: dict[Edge, torch.Tensor | None] = dict.fromkeys(self._edges)
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            sums.add(self._top, cotangents.detach(), ())
            for step in self._steps:
                _take(step, sums, wanted)
        wanted.update((edge, sums.pop(edge)) for edge, g in wanted.items() if g is None)
        return [wanted[edge] for edge in self._edges]


def supported(y: torch.Tensor, edges: Sequence[Edge]) -> bool:
    """Whether `gradients` knows all nodes between y and the edges."""
    try:
        Backward(y, edges)
    except Unsupported:
        return False
    return True


def gradients(
    y: torch.Tensor,
    edges: Sequence[Edge],
    cotangents: torch.Tensor,
    product: Product = plain_product,
) -> list[torch.Tensor | None]:
    """Gradients of one `Backward` pass that are contiguous and share no memory."""
    results = Backward(y, edges, product)(cotangents)
    taken = {cotangents.untyped_storage().data_ptr()}
    for k, result in enumerate(results):
        if result is None:
            continue
        if not result.is_contiguous() or result.untyped_storage().data_ptr() in taken:
            result = results[k] = result.clone(memory_format=torch.contiguous_format)
        taken.add(result.untyped_storage().data_ptr())
    return results


def _take(step: Step, sums: _Sums, wanted: dict[Edge, torch.Tensor | None]) -> None:
    """Go through a node: what arrived at its results goes on to what it received."""
    arrived = [sums.pop(result) for result in step.results]
    for result, g in zip(step.results, arrived, strict=True):
        if result in wanted:
            wanted[result] = g
    if all(g is None for g in arrived):
        return
    for slot, gradient in enumerate(_apply(step, arrived)):
        if step.needed[slot] and gradient is not None:
            sums.add(step.edges[slot], gradient, arrived)


def _steps(
    y: torch.Tensor, top: Edge | None, edges: Sequence[Edge], product: Product
) -> list[Step]:
    """Nodes between y and the edges, users first; Unsupported where one of them has no rule."""
    if top is None:
        return []
    if y.dtype not in _DTYPES or y.layout != torch.strided:
        raise Unsupported(f"result of {y.dtype}, {y.layout}")
    wanted, leads = set(edges), dict[Node, bool]()
    below: dict[Node, tuple[Edge, ...]] = {}
    steps: list[Step] = []
    stack = [(top[0], False)]
    while stack:
        node, done = stack.pop()
        if done:
            needed = tuple(m is not None and (leads[m] or (m, k) in wanted) for m, k in below[node])
            leads[node] = any(needed)
            if leads[node]:
                steps.append(Step(node, below[node], needed, product))
        elif node not in below:
            below[node] = ag.edges(node)
            stack.append((node, True))
            stack.extend((m, False) for m, _ in below[node] if m is not None)
    for step in steps:
        _check(step, y)
    return steps[::-1]


def _check(step: Step, y: torch.Tensor) -> None:
    node, name = step.node, step.name
    if name not in RULES and name not in JOINS:
        raise Unsupported(f"no rule for {name}")
    for edge, needed in zip(step.edges, step.needed, strict=True):
        if needed and (ag.dtype(edge) != y.dtype or ag.device(edge) != y.device):
            raise Unsupported(f"{name}: of {ag.dtype(edge)} on {ag.device(edge)}")
    if name in PRODUCTS:
        factors = [getattr(node, f"_saved_{factor}") for factor in PRODUCTS[name]]
        if any(factor is not None and factor.layout != torch.strided for factor in factors):
            raise Unsupported(f"{name} of a sparse matrix")
    if name == "CatBackward0" and any(
        needed and start is None
        for needed, start in zip(step.needed, cat_starts(step), strict=True)
    ):
        raise Unsupported(f"{name}: between tensors of unknown sizes")


def _apply(step: Step, arrived: Sequence[torch.Tensor | None]) -> Iterable[Gradient]:
    """Gradients of what a node received; results that nothing arrived at have zeros."""
    name = step.name
    g = next(g for g in arrived if g is not None)
    if name in JOINS:
        return [_joined(step, arrived, g)]
    assert len(arrived) == 1
    found = RULES[name](step, g)
    return [found] if isinstance(found, torch.Tensor | Part) else found or ()


def _joined(step: Step, arrived: Sequence[torch.Tensor | None], some: torch.Tensor) -> torch.Tensor:
    """Gradient of what a node split or unbound; results that nothing arrived at have zeros."""
    shape = step.shape()
    whole = some.new_empty((len(some), *shape))
    axis, start = step.axis(step.saved("dim"), len(shape)), 0
    for k, part in enumerate(arrived):
        if step.name == "UnbindBackward0":
            place = whole.select(axis, k)
        else:
            size = ag.shape((step.node, k))[axis - 1]
            place = whole.narrow(axis, start, size)
            start += size
        if part is None:
            place.zero_()
        else:
            place.copy_(part)
    return whole


class _Sums:
    """Sums of the gradients that arrive at edges."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sums: dict[Edge, torch.Tensor] = {}
        self._ours: set[Edge] = set()  # sums that are no one else's to read

    def pop(self, edge: Edge) -> torch.Tensor | None:
        return self._sums.pop(edge, None)

    def add(
        self, edge: Edge, new: torch.Tensor | Part, arrived: Sequence[torch.Tensor | None]
    ) -> None:
        """Add what a rule made of what `arrived`."""
        total = self._sums.get(edge)
        if isinstance(new, Part):
            if total is None:
                total = new.gradient.new_zeros((self._count, *ag.shape(edge)))
            elif edge not in self._ours:
                total = total.clone(memory_format=torch.contiguous_format)
            new.place(total).add_(new.gradient)
        elif total is None:
            self._sums[edge] = new
            return
        elif edge in self._ours:
            total.add_(new)
        elif _is_fresh(new, arrived):
            total = new.add_(total)
        else:
            total = total + new
        self._sums[edge] = total
        self._ours.add(edge)


def _is_fresh(gradient: torch.Tensor, arrived: Sequence[torch.Tensor | None]) -> bool:
    """Whether a rule made memory of its own for a gradient, each number in a place of its own."""
    if not gradient.is_contiguous():
        return False
    place = gradient.untyped_storage().data_ptr()
    return all(g is None or g.untyped_storage().data_ptr() != place for g in arrived)
