# SPDX-License-Identifier: Apache-2.0
"""Autograd's graph of one run of a model: the only file that reads torch's private attributes.

A node's *edges* are the tensors it received in the forward pass, in order; an edge is the pair
(node that made the tensor, which of its outputs), or None for a tensor that records no gradient.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from fastfisher.errors import CaptureError

Node = Any
Edge = tuple[Node, int]

_SWITCH = threading.RLock()  # one switch for the whole process
LEAF = "torch::autograd::AccumulateGrad"
OPAQUE = (
    "CompiledFunctionBackward",
    "DifferentiableGraphBackward",
    "CheckpointFunctionBackward",
    "MkldnnRnnLayerBackward",
    "CudnnRnnBackward",
)


class Graph:
    """Nodes below an output `y`, in the order of a depth-first walk, which a structure repeats.

    Attributes
    ----------
    nodes : list of Node
        Every node once, each after all nodes that use it have not been left: see `below`.
    index : dict of Node to int
        Position in `nodes`.
    signature : tuple
        Names and edges of all nodes: equal for two runs of one structure.
    """

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y
        self.nodes: list[Node] = []
        self.index: dict[Node, int] = {}
        stack = [y.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in self.index:
                continue
            self.index[node] = len(self.nodes)
            self.nodes.append(node)
            stack.extend(reversed([below for below, _ in node.next_functions]))
        self.names = [node.name() for node in self.nodes]
        self.signature = tuple(
            (name, tuple((self.index.get(m, -1), nr) for m, nr in node.next_functions))
            for name, node in zip(self.names, self.nodes, strict=True)
        )

    def bottom_up(self) -> list[Node]:
        """Nodes in an order in which each comes after all nodes below it."""
        order: list[Node] = []
        state: dict[Node, bool] = {}
        stack = [(self.y.grad_fn, False)] if self.y.grad_fn is not None else []
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            if node in state:
                continue
            state[node] = True
            stack.append((node, True))
            stack.extend((m, False) for m, _ in node.next_functions if m is not None)
        return order

    def coarsest(self) -> float:
        """Largest spacing of numbers at one, of all floating-point results."""
        kinds = {dtype((node, k)) for node in self.nodes for k in range(output_count(node))}
        return max(
            (float(torch.finfo(kind).eps) for kind in kinds if kind.is_floating_point),
            default=float(torch.finfo(self.y.dtype).eps),
        )

    def users(self) -> dict[Node, int]:
        """How many edges lead to each node."""
        count = dict.fromkeys(self.nodes, 0)
        for node in self.nodes:
            for below, _ in node.next_functions:
                if below is not None:
                    count[below] += 1
        return count

    def opaque(self) -> list[str]:
        """Names of nodes that may hide parameters: compiled, scripted and custom functions."""
        return [
            name
            for name, node in zip(self.names, self.nodes, strict=True)
            if any(part in name for part in OPAQUE)
            or isinstance(node, torch.autograd.function.BackwardCFunction)
        ]


@contextmanager
def without_mkldnn() -> Iterator[None]:
    """Recurrent layers step by step, so that their weights can be seen; one thread at a time."""
    with _SWITCH:
        before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(before)


def edges(node: Node) -> tuple[Edge, ...]:
    """Edges of a node; the first of a pair is None for a tensor that records no gradient."""
    return tuple(node.next_functions)


def is_leaf(node: Node) -> bool:
    """Whether the node stands for a leaf tensor: a parameter or an input."""
    return bool(node.name() == LEAF)


def leaf(node: Node) -> torch.Tensor:
    """Leaf tensor of such a node."""
    return node.variable


def shape(edge: Edge) -> tuple[int, ...]:
    """Shape of the tensor of an edge."""
    node, number = edge
    if is_leaf(node):
        return tuple(leaf(node).shape)
    return tuple(int(k) for k in node._input_metadata[number].shape)


def dtype(edge: Edge) -> torch.dtype:
    """Dtype of the tensor of an edge."""
    node, number = edge
    return leaf(node).dtype if is_leaf(node) else node._input_metadata[number].dtype


def device(edge: Edge) -> torch.device:
    """Device of the tensor of an edge."""
    node, number = edge
    return leaf(node).device if is_leaf(node) else node._input_metadata[number].device


def output_count(node: Node) -> int:
    """Count the tensors that a node made."""
    if is_leaf(node):
        return 1
    return len(node._input_metadata)


def saved(node: Node, name: str) -> Any:
    """Return what a node saved under `name`; AttributeError where it has no such thing."""
    value = getattr(node, f"_saved_{name}")
    return value.detach() if isinstance(value, torch.Tensor) else value


def settings(node: Node, *, view: bool) -> tuple[object, ...]:
    """Shapes of a node's results; of a view also offsets of a slice, the index of a selection."""
    if is_leaf(node):
        return (id(leaf(node)),)
    found: list[object] = [shape((node, k)) for k in range(output_count(node))]
    if view:
        names = [name for name in dir(node) if name.startswith("_saved_")]
        found += [(name, str(getattr(node, name))) for name in names]
    return tuple(found)


def refuse_hooks(parameter: torch.Tensor, name: str) -> None:
    """Refuse to differentiate by a parameter whose gradients a hook of the user may change."""
    if parameter._backward_hooks:
        raise CaptureError(
            f"parameter {name} has a gradient hook (register_hook), which may change the gradients "
            "that its capture needs; remove it first"
        )


def gradients(
    outputs: Sequence[Any],
    of: Sequence[Edge],
    cotangents: Sequence[torch.Tensor],
    *,
    batched: bool = False,
) -> list[torch.Tensor | None]:
    """Gradients of tensors or edges `outputs` for the edges `of`, no others; the graph stays."""
    if not of:
        return []
    for node, _ in of:
        if is_leaf(node):
            refuse_hooks(leaf(node), f"of shape {tuple(leaf(node).shape)}")
    inputs = [leaf(node) if is_leaf(node) else GradientEdge(node, nr) for node, nr in of]
    tops = [
        (leaf(o[0]) if is_leaf(o[0]) else GradientEdge(*o)) if isinstance(o, tuple) else o
        for o in outputs
    ]
    return list(
        torch.autograd.grad(
            tops,
            inputs,
            list(cotangents),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
    )
