# SPDX-License-Identifier: Apache-2.0
"""Capture of a torch model: a probe makes a plan, each block of samples follows it.

The graph of one run is walked (`graph`), uses of weights are found (`plan`), each family of nodes
turns saved inputs and output gradients into terms (`linear`, `conv`, `elementwise`), which become
layers (`assemble`). Nothing is hooked and nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from fastfisher._jacobian import Jacobian
from fastfisher._memory import layer_bytes
from fastfisher._pool import keep_freed_memory
from fastfisher.capture import graph as ag
from fastfisher.capture.assemble import Assembled, assemble
from fastfisher.capture.columns import VIEWS, Columns, base_name
from fastfisher.capture.cost import LEAST_PIECE, Cost
from fastfisher.capture.graph import Graph
from fastfisher.capture.harvest import Harvest, Named
from fastfisher.capture.model import (
    Inputs,
    Model,
    in_dtype,
    recorded,
    recording,
    samples_of,
    take,
    tensors_of,
    untouched,
)
from fastfisher.capture.pieces import (
    Costlier,
    DifferentPieces,
    Room,
    compacted,
    gradient_bytes,
    is_compacted,
    put_together,
)
from fastfisher.capture.plan import PROBE, UNREACHED, Plan, make_plan
from fastfisher.capture.refusals import mixing, refuse_company, refuse_random
from fastfisher.capture.run import Run, check_inputs, run
from fastfisher.capture.separable import find_head
from fastfisher.capture.site import NotUnderstood
from fastfisher.capture.terms import Full
from fastfisher.capture.verify import check_products
from fastfisher.errors import CaptureError, NonFiniteError

_ATTEMPTS = 2
_RANDOM_RUNS = 16


class Capture:
    """Capture of a model on samples `x`.

    Parameters
    ----------
    model : Model
        The model.
    x : tensor or mapping of tensors
        Samples to learn the structure from.
    verify : bool
        Whether to prove the first capture of each structure, see `verify`.
    """

    def __init__(self, model: Model, x: Inputs, *, verify: bool = True) -> None:
        self.model, self.verify = model, verify
        self.plan: Plan | None = None
        self._plans: dict[tuple[object, ...], list[Plan]] = {}
        self._proved: set[Plan] = set()
        self._replaced: set[Plan] = set()
        self._used: dict[Plan, None] = {}
        self.cost = Cost(1.0, 1.0, 1.0)
        self._fits: Callable[[Cost], bool] | None = None
        check_inputs(x, model, "x")
        keep_freed_memory()
        if samples_of(x):
            self._probe(x)

    @property
    def treated(self) -> dict[str, str]:
        """How each parameter was treated; samples that took several ways may have several."""
        plans = [plan for plan in self._used if plan.treated]
        result: dict[str, str] = {}
        for name in self.model.parameters:
            ways = dict.fromkeys(plan.treated[name] for plan in plans if name in plan.treated)
            if ways:
                result[name] = "; ".join([way for way in ways if way != UNREACHED] or [UNREACHED])
        return result

    def jacobian(
        self,
        x: Inputs,
        *,
        piece: int | None = None,
        compact: bool = False,
        first: int = 0,
        fits: Callable[[Cost], bool] | None = None,
    ) -> Jacobian:
        """Jacobian of the samples `x` as factors, all in memory, captured `piece` at a time.

        With `compact` layers are kept as gradients where these are smaller than the factors.
        `first` is the number of the first sample, for messages. `fits` says whether there is memory
        for what samples turn out to cost.

        Raises
        ------
        Costlier
            There is not.
        DifferentPieces
            With `fits`: samples take ways too different to be captured in pieces.
        """
        with untouched(self.model), recording():
            if samples_of(x) == 0 or self.plan is None:
                return self._empty(x)
            n, width = samples_of(x), piece or self.cost.piece
            # No longer than that: it leads to blocks in memory, which would wait for the collector.
            self._fits = fits
            try:
                if n > width or compact:
                    # What a piece taught may make the others like it.
                    for _ in range(_ATTEMPTS):
                        try:
                            return self._in_pieces(x, width, compact, first)
                        except DifferentPieces:
                            pass
                    if fits is not None and n > width:
                        raise DifferentPieces
                return self._captured(x, first)
            finally:
                self._fits = None

    def _in_pieces(self, x: Inputs, width: int, compact: bool, first: int) -> Jacobian:
        n = samples_of(x)
        room = Room(n, min(n, width))

        def piece(start: int, stop: int) -> Jacobian:
            # Layers that will be written out need no room of their own.
            room.at(start, stop - start)
            few = take(x, slice(start, stop))
            part = self._captured(few, first + start, None if compact else room)
            return compacted(part) if compact else part

        return put_together((piece(*span) for span in self._pieces(n, width)), room)

    def _pieces(self, n: int, width: int) -> Iterator[tuple[int, int]]:
        """Yield samples [start, stop) of each piece; what is to be proven is few."""
        start = 0
        while start < n:
            proven = self.plan is None or self.plan in self._proved
            stop = min(start + (width if proven else min(width, LEAST_PIECE)), n)
            yield start, stop
            start = stop

    def _probe(self, x: Inputs) -> None:
        n = samples_of(x)
        device = tensors_of(x)[0].device
        chosen = torch.arange(PROBE, device=device) % n
        others = torch.arange(PROBE + 1, device=device).add(1) % n
        few, more = take(x, chosen), take(x, others)
        other: Graph | None = None
        with untouched(self.model), recording():
            try:
                probe = self._sure(few, chosen.tolist())
                other = run(self.model, more, which=others.tolist()).graph
                refuse_company(
                    self.model, probe.graph, other.y, chosen.tolist(), others.tolist(),
                    lambda: run(self.model, few).graph.y,
                )  # fmt: skip
            except (NonFiniteError, CaptureError):
                raise
            except Exception:
                # A model may insist on its number of samples.
                few = x
                probe = self._whole(x)
            self._learn(few, probe.graph, probe.leaves, other)

    def _whole(self, x: Inputs) -> Run:
        """Run on all samples, with the likely reason if that fails."""
        try:
            return self._sure(x)
        except (NonFiniteError, CaptureError):
            raise
        except Exception as error:
            like = self.model.like
            dtypes = {t.dtype for t in tensors_of(x) if t.is_floating_point()}
            if not dtypes and like is not None and self._runs(in_dtype(x, like.dtype)):
                dtypes = {t.dtype for t in tensors_of(x)}  # integers for a model that wants floats
            if like is not None and dtypes and like.dtype not in dtypes:
                raise TypeError(
                    f"x: expected dtype {like.dtype} as the parameters, got dtype "
                    f"{', '.join(map(str, dtypes))}; the model says: {error}"
                ) from error
            shapes = [tuple(t.shape) for t in tensors_of(x)]
            error.add_note(f"fastfisher: the model raised this on x of shape {shapes}")
            raise

    def _runs(self, x: Inputs) -> bool:
        try:
            with torch.no_grad():
                self.model(x)
        except Exception:
            return False
        return True

    def _sure(self, x: Inputs, which: Sequence[int] | None = None) -> Run:
        """Run, and again if the model drew random numbers: outputs must not depend on them."""
        first = run(self.model, x, which=which)
        if first.drew:
            # Layers that are dropped rarely leave most runs as they are.
            for _ in range(_RANDOM_RUNS):
                refuse_random(self.model, first.graph.y, run(self.model, x).graph.y)
        return first

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
            raise CaptureError(f"{error}{mixing(self.model)}") from error
        self.plan = plan
        self._plans.setdefault(graph.signature, []).append(plan)
        plan.head = find_head(graph, n)
        cost = cost_of(self._harvested(x, graph, detect=True), graph, n)
        known, self.cost = self.cost, self.cost.most(cost)
        if self._fits is not None and self.cost != known and not self._fits(self.cost):
            raise Costlier

    def _captured(self, x: Inputs, first: int, room: Room | None = None) -> Jacobian:
        n = samples_of(x)
        one = run(self.model, x, which=range(first, first + n))
        if one.drew:
            refuse_random(self.model, one.graph.y, run(self.model, x).graph.y)
        known = self._plans.get(one.graph.signature, [])
        self.plan = next((plan for plan in known if plan.fits(one.graph, n)), None)
        if self.plan is None:
            # Other samples may take another way through the model.
            self._relearn(x, one)
        done = self.plan in self._proved
        jacobian = self._harvested(x, one.graph, room) if done else self._proven(x, one, room)
        assert self.plan is not None
        self._used[self.plan] = None
        return jacobian

    def _relearn(self, x: Inputs, one: Run) -> None:
        """Learn from samples to be captured, and from one more."""
        n = samples_of(x)
        other: Graph | None = None
        try:
            more = torch.arange(n + 1, device=tensors_of(x)[0].device) % n
            other = run(self.model, take(x, more)).graph
        except Exception:
            other = None
        self._learn(x, one.graph, one.leaves, other)

    def _proven(self, x: Inputs, one: Run, room: Room | None) -> Jacobian:
        """Jacobian of the first run of a structure, with the proof that its factors are right.

        As long as the layout of samples is ambiguous, for gradients that vanish, every run is
        proven, and the first one that fails is learned from.
        """
        while True:
            plan = self.plan
            assert plan is not None
            jacobian = self._harvested(x, one.graph, room)
            # Without inputs to differentiate by, coupled samples show in the sums only.
            sure = self.verify or not plan.sure or (bool(plan.explicit) and not one.leaves)
            wrong = check_products(jacobian, one.graph, self.model.parameters) if sure else []
            if not wrong:
                if plan.sure:
                    self._proved.add(plan)
                return jacobian
            if not plan.sure and plan not in self._replaced:
                self._plans[plan.signature].remove(plan)
                self._relearn(x, one)
                assert self.plan is not None
                self._replaced.add(self.plan)
                continue
            hopeless = [name for name in wrong if name in plan.explicit]
            if hopeless:
                refuse_random(self.model, one.graph.y, run(self.model, x).graph.y)
                raise CaptureError(
                    f"the gradients of parameter {hopeless[0]!r} do not add up to its gradient for "
                    "all samples: samples are coupled, or a run on one sample differs from one on "
                    f"many{mixing(self.model)}"
                )
            reason = "its factors do not reproduce autograd's gradient"
            plan.explicit |= dict.fromkeys(wrong, reason)

    def _harvested(
        self, x: Inputs, graph: Graph, room: Room | None = None, *, detect: bool = False
    ) -> Jacobian:
        """Jacobian of a run; uses that turn out not to be understood become explicit."""
        plan = self.plan
        assert plan is not None
        while True:
            try:
                terms = Harvest(self.model, plan, room).terms(x, graph, detect=detect)
                return self._assembled(plan, graph, terms)
            except NotUnderstood as error:
                why, use = error.args
                plan.explicit |= dict.fromkeys(use.names, str(why))

    def _empty(self, x: Inputs) -> Jacobian:
        y = self.model(recorded(x)[0])
        total = sum(p.numel() for p in self.model.parameters.values())
        term = Full(Columns((total,)), y.new_zeros((samples_of(x), y.shape[1], total)))
        names = tuple(self.model.parameters)
        done = self._assemble([(term, names)] if names else [], y.dtype, term.j)
        return Jacobian(done.layers, y.detach(), parameters=done.parameters)

    def _assemble(
        self, terms: Sequence[Named], dtype: torch.dtype, empty: torch.Tensor
    ) -> Assembled:
        shapes = {name: tuple(p.shape) for name, p in self.model.parameters.items()}
        return assemble(terms, shapes, dtype, empty, of_module=self.model.module is not None)

    def _assembled(self, plan: Plan, graph: Graph, terms: Sequence[Named]) -> Jacobian:
        dtype = graph.y.dtype
        for p in self.model.parameters.values():
            dtype = torch.promote_types(dtype, p.dtype)
        n, c = graph.y.shape
        done = self._assemble(terms, dtype, graph.y.detach().new_zeros((n, c, 0)))
        plan.treated |= done.treated
        for name, why in plan.explicit.items():
            plan.treated[name] = f"per-sample gradients ({why})"
        return Jacobian(done.layers, graph.y.detach().to(dtype), parameters=done.parameters)


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
    compact = sum(
        gradient_bytes(layer) if is_compacted(layer) else layer_bytes(layer)
        for layer in jacobian.layers
    )
    on_device = graph.y.device.type != "cpu"
    return Cost(factors / n, (2 * made + factors) / n, compact / n, on_device)
