# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptron one sample at a time, and its Jacobian by central differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]

ACTIVATIONS = {
    "tanh": math.tanh,
    "relu": lambda u: max(u, 0.0),
    "erf": math.erf,
    "linear": lambda u: u,
    "hard-tanh": lambda u: min(max(u, -1.0), 1.0),
}


def mlp(
    parameters: dict[str, Float64],
    x: Float64,
    *,
    activation: str,
    sigma_w2: float,
    sigma_b2: float,
    parameterization: str,
    normalization: str | None,
    hidden_normalization: str | None = None,
) -> Float64:
    """Compute outputs (n, c) from trainables ``"0.weight"``, ``"0.bias"``, ... for x (n, i)."""
    phi = np.vectorize(ACTIVATIONS[activation], otypes=[float])
    depth = sum(name.endswith(".weight") for name in parameters)
    rows = list(np.asarray(x, dtype=np.float64))
    for layer in range(depth):
        weight = np.asarray(parameters[f"{layer}.weight"], dtype=np.float64)
        bias = np.asarray(parameters.get(f"{layer}.bias", 0.0), dtype=np.float64)
        if parameterization == "ntk":
            weight = math.sqrt(sigma_w2 / weight.shape[1]) * weight
            bias = math.sqrt(sigma_b2) * bias
        rows = [weight @ (phi(h) if layer else h) + bias for h in rows]
        if layer < depth - 1 and rows:
            rows = list(_normalised(np.array(rows), hidden_normalization))
    return _normalised(np.array(rows), normalization)


def _normalised(f: Float64, kind: str | None) -> Float64:
    axis = 1 if kind == "layer" else 0
    if kind is not None:
        f = f - f.mean(axis, keepdims=True)
    if kind in ("batch", "layer"):
        f = f / f.std(axis, keepdims=True)
    return f


def mlp_jacobian(
    parameters: dict[str, Float64], x: Float64, *, step: float = 1e-5, **options: Any
) -> Float64:
    """Jacobian (n * c, p) of `mlp` by central differences; error of order step^2 for smooth phi."""
    columns = []
    for name, value in parameters.items():
        for index in np.ndindex(value.shape):
            shifted = []
            for sign in (1, -1):
                moved = np.array(value, dtype=np.float64)
                moved[index] += sign * step
                shifted.append(mlp({**parameters, name: moved}, x, **options))
            columns.append((shifted[0] - shifted[1]).ravel() / (2 * step))
    return np.stack(columns, axis=1)
