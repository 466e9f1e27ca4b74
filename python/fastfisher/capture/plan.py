# SPDX-License-Identifier: Apache-2.0
"""What a probe of a few samples teaches about a model: which nodes use weights, and how.

A node *depends on samples* if it stands above an input, or if samples appear with it: the probe's
number of samples is a prime that divides no other extent, so an axis that it divides holds
samples. A *use* is an edge from a node that depends on samples to one that does not, but depends on
parameters. Where samples stand in its result is read off one backward pass of the first sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fastfisher.capture import conv, elementwise, linear
from fastfisher.capture import graph as ag
from fastfisher.capture.columns import Columns, base_name, columns_of, leaves_below
from fastfisher.capture.graph import Edge, Graph, Node
from fastfisher.capture.site import Family, SampleAxis
from fastfisher.errors import CaptureError

FAMILIES: dict[str, Family] = {**elementwise.FAMILIES, **linear.FAMILIES, **conv.FAMILIES}
SEPARABLE: dict[str, int] = {**linear.SEPARABLE, **conv.SEPARABLE}
PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)


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
    separate: dict[tuple[object, ...], bool] = field(default_factory=dict)


def probe_size(extents: Sequence[int]) -> int:
    """Prime that divides none of `extents`, the smallest one there is in a short list."""
    return next((p for p in PRIMES if all(k % p or k == 0 for k in extents)), PRIMES[-1])


def find_uses(
    graph: Graph,
    parameters: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    samples: int,
) -> tuple[list[tuple[int, list[int]]], dict[Node, int], dict[Node, str]]:
    """Uses as (node, edges), offsets and names of the parameters' leaf nodes."""
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
            name = owners.get(id(ag.leaf(node)))
            if name is not None:
                offsets[node], names[node] = starts[name], name
            parametric[node] = name is not None
            sampled[node] = id(ag.leaf(node)) in given
            continue
        below = [(m, nr) for m, nr in ag.edges(node) if m is not None]
        parametric[node] = any(parametric[m] for m, _ in below)
        sampled[node] = any(sampled[m] for m, _ in below) or (
            _holds(samples, [(node, k) for k in range(ag.output_count(node))])
            and not _holds(samples, below)
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


def _holds(samples: int, edges: Sequence[Edge]) -> bool:
    return any(k > 0 and k % samples == 0 for edge in edges for k in ag.shape(edge))


def make_plan(
    graph: Graph,
    parameters: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    samples: int,
) -> Plan:
    """Plan of a probe's run.

    Raises
    ------
    CaptureError
        Samples that depend on each other, or parameters that may be hidden in an opaque node.
    """
    found, offsets, names = find_uses(graph, parameters, inputs, samples)
    plan = Plan(graph.signature, [])
    edges = [(graph.nodes[index], 0) for index, _ in found]
    first = torch.zeros_like(graph.y)
    first[0] = torch.linspace(0.7, 1.3, graph.y.shape[1]).to(first)
    pattern = ag.gradients(
        [graph.y], [*edges, *((_node_of(graph, x), 0) for x in inputs if _node_of(graph, x))],
        [first],
    )  # fmt: skip
    reached: set[str] = set()
    for (index, slots), edge, gradient in zip(found, edges, pattern, strict=False):
        node = graph.nodes[index]
        touched = {slot: leaves_below(ag.edges(node)[slot], offsets) for slot in slots}
        owners = tuple(dict.fromkeys(names[m] for ms in touched.values() for m in ms))
        reached.update(owners)
        layout = sample_axis(ag.shape(edge), gradient, samples)
        if layout is None:
            raise CaptureError(_coupled(base_name(node)))
        weights: dict[int, Columns] = {}
        derived: list[int] = []
        if ag.output_count(node) != 1 or base_name(node) not in FAMILIES:
            for name in owners:
                plan.explicit[name] = f"used by {base_name(node)}"
        else:
            for slot in slots:
                weight = ag.edges(node)[slot]
                columns = columns_of(weight, offsets)
                if columns is None:
                    derived.append(slot)
                    columns = Columns(ag.shape(weight))
                weights[slot] = columns
        plan.uses.append(Use(index, weights, owners, layout, tuple(derived)))
    for gradient in pattern[len(edges) :]:
        if gradient is not None and bool((gradient[1:] != 0).any()):
            raise CaptureError(_coupled(None))
    _note_unreached(plan, graph, parameters, reached)
    return plan


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
        plan.treated[name] = "not reached by the outputs: zero"


def _node_of(graph: Graph, x: torch.Tensor) -> Node | None:
    return next((n for n in graph.nodes if ag.is_leaf(n) and ag.leaf(n) is x), None)


def sample_axis(
    shape: tuple[int, ...], gradient: torch.Tensor | None, samples: int
) -> SampleAxis | None:
    """Axis of samples of a tensor, given its gradient for the first sample; None if coupled."""
    candidates = [
        SampleAxis(axis, major)
        for axis, extent in enumerate(shape)
        if extent and extent % samples == 0
        for major in ((True, False) if extent > samples else (True,))
    ]
    # The exact number first: an axis of samples alone rather than a multiple.
    candidates.sort(key=lambda c: shape[c.axis] != samples)
    if gradient is None:
        return candidates[0] if candidates else None
    for candidate in candidates:
        extent = shape[candidate.axis]
        pair = (samples, extent // samples) if candidate.major else (extent // samples, samples)
        split = gradient.unflatten(candidate.axis, pair)
        others = split.movedim(candidate.axis + (not candidate.major), 0)[1:]
        if not bool((others != 0).any()):
            return candidate
    return None


def _coupled(name: str | None) -> str:
    return (
        "the outputs of a sample depend on other samples"
        + (f" (seen at {name})" if name else "")
        + ": there are no per-sample gradients"
    )
