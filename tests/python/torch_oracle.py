# SPDX-License-Identifier: Apache-2.0
"""The Jacobian of a torch model by plain loops: one backward pass a sample and output.

Every sample is a batch of its own, so nothing that goes wrong within a batch can agree with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    """Parameters that count, in the order of `named_parameters`, or all of a pair's dict."""
    if isinstance(model, tuple):
        return dict(model[1])
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def outputs_of(
    model: Any, x: torch.Tensor, select: Callable[[Any], torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Outputs (n, C) with their graph, and the tensors to differentiate by."""
    if isinstance(model, tuple):
        function, params = model
        params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        y, leaves = function(params, x), list(params.values())
    else:
        y, leaves = model(x), list(parameters_of(model).values())
    y = y if select is None else select(y)
    return y.reshape(len(x), -1), leaves


def jacobian(
    model: Any, x: torch.Tensor, select: Callable[[Any], torch.Tensor] | None = None
) -> torch.Tensor:
    """Dense J (N, C, P), in float64 whatever the model's dtype."""
    samples = []
    with torch.enable_grad():
        for n in range(len(x)):
            y, leaves = outputs_of(model, x[n : n + 1].clone(), select)
            rows = [_row(y[0, c], leaves) for c in range(y.shape[1])]
            samples.append(torch.stack(rows))
    return torch.stack(samples)


def _row(output: torch.Tensor, leaves: list[torch.Tensor]) -> torch.Tensor:
    """Gradient (P,) of one number; a parameter it does not depend on has zeros."""
    if not leaves:
        return torch.zeros(0, dtype=torch.float64)
    if not output.requires_grad:
        return torch.zeros(sum(p.numel() for p in leaves), dtype=torch.float64)
    gradients = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g.to_dense()).reshape(-1).double()
            for p, g in zip(leaves, gradients, strict=True)
        ]
    ).detach()


def gram(j: torch.Tensor, j2: torch.Tensor | None = None, outputs: str | int = "full"):
    """K of dense Jacobians (N, C, P) and (M, D, P), in a form of `ff.ntk`."""
    full = torch.tensordot(j, j if j2 is None else j2, dims=([2], [2]))  # (N, C, M, D)
    if outputs == "full":
        return full
    if outputs == "sum":
        return full.sum((1, 3))
    if isinstance(outputs, int):
        return full[:, outputs, :, outputs]
    diagonal = torch.diagonal(full, dim1=1, dim2=3)  # (N, M, C)
    return diagonal if outputs == "diagonal" else diagonal.sum(-1)
