# SPDX-License-Identifier: Apache-2.0
"""Normal outputs with one variance."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from fastfisher.likelihoods._base import Likelihood, check_labels, check_real

Host = np.ndarray[Any, Any]


class Gaussian(Likelihood):
    """Normal outputs with a fixed variance: regression, ``||f - y||^2 / (2 variance)``.

    Parameters
    ----------
    variance : float
    """

    def __init__(self, variance: float = 1.0) -> None:
        if not (_is_number(variance) and variance > 0 and math.isfinite(variance)):
            raise ValueError(
                "variance: expected a positive finite number, the same for all outputs (else write "
                f"a fastfisher.likelihoods.Likelihood), got {variance!r}"
            )
        self.variance = float(variance)

    def hessian(self, f: Host) -> Host:
        """``I / variance``."""
        return np.broadcast_to(np.eye(f.shape[1], like=f) / self.variance, (*f.shape, f.shape[1]))

    def root(self, f: Host) -> Host:
        """``I / sqrt(variance)``."""
        return np.broadcast_to(
            np.eye(f.shape[1], like=f) / math.sqrt(self.variance), (*f.shape, f.shape[1])
        )

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw ``f`` plus noise."""
        return f + math.sqrt(self.variance) * rng.standard_normal(f.shape)

    def gradient(self, f: Host, y: Host) -> Host:
        """``(f - y) / variance``."""
        return (f - y) / self.variance

    def labels(self, y: Host, f: Host) -> Host:
        """Targets (N, C), for C = 1 also (N,)."""
        if f.shape[1] == 1 and y.shape == f.shape[:1]:
            y = y[:, None]
        check_labels(y, f.shape, "one target an output")
        check_real(y)
        return y.astype(np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)
