# SPDX-License-Identifier: Apache-2.0
"""Kronecker-factored eigenbasis with the exact second moments in it (George et al. 2018).

The eigenvectors are those of K-FAC's factors; the eigenvalues are ``scale`` times the sums of the
squared gradients in that basis, so that the diagonal in the basis, and the trace, are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastfisher._jacobian import Jacobian
from fastfisher.structures._kronecker import Block
from fastfisher.structures._weights import Weight, weights
from fastfisher.structures.kfac import Kfac, kfac

Host = np.ndarray[Any, Any]


@dataclass(eq=False)
class Ekfac(Kfac):
    """K-FAC's blocks with eigenvalues of their own."""

    corrected: list[Host] = field(default_factory=list)

    def matvec(self, v: Host) -> Host:
        """``F v``."""
        return self.function(lambda w: w, v)

    def spectrum(self) -> Host:
        """Eigenvalues."""
        return np.concatenate([np.zeros(0), *(values.reshape(-1) for values in self.corrected)])

    def eigenvalues(self) -> list[Host]:
        """Eigenvalues (o, i) of each block in its eigenbasis."""
        return self.corrected

    def solve(self, v: Host, damping: float, split: str | None = None) -> Host:
        """``(F + damping I)^-1 v``."""
        if split is not None:
            raise ValueError(f"split: expected None for structure 'ekfac', got {split!r}")
        return super().solve(v, damping)

    def diagonal(self) -> Host:
        """Diagonal (P,)."""
        result = np.zeros(self.size, like=self.like)
        for block, values, (_, q_a, _, q_g) in zip(
            self.blocks, self.corrected, self.eigh(), strict=True
        ):
            inner = values if q_a is None else values @ np.square(q_a, dtype=np.float64).T
            result[block.columns] = np.square(q_g, dtype=np.float64) @ inner
        return result.astype(self.dtype)

    def trace(self) -> float:
        """Sum of the eigenvalues: that of the exact Fisher matrix."""
        return float(self.spectrum().sum())


def ekfac(jacobian: Jacobian, scale: float, weight_sharing: str = "expand") -> Ekfac:
    """Blocks of ``scale J^T J``."""
    basis = kfac(jacobian, scale, weight_sharing)
    result = Ekfac(basis.blocks, basis.size, basis.dtype, weight_sharing, basis.eigh())
    for weight, block in zip(weights(jacobian), basis.blocks, strict=True):
        _, q_a, _, q_g = result.eigh()[len(result.corrected)]
        moments = _moments(weight, block, q_a, q_g)
        # The squares of what rounding leaves of vectors that vanish in a direction.
        lost = (sum(block.place.shape) * float(np.finfo(basis.dtype).eps)) ** 2
        moments = np.where(moments > lost * moments.max(initial=0.0), moments, 0)
        result.corrected.append(scale * moments)
    return result


def _moments(weight: Weight, block: Block, q_a: Host | None, q_g: Host) -> Host:
    """Sum the squared gradients in the eigenbasis, (o, i), float64."""
    total = np.zeros(block.place.shape, like=weight.layer.g)
    by_factors = weight.simple
    for piece in weight.pieces(formed=not by_factors):
        if not weight.factored:
            rows = weight.layer.g[piece].reshape(-1, weight.out_features)
            total += np.square(rows if q_a is None else rows @ q_a).sum(0, dtype=np.float64)
            continue
        a, g = weight.factors(piece)
        a = a if q_a is None else a @ q_a
        g = g @ q_g
        if by_factors:
            total += np.square(g[:, :, 0]).sum(1).T @ np.square(a[:, 0])
        else:
            total += np.square(g.swapaxes(2, 3) @ a[:, None]).sum((0, 1), dtype=np.float64)
    return total
