# SPDX-License-Identifier: Apache-2.0
"""One node that uses weights, with the layout of samples in its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.columns import Columns
from fastfisher.capture.terms import Full, Term


class NotUnderstood(Exception):
    """A use that no family covers: its parameters go through per-sample gradients."""


@dataclass(frozen=True)
class SampleAxis:
    """Where the samples are in a tensor: on `axis`, which holds them `times` over.

    With `major` the sample is the slow index of that axis, else the fast one.
    """

    axis: int
    major: bool = True


@dataclass(frozen=True, eq=False)
class Site:
    """A node and what is known of it.

    Attributes
    ----------
    node : Node
        The node of autograd's graph.
    weights : mapping of int to Columns
        The node's edges that are weights, by their position.
    layout : SampleAxis
        Of the node's result.
    samples : int
        Number of samples n.
    gradient : Tensor, shape (c, *result)
        Gradients of the c outputs with respect to the result.
    separable : Tensor, shape (c, o), optional
        If given, `gradient` is m (1, *result), to be multiplied by these.
    """

    node: ag.Node
    weights: Mapping[int, Columns]
    layout: SampleAxis
    samples: int
    gradient: torch.Tensor
    separable: torch.Tensor | None = None

    def saved(self, name: str) -> Any:
        """What the node saved, in the dtype of the gradient if it is a float."""
        try:
            value = ag.saved(self.node, name)
        except AttributeError as error:
            raise NotUnderstood(f"{self.node.name()} has no saved {name}") from error
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(self.gradient.dtype)
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the node's result."""
        return tuple(self.gradient.shape[1:])

    def split(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """`x` with the samples of `axis` in front: (n, ..., times, ...), `times` only if > 1."""
        n = self.samples
        times, rest = divmod(x.shape[axis], n)
        if rest:
            raise NotUnderstood(f"{self.node.name()}: axis {axis} of {tuple(x.shape)}")
        if times == 1:
            return x.movedim(axis, 0)
        pair = (n, times) if self.layout.major else (times, n)
        x = x.unflatten(axis, pair)
        return x.movedim(axis if self.layout.major else axis + 1, 0)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Matrix `x` (rows, features) with samples among its rows, as (n, s, features)."""
        x = self.split(x, 0)
        return x[:, None] if x.ndim == 2 else x

    def cotangents(self, feature_axis: int) -> torch.Tensor:
        """Gradient of a matrix, as (n, c, s, o); `feature_axis` of the result is o."""
        g = self.gradient
        if feature_axis == 0:
            g = g.transpose(1, 2)
        g = self.split(g, 1)  # (n, c, [s,] o)
        return g[:, :, None] if g.ndim == 3 else g


def broadcast_term(site: Site, contribution: torch.Tensor, columns: Columns) -> Full:
    """Explicit term of a weight that is broadcast over the node's result.

    Parameters
    ----------
    contribution : Tensor, shape (c, *result)
        Gradient of the outputs with respect to the weight at each entry of the result.
    columns : Columns
        Of the weight, whose shape is broadcast to that of the result.
    """
    rank = contribution.ndim - 1
    if len(columns.shape) > rank:
        raise NotUnderstood(f"{site.node.name()}: weight {columns.shape} above its result")
    weight = [1] * (rank - len(columns.shape)) + list(columns.shape)
    axis = site.layout.axis
    n = site.samples
    times = contribution.shape[axis + 1] // n
    if weight[axis] not in (1, times) or (weight[axis] != 1 and not site.layout.major):
        raise NotUnderstood(f"{site.node.name()}: weight {columns.shape} along the samples")
    # Split the sample axis in two: the weight is broadcast over the samples.
    pair = (n, times) if site.layout.major else (times, n)
    contribution = contribution.unflatten(axis + 1, pair)
    widths = [weight[axis] if weight[axis] == times else 1]
    weight[axis : axis + 1] = [1, *widths] if site.layout.major else [1, 1]
    sample = axis + 1 if site.layout.major else axis + 2
    contribution = contribution.movedim(sample, 0)
    del weight[sample - 1]
    over = [k + 2 for k, width in enumerate(weight) if width == 1 and contribution.shape[k + 2] > 1]
    if over:
        contribution = contribution.sum(over, keepdim=True)
    if tuple(contribution.shape[2:]) != tuple(weight):
        raise NotUnderstood(f"{site.node.name()}: weight {columns.shape} is not broadcast")
    return Full(columns, contribution.reshape(n, contribution.shape[1], math.prod(weight)))


Family = Callable[[Site], list[Term]]
