# SPDX-License-Identifier: Apache-2.0
"""From one run to its terms: the gradients of all results, and what each use makes of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.columns import Columns, base_name, leaves_below
from fastfisher.capture.explicit import per_sample_gradients
from fastfisher.capture.graph import Edge, Graph, Node
from fastfisher.capture.model import Inputs, Model, samples_of
from fastfisher.capture.pieces import Room, allocate
from fastfisher.capture.plan import FAMILIES, SEPARABLE, Plan, Use
from fastfisher.capture.products import own_products
from fastfisher.capture.separable import head_factors, is_separable
from fastfisher.capture.site import NotUnderstood, Site
from fastfisher.capture.terms import Convolution, Full, Outer, Term

Named = tuple[Term, tuple[str, ...]]
"""A term and the parameters in it, that of a bias last."""


class Harvest:
    """Terms of a model's runs by a plan; gradients go to `room` where it is given."""

    def __init__(self, model: Model, plan: Plan, room: Room | None = None) -> None:
        self.model, self.plan, self.room = model, plan, room

    def terms(self, x: Inputs, graph: Graph, *, detect: bool = False) -> list[Named]:
        """Terms of all uses with the names of their parameters.

        With `detect` they have the shapes of the terms, and find out which cotangents are
        separable; their numbers are those of one mixture of outputs, in place of each of them.
        """
        plan, n, c = self.plan, samples_of(x), graph.y.shape[1]
        mixture = _mixture(graph.y) if detect and c else None
        plan.close()
        uses = [use for use in plan.uses if not any(name in plan.explicit for name in use.names)]
        edges = [(graph.nodes[use.node], 0) for use in uses]
        shared = head_factors(graph, plan.head, n) if plan.head else None
        apart = [k for k, use in enumerate(uses) if use.separable and shared is not None]
        gradients = self._cotangents(
            graph, [use for k, use in enumerate(uses) if k not in apart], mixture
        )
        apart_gradients: dict[Edge, torch.Tensor] = {}
        if shared is not None and apart:
            apart_gradients = shared.gradients(graph, [edges[k] for k in apart])
            for k in list(apart):
                if not shared.holds(graph, edges[k], apart_gradients[edges[k]]):
                    uses[k].separable = False
                    gradients.update(self._cotangents(graph, [uses[k]], mixture))
        if mixture is not None and shared is not None:
            for use, edge in zip(uses, edges, strict=True):
                name = base_name(edge[0])
                if (
                    name in SEPARABLE
                    and not use.derived
                    and edge in gradients
                    and is_separable(graph, edge, gradients[edge][0], mixture, use, shared, n)
                ):
                    use.separable = True
            apart_gradients = shared.gradients(
                graph, [e for use, e in zip(uses, edges, strict=True) if use.separable]
            )
        terms: list[Named] = []
        for use, edge in zip(uses, edges, strict=True):
            if use.separable and shared is not None:
                g, w = apart_gradients[edge][None], shared.w
            else:
                g, w = gradients[edge], None
            terms += self._terms_of(graph, use, g, w, n)
        for names in self._explicit_groups():
            j = per_sample_gradients(self.model, x, names, c)
            start = 0
            for name in names:
                p = self.model.parameters[name]
                terms.append(
                    (Full(self._columns(name), j[..., start : start + p.numel()]), (name,))
                )
                start += p.numel()
        return terms

    def _explicit_groups(self) -> list[list[str]]:
        by_dtype: dict[torch.dtype, list[str]] = {}
        for name in self.model.parameters:
            if name in self.plan.explicit:
                by_dtype.setdefault(self.model.parameters[name].dtype, []).append(name)
        return list(by_dtype.values())

    def _columns(self, name: str) -> Columns:
        start = 0
        for other, p in self.model.parameters.items():
            if other == name:
                return Columns((p.numel(),), start)
            start += p.numel()
        raise KeyError(name)

    def _terms_of(
        self, graph: Graph, use: Use, g: torch.Tensor, w: torch.Tensor | None, n: int
    ) -> list[Named]:
        node = graph.nodes[use.node]
        family = FAMILIES[base_name(node)]
        plain = {slot: c for slot, c in use.weights.items() if slot not in use.derived}
        result: list[Named] = []
        try:
            if g.is_complex():
                raise NotUnderstood(f"complex numbers in {base_name(node)}")
            if plain:
                for term in family(Site(node, plain, use.layout, n, g, w)):
                    if use.bias is not None:
                        assert isinstance(term, Outer)
                        term = replace(term, bias=use.bias)
                    result.append((term, self._names_of(term)))
            for slot in use.derived:
                columns = Columns(use.weights[slot].shape)
                for term in family(Site(node, {slot: columns}, use.layout, n, g, w)):
                    result += self._pulled_back(graph, term, ag.edges(node)[slot])
        except NotUnderstood as error:
            raise NotUnderstood(str(error), use) from error
        return result

    def _names_of(self, term: Term) -> tuple[str, ...]:
        """Parameters in a term's columns; that of the bias comes last."""
        parts = [term.columns]
        if isinstance(term, Outer | Convolution) and term.bias is not None:
            parts.append(term.bias)
        names = list(self.model.parameters)
        sizes = [p.numel() for p in self.model.parameters.values()]
        ends = list(accumulate(sizes))
        found: list[str] = []
        for part in parts:
            if not part.size:
                continue
            if part.index is None:
                # In one stretch: what lies between the owners of its ends.
                first, last = part.start, part.start + part.size - 1
                between = range(bisect_right(ends, first), bisect_right(ends, last) + 1)
                owners = [k for k in between if sizes[k]]
            else:
                flat = part.positions().reshape(-1).cpu()
                owners = torch.bucketize(flat, torch.tensor(ends), right=True).unique().tolist()
            found += [names[k] for k in owners]
        return tuple(found)

    def _pulled_back(self, graph: Graph, term: Term, edge: Edge) -> list[Named]:
        """Terms of the parameters that a derived weight is made of: J dW / dtheta."""
        found, names = self._leaves(graph)
        leaves = leaves_below(edge, found)
        block = term.block()
        n, c, _ = block.shape
        shape = ag.shape(edge)
        j = block.new_zeros((n * c, math.prod(shape)))
        j[:, torch.as_tensor(term.columns.flat(), device=j.device)] = block.reshape(n * c, -1)
        cotangents = j.reshape(n * c, *shape).to(ag.dtype(edge))
        targets = [(node, 0) for node in leaves]
        rows = [ag.gradients([edge], targets, [row]) for row in cotangents]
        result: list[Named] = []
        for k, node in enumerate(leaves):
            p = ag.leaf(node)
            parts = [
                p.new_zeros(p.numel()) if row[k] is None else row[k].detach().reshape(-1)  # type: ignore[union-attr]
                for row in rows
            ]
            full = torch.stack(parts).reshape(n, c, -1) if parts else p.new_zeros((n, c, p.numel()))
            result.append((Full(Columns((p.numel(),), found[node]), full), (names[node],)))
        return result

    def _leaves(self, graph: Graph) -> tuple[dict[Node, int], dict[Node, str]]:
        """Start in the parameter vector, and name, of the parameters' leaf nodes."""
        owners = {id(p): name for name, p in self.model.parameters.items()}
        names = {
            node: owners[id(ag.leaf(node))]
            for node in graph.nodes
            if ag.is_leaf(node) and id(ag.leaf(node)) in owners
        }
        return {node: self._columns(name).start for node, name in names.items()}, names

    def _cotangents(
        self, graph: Graph, uses: Sequence[Use], mixture: torch.Tensor | None = None
    ) -> dict[Edge, torch.Tensor]:
        """Gradients (c, *result) of all outputs for the result of each use.

        With a mixture (c,) of outputs its gradient stands for that of each of them.
        """
        c = graph.y.shape[1]
        result: dict[Edge, torch.Tensor] = {}
        if mixture is not None:
            found = _gradients_of(graph, uses, mixture.expand_as(graph.y))
            return {edge: grad.expand(c, *grad.shape) for edge, grad in found.items()}
        if c == 1 and self.room is None:
            return self._single(graph, uses)
        for use in uses:
            edge = (graph.nodes[use.node], 0)
            shape, dtype, device = (c, *ag.shape(edge)), ag.dtype(edge), ag.device(edge)
            if self.room is None:
                result[edge] = allocate(shape, dtype, device)
            else:
                stays = use.stays and dtype == graph.y.dtype
                result[edge] = self.room.take(use.node, shape, dtype, device, stays=stays)
        device = graph.y.device
        with torch.autocast(device.type, enabled=False), own_products(device):
            for k in range(c):
                cotangent = torch.zeros_like(graph.y)
                cotangent[:, k] = 1
                for (_, out), grad in zip(
                    result.items(), ag.gradients([graph.y], list(result), [cotangent]), strict=True
                ):
                    if grad is None:
                        out[k] = 0
                    else:
                        out[k] = grad.detach()
        return result

    def _single(self, graph: Graph, uses: Sequence[Use]) -> dict[Edge, torch.Tensor]:
        """Gradients (1, *result) of the only output, as autograd made them where they are whole."""
        result: dict[Edge, torch.Tensor] = {}
        taken: set[int] = set()
        for edge, grad in _gradients_of(graph, uses, torch.ones_like(graph.y)).items():
            grad = grad.to(ag.dtype(edge)).resolve_neg()
            # Several results may have one gradient, or parts of it: no factor changes with another.
            storage = grad.untyped_storage()
            whole = grad.is_contiguous() and storage.nbytes() == grad.nbytes
            if not whole or storage.data_ptr() in taken:
                grad = grad.clone(memory_format=torch.contiguous_format)
            taken.add(grad.untyped_storage().data_ptr())
            result[edge] = grad[None]
        return result


def _gradients_of(graph: Graph, uses: Sequence[Use], u: torch.Tensor) -> dict[Edge, torch.Tensor]:
    """Gradients of outputs weighted by u, for the result of each use."""
    edges = [(graph.nodes[use.node], 0) for use in uses]
    with torch.autocast(graph.y.device.type, enabled=False), own_products(graph.y.device):
        found = ag.gradients([graph.y], edges, [u])
    return {
        edge: torch.zeros(ag.shape(edge), dtype=ag.dtype(edge), device=ag.device(edge))
        if grad is None
        else grad.detach()
        for edge, grad in zip(edges, found, strict=True)
    }


def _mixture(y: torch.Tensor) -> torch.Tensor:
    """Weights of a mixture of outputs that nobody could foresee."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(y.shape[1], generator=generator, dtype=torch.float64)
    return drawn.to(y.device, y.dtype)
