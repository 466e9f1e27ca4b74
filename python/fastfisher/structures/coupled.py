# SPDX-License-Identifier: Apache-2.0
"""Full, layer-wise and block tri-diagonal Fisher matrices, held as factors.

With the Jacobians J_l of L blocks of parameters on the block diagonal of J_b and a matrix T (L, L)
of zeros and ones that says which blocks are kept,

    F = scale J_b^T (T (x) I) J_b.

`full` has one block, `layer` T = I, `tridiagonal` T_lm = [|l - m| <= 1]. A matrix T with negative
eigenvalues makes F indefinite (three layers or more): never Cholesky then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastfisher._device_array import as_array, contiguous
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.structures._base import (
    Structure,
    amplifies,
    damped_inverses,
    projected,
    refined,
)
from fastfisher.structures._coupled_solve import by_eigenvectors, by_woodbury, cast
from fastfisher.structures._parts import Part, parts_of
from fastfisher.structures._rooted import widened
from fastfisher.structures._weights import weights

Host = np.ndarray[Any, Any]


@dataclass(eq=False)
class Coupled(Structure):
    """See the module; `parts` in the order of the layers, `coupling` T."""

    parts: list[Part]
    coupling: Host
    scale: float
    size: int
    title: str
    _duals: list[Host] = field(default_factory=list)
    _inverses: dict[tuple[int, float], Host] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.title

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        """Of vectors."""
        return np.dtype(str(self.parts[0].jacobian.layers[0].g.dtype))

    @property
    def like(self) -> Host:
        """Array like vectors."""
        return as_array(self.parts[0].jacobian.layers[0].g)

    @property
    def rows(self) -> int:
        """Rows of each block's Jacobian."""
        return self.parts[0].jacobian.shape[0]

    @property
    def definite(self) -> bool:
        """Whether F is positive semi-definite by construction."""
        return bool(np.linalg.eigvalsh(self.coupling).min(initial=0.0) > -1e-12)

    @property
    def diagonal_only(self) -> bool:
        """Whether the blocks do not meet."""
        return bool((self.coupling == np.eye(len(self.parts))).all())

    def small(self, part: Part) -> bool:
        """Whether parameter space is the smaller one, for one part."""
        return part.jacobian.shape[1] <= self.rows

    def matvec(self, v: Host) -> Host:
        """``F v``: two products a layer with the stored factors."""
        z = np.stack([part.jacobian @ v[part.columns] for part in self.parts])
        return self.pull(np.tensordot(self.coupling.astype(v.dtype), z, 1) * cast(v, self.scale))

    def pull(self, z: Host) -> Host:
        """``J_b^T z`` for z (L, rows, k)."""
        if self.title == "full":  # no second array of the size of the parameters
            return as_array(self.parts[0].jacobian.T @ contiguous(z[0]))
        result = np.zeros((self.size, z.shape[2]), z.dtype, like=z)
        for part, one in zip(self.parts, z, strict=True):
            result[part.columns] = part.jacobian.T @ contiguous(one)
        return result

    def duals(self) -> list[Host]:
        """``scale J_l J_l^T`` of each part, float64."""
        if not self._duals:
            for part in self.parts:
                k = part.jacobian.gram().reshape(self.rows, self.rows).astype(np.float64)
                self._duals.append(k * self.scale)
        return self._duals

    def solve(self, v: Host, damping: float) -> Host:
        """``(F + damping I)^-1 v`` in sample space, part by part in the smaller one where T = I."""
        if damping == 0:
            covered = sum(part.jacobian.shape[1] for part in self.parts)
            if covered < self.size or not all(self.small(part) for part in self.parts):
                raise NotPositiveDefiniteError(
                    f"F: structure {self.name!r} has rank at most {self._rank()} of {self.size}; "
                    "expected damping > 0"
                )
        delicate = amplifies(self.trace(), damping, self.dtype)
        if delicate and self.dtype == np.float32:
            # Roundings of the smaller dtype would be divided by the damping.
            wide = self.widened().solve(v.astype(np.float64), damping)
            return as_array(wide, np.float32)

        def apply(x: Host) -> Host:
            return as_array(self.matvec(x) + cast(x, damping) * x)

        def approximate(y: Host) -> Host:
            if not self.diagonal_only:
                if delicate:
                    return by_eigenvectors(self, y, damping)
                return by_woodbury(self, y, damping)
            x = y / cast(y, damping) if damping else np.zeros_like(y)
            for index, part in enumerate(self.parts):
                x[part.columns] = self._part_solve(index, part, y[part.columns], damping, delicate)
            return x

        return refined(apply, approximate, v)

    def spectrum(self) -> Host:
        """Eigenvalues, the ``P - rank`` zeros left out."""
        if self.diagonal_only:
            return np.concatenate([np.linalg.eigvalsh(self.compact(i)).clip(0)
                                   for i in range(len(self.parts))])  # fmt: skip
        roots = [_root(k) for k in self.duals()]
        blocks = [
            [self.coupling[i, j] * roots[i] @ roots[j] for j in range(len(roots))]
            for i in range(len(roots))
        ]
        return as_array(np.linalg.eigvalsh(np.block(blocks)))

    def function(self, f: Any, v: Host) -> Host:
        """``f(F) v``, through the eigenvectors of each part."""
        if not self.diagonal_only:
            raise NotPositiveDefiniteError(
                f"F: structure {self.name!r} is indefinite: it has no roots and no samples, "
                "whatever the damping; expected another structure"
            )
        x = as_array(f(np.zeros(1))) * v if self.size else v.copy()
        for index, part in enumerate(self.parts):
            w, q = np.linalg.eigh(self.compact(index))
            w = w.clip(0)
            own = v[part.columns].astype(np.float64)
            if self.small(part):
                x[part.columns] = q @ (f(w)[:, None] * (q.T @ own))
                continue
            keep = w > len(w) * float(np.finfo(self.dtype).eps) * w.max(initial=0.0)
            w, q = w[keep], q[:, keep]
            c = q.T @ (part.jacobian @ v[part.columns]).astype(np.float64)
            gain = (f(w) - f(np.zeros(1))) / w * self.scale
            x[part.columns] += part.jacobian.T @ (q @ (gain[:, None] * c)).astype(v.dtype)
        return x

    def diagonal(self) -> Host:
        """Diagonal: that of every structure that keeps the blocks on the diagonal."""
        from fastfisher.structures.diagonal import squares

        result = np.zeros(self.size, like=self.like)
        for part in self.parts:
            if part.jacobian.sample_map is not None:
                rows = part.jacobian.dense().astype(np.float64)
                result[part.columns] += np.einsum("rp,rp->p", rows, rows)
                continue
            own = np.zeros(part.jacobian.shape[1], like=self.like)
            for weight in weights(part.jacobian):
                own[weight.columns] += squares(weight)
            result[part.columns] += own
        return (result * self.scale).astype(self.dtype)

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.diagonal().astype(np.float64).sum())

    def _rank(self) -> int:
        return sum(min(part.jacobian.shape) for part in self.parts)

    def compact(self, index: int, *, in_samples: bool | None = None) -> Host:
        """``scale J_l J_l^T`` or ``scale J_l^T J_l``, by default the smaller one, float64."""
        part = self.parts[index]
        if not self.small(part) if in_samples is None else in_samples:
            return self.duals()[index]
        rows = part.jacobian.dense().astype(np.float64)
        return as_array(self.scale * (rows.T @ rows))

    def _inverse(self, index: int, damping: float) -> Host:
        key = (index, damping)
        if key not in self._inverses:
            if any(damping != other for _, other in self._inverses):
                self._inverses.clear()
            self._inverses[key] = damped_inverses(
                self.compact(index), damping, f"F, block {self.parts[index].name!r}"
            )
        return self._inverses[key]

    def _part_solve(self, index: int, part: Part, v: Host, damping: float, delicate: bool) -> Host:
        """Solution for one block by itself."""
        j = part.jacobian
        if self.small(part):
            return as_array(self._inverse(index, damping) @ v.astype(np.float64), v.dtype)
        if delicate:
            return projected(
                self.duals()[index], damping, lambda y: j @ y, lambda z: j.T @ z, v, self.scale
            )
        z = self._inverse(index, damping) @ (j @ v).astype(np.float64)
        x = v - j.T @ (z * self.scale).astype(v.dtype)
        return as_array(x / cast(v, damping))

    def widened(self) -> Coupled:
        """Structure with factors in float64."""
        parts = [Part(x.name, widened(x.jacobian), x.columns) for x in self.parts]
        return Coupled(parts, self.coupling, self.scale, self.size, self.title)


def full(jacobian: Jacobian, scale: float) -> Coupled:
    """All parameters in one block."""
    part = Part("all", jacobian, slice(None))
    return Coupled([part], np.ones((1, 1)), scale, part.jacobian.shape[1], "full")


def layer(jacobian: Jacobian, scale: float) -> Coupled:
    """One block a module, its weight and bias together."""
    parts = parts_of(jacobian)
    return Coupled(parts, np.eye(len(parts)), scale, jacobian.shape[1], "layer")


def tridiagonal(jacobian: Jacobian, scale: float) -> Coupled:
    """Blocks of modules that follow each other; indefinite from three modules on."""
    parts = parts_of(jacobian)
    at = np.arange(len(parts))
    near = (np.abs(at[:, None] - at) <= 1).astype(np.float64)
    return Coupled(parts, near, scale, jacobian.shape[1], "tridiagonal")


def _root(k: Host) -> Host:
    w, q = np.linalg.eigh(k)
    return as_array((q * np.sqrt(w.clip(0))) @ q.T)
