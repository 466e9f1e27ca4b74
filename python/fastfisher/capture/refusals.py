# SPDX-License-Identifier: Apache-2.0
"""Models without per-sample gradients: random numbers, samples that depend on each other."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastfisher.capture.graph import Graph
from fastfisher.capture.model import Model
from fastfisher.capture.plan import COUPLED
from fastfisher.errors import CaptureError


def refuse_random(model: Model, y: torch.Tensor, again: torch.Tensor) -> None:
    """Refuse a model that drew random numbers and whose two runs on the same samples differ."""
    if not torch.equal(y, again):
        raise CaptureError(
            "stochastic forward: two runs on the same samples differ, by random numbers or by what "
            f"a run leaves in the model{drawing(model)}"
        )


def refuse_company(
    model: Model,
    graph: Graph,
    z: torch.Tensor,
    chosen: list[int],
    others: list[int],
    again: Callable[[], torch.Tensor],
) -> None:
    """Refuse a model whose outputs of the same samples differ between two batches.

    `graph` is of the samples `chosen`, `z` are the outputs of the samples `others`; `again` runs
    the model on the samples `chosen` once more.
    """
    y = graph.y.detach()
    if y.shape[1:] != z.shape[1:]:
        return
    both = torch.stack([z[others.index(k)] if k in others else y[i] for i, k in enumerate(chosen)])
    truth = y.double()
    off = float((truth - both.detach().double()).norm())
    if off > max(graph.coarsest(), torch.finfo(y.dtype).eps) ** 0.5 * float(truth.norm()):
        refuse_random(model, y, again().detach())
        raise CaptureError(f"{COUPLED} (they change with the other samples){mixing(model)}")


def mixing(model: Model) -> str:
    """Modules that may couple samples, for messages."""
    names = [
        f"{name or 'model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if "BatchNorm" in type(module).__name__
        and (module.training or getattr(module, "running_mean", None) is None)
    ]
    if not names:
        return ""
    return f"; batch statistics in: {', '.join(names)}; call model.eval()"


def drawing(model: Model) -> str:
    """Modules that may draw random numbers, for messages."""
    names = [
        f"{name or 'model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and _draws(module)
    ]
    if not names:
        return ""
    return f"; training with random numbers: {', '.join(names)}; call model.eval()"


def _draws(module: torch.nn.Module) -> bool:
    kind = type(module).__name__
    rate = getattr(module, "p" if "Drop" in kind else "dropout", 0)
    return kind == "RReLU" or (isinstance(rate, int | float) and rate > 0)
