# SPDX-License-Identifier: Apache-2.0
"""Proof of a capture: ``J^T u`` of the factors against autograd's own gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fastfisher._jacobian import Jacobian
from fastfisher.capture.graph import Graph

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def check_products(
    jacobian: Jacobian, graph: Graph, parameters: Mapping[str, torch.Tensor]
) -> list[str]:
    """Parameters whose part of ``J^T u`` differs from autograd's, for one mixture u.

    A part passes if it agrees relative to itself, or if the difference is rounding relative to the
    gradient of all parameters: some gradients vanish identically (keys' bias of an attention).
    """
    # Gradients that a hook of the user may change prove nothing.
    parameters = {name: p for name, p in parameters.items() if not p._backward_hooks}
    if not parameters or graph.y.grad_fn is None:
        return []
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(graph.y.shape, generator=generator, dtype=torch.float64)
    u = u.to(graph.y.device, graph.y.dtype)
    leaves = list(parameters.values())
    with torch.autocast(graph.y.device.type, enabled=False):
        expected = torch.autograd.grad(graph.y, leaves, u, retain_graph=True, allow_unused=True)
    got = jacobian.unflatten(jacobian.T @ u.reshape(-1).to(_product_dtype(jacobian)))
    truth = {
        name: None if grad is None else grad.detach().to_dense()
        for name, grad in zip(parameters, expected, strict=True)
    }
    sizes = {name: 0.0 if grad is None else _norm(grad) for name, grad in truth.items()}
    scale = math.sqrt(sum(size**2 for size in sizes.values()))
    # What is computed in few digits agrees to these, whatever the dtype of the output.
    coarsest = graph.coarsest()
    wrong = []
    for (name, p), grad in zip(parameters.items(), truth.values(), strict=True):
        size = sizes[name]
        dtype = p.dtype if p.dtype == graph.y.dtype else torch.bfloat16
        off = _norm(got[name] if grad is None else got[name].sub_(grad))
        eps = max(torch.finfo(dtype).eps, coarsest)
        if eps > torch.finfo(torch.float32).eps:
            near, rounding = max(6 * eps, 0.03), eps / 4
        elif eps > torch.finfo(torch.float64).eps:
            near, rounding = _TOLERANCE[torch.float32], 1e3 * eps
        else:
            near, rounding = _TOLERANCE[torch.float64], 1e3 * eps
        if not (off <= near * size or off <= rounding * scale):
            wrong.append(name)
    return wrong


def _norm(x: torch.Tensor) -> float:
    """Frobenius norm, good to a percent: a dot product where that is safe, else slower."""
    if x.dtype in _TOLERANCE and x.is_contiguous() and x.numel() < 1 << 26:
        square = float(torch.dot(x.view(-1), x.view(-1)))
        if 1e-20 < square < math.inf:
            return math.sqrt(square)
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _product_dtype(jacobian: Jacobian) -> torch.dtype:
    dtype: torch.dtype = jacobian.layers[0].g.dtype
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
