# SPDX-License-Identifier: Apache-2.0
"""Where samples stand in the tensors of a run: which axes hold them, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.graph import Edge, Graph
from fastfisher.capture.site import SampleAxis


class Extents:
    """Which axes of tensors hold samples.

    With a second run of another number of samples: those whose extent differs. Without one (a model
    that insists on its number, or takes another way for other samples): those that the number
    divides.
    """

    def __init__(self, graph: Graph, samples: int, other: Graph | None) -> None:
        self.graph, self.samples = graph, samples
        self.other = other if other is not None and other.signature == graph.signature else None

    def axes(self, edge: Edge) -> list[int]:
        """Axes of an edge's tensor that hold samples."""
        here = ag.shape(edge)
        if self.other is None:
            return [k for k, extent in enumerate(here) if extent and extent % self.samples == 0]
        node, number = edge
        there = ag.shape((self.other.nodes[self.graph.index[node]], number))
        if len(there) != len(here):
            return []
        return [k for k, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]


def sample_axes(
    shape: tuple[int, ...],
    axes: Sequence[int],
    patterns: Sequence[tuple[int, torch.Tensor | None]],
    samples: int,
) -> list[SampleAxis]:
    """Where samples may be in a tensor, given gradients for single samples: one place, or none.

    Gradients with many zeros may leave several.

    Parameters
    ----------
    axes : sequence of int
        Axes whose extent follows the number of samples.
    patterns : sequence of (int, Tensor or None)
        A sample, first or last (-1), and the gradient of its outputs.
    """
    found: list[SampleAxis] = []
    for axis in axes:
        times, rest = divmod(shape[axis], samples)
        if rest:
            continue
        for outer in [k for k in range(1, times + 1) if times % k == 0]:
            layout = SampleAxis(axis, outer)
            if all(
                gradient is None or _is_alone(layout.split(gradient, samples), sample)
                for sample, gradient in patterns
            ):
                found.append(layout)
    return found


def _is_alone(x: torch.Tensor, sample: int) -> bool:
    others = x[1:] if sample == 0 else x[:-1]
    return not bool((others != 0).any())
