# SPDX-License-Identifier: Apache-2.0
"""Random networks on Gaussian samples, for sections that compare them with theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher._extras import require
from fastfisher._jacobian import Jacobian
from fastfisher.models import MLP

__all__ = ["VARIANCES", "dual", "eigenvalues", "network"]

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
    x = np.random.default_rng((seed, 1)).standard_normal((samples, widths[0]))
    named = {**VARIANCES[activation], **options}
    return MLP(widths, activation=cast(Any, activation), seed=seed, **named).jacobian(x)


def dual(jacobian: Jacobian) -> Floats:
    """F* = J J^T / N, (NC) x (NC)."""
    rows = jacobian.shape[0]
    return np.asarray(jacobian.gram()).reshape(rows, rows) / jacobian.samples


def eigenvalues(matrix: Floats) -> Floats:
    """Eigenvalues in descending order."""
    eigvalsh = require("scipy.linalg", purpose="the report").eigvalsh
    values: Floats = eigvalsh(matrix)[::-1]
    return values
