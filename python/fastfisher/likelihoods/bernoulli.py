# SPDX-License-Identifier: Apache-2.0
"""Independent binary labels with logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher.likelihoods._base import Likelihood, check_labels, check_real, ratio

Host = np.ndarray[Any, Any]


class Bernoulli(Likelihood):
    """Independent binary labels, each with a logit of its own."""

    def hessian(self, f: Host) -> Host:
        """``diag(p (1 - p))``."""
        return _slope(f)[:, :, None] * np.eye(f.shape[1], like=f)

    def root(self, f: Host) -> Host:
        """``diag(sqrt(p (1 - p)))``."""
        return np.sqrt(_slope(f))[:, :, None] * np.eye(f.shape[1], like=f)

    def unrooted(self, f: Host, e: Host) -> Host:
        """``e / sqrt(p (1 - p))``."""
        return ratio(e, np.sqrt(_slope(f))[:, :, None])

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw labels (N, C)."""
        return (_sigmoid(f) > rng.random(f.shape)).astype(np.float64)

    def gradient(self, f: Host, y: Host) -> Host:
        """``p - y``."""
        return _sigmoid(f) - y

    def labels(self, y: Host, f: Host) -> Host:
        """Labels (N, C), for C = 1 also (N,), in [0, 1]."""
        if f.shape[1] == 1 and y.shape == f.shape[:1]:
            y = y[:, None]
        check_labels(y, f.shape, "one label an output")
        check_real(y)
        y = y.astype(np.float64)
        if y.size and not (y.min() >= 0 and y.max() <= 1):
            raise ValueError(f"y: expected labels from 0 to 1, got {y.min()} to {y.max()}")
        return y


def _sigmoid(f: Host) -> Host:
    e = np.exp(-np.abs(f))
    return as_array(np.where(f >= 0, 1, e) / (1 + e))


def _slope(f: Host) -> Host:
    e = np.exp(-np.abs(f))  # p (1 - p) without the cancellation in 1 - p
    return as_array(e / (1 + e) ** 2)
