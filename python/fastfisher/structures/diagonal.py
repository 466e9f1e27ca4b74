# SPDX-License-Identifier: Apache-2.0
"""Diagonal of the Fisher matrix: sums of squared per-sample gradients, never their square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.structures._base import Structure
from fastfisher.structures._weights import Weight, weights

Host = np.ndarray[Any, Any]


@dataclass(eq=False)
class Diagonal(Structure):
    """Diagonal (P,)."""

    values: Host

    @property
    def like(self) -> Host:
        """Array like vectors."""
        return self.values

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of parameters P."""
        return len(self.values)

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        """Of vectors."""
        return np.dtype(self.values.dtype)

    def matvec(self, v: Host) -> Host:
        """``F v``."""
        return as_array(self.values[:, None] * v)

    def solve(self, v: Host, damping: float) -> Host:
        """``(F + damping I)^-1 v``."""
        damped = self.values + self.dtype.type(damping)
        if (damped <= 0).any():
            raise NotPositiveDefiniteError(
                f"F: entry {int(np.argmin(damped))} of the diagonal is zero; expected damping > 0"
            )
        return as_array(v / damped[:, None])

    def spectrum(self) -> Host:
        """Eigenvalues."""
        return self.values.astype(np.float64)

    def function(self, f: Any, v: Host) -> Host:
        """``f(F) v``."""
        return as_array(f(self.spectrum())[:, None] * v, v.dtype)

    def diagonal(self) -> Host:
        """Diagonal (P,)."""
        return self.values

    def scaled(self, factor: float) -> Diagonal:
        """Structure of `factor` times the matrix."""
        return Diagonal(self.values * self.dtype.type(factor))


def diagonal(jacobian: Jacobian, scale: float) -> Diagonal:
    """Diagonal of ``scale J^T J``: for dense layers one product a layer."""
    total = np.zeros(jacobian.shape[1], like=jacobian.layers[0].g)
    for weight in weights(jacobian):
        total[weight.columns] = squares(weight)
    return Diagonal((total * scale).astype(jacobian.layers[0].g.dtype))


def squares(weight: Weight) -> Host:
    """Sum the squared gradients of a weight over all rows, (o, i), float64."""
    total = np.zeros((weight.out_features, weight.in_features), like=weight.layer.g)
    if weight.simple:
        for piece in weight.pieces(formed=False):
            a, g = weight.factors(piece)
            squared = np.square(g[:, :, 0], dtype=np.float64).sum(1)
            total += squared.T @ np.square(a[:, 0], dtype=np.float64)
        return total
    for piece in weight.pieces():
        total += np.square(weight.gradients(piece), dtype=np.float64).sum((0, 1))
    return total
