# SPDX-License-Identifier: Apache-2.0
"""Capture of a torch model: a probe makes a plan, each block of samples follows it.

The graph of one run is walked (`graph`), uses of weights are found (`plan`), each family of nodes
turns saved inputs and output gradients into terms (`linear`, `conv`, `elementwise`), which become
layers (`assemble`). Nothing is hooked and nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from fastfisher._jacobian import Jacobian
from fastfisher._memory import layer_bytes
from fastfisher.capture import graph as ag
from fastfisher.capture.assemble import assemble
from fastfisher.capture.columns import VIEWS, Columns, base_name, leaves_below
from fastfisher.capture.cost import Cost
from fastfisher.capture.explicit import per_sample_gradients
from fastfisher.capture.graph import Edge, Graph
from fastfisher.capture.model import (
    Inputs,
    Model,
    recorded,
    recording,
    samples_of,
    take,
    tensors_of,
    untouched,
)
from fastfisher.capture.pieces import DifferentPieces, allocate, piece_samples, put_together
from fastfisher.capture.plan import COUPLED, FAMILIES, PROBE, SEPARABLE, Plan, Use, make_plan
from fastfisher.capture.separable import find_head, head_factors, is_separable
from fastfisher.capture.site import NotUnderstood, Site
from fastfisher.capture.terms import Convolution, Full, Outer, Term
from fastfisher.capture.verify import check_products
from fastfisher.errors import CaptureError, NonFiniteError


class Capture:
    """Capture of a model on samples `x`.

    Parameters
    ----------
    model : Model
        The model.
    x : tensor or mapping of tensors
        Samples to learn the structure from.
    verify : bool
        Whether to prove the capture on the probe, see `verify`.
    """

    def __init__(self, model: Model, x: Inputs, *, verify: bool = True) -> None:
        self.model, self.verify = model, verify
        self.plan: Plan | None = None
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._without_mkldnn = False
        self._cost = Cost(1.0, 1.0)
        check_inputs(x, model, "x")
        if samples_of(x):
            self._probe(x)

    def jacobian(self, x: Inputs) -> Jacobian:
        """Jacobian of the samples `x` as factors, all in memory."""
        with untouched(self.model), recording():
            if samples_of(x) == 0 or self.plan is None:
                return self._empty(x)
            n, width = samples_of(x), piece_samples(self._cost.factors)
            if n > width:
                spans = [slice(k, min(k + width, n)) for k in range(0, n, width)]
                try:
                    return put_together((self._captured(take(x, span)) for span in spans), n)
                except DifferentPieces:
                    pass
            return self._captured(x)

    def cost(self) -> Cost:
        """Bytes that a sample takes."""
        return self._cost

    # -- Probe ------------------------------------------------------------------------------------

    def _probe(self, x: Inputs) -> None:
        n = samples_of(x)
        device = tensors_of(x)[0].device
        chosen = torch.arange(PROBE, device=device) % n
        others = torch.arange(PROBE + 1, device=device).add(1) % n
        few, more = take(x, chosen), take(x, others)
        other: Graph | None = None
        with untouched(self.model), recording():
            try:
                run = self._run(few)
                self._refuse_random(few, run[0])
                other = self._run(more)[0]
                self._refuse_company(run[0], other.y, chosen.tolist(), others.tolist())
            except (NonFiniteError, CaptureError):
                raise
            except Exception:
                # A model may insist on its number of samples.
                few, run = x, self._run(x)
                self._refuse_random(few, run[0])
            self._learn(few, *run, other)

    def _refuse_random(self, x: Inputs, graph: Graph) -> None:
        """Run again if the model drew random numbers: outputs must not depend on them."""
        if not self._drew:
            return
        again = self._run(x)[0].y
        if not torch.equal(graph.y, again):
            raise CaptureError(
                "stochastic forward: two runs on the same samples differ" + self._drawing()
            )

    def _refuse_company(
        self, graph: Graph, z: torch.Tensor, chosen: list[int], others: list[int]
    ) -> None:
        """Compare the outputs of the same samples in two batches of different samples."""
        y = graph.y
        if y.shape[1:] != z.shape[1:]:
            return
        again = torch.stack(
            [z[others.index(k)] if k in others else y[i] for i, k in enumerate(chosen)]
        )
        truth = y.detach().double()
        off = float((truth - again.detach().double()).norm())
        if off > max(graph.coarsest(), torch.finfo(y.dtype).eps) ** 0.5 * float(truth.norm()):
            raise CaptureError(f"{COUPLED} (they change with the other samples){self._mixing()}")

    def _learn(
        self,
        x: Inputs,
        graph: Graph,
        leaves: Sequence[torch.Tensor],
        other: Graph | None = None,
    ) -> None:
        n = samples_of(x)
        try:
            plan = make_plan(graph, self.model.parameters, leaves, n, other)
        except CaptureError as error:
            raise CaptureError(f"{error}{self._mixing()}") from error
        self.plan = self._plans[graph.signature] = plan
        plan.head = find_head(graph, n)
        while True:
            try:
                terms = self._terms(x, graph, detect=True)
                jacobian = self._assembled(x, graph, terms)
            except NotUnderstood as error:
                self._give_up(error)
                continue
            self._cost = cost_of(jacobian, graph, n)
            # Without inputs to differentiate by, coupled samples show in the sums only.
            sure = self.verify or (bool(plan.explicit) and not leaves)
            wrong = check_products(jacobian, graph, self.model.parameters) if sure else []
            if not wrong:
                return
            hopeless = [name for name in wrong if name in plan.explicit]
            if hopeless:
                raise CaptureError(
                    f"the gradients of parameter {hopeless[0]!r} do not add up to its gradient for "
                    "all samples: samples are coupled, or a run on one sample differs from one on "
                    "many" + self._mixing()
                )
            for name in wrong:
                plan.explicit[name] = "its factors do not reproduce autograd's gradient"

    def _give_up(self, error: NotUnderstood) -> None:
        assert self.plan is not None
        use = error.args[1]
        for name in use.names:
            self.plan.explicit[name] = str(error.args[0])

    def _mixing(self) -> str:
        """Modules that may couple samples, for messages."""
        names = [
            f"{name or 'model'} ({type(module).__name__})"
            for name, module in self.model.named_modules()
            if "BatchNorm" in type(module).__name__
            and (module.training or getattr(module, "running_mean", None) is None)
        ]
        if not names:
            return ""
        return f"; batch statistics in: {', '.join(names)}; call model.eval()"

    def _drawing(self) -> str:
        """Modules that may draw random numbers, for messages."""
        names = [
            f"{name or 'model'} ({type(module).__name__})"
            for name, module in self.model.named_modules()
            if module.training and draws(module)
        ]
        if not names:
            return ""
        return f"; training with random numbers: {', '.join(names)}; call model.eval()"

    # -- Runs -------------------------------------------------------------------------------------

    def _run(self, x: Inputs) -> tuple[Graph, list[torch.Tensor]]:
        """Graph of one run and the leaves of its inputs."""
        given, leaves = recorded(x)
        before = torch.get_rng_state()
        with ag.without_mkldnn() if self._without_mkldnn else nullcontext():
            y = self.model(given)
        self._drew = not torch.equal(before, torch.get_rng_state())
        if not bool(torch.isfinite(y).all()):
            where = torch.nonzero(~torch.isfinite(y))[0].tolist()
            raise NonFiniteError(
                f"model: expected finite outputs, got {float(y.detach()[tuple(where)])} for sample "
                f"{where[0]}, output {where[1]}"
            )
        graph = Graph(y)
        if not self._without_mkldnn and any("MkldnnRnn" in name for name in graph.names):
            self._without_mkldnn = True
            return self._run(x)
        return graph, leaves

    def _captured(self, x: Inputs) -> Jacobian:
        graph, leaves = self._run(x)
        assert self.plan is not None
        if graph.signature in self._plans:
            self.plan = self._plans[graph.signature]
        else:
            # Other samples may take another way through the model.
            self._learn(x, graph, leaves)
        while True:
            try:
                terms = self._terms(x, graph)
                return self._assembled(x, graph, terms)
            except NotUnderstood as error:
                self._give_up(error)

    def _empty(self, x: Inputs) -> Jacobian:
        y = self.model(recorded(x)[0])
        total = sum(p.numel() for p in self.model.parameters.values())
        term = Full(Columns((total,)), y.new_zeros((samples_of(x), y.shape[1], total)))
        names = tuple(self.model.parameters)
        done = assemble([(term, names)] if names else [], self._shapes(), y.dtype, term.j)
        return Jacobian(done.layers, y.detach(), parameters=done.parameters)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.model.parameters.items()}

    # -- Terms ------------------------------------------------------------------------------------

    def _terms(
        self, x: Inputs, graph: Graph, *, detect: bool = False
    ) -> list[tuple[Term, tuple[str, ...]]]:
        """Terms of all uses with the names of their parameters."""
        plan, n, c = self.plan, samples_of(x), graph.y.shape[1]
        assert plan is not None
        uses = [use for use in plan.uses if not any(name in plan.explicit for name in use.names)]
        edges = [(graph.nodes[use.node], 0) for use in uses]
        shared = head_factors(graph, plan.head, n) if plan.head else None
        apart = [k for k, use in enumerate(uses) if use.separable and shared is not None]
        gradients = self._cotangents(graph, [e for k, e in enumerate(edges) if k not in apart])
        apart_gradients: dict[Edge, torch.Tensor] = {}
        if shared is not None and apart:
            apart_gradients = shared.gradients(graph, [edges[k] for k in apart])
            for k in list(apart):
                if not shared.holds(graph, edges[k], apart_gradients[edges[k]], uses[k]):
                    uses[k].separable = False
                    gradients.update(self._cotangents(graph, [edges[k]]))
        if detect and shared is not None:
            for use, edge in zip(uses, edges, strict=True):
                name = base_name(edge[0])
                if (
                    name in SEPARABLE
                    and not use.derived
                    and edge in gradients
                    and is_separable(graph, edge, gradients[edge], use, shared, n)
                ):
                    use.separable = True
            apart_gradients = shared.gradients(
                graph, [e for use, e in zip(uses, edges, strict=True) if use.separable]
            )
        terms: list[tuple[Term, tuple[str, ...]]] = []
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
        assert self.plan is not None
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
    ) -> list[tuple[Term, tuple[str, ...]]]:
        node = graph.nodes[use.node]
        family = FAMILIES[base_name(node)]
        plain = {slot: c for slot, c in use.weights.items() if slot not in use.derived}
        result: list[tuple[Term, tuple[str, ...]]] = []
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
                    result += self._pulled_back(term, ag.edges(node)[slot])
        except NotUnderstood as error:
            raise NotUnderstood(str(error), use) from error
        return result

    def _names_of(self, term: Term) -> tuple[str, ...]:
        """Parameters in a term's columns; that of the bias comes last."""
        parts = [term.columns]
        if isinstance(term, Outer | Convolution) and term.bias is not None:
            parts.append(term.bias)
        names = list(self.model.parameters)
        ends = torch.tensor([p.numel() for p in self.model.parameters.values()]).cumsum(0)
        found: list[str] = []
        for part in parts:
            flat = part.flat()
            if isinstance(flat, range):
                flat = torch.tensor([flat.start, flat.stop - 1] if len(flat) else [])
            owners = torch.bucketize(flat.cpu(), ends, right=True).unique().tolist()
            found += [names[int(k)] for k in owners]
        return tuple(found)

    def _pulled_back(self, term: Term, edge: Edge) -> list[tuple[Term, tuple[str, ...]]]:
        """Terms of the parameters that a derived weight is made of: J dW / dtheta."""
        offsets, start, names = {}, 0, {}
        owners = {id(p): name for name, p in self.model.parameters.items()}
        for name, p in self.model.parameters.items():
            offsets[name] = start
            start += p.numel()
        found: dict[Any, int] = {}
        stack, seen = [edge[0]], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if ag.is_leaf(node) and id(ag.leaf(node)) in owners:
                names[node] = owners[id(ag.leaf(node))]
                found[node] = offsets[names[node]]
            stack.extend(m for m, _ in node.next_functions)
        leaves = leaves_below(edge, found)
        block = term.block()
        n, c, _ = block.shape
        shape = ag.shape(edge)
        j = block.new_zeros((n * c, math.prod(shape)))
        j[:, torch.as_tensor(term.columns.flat(), device=j.device)] = block.reshape(n * c, -1)
        cotangents = j.reshape(n * c, *shape).to(ag.dtype(edge))
        targets = [(node, 0) for node in leaves]
        rows = [ag.gradients([edge], targets, [row]) for row in cotangents]
        result: list[tuple[Term, tuple[str, ...]]] = []
        for k, node in enumerate(leaves):
            p = ag.leaf(node)
            parts = [
                p.new_zeros(p.numel()) if row[k] is None else row[k].detach().reshape(-1)  # type: ignore[union-attr]
                for row in rows
            ]
            full = torch.stack(parts).reshape(n, c, -1) if parts else p.new_zeros((n, c, p.numel()))
            result.append((Full(Columns((p.numel(),), found[node]), full), (names[node],)))
        return result

    def _cotangents(self, graph: Graph, edges: Sequence[Edge]) -> dict[Edge, torch.Tensor]:
        """Gradients (c, *result) of all outputs for each edge."""
        c = graph.y.shape[1]
        unique = list(dict.fromkeys(edges))
        result = {
            edge: allocate((c, *ag.shape(edge)), ag.dtype(edge), ag.device(edge)) for edge in unique
        }
        with torch.autocast(graph.y.device.type, enabled=False):
            for k in range(c):
                cotangent = torch.zeros_like(graph.y)
                cotangent[:, k] = 1
                for edge, grad in zip(
                    unique, ag.gradients([graph.y], unique, [cotangent]), strict=True
                ):
                    if grad is None:
                        result[edge][k] = 0
                    else:
                        result[edge][k] = grad.detach()
        return result

    def _assembled(
        self, x: Inputs, graph: Graph, terms: list[tuple[Term, tuple[str, ...]]]
    ) -> Jacobian:
        dtype = graph.y.dtype
        for p in self.model.parameters.values():
            dtype = torch.promote_types(dtype, p.dtype)
        n, c = graph.y.shape
        done = assemble(terms, self._shapes(), dtype, graph.y.detach().new_zeros((n, c, 0)))
        plan = self.plan
        assert plan is not None
        for name, how in done.treated.items():
            plan.treated[name] = how
        for name, why in plan.explicit.items():
            plan.treated[name] = f"per-sample gradients ({why})"
        return Jacobian(done.layers, graph.y.detach().to(dtype), parameters=done.parameters)


def draws(module: torch.nn.Module) -> bool:
    """Whether a training module is one that draws random numbers."""
    kind = type(module).__name__
    rate = getattr(module, "p" if "Drop" in kind else "dropout", 0)
    return kind == "RReLU" or (isinstance(rate, int | float) and rate > 0)


def cost_of(jacobian: Jacobian, graph: Graph, n: int) -> Cost:
    """Bytes a sample of a captured block."""
    factors = sum(layer_bytes(layer) for layer in jacobian.layers)
    made = 0
    for node in graph.nodes:
        if ag.is_leaf(node) or base_name(node) in VIEWS:
            continue
        for k in range(ag.output_count(node)):
            made += math.prod(ag.shape((node, k))) * ag.dtype((node, k)).itemsize
    # A result, what it saves and its gradient; and the factors themselves before they are copied.
    width = piece_samples(factors / n)
    return Cost(factors / n, width * (2 * made + factors) / n)


def check_inputs(x: Inputs, model: Model, name: str) -> None:
    """Check that `x` is a batch of finite numbers on the device of the parameters."""
    tensors = tensors_of(x)
    if not tensors or any(t.ndim == 0 for t in tensors):
        raise ValueError(f"{name}: expected tensors with samples on their first axis")
    for t in tensors:
        if t.shape[0] != tensors[0].shape[0]:
            raise ValueError(
                f"{name}: expected {tensors[0].shape[0]} samples in every tensor, got shape "
                f"{tuple(t.shape)}"
            )
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            where = tuple(torch.nonzero(~torch.isfinite(t))[0].tolist())
            raise NonFiniteError(
                f"{name}: expected finite numbers, got {float(t.detach()[where])} at index {where}"
            )
    like = model.like
    if like is not None and like.device != tensors[0].device:
        raise ValueError(
            f"{name}: expected device {like.device} as the parameters, got {tensors[0].device}"
        )
