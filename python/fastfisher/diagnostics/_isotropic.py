# SPDX-License-Identifier: Apache-2.0
"""What theory says of a Jacobian without solving anything: ranks, conditions, alpha, cost."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from fastfisher._jacobian import Jacobian
from fastfisher._lookup import Lookup
from fastfisher.structures._parts import parts_of
from fastfisher.structures._weights import Weight, weights
from fastfisher.theory import tridiagonal_coefficients

Host = np.ndarray[Any, Any]

_BY_ROWS = ("full", "layer", "tridiagonal")


class Facts:
    """Of a Jacobian on the host; ranks count eigenvalues above a part of the mean one."""

    def __init__(self, jacobian: Jacobian, relative: float) -> None:
        self.jacobian = jacobian
        self.relative = max(relative, float(np.finfo(np.float64).eps))
        self.n, self.c = jacobian.samples, jacobian.n_outputs
        self.size = self.n * self.c
        self.weights = weights(jacobian)
        self.simple = all(w.simple and not isinstance(w.layer, Lookup) for w in self.weights)

    @cached_property
    def kernels(self) -> list[int]:
        """Ranks of the tangent kernels of all parameters, then of each layer."""
        every = [self.jacobian, *(part.jacobian for part in parts_of(self.jacobian))]
        found = [j.gram().reshape(self.size, self.size).astype(np.float64) for j in every]
        return [self._rank(k) for k in found]

    @cached_property
    def inputs(self) -> list[int]:
        """Ranks of the inputs of each weight."""
        return [self._rank_of_rows(w.factors(slice(None))[0][:, 0]) for w in self.weights]

    @cached_property
    def cotangents(self) -> list[int]:
        """Ranks of the cotangents of each weight, N C if they are independent."""
        found = [w.factors(slice(None))[1] for w in self.weights]
        return [self._rank_of_rows(g.reshape(self.size, g.shape[-1])) for g in found]

    def predicted(self, structure: Any) -> float | None:
        """Mean eigenvalue of Theta_G for vanishing damping."""
        if self.size == 0:
            return None
        if structure == "full":
            return self.kernels[0] / self.size
        if structure == "layer":
            return sum(self.kernels[1:]) / self.size
        if structure == "tridiagonal":
            regular = min(self.kernels[1:], default=0) == self.size
            depth = len(self.kernels) - 1
            return float(tridiagonal_coefficients(depth).sum()) if regular else None
        if not self.simple:
            return None
        if structure == "kfac":
            return self._predicted_kfac()
        # Each block of a unit gives a projector on the samples that move it, up to its rank.
        total = 0
        for weight, rank in zip(self.weights, self.inputs, strict=True):
            moving = (weight.factors(slice(None))[1] != 0).any((1, 2)).sum(0)  # (o,)
            for b in self._blocks(structure, weight):
                total += int(np.minimum(moving, min(b, rank)).sum())
        return total / self.size

    def _predicted_kfac(self) -> float | None:
        """Sum over layers of N times the means of products of two projectors' diagonals."""
        total = 0.0
        for weight, a, g in zip(self.weights, self.inputs, self.cotangents, strict=True):
            if g == self.size:
                total += a
                continue
            cotangents = weight.factors(slice(None))[1]
            if not (cotangents == cotangents[:1]).all():
                return None
            # The last layer: what samples share is averaged over them.
            total += a / self.n * g / self.c
        return total

    def conditions(self, structure: Any) -> dict[str, bool]:
        """Say what isotropy takes, and whether it is so."""
        if structure == "full":
            return {"tangent kernel of full rank": self.kernels[0] == self.size}
        if structure in _BY_ROWS:
            regular = all(rank == self.size for rank in self.kernels[1:])
            return {"tangent kernel of each layer of full rank": regular}
        result = {"weights used at one position": self.simple}
        if not self.simple:
            return result
        result["inputs of each layer of rank N"] = all(rank == self.n for rank in self.inputs)
        if structure == "kfac":
            hidden = self.cotangents[:-1]
            result["cotangents of hidden layers of rank N C"] = all(g == self.size for g in hidden)
        elif structure != "unit":
            smallest = min((min(self._blocks(structure, w)) for w in self.weights), default=0)
            result["blocks of N inputs or more"] = smallest >= self.n
        return result

    def cost(self, structure: Any) -> float:
        """Multiply-adds to make and to invert the matrices of one update."""
        if structure in _BY_ROWS:
            return self._cost_by_rows(structure)
        total = 0.0
        for weight in self.weights:
            n, s = self.n, weight.positions
            i, o = weight.in_features, weight.out_features
            if structure == "kfac":
                for rows, columns in ((n * s, i), (self.size * s, o)):
                    few = min(rows, columns)
                    total += rows * columns * few / 2 + few**3 / 6
                continue
            rows = n if weight.simple else self.size
            total += self.size * s * i * o if not weight.simple else self.size * o
            for b in self._blocks(structure, weight):
                few = min(rows, b)
                # Of units in sample space one Gram matrix of the inputs, weighted.
                shared = weight.simple and rows <= b
                gram = o * rows * b * few / 2
                if shared:
                    gram = rows * rows * (b + o) / 2
                total += gram + o * few**3 / 6
        return total

    def _cost_by_rows(self, structure: str) -> float:
        """Kernels of the layers and Cholesky factorisations (n^3 / 6), or one LU (n^3 / 3)."""
        total = sum(self._kernel_cost(weight) for weight in self.weights)
        parts = [part.jacobian for part in parts_of(self.jacobian)]
        if structure == "tridiagonal":
            return total + (len(parts) * self.size) ** 3 / 3
        for j in [self.jacobian] if structure == "full" else parts:
            total += min(self.size, j.shape[1]) ** 3 / 6
        return total

    def _kernel_cost(self, weight: Weight) -> float:
        """Cost of its part of the tangent kernel: by position pairs or by formed gradients."""
        pairs, c, s = self.n**2 / 2, self.c, weight.positions
        i, o = weight.in_features, weight.out_features
        if weight.simple:
            return pairs * (i + c * c * o)
        formed = pairs * c * c * i * o + self.size * s * i * o
        return min(formed, pairs * s * s * (i + c * c * o))

    def _blocks(self, structure: Any, weight: Weight) -> list[int]:
        i = weight.in_features
        b = {"unit": i, "diagonal": 1}.get(structure) if isinstance(structure, str) else None
        b = max(1, structure[1] if b is None else b)
        return [min(b, i - start) for start in range(0, i, b)]

    def _rank(self, k: Host) -> int:
        if k.size == 0:
            return 0
        w = np.linalg.eigvalsh(k)
        return int((w > self.relative * w.mean()).sum())

    def _rank_of_rows(self, x: Host) -> int:
        x = x.astype(np.float64)
        wide = x.shape[0] <= x.shape[1]
        return self._rank(x @ x.T if wide else x.T @ x)
