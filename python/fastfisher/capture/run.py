# SPDX-License-Identifier: Apache-2.0
"""One run of a model, and what samples must be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.graph import Graph
from fastfisher.capture.model import Inputs, Model, all_finite, recorded, tensors_of
from fastfisher.capture.random_states import RandomStates
from fastfisher.errors import NonFiniteError


@dataclass(frozen=True)
class Run:
    """Graph of a run, the leaves of its inputs, and whether the model drew random numbers."""

    graph: Graph
    leaves: list[torch.Tensor]
    drew: bool


def run(
    model: Model, x: Inputs, *, which: Sequence[int] | None = None, stepwise: bool = False
) -> Run:
    """Run `model` on `x`; `stepwise` recurrent layers show their weights.

    `which` are the numbers of the samples, for messages.

    Raises
    ------
    NonFiniteError
        An output is NaN or infinite.
    """
    given, leaves = recorded(x)
    before = RandomStates()
    with ag.without_mkldnn() if stepwise else nullcontext():
        y = model(given)
    drew = before.moved()
    values = y.detach()
    if not all_finite(values):
        sample, output = torch.nonzero(~torch.isfinite(values))[0].tolist()
        raise NonFiniteError(
            f"model: expected finite outputs, got {float(values[sample, output])} for sample "
            f"{sample if which is None else which[sample]}, output {output}"
        )
    graph = Graph(y)
    if not stepwise and any("MkldnnRnn" in name for name in graph.names):
        return run(model, x, which=which, stepwise=True)
    return Run(graph, leaves, drew)


def check_dtypes(x: Inputs, like: Inputs, name: str) -> None:
    """Check that `x` has the dtypes of the samples `like`."""
    if isinstance(x, Mapping) and isinstance(like, Mapping):
        like = {key: like[key] for key in x if key in like}
    for mine, theirs in zip(tensors_of(x), tensors_of(like), strict=False):
        if mine.dtype != theirs.dtype:
            raise TypeError(f"{name}: expected dtype {theirs.dtype} as x, got dtype {mine.dtype}")


def check_inputs(x: Inputs, model: Model, name: str) -> None:
    """Check that `x` is a batch of finite numbers on the device of the parameters."""
    tensors = tensors_of(x)
    if not tensors or any(t.ndim == 0 for t in tensors):
        raise ValueError(f"{name}: expected tensors with samples on their first axis")
    for t in tensors:
        if t.shape[0] != tensors[0].shape[0]:
            raise ValueError(
                f"{name}: expected {tensors[0].shape[0]} samples in every tensor, got shape "
                f"{tuple(t.shape)}"
            )
        if not all_finite(t.detach()):
            where = tuple(torch.nonzero(~torch.isfinite(t))[0].tolist())
            raise NonFiniteError(
                f"{name}: expected finite numbers, got {float(t.detach()[where])} at index {where}"
            )
    like = model.like
    if like is not None and like.device != tensors[0].device:
        raise ValueError(
            f"{name}: expected device {like.device} as the parameters, got {tensors[0].device}"
        )
