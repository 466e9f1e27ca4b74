# SPDX-License-Identifier: Apache-2.0
"""Cotangents that all outputs share: below a linear head, past pooling and elementwise steps.

If the outputs are ``y = h w^T + b`` and every step from a result z to h keeps its units apart, the
gradient of output c at z is ``m[n, s, o] w[c, o]`` with m the gradient of the sum over h. It is
detected by comparing numbers on the probe, and checked on all samples with a mixture of outputs:
what mixes units may act on some samples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.columns import base_name
from fastfisher.capture.graph import Edge, Graph
from fastfisher.capture.plan import Use

_INPUT = {"Addmm": (1, "mat2"), "Mm": (0, "mat2")}
_PLAIN = {"View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, eq=False)
class Head:
    """Linear layer that makes the outputs: its input's edge and weight w (c, o)."""

    edge: Edge
    w: torch.Tensor

    def gradients(self, graph: Graph, edges: Sequence[Edge]) -> dict[Edge, torch.Tensor]:
        """Gradient m of the sum of the head's inputs, for each edge."""
        shape = ag.shape(self.edge)
        ones = torch.ones(shape, dtype=ag.dtype(self.edge), device=ag.device(self.edge))
        found = ag.gradients([self.edge], edges, [ones]) if edges else []
        return {
            edge: ones.new_zeros(ag.shape(edge)) if m is None else m.detach()
            for edge, m in zip(edges, found, strict=True)
        }

    def holds(self, graph: Graph, edge: Edge, m: torch.Tensor) -> bool:
        """Whether a mixture of outputs has the gradient that `m` says."""
        c = graph.y.shape[1]
        mixture = torch.linspace(-1.0, 1.3, c, dtype=graph.y.dtype, device=graph.y.device)
        (got,) = ag.gradients([graph.y], [edge], [mixture.expand_as(graph.y)])
        expected = m * along_units(mixture.to(self.w.dtype) @ self.w, m.ndim, edge)
        return got is not None and _close(got.detach(), expected)


def along_units(w: torch.Tensor, rank: int, edge: Edge) -> torch.Tensor:
    """`w` (..., o) shaped to multiply results of `rank` axes on their axis of units."""
    axis = 1 if base_name(edge[0]) == "Convolution" else rank - 1
    return w.reshape(*w.shape[:-1], *[1] * axis, w.shape[-1], *[1] * (rank - axis - 1))


def _close(x: torch.Tensor, y: torch.Tensor) -> bool:
    # Rounding only: a branch that mixes units may have a small scale.
    eps = min(64 * torch.finfo(x.dtype).eps, 1e-4)
    return bool((x - y).norm() <= eps * x.norm())


def find_head(graph: Graph, samples: int) -> tuple[int, int] | None:
    """Node and edge of the input of the last linear layer, None if the outputs come otherwise."""
    node = graph.y.grad_fn
    while node is not None and base_name(node) in _PLAIN:
        node = node.next_functions[0][0]
    if node is None or base_name(node) not in _INPUT or ag.shape((node, 0)) != tuple(graph.y.shape):
        return None
    slot, _ = _INPUT[base_name(node)]
    edge = ag.edges(node)[slot]
    if edge[0] is None or ag.shape(edge)[0] != samples:
        return None
    return graph.index[node], slot


def head_factors(graph: Graph, head: tuple[int, int], samples: int) -> Head | None:
    """Head of a run."""
    node, slot = graph.nodes[head[0]], head[1]
    edge = ag.edges(node)[slot]
    w = ag.saved(node, _INPUT[base_name(node)][1])
    if w is None:
        return None
    return Head(edge, w.t() * float(getattr(node, "_saved_alpha", 1)))


def is_separable(
    graph: Graph,
    edge: Edge,
    gradient: torch.Tensor,
    mixture: torch.Tensor,
    use: Use,
    head: Head,
    samples: int,
) -> bool:
    """Whether the gradients of a use with several positions are separable.

    `gradient` (*result) is that of the outputs mixed by `mixture` (c,), drawn at random: what holds
    for it holds for all mixtures, each output among them, since both sides are linear.
    """
    shape = ag.shape(edge)
    conv = base_name(edge[0]) == "Convolution"
    units = shape[1] if conv else shape[-1]
    if use.layout.axis != 0 or units != head.w.shape[1] or head.w.shape[0] == 1:
        return False
    if conv and (shape[0] != samples or 1 not in use.weights or ag.saved(edge[0], "transposed")):
        return False
    if not conv and (shape[0] == samples or max(use.weights) != len(ag.edges(edge[0])) - 1):
        return False
    if not bool((gradient != 0).any()):
        return False
    (m,) = head.gradients(graph, [edge]).values()
    return _close(gradient, m * along_units(mixture.to(head.w.dtype) @ head.w, m.ndim, edge))
