# SPDX-License-Identifier: Apache-2.0
"""Per-sample gradients by one run a sample: always right, for parameters nothing else covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.model import Inputs, Model, recorded, samples_of, take


def per_sample_gradients(model: Model, x: Inputs, names: Sequence[str], c: int) -> torch.Tensor:
    """Jacobian (n, c, p) of the named parameters, flattened in this order."""
    parameters = [model.parameters[name] for name in names]
    for name, q in zip(names, parameters, strict=True):
        ag.refuse_hooks(q, repr(name))
    n, p = samples_of(x), sum(q.numel() for q in parameters)
    j = torch.zeros((n, c, p), dtype=parameters[0].dtype, device=parameters[0].device)
    for sample in range(n):
        given, _ = recorded(take(x, slice(sample, sample + 1)))
        y = model(given)
        if not y.requires_grad:
            continue
        for k in range(c):
            grads = torch.autograd.grad(y[0, k], parameters, retain_graph=True, allow_unused=True)
            start = 0
            for q, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    j[sample, k, start : start + q.numel()] = grad.reshape(-1)
                start += q.numel()
    return j
