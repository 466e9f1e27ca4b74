# SPDX-License-Identifier: Apache-2.0
"""Gradients of a network's outputs with respect to its inputs and activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastfisher._arrays import Array, from_numpy, namespace
from fastfisher.models.activations import ACTIVATIONS
from fastfisher.models.normalization import derivative, normalise

if TYPE_CHECKING:
    from fastfisher.models.mlp import MLP


def feature_gradients(model: MLP, x: Array) -> tuple[Array, list[Array]]:
    """Compute outputs (N, C) and gradients (N, C, M_l) of each for h^0 = x, h^1, ..., h^{L-1}.

    Raises
    ------
    ValueError
        Normalisations over the batch: an output then depends on all samples.
    """
    for name, kind in (
        ("normalization", model.normalization),
        ("hidden_normalization", model.hidden_normalization),
    ):
        if kind in ("mean", "batch"):
            raise ValueError(
                f"model: {name}={kind!r} couples samples, so that an output has no gradient of its "
                "own sample alone; expected a model without"
            )
    inputs, pre_activations, _ = model._forward(x)
    outputs, deviation = normalise(pre_activations[-1], model.normalization)
    delta, _ = derivative(outputs, deviation, model.normalization)
    if delta is None:
        delta = from_numpy(np.eye(model.widths[-1], dtype=model.dtype)[None], x)
    slope = ACTIVATIONS[model.activation].slope
    gradients = []
    for index in reversed(range(len(inputs))):
        below = model._backward(index, delta)
        gradients.append(namespace(x).broadcast_to(below, (x.shape[0], *below.shape[1:])))
        if index:
            delta = below * slope(pre_activations[index - 1], inputs[index])[:, None, :]
    return outputs, gradients[::-1]
