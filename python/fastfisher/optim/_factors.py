# SPDX-License-Identifier: Apache-2.0
"""Inputs and output gradients of layers, collected during ordinary forward and backward passes.

A hook of each layer keeps its input; its output's gradient comes from the backward pass of the loss
("empirical"), or from one of sampled labels or of all outputs that the hook of the model runs
before the caller goes on.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastfisher._device_array import contiguous
from fastfisher.capture.model import is_recording
from fastfisher.errors import NonFiniteError
from fastfisher.likelihoods import Likelihood, likelihood_at
from fastfisher.optim._sites import Site
from fastfisher.optim._tensors import in_words, tensor_of


@dataclass(eq=False)
class Record:
    """One call of a layer: its input, and gradients (r, *output) of its output."""

    site: Site
    module: torch.nn.Module
    a: torch.Tensor
    edge: Any = None
    g: list[torch.Tensor] = field(default_factory=list)
    closed: bool = False
    waiting: tuple[int, torch.Tensor] | None = None
    """Number of a backward pass and its gradient, until the weight's gradient comes too."""
    graph: Any = None
    """Weak reference that is dead when no backward pass can come any more."""

    @property
    def single(self) -> bool:
        """Whether the input is one sample without an axis of its own."""
        axes = {"linear": 1, "conv": self.site.weight.ndim - 1, "embedding": 0}[self.site.kind]
        return bool(self.a.ndim == axes)

    def add(self, grad: torch.Tensor) -> None:
        """Take the gradient of a backward pass of the loss; of several passes the sum."""
        if self.closed:
            raise RuntimeError(
                f"layer {self.site.name!r}: a second backward pass through a batch whose factors "
                "are done; expected all backward passes of a batch before the next forward pass"
            )
        self.g = [grad if not self.g else self.g[0] + grad]


@dataclass(eq=False)
class Pass:
    """One forward pass of the model: its calls of layers, and how many samples it had."""

    records: list[Record] = field(default_factory=list)
    samples: int | None = None
    bad: str = ""
    live: bool = False
    """Whether a backward pass of the loss came."""

    @property
    def single(self) -> bool:
        """Whether it is of one sample without an axis of its own."""
        return bool(self.records) and all(record.single for record in self.records)

    @property
    def pending(self) -> bool:
        """Whether a backward pass may still come."""
        return any(record.graph is not None and record.graph() for record in self.records)

    @property
    def count(self) -> int:
        """Samples; without a call of the model the leading axis of a layer's input."""
        if self.samples is not None:
            return self.samples
        return max((len(r.a) for r in self.records if r.a.ndim > 1), default=1)


class Collector:
    """Hooks of a model, and the passes since the last step."""

    def __init__(
        self,
        model: torch.nn.Module,
        sites: list[Site],
        kind: str,
        likelihood: Likelihood | None,
        *,
        select: Callable[[Any], torch.Tensor] | None,
        batch_axes: int,
        draws: int,
        seed: int,
    ) -> None:
        self.model, self.sites = model, sites
        self.kind, self.likelihood, self.select = kind, likelihood, select
        self.batch_axes, self.draws, self.seed = batch_axes, draws, seed
        self.active, self.sampling, self.estimates = True, False, 0
        self._start()

    def _start(self) -> None:
        """Put hooks on the model."""
        self.passes: list[Pass] = []
        self.fold: Callable[[list[Pass]], None] | None = None
        self.forget: Callable[[], None] | None = None
        self.versions: dict[torch.Tensor, int] = {}
        self.handles: list[Any] = []
        model = self.model
        for site in self.sites:
            for module in site.modules:
                hook = Hook(self, module, site)
                self.handles.append(module.register_forward_hook(hook, with_kwargs=True))
            self.handles.append(site.weight.register_post_accumulate_grad_hook(Arrival(self, site)))
        self.handles.append(model.register_forward_pre_hook(Hook(self, model, None)))
        self.handles.append(model.register_forward_hook(Hook(self, model, None), with_kwargs=True))
        weakref.finalize(self, _remove, self.handles)

    def __getstate__(self) -> dict[str, Any]:
        """State without hooks and passes under way."""
        left = ("handles", "passes", "fold", "forget", "versions")
        return {name: value for name, value in vars(self).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copied state, and hook into the copied model."""
        vars(self).update(state)
        self._start()

    def remove(self) -> None:
        """Take all hooks off the model."""
        _remove(self.handles)
        self.handles.clear()

    def begin(self) -> None:
        """Start a forward pass of the model."""
        if self._idle():
            return
        self.refresh()
        if self.fold is not None:
            self.fold([one for one in self.passes if one.live])
        self.passes = [one for one in self.passes if one.live or one.pending]
        self.passes.append(Pass())

    def refresh(self) -> None:
        """Forget passes whose gradients were set to zero without this optimiser."""
        if self.versions and all(_cleared(w, was) for w, was in self.versions.items()):
            self.versions.clear()
            if self.forget is not None:
                self.forget()

    def accumulated(self, site: Site) -> None:
        """Count what backward passes that reach the gradient of a weight gave to its outputs."""
        if self.sampling or is_recording():
            return
        task = torch._C._current_graph_task_id()
        for one in self.passes:
            for record in one.records:
                if record.site is site and record.waiting is not None:
                    number, grad = record.waiting
                    record.waiting = None
                    if number != task:
                        continue
                    one.live = True
                    if site.weight.grad is not None:
                        self.versions[site.weight] = site.weight.grad._version
                    if self.kind == "empirical":
                        record.add(grad)

    def called(
        self, site: Site, module: torch.nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Keep the input of a layer and wait for the gradient of its output."""
        if self._idle() or not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        if output.numel() == 0:
            return  # a batch without samples says nothing
        a = args[0] if args else kwargs["input"]
        record = Record(site, module, a.detach())
        if not self.passes:
            self.passes.append(Pass())
        one = self.passes[-1]
        one.records.append(record)
        if self.kind != "empirical":
            record.edge = torch.autograd.graph.get_gradient_edge(output)

        def arrived(grad: torch.Tensor) -> None:
            if self.sampling or is_recording():
                return
            # A pass for other gradients than the weights' (torch.autograd.grad) says nothing of
            # the loss: it counts when the weight's gradient comes.
            number, found = torch._C._current_graph_task_id(), grad.detach()
            if record.waiting is not None and record.waiting[0] == number:
                found = record.waiting[1] + found
            record.waiting = number, found

        output.register_hook(arrived)
        record.graph = weakref.ref(arrived)

    def end(self, returned: Any) -> None:
        """Count the samples of a pass; unless empirical run its backward pass."""
        if self._idle() or not self.passes:
            return
        one = self.passes[-1]
        if self.kind == "empirical":
            try:
                y = returned if self.select is None else self.select(returned)
            except Exception:
                y = None
            if isinstance(y, torch.Tensor) and y.ndim >= self.batch_axes:
                one.samples = 1 if one.single else math.prod(y.shape[: self.batch_axes])
            return
        y = returned if self.select is None else self.select(returned)
        if not isinstance(y, torch.Tensor) or y.ndim < self.batch_axes:
            raise TypeError(
                "model: expected a tensor of outputs with samples on its first axis, got "
                f"{type(y).__name__}; pass select="
            )
        one.samples = 1 if one.single else math.prod(y.shape[: self.batch_axes])
        if y.requires_grad and one.records:
            self._backward(one, y)

    def _backward(self, one: Pass, y: torch.Tensor) -> None:
        likelihood = self.likelihood
        assert likelihood is not None
        n = one.samples or 0
        f = in_words(y.detach().reshape(n, -1).double())
        likelihood = likelihood_at(likelihood, f)
        if not np.isfinite(f).all():
            one.bad = "outputs: expected finite numbers, got NaN or infinity"
            return
        if self.kind == "exact":
            root = likelihood.root(f)
        else:
            rng = np.random.default_rng((self.seed, self.estimates))
            draws = [likelihood.gradient(f, likelihood.sample(f, rng)) for _ in range(self.draws)]
            root = np.stack(draws, -1) / math.sqrt(self.draws)
        self.estimates += 1
        edges = [record.edge for record in one.records]
        self.sampling = True
        try:
            for column in range(root.shape[2]):
                cotangent = tensor_of(contiguous(root[:, :, column]))
                grads = torch.autograd.grad(
                    y, edges, cotangent.reshape(y.shape).to(y.dtype), retain_graph=True,
                    allow_unused=True,
                )  # fmt: skip
                for record, grad in zip(one.records, grads, strict=True):
                    if grad is not None:
                        record.g.append(grad.detach())
        finally:
            self.sampling = False
        for record in one.records:
            record.edge = None

    def _idle(self) -> bool:
        # In a backward pass layers are called again by checkpoints only.
        inside = torch._C._current_graph_task_id() != -1
        return not self.active or inside or is_recording() or not torch.is_grad_enabled()


class Hook:
    """Hook of a module; copies of the module, also saved ones, have one that does nothing."""

    def __init__(
        self, collector: Collector | None, module: torch.nn.Module | None, site: Site | None
    ) -> None:
        self.collector = None if collector is None else weakref.ref(collector)
        self.module = None if module is None else weakref.ref(module)
        self.site = site

    def __call__(self, module: torch.nn.Module, *given: Any) -> None:
        """Pass on what torch says."""
        found = None if self.collector is None else self.collector()
        if found is None or self.module is None or module is not self.module():
            return
        if self.site is not None:
            found.called(self.site, module, *given)
        elif len(given) == 1:
            found.begin()
        else:
            found.end(given[2])

    def __reduce__(self) -> Any:
        """Copy and save as nothing."""
        return Hook, (None, None, None)


class Arrival:
    """Hook of a weight that runs when its gradient was added to; copies do nothing."""

    def __init__(self, collector: Collector | None, site: Site | None) -> None:
        self.collector = None if collector is None else weakref.ref(collector)
        self.site = site

    def __call__(self, weight: torch.Tensor) -> None:
        """Pass on what torch says."""
        found = None if self.collector is None else self.collector()
        if found is not None and self.site is not None:
            found.accumulated(self.site)

    def __reduce__(self) -> Any:
        """Copy and save as nothing."""
        return Arrival, (None, None)


def _cleared(weight: torch.Tensor, version: int) -> bool:
    """Whether the gradient was set to None or to zero since it had this version."""
    grad = weight.grad
    return grad is None or (grad._version != version and not bool(grad.any()))


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def check_passes(passes: list[Pass]) -> None:
    """Refuse passes with outputs that are not finite."""
    for one in passes:
        if one.bad:
            raise NonFiniteError(one.bad)
