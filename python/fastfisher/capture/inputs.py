# SPDX-License-Identifier: Apache-2.0
"""Gradients of a model's outputs with respect to its inputs."""

from __future__ import annotations

import torch

from fastfisher.capture.model import Model, recorded, recording, untouched
from fastfisher.capture.plan import COUPLED
from fastfisher.capture.refusals import drawing, mixing
from fastfisher.capture.run import check_inputs
from fastfisher.errors import CaptureError


def input_gradients(model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute outputs (N, C) and their gradients (N, C, M) for samples `x`, flattened.

    One forward pass and C backward passes, each for all samples. Proved on the first sample alone.

    Raises
    ------
    CaptureError
        Outputs that depend on other samples or on random numbers.
    TypeError
        Samples that are no floating-point tensor.
    """
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got dtype {x.dtype}")
    check_inputs(x, model, "x")
    with untouched(model), recording():
        y, gradients = _gradients(model, x)
        if len(x) > 1 and mixing(model):
            raise CaptureError(COUPLED + mixing(model))
        _, alone = _gradients(model, x[:1])
    off = float((gradients[:1] - alone).double().norm())
    if off > torch.finfo(x.dtype).eps ** 0.5 * float(alone.double().norm()):
        why = drawing(model)
        raise CaptureError(
            f"stochastic forward: two runs differ{why}"
            if why
            else f"{COUPLED} (gradients change with the other samples)"
        )
    return y, gradients


def _gradients(model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    given, leaves = recorded(x)
    y = model(given)
    n, c = y.shape
    result = torch.zeros((n, c, x[:1].numel()), dtype=x.dtype, device=x.device)
    for k in range(c if y.requires_grad else 0):
        (gradient,) = torch.autograd.grad(
            y[:, k].sum(), leaves, retain_graph=k + 1 < c, allow_unused=True
        )
        if gradient is not None:
            result[:, k] = gradient.reshape(n, -1)
    return y.detach(), result
