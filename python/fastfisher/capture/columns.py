# SPDX-License-Identifier: Apache-2.0
"""Where the entries of a used weight stand in the vector of all parameters.

Between a parameter and the node that uses it there may be views (transposes, slices, reshapes, in
any order): each entry of the used weight is then one entry of a parameter. `Columns` says which.
Any other operation in between (weight norm, a product of two parameters) makes a derived weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.graph import Edge, Node

# Nodes whose outputs are entries of their inputs, each at most once. (`Repeat` and `Expand` may
# take one several times: the count below finds that out.)
_SELECTING = {
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Reshape", "Unsqueeze",
    "Squeeze", "Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Slice", "Select",
    "Unbind", "Alias", "Clone", "ToCopy", "Cat", "Stack", "AsStrided", "Diagonal", "Flip",
    "Narrow", "MT", "Unfold", "Movedim", "Expand", "Repeat", "Contiguous", "Detach", "Chunk",
}  # fmt: skip
RESHAPING = {
    "View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias", "Clone", "ToCopy",
}  # fmt: skip
VIEWS = _SELECTING - {"Clone", "ToCopy", "Cat", "Stack", "Repeat", "Flip"}  # make no new array
_DIGIT = 256  # exact in every floating-point dtype, bfloat16 included


@dataclass(frozen=True, eq=False)
class Columns:
    """Positions of a weight's entries in the parameter vector.

    Without `index` they are ``start, start + 1, ...`` in row-major order of `shape`; with
    `transposed`, of the transposed matrix.
    """

    shape: tuple[int, ...]
    start: int = 0
    transposed: bool = False
    index: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for equal positions ."""
        if self.index is not None:
            return ("index", tuple(self.shape), self.index.cpu().numpy().tobytes())
        return (self.start, self.shape, self.transposed)

    @property
    def T(self) -> Columns:
        """Columns of the transposed matrix."""
        shape = (self.shape[1], self.shape[0])
        if self.index is not None:
            return Columns(shape, index=self.index.t())
        return Columns(shape, self.start, not self.transposed)

    def reshaped(self, shape: tuple[int, ...]) -> Columns:
        """Columns of the weight seen in another shape."""
        if self.index is None and not self.transposed:
            return Columns(shape, self.start)
        return Columns(shape, index=self.positions().reshape(shape))

    def part(self, first: int) -> Columns:
        """Columns of entry `first` of the leading axis."""
        if self.index is None and not self.transposed:
            rest = self.shape[1:]
            return Columns(rest, self.start + first * math.prod(rest))
        return Columns(self.shape[1:], index=self.positions()[first])

    def positions(self) -> torch.Tensor:
        """Positions as int64, of the shape of the weight."""
        if self.index is not None:
            return self.index
        count = torch.arange(self.start, self.start + self.size)
        if self.transposed:
            return count.reshape(self.shape[1], self.shape[0]).t()
        return count.reshape(self.shape)

    def flat(self) -> range | torch.Tensor:
        """Positions in row-major order, as a range where they are one."""
        if self.index is None and not self.transposed:
            return range(self.start, self.start + self.size)
        return self.positions().reshape(-1)


def base_name(node: Node) -> str:
    """Name of the operation: ``AddmmBackward0`` is ``Addmm``."""
    return str(node.name()).rpartition("Backward")[0]


def settings_of(node: Node) -> tuple[object, ...]:
    """Everything that decides which entries of a parameter a node takes."""
    name = base_name(node)
    return ag.settings(node, view=name in _SELECTING and name not in {"Clone", "Cat", "Stack"})


def leaves_below(edge: Edge, offsets: Mapping[Node, int]) -> list[Node]:
    """Parameters that a weight is made of."""
    found: list[Node] = []
    seen = set()
    stack = [edge[0]]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in offsets:
            found.append(node)
        stack.extend(m for m, _ in node.next_functions)
    return sorted(found, key=lambda node: offsets[node])


def columns_of(edge: Edge, offsets: Mapping[Node, int]) -> Columns | None:
    """Columns of the weight of an edge, None if it is derived.

    Parameters
    ----------
    edge : Edge
        The weight as a node uses it; nothing below depends on samples.
    offsets : mapping of leaf node to int
        Where each parameter starts in the vector of all parameters.
    """
    node, number = edge
    if node in offsets:
        return Columns(ag.shape(edge), offsets[node])
    name = base_name(node)
    if name == "T":
        below = columns_of(node.next_functions[0], offsets)
        return None if below is None else below.T if len(below.shape) == 2 else below
    if name in RESHAPING:
        below = columns_of(node.next_functions[0], offsets)
        return None if below is None else below.reshaped(ag.shape(edge))
    return _by_numbers((node, number), offsets)


def _by_numbers(edge: Edge, offsets: Mapping[Node, int]) -> Columns | None:
    """Columns by sending the entries' numbers back through the views, digit by digit."""
    seen, stack = set(), [edge[0]]
    while stack:
        node = stack.pop()
        if node is None:
            return None  # a constant takes part: its entries belong to no parameter
        if node in seen or node in offsets:
            continue
        seen.add(node)
        if base_name(node) not in _SELECTING:
            return None
        stack.extend(m for m, _ in node.next_functions)
    shape = ag.shape(edge)
    leaves = leaves_below(edge, offsets)
    count = math.prod(shape)
    index = torch.full((count,), -1, dtype=torch.int64)

    def back(values: torch.Tensor) -> list[torch.Tensor]:
        grads = ag.gradients(
            [edge],
            [(node, 0) for node in leaves],
            [values.reshape(shape).to(ag.device(edge), ag.dtype(edge))],
        )
        return [
            torch.zeros(0) if g is None else g.detach().reshape(-1).cpu().double() for g in grads
        ]

    times = back(torch.ones(count))
    if any(bool((t > 1).any()) for t in times):
        return None  # one entry of a parameter stands in several places
    numbers = torch.arange(count)
    found = [torch.zeros_like(t, dtype=torch.int64) for t in times]
    weight = 1
    while weight < max(count, 1):
        for total, digit in zip(found, back((numbers // weight) % _DIGIT), strict=True):
            total += digit.long() * weight
        weight *= _DIGIT
    for node, total, once in zip(leaves, found, times, strict=True):
        (taken,) = torch.nonzero(once, as_tuple=True)
        index[total[taken]] = taken + offsets[node]
    if bool((index < 0).any()):
        return None
    return Columns(shape, index=index.reshape(shape))
