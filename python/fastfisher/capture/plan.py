# SPDX-License-Identifier: Apache-2.0
"""What a probe of a few samples teaches about a model: which nodes use weights, and how.

A node *depends on samples* if it stands above an input, or if samples appear with it: the probe
is run with two numbers of samples, and an axis whose extent follows the number holds samples. A
*use* is an edge from a node that depends on samples to one that does not, but depends on
parameters. Where samples stand in its result is read off backward passes of single samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fastfisher.capture import conv, elementwise, linear
from fastfisher.capture import graph as ag
from fastfisher.capture.columns import (
    RESHAPING,
    Columns,
    base_name,
    columns_of,
    leaves_below,
    settings_of,
)
from fastfisher.capture.extents import Extents, sample_axes
from fastfisher.capture.graph import Edge, Graph, Node
from fastfisher.capture.site import Family, SampleAxis
from fastfisher.errors import CaptureError

FAMILIES: dict[str, Family] = {**elementwise.FAMILIES, **linear.FAMILIES, **conv.FAMILIES}
SEPARABLE: dict[str, int] = {**linear.SEPARABLE, **conv.SEPARABLE}
# Nodes that pick rows by numbers of the data: samples may have rows in other places, or more.
_MOVING = ("Index", "Masked", "Scatter", "Gather", "Take", "Put", "Segment", "RepeatInterleave")
PROBE = 3
UNREACHED = "not reached by the outputs: zero"
COUPLED = "the outputs of a sample depend on other samples: there are no per-sample gradients"


@dataclass(eq=False)
class Use:
    """One node that uses weights.

    Attributes
    ----------
    node : int
        Its position in the graph's walk.
    weights : dict of int to Columns
        Columns by edge.
    names : tuple of str
        Parameters that are in them.
    layout : SampleAxis
        Of the node's result.
    separable : bool
        Whether all outputs share the gradient up to a factor a unit.
    derived : tuple of int
        Edges whose weights are computed from parameters.
    """

    node: int
    weights: dict[int, Columns]
    names: tuple[str, ...]
    layout: SampleAxis
    derived: tuple[int, ...] = ()
    separable: bool = False
    bias: Columns | None = None
    """Of a vector that the next node adds to a matrix product."""
    part: tuple[int, ...] | None = None
    """Shape of one sample's part of the result."""
    stays: bool = False
    """Whether the gradients of the result are the factors of a layer as they are."""


@dataclass(eq=False)
class Plan:
    """How to capture a model's runs of one structure.

    Attributes
    ----------
    signature : tuple
        Of the graph; a run with another one needs a plan of its own.
    uses : list of Use
        Nodes that use weights.
    explicit : dict of str to str
        Parameters that go through per-sample gradients, each with the reason.
    treated : dict of str to str
        What `info` says of each parameter.
    head : Edge as (int, int) or None
        Input of the linear layer that makes the outputs, as (node, edge).
    """

    signature: tuple[object, ...]
    uses: list[Use]
    explicit: dict[str, str] = field(default_factory=dict)
    treated: dict[str, str] = field(default_factory=dict)
    head: tuple[int, int] | None = None
    below: tuple[int, ...] = ()
    """Nodes between parameters and uses."""
    settings: tuple[object, ...] = ()
    """Of these nodes: other runs may slice a weight elsewhere."""
    sure: bool = True
    """Whether one layout is left, for all samples: many zero gradients leave several, and rows that
    are picked by numbers may be picked elsewhere."""

    def fits(self, graph: Graph, samples: int) -> bool:
        """Whether another run, of the same structure, takes the same weights in the same way."""
        if tuple(settings_of(graph.nodes[k]) for k in self.below) != self.settings:
            return False
        return all(
            not use.weights
            or any(name in self.explicit for name in use.names)
            or use.part == _part(ag.shape((graph.nodes[use.node], 0)), use.layout, samples)
            for use in self.uses
        )

    def close(self) -> None:
        """Make explicit whatever is used together with something explicit."""
        grew = True
        while grew:
            grew = False
            for use in self.uses:
                if any(name in self.explicit for name in use.names):
                    new = [name for name in use.names if name not in self.explicit]
                    self.explicit |= dict.fromkeys(new, "used together with such a parameter")
                    grew = grew or bool(new)


def find_uses(
    graph: Graph,
    parameters: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    extents: Extents,
) -> tuple[list[tuple[int, list[int]]], dict[Node, int], dict[Node, str]]:
    """Find uses as (node, edges), and offsets and names of the parameters' leaf nodes."""
    starts, start = {}, 0
    for name, p in parameters.items():
        starts[name] = start
        start += p.numel()
    owners = {id(p): name for name, p in parameters.items()}
    given = {id(x) for x in inputs}
    offsets: dict[Node, int] = {}
    names: dict[Node, str] = {}
    parametric: dict[Node, bool] = {}
    sampled: dict[Node, bool] = {}
    for node in graph.bottom_up():
        if ag.is_leaf(node):
            owner = owners.get(id(ag.leaf(node)))
            if owner is not None:
                offsets[node], names[node] = starts[owner], owner
            parametric[node] = owner is not None
            sampled[node] = id(ag.leaf(node)) in given
            continue
        below = [(m, nr) for m, nr in ag.edges(node) if m is not None]
        parametric[node] = any(parametric[m] for m, _ in below)
        sampled[node] = any(sampled[m] for m, _ in below) or (
            any(extents.axes((node, k)) for k in range(ag.output_count(node)))
            and not any(extents.axes(edge) for edge in below)
        )
    uses = []
    for index, node in enumerate(graph.nodes):
        if not sampled[node] or ag.is_leaf(node):
            continue
        slots = [
            k
            for k, (m, _) in enumerate(ag.edges(node))
            if m is not None and parametric[m] and not sampled[m]
        ]
        if slots:
            uses.append((index, slots))
    return uses, offsets, names


def make_plan(
    graph: Graph,
    parameters: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    samples: int,
    other: Graph | None = None,
) -> Plan:
    """Plan of a probe's run; `other` is one of another number of samples.

    Raises
    ------
    CaptureError
        Samples that depend on each other, or parameters that may be hidden in an opaque node.
    """
    if any("CheckpointFunction" in name for name in graph.names):
        raise CaptureError(
            "a reentrant checkpoint hides its parameters from autograd's graph; call "
            "torch.utils.checkpoint.checkpoint with use_reentrant=False"
        )
    extents = Extents(graph, samples, other)
    found, offsets, names = find_uses(graph, parameters, inputs, extents)
    plan = Plan(graph.signature, [])
    edges = [(graph.nodes[index], 0) for index, _ in found]
    leaves = [(node, 0) for x in inputs if (node := _node_of(graph, x)) is not None]
    first = _pattern(graph, [*leaves, *edges], 0)
    last = _pattern(graph, [*leaves, *edges], samples - 1)
    for pair in zip(first[: len(leaves)], last, strict=False):
        for gradient, sample in zip(pair, (0, samples - 1), strict=True):
            if gradient is not None and bool((_without(gradient, sample) != 0).any()):
                raise CaptureError(COUPLED)
    reached: set[str] = set()
    for (index, slots), edge, one, end in zip(
        found, edges, first[len(leaves) :], last[len(leaves) :], strict=True
    ):
        node = graph.nodes[index]
        touched = {slot: leaves_below(ag.edges(node)[slot], offsets) for slot in slots}
        owners = tuple(dict.fromkeys(names[m] for ms in touched.values() for m in ms))
        reached.update(owners)
        shape = ag.shape(edge)
        layouts = sample_axes(shape, extents.axes(edge), [(0, one), (-1, end)], samples)
        layout = layouts[0] if layouts else None
        weights: dict[int, Columns] = {}
        derived: list[int] = []
        if base_name(node) not in FAMILIES:
            plan.explicit |= dict.fromkeys(owners, f"used by {base_name(node) or str(node.name())}")
        elif layout is None:
            plan.explicit |= dict.fromkeys(owners, f"samples not found in {base_name(node)}")
        else:
            for slot in slots:
                weight = ag.edges(node)[slot]
                columns = columns_of(weight, offsets)
                if columns is None:
                    derived.append(slot)
                    columns = Columns(ag.shape(weight))
                weights[slot] = columns
            plan.sure = plan.sure and len(layouts) == 1
        use = Use(index, weights, owners, layout or SampleAxis(0), tuple(derived))
        use.part = _part(shape, use.layout, samples)
        plan.uses.append(use)
    plan.below = _below(graph, found, set(offsets))
    known = {*plan.below, *(index for index, _ in found)}
    plan.sure = plan.sure and not any(
        base_name(node).startswith(_MOVING) and base_name(node) != "MaskedFill"
        for index, node in enumerate(graph.nodes)
        if index not in known
    )
    plan.settings = tuple(settings_of(graph.nodes[k]) for k in plan.below)
    _fold_biases(plan, graph)
    count = Counter(name for use in plan.uses for name in use.names)
    for use in plan.uses:
        use.stays = (
            base_name(graph.nodes[use.node]) in SEPARABLE
            and use.layout == SampleAxis(0)
            and not use.derived
            and all(count[name] == 1 for name in use.names)
        )
    _note_unreached(plan, graph, parameters, reached)
    return plan


def _fold_biases(plan: Plan, graph: Graph) -> None:
    """Let products keep the bias that is added to their result: both have the same gradient."""
    users = graph.users()
    by_node = {use.node: use for use in plan.uses}
    for use in list(plan.uses):
        node = graph.nodes[use.node]
        if base_name(node) != "Add" or len(use.weights) != 1 or use.derived:
            continue
        ((slot, columns),) = use.weights.items()
        if len(columns.shape) != 1 or float(ag.saved(node, "alpha")) != 1:
            continue
        below, number = ag.edges(node)[1 - slot]
        while below is not None and base_name(below) in RESHAPING and users[below] == 1:
            below, number = ag.edges(below)[0]
        product = None if below is None else by_node.get(graph.index[below])
        if (
            product is None
            or base_name(below) != "Mm"
            or users[below] != 1
            or set(product.weights) != {1}
            or product.derived
            or ag.shape((below, number))[-1] != columns.size
            or math.prod(ag.shape((below, number))) != math.prod(ag.shape((node, 0)))
        ):
            continue
        product.bias = columns
        product.names += use.names
        plan.uses.remove(use)


def _pattern(graph: Graph, edges: Sequence[Edge], sample: int) -> list[torch.Tensor | None]:
    """Gradients of a mixture of one sample's outputs."""
    u = torch.zeros_like(graph.y)
    u[sample] = torch.linspace(0.7, 1.3, graph.y.shape[1]).to(u)
    with torch.autocast(graph.y.device.type, enabled=False):
        return ag.gradients([graph.y], edges, [u])


def _without(x: torch.Tensor, sample: int) -> torch.Tensor:
    return torch.cat([x[:sample], x[sample + 1 :]])


def _note_unreached(
    plan: Plan, graph: Graph, parameters: Mapping[str, torch.Tensor], reached: set[str]
) -> None:
    missing = [name for name in parameters if name not in reached]
    opaque = graph.opaque()
    if missing and opaque:
        advice = (
            "; call torch.utils.checkpoint with use_reentrant=False"
            if any("CheckpointFunction" in name for name in opaque)
            else ""
        )
        raise CaptureError(
            f"parameter {missing[0]!r} is not reached by autograd's graph, which has opaque nodes "
            f"({', '.join(sorted(set(opaque)))}) that may hide it{advice}"
        )
    for name in missing:
        plan.treated[name] = UNREACHED


def _node_of(graph: Graph, x: torch.Tensor) -> Node | None:
    return next((n for n in graph.nodes if ag.is_leaf(n) and ag.leaf(n) is x), None)


def _part(shape: tuple[int, ...], layout: SampleAxis, samples: int) -> tuple[int, ...] | None:
    """Shape of one sample's part of a result; None if samples have parts of several sizes."""
    if not shape or shape[layout.axis] % samples:
        return None
    axis = layout.axis
    return (*shape[:axis], shape[axis] // samples, *shape[axis + 1 :])


def _below(
    graph: Graph, found: Sequence[tuple[int, Sequence[int]]], leaves: set[Node]
) -> tuple[int, ...]:
    """Positions of the nodes that make weights out of parameters."""
    seen: set[Node] = set()
    stack = [ag.edges(graph.nodes[index])[slot][0] for index, slots in found for slot in slots]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node not in leaves:
            stack.extend(m for m, _ in ag.edges(node))
    return tuple(sorted(graph.index[node] for node in seen))
