# SPDX-License-Identifier: Apache-2.0
"""Several networks in NTK parameterisation trained at once, each on a batch of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher.models import MLP
from fastfisher.models.activations import ACTIVATIONS

__all__ = ["Ensemble"]

Floats = NDArray[Any]


class Ensemble:
    """Networks of one kind, trained by gradient descent on half the mean squared error.

    Parameters
    ----------
    seeds : sequence of int
        Seed of each network's parameters; equal seeds give equal networks.
    widths, activation, sigma_w2, sigma_b2
        As for `fastfisher.models.MLP`; sigma_b2 > 0.
    dtype : str
        Of parameters and outputs.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        widths: Sequence[int],
        *,
        activation: str,
        sigma_w2: float,
        sigma_b2: float,
        dtype: str = "float32",
    ) -> None:
        self.activation, self.layers = ACTIVATIONS[activation], len(widths) - 1
        self.bias_scale = float(np.sqrt(sigma_b2))
        self.scales = [float(np.sqrt(sigma_w2 / width)) for width in widths[:-1]]
        self.dtype = dtype
        sizes = list(itertools.pairwise(widths))
        self.weights = [np.empty((len(seeds), o, i), dtype) for i, o in sizes]
        self.biases = [np.empty((len(seeds), 1, o), dtype) for _, o in sizes]
        for k, seed in enumerate(seeds):
            one = MLP(
                widths,
                activation=cast(Any, activation),
                sigma_w2=sigma_w2,
                sigma_b2=sigma_b2,
                parameterization="ntk",
                seed=seed,
            )
            for layer in range(self.layers):
                self.weights[layer][k] = one.parameters[f"{layer}.weight"]
                self.biases[layer][k] = one.parameters[f"{layer}.bias"]

    def __call__(self, x: Floats, which: slice = slice(None)) -> Floats:
        """Compute outputs (k, n, c), float64, for inputs (n, d), or (k, n, d), of some networks."""
        return self._forward(x, which)[1].astype(np.float64)

    def features(self, x: Floats) -> Floats:
        """Return what enters the last layer, scales and bias included: (k, n, M + 1), float64."""
        last = self._forward(x)[0][-1].astype(np.float64) * self.scales[-1]
        bias = np.full((*last.shape[:2], 1), self.bias_scale)
        return np.concatenate([last, bias], axis=2)

    def step(self, x: Floats, y: Floats, lr: float) -> None:
        """Make one step of gradient descent on inputs (n, d) or (k, n, d), targets (n, c)."""
        inputs, outputs, slopes = self._forward(x)
        signal = (outputs - y.astype(self.dtype)) * np.asarray(lr / outputs.shape[1], self.dtype)
        for layer in reversed(range(self.layers)):
            weight = self.weights[layer]
            scale = np.asarray(self.scales[layer], self.dtype)
            scaled = signal * scale
            below = scaled @ weight if layer else None
            weight -= scaled.swapaxes(1, 2) @ inputs[layer]
            self.biases[layer] -= self.bias_scale * signal.sum(1, keepdims=True)
            if below is not None:
                signal = below * slopes[layer - 1]

    def _forward(
        self, x: Floats, which: slice = slice(None)
    ) -> tuple[list[Floats], Floats, list[Floats]]:
        inputs, slopes = [np.asarray(x, self.dtype)], []
        for layer in range(self.layers):
            weight = self.weights[layer][which].swapaxes(1, 2)
            u = inputs[-1] @ weight
            u *= self.scales[layer]
            u += self.bias_scale * self.biases[layer][which]
            if layer < self.layers - 1:
                value = self.activation.value(u)
                slopes.append(self.activation.slope(u, value))
                inputs.append(value)
        return inputs, u, slopes
