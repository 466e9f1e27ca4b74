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
    """Where the samples are in a tensor: on `axis`, whose extent is (outer, n, inner)."""

    axis: int
    outer: int = 1

    def inner(self, extent: int, samples: int) -> int:
        """Fast index within a sample's part of an axis of `extent`."""
        return extent // (self.outer * samples)

    def split(self, x: torch.Tensor, samples: int, axis: int | None = None) -> torch.Tensor:
        """`x` with the samples of `axis` in front: (n, ..., outer * inner, ...)."""
        axis = self.axis if axis is None else axis
        inner, rest = divmod(x.shape[axis], self.outer * samples)
        if rest:
            raise NotUnderstood(f"axis {axis} of {tuple(x.shape)} for {samples} samples")
        x = x.unflatten(axis, (self.outer, samples, inner)).movedim(axis + 1, 0)
        return x.flatten(axis + 1, axis + 2)


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
        """Return what the node saved, in the dtype of the gradient if it is a float."""
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
        x = self.layout.split(x, self.samples, axis)
        return x.squeeze(axis + 1) if x.shape[axis + 1] == 1 else x

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
    axis, n = site.layout.axis, site.samples
    times = contribution.shape[axis + 1] // n
    if weight[axis] not in (1, times):
        raise NotUnderstood(f"{site.node.name()}: weight {columns.shape} along the samples")
    contribution = site.layout.split(contribution, n, axis + 1)  # (n, c, ..., times, ...)
    over = [k + 2 for k, width in enumerate(weight) if width == 1 and contribution.shape[k + 2] > 1]
    if over:
        contribution = contribution.sum(over, keepdim=True)
    if tuple(contribution.shape[2:]) != tuple(weight):
        raise NotUnderstood(f"{site.node.name()}: weight {columns.shape} is not broadcast")
    return Full(columns, contribution.reshape(n, contribution.shape[1], math.prod(weight)))


Family = Callable[[Site], list[Term]]
