# SPDX-License-Identifier: Apache-2.0
"""Random networks on Gaussian samples, for sections that compare them with theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher._jacobian import Jacobian
from fastfisher.models import MLP
from fastfisher.report import _device

__all__ = [
    "VARIANCES",
    "dual",
    "eigenvalues",
    "gaussian",
    "network",
    "probabilities",
    "softmax_dual",
]

Floats = NDArray[np.float64]

# Those of Karakida, Akaho and Amari.
VARIANCES: dict[str, dict[str, Any]] = {
    "tanh": {"sigma_w2": 3.0, "sigma_b2": 0.64},
    "relu": {"sigma_w2": 2.0, "sigma_b2": 0.1},
    "linear": {"sigma_w2": 1.0, "sigma_b2": 0.1},
}


def network(
    activation: str, widths: Sequence[int], samples: int, *, seed: int, **options: Any
) -> Jacobian:
    """Jacobian of a random network; samples and weights have random numbers of their own."""
    named = {**VARIANCES[activation], **options}
    mlp = MLP(widths, activation=cast(Any, activation), seed=seed, **named)
    return mlp.jacobian(gaussian(samples, widths[0], seed=seed).astype(mlp.dtype))


def gaussian(samples: int, inputs: int, *, seed: int) -> Floats:
    """Draw samples of independent normal entries, apart from the weights of that seed."""
    return np.random.default_rng((seed, 1)).standard_normal((samples, inputs))


def dual(jacobian: Jacobian) -> Floats:
    """F* = J J^T / N, (NC) x (NC)."""
    rows = jacobian.shape[0]
    return np.asarray(_device.gram(jacobian), np.float64).reshape(rows, rows) / jacobian.samples


def probabilities(outputs: Any) -> Floats:
    """Softmax of the outputs (N, C)."""
    f = np.asarray(outputs, np.float64)
    g: Floats = np.exp(f - f.max(1, keepdims=True))
    g /= g.sum(1, keepdims=True)
    return g


def softmax_dual(matrix: Floats, g: Floats) -> Floats:
    """``S F* S^T`` with ``S^T S = Q = diag(g) - g g^T`` for each sample: the spectrum of Q F*."""
    n, c = g.shape
    s = np.sqrt(g)[:, :, None] * (np.eye(c) - g[:, None, :])
    left = (s @ matrix.reshape(n, c, n * c)).reshape(n * c, n, c)
    right = left.swapaxes(0, 1) @ s.swapaxes(1, 2)  # (t, a, e)
    result: Floats = right.swapaxes(0, 1).reshape(n * c, n * c)
    return (result + result.T) / 2


def eigenvalues(matrix: Floats) -> Floats:
    """Eigenvalues in descending order."""
    values: Floats = _device.eigvalsh(matrix)[::-1]
    return values
