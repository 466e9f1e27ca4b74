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

from fastfisher._conv import Conv
from fastfisher._layer import Layer
from fastfisher._lookup import Lookup
from fastfisher.capture.model import is_recording
from fastfisher.errors import NonFiniteError
from fastfisher.factors import Dense, Shared
from fastfisher.likelihoods import Likelihood
from fastfisher.optim._sites import Site

Host = np.ndarray[Any, Any]


@dataclass(eq=False)
class Record:
    """One call of a layer: its input, and gradients (r, *output) of its output."""

    site: Site
    module: torch.nn.Module
    a: torch.Tensor
    edge: Any = None
    g: list[torch.Tensor] = field(default_factory=list)
    closed: bool = False

    def add(self, grad: torch.Tensor) -> None:
        """Take the gradient of a backward pass of the loss; of several passes the sum."""
        if self.closed:
            raise RuntimeError(
                f"layer {self.site.name!r}: a second backward pass through a batch whose factors "
                "are done; expected all backward passes of a batch before the next forward pass"
            )
        self.g = [grad.detach() if not self.g else self.g[0] + grad.detach()]


@dataclass(eq=False)
class Pass:
    """One forward pass of the model: its calls of layers, and how many samples it had."""

    records: list[Record] = field(default_factory=list)
    samples: int | None = None
    bad: str = ""
    live: bool = False
    """Whether a backward pass of the loss came."""

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
        self.kind, self.likelihood, self.select = kind, likelihood, select
        self.batch_axes, self.draws, self.seed = batch_axes, draws, seed
        self.active, self.sampling, self.estimates = True, False, 0
        self.passes: list[Pass] = []
        self.fold: Callable[[list[Pass]], None] | None = None
        self.handles = []
        for site in sites:
            for module in site.modules:
                hook = Hook(self, module, site)
                self.handles.append(module.register_forward_hook(hook, with_kwargs=True))
        self.handles.append(model.register_forward_pre_hook(Hook(self, model, None)))
        self.handles.append(model.register_forward_hook(Hook(self, model, None), with_kwargs=True))
        weakref.finalize(self, _remove, self.handles)

    def remove(self) -> None:
        """Take all hooks off the model."""
        _remove(self.handles)
        self.handles.clear()

    def begin(self) -> None:
        """Start a forward pass of the model."""
        if self._idle():
            return
        if self.fold is not None:
            self.fold([one for one in self.passes if one.live])
        self.passes.append(Pass())

    def called(
        self, site: Site, module: torch.nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Keep the input of a layer and wait for the gradient of its output."""
        if self._idle() or not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
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
            one.live = True
            if self.kind == "empirical":
                record.add(grad)

        output.register_hook(arrived)

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
                one.samples = math.prod(y.shape[: self.batch_axes])
            return
        y = returned if self.select is None else self.select(returned)
        if not isinstance(y, torch.Tensor) or y.ndim < self.batch_axes:
            raise TypeError(
                "model: expected a tensor of outputs with samples on its first axis, got "
                f"{type(y).__name__}; pass select="
            )
        one.samples = math.prod(y.shape[: self.batch_axes])
        if y.requires_grad and one.records:
            self._backward(one, y)

    def _backward(self, one: Pass, y: torch.Tensor) -> None:
        likelihood = self.likelihood
        assert likelihood is not None
        n = one.samples or 0
        f = y.detach().reshape(n, -1).double().numpy()
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
                cotangent = torch.from_numpy(np.ascontiguousarray(root[:, :, column]))
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


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def layers_of(records: list[Record], *, joined: bool) -> list[Layer]:
    """Layers of the calls of one site in one pass; with `joined` one layer of all positions.

    Raises
    ------
    ValueError
        Calls that cannot be joined.
    """
    calls = [record for record in records if record.g]
    if not calls:
        return []
    if len(calls) == 1 or not joined:
        return [_layer(record) for record in calls]
    site = calls[0].site
    sides = [_positions(record) for record in calls]
    if len({(len(a), g.shape[1]) for a, g in sides}) > 1:
        raise ValueError(
            f"layer {site.name!r}: expected the same number of samples in each call, got "
            f"{[len(a) for a, _ in sides]}; expected weight_sharing='expand'"
        )
    a = np.concatenate([a for a, _ in sides], 1)
    g = np.concatenate([g for _, g in sides], 2)
    if site.kind == "embedding":
        return [Lookup(a, g, rows=len(site.weight), label=site.name)]
    return [Shared(a, g, bias=site.bias is not None, label=site.name)]


def _layer(record: Record) -> Layer:
    site, bias = record.site, record.site.bias is not None
    if site.kind == "conv":
        return _convolution(record)
    a, g = _positions(record)
    if site.kind == "embedding":
        return Lookup(a, g, rows=len(site.weight), label=site.name)
    if a.shape[1] == 1:
        return Dense(a[:, 0], g[:, :, 0], bias=bias, label=site.name)
    return Shared(a, g, bias=bias, label=site.name)


def _positions(record: Record) -> tuple[Host, Host]:
    """Give inputs (n, s, i), of an embedding (n, s), and gradients (n, r, s, o)."""
    site = record.site
    if site.kind == "conv":
        if site.groups > 1:
            raise ValueError(
                f"layer {site.name!r}: a grouped convolution that is called several times; "
                "expected weight_sharing='expand'"
            )
        layer = _convolution(record)
        g = layer.g.reshape(*layer.g.shape[:3], -1).swapaxes(2, 3)
        return np.asarray(layer.patches()[:, 0]), np.ascontiguousarray(g)
    a, o = record.a, record.g[0].shape[-1]
    table = site.kind == "embedding"
    axes = a.ndim if table else a.ndim - 1
    n = len(a) if axes else 1
    gradients = torch.stack([g.reshape(n, -1, o) for g in record.g], 1)
    if not table:
        return _host(a.reshape(n, -1, a.shape[-1]), site), _host(gradients, site)
    index = a.reshape(n, -1)
    padding = record.module.padding_idx
    if padding is not None:  # its row has no gradient
        gradients = gradients * (index != padding)[:, None, :, None]
    return index.numpy(), _host(gradients, site)


def _convolution(record: Record) -> Conv:
    module: Any = record.module
    x, gradients = record.a, record.g
    if x.ndim == module.weight.ndim - 1:  # one sample without an axis of its own
        x, gradients = x[None], [g[None] for g in gradients]
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = torch.nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = 0
    return Conv(
        _host(x, record.site), _host(torch.stack(gradients, 1), record.site),
        kernel=module.kernel_size, stride=module.stride, padding=padding,
        dilation=module.dilation, groups=module.groups, bias=record.site.bias is not None,
        label=record.site.name,
    )  # fmt: skip


def _host(x: torch.Tensor, site: Site) -> Host:
    kind = torch.float64 if site.weight.dtype == torch.float64 else torch.float32
    return np.asarray(x.to(kind).contiguous().numpy())


def check_passes(passes: list[Pass]) -> None:
    """Refuse passes with outputs that are not finite."""
    for one in passes:
        if one.bad:
            raise NonFiniteError(one.bad)
