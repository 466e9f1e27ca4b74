# SPDX-License-Identifier: Apache-2.0
"""Full, layer-wise and block tri-diagonal Fisher matrices, held as factors.

With the Jacobians J_l of L blocks of parameters on the block diagonal of J_b and a matrix T (L, L)
of zeros and ones that says which blocks are kept,

    F = scale J_b^T (T (x) I) J_b.

`full` has one block, `layer` T = I, `tridiagonal` T_lm = [|l - m| <= 1]. A matrix T with negative
eigenvalues makes F indefinite (three layers or more): never Cholesky then.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastfisher._device_array import as_array, contiguous
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NotPositiveDefiniteError, NumericalError
from fastfisher.structures._base import (
    Structure,
    amplifies,
    damped_inverses,
    projected,
    refined,
)
from fastfisher.structures._rooted import widened
from fastfisher.structures._weights import weights

Host = np.ndarray[Any, Any]

_ROUNDING = 64 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Parameters of one block: their Jacobian and their positions in the vector.

    Positions that follow each other are a slice, which copies nothing.
    """

    name: str
    jacobian: Jacobian
    columns: Host | slice


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
        return self.pull(np.tensordot(self.coupling.astype(v.dtype), z, 1) * _of(v, self.scale))

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
            wide = self._widened().solve(v.astype(np.float64), damping)
            return as_array(wide, np.float32)

        def apply(x: Host) -> Host:
            return as_array(self.matvec(x) + _of(x, damping) * x)

        def approximate(y: Host) -> Host:
            if not self.diagonal_only:
                if delicate:
                    return self._coupled_projected(y, damping)
                return self._coupled_solve(y, damping)
            x = y / _of(y, damping) if damping else np.zeros_like(y)
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
            raise NotPositiveDefiniteError(f"F: structure {self.name!r} is indefinite")
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
        return as_array(x / _of(v, damping))

    def _widened(self) -> Coupled:
        """Structure with factors in float64."""
        parts = [Part(x.name, widened(x.jacobian), x.columns) for x in self.parts]
        return Coupled(parts, self.coupling, self.scale, self.size, self.title)

    def _coupled_solve(self, v: Host, damping: float) -> Host:
        """By Woodbury: ``(v - J_b^T (damping + T K)^-1 T J_b v scale) / damping``."""
        z = np.stack([part.jacobian @ v[part.columns] for part in self.parts]).astype(np.float64)
        right = np.tensordot(self.coupling, z, 1).reshape(-1, v.shape[1])
        inner = self.system(damping, right) * self.scale
        return as_array((v - self.pull(inner.astype(v.dtype))) / _of(v, damping))

    def _coupled_projected(self, v: Host, damping: float) -> Host:
        """By eigenvectors in the range of J_b^T and division in its complement.

        For a damping far below the rounding of F, as `projected`; F is indefinite there.
        """
        eps = float(np.finfo(np.float64).eps)
        if self.size <= self.rows * len(self.parts):
            w, q = np.linalg.eigh(self.dense())
            w = self._damped_values(w, damping)
            return as_array(q @ ((q.T @ v) / w[:, None]))
        found = []
        for k in self.duals():
            w, q = np.linalg.eigh(k)
            keep = w > len(w) * eps * w.max(initial=0.0)
            found.append((np.sqrt(w[keep]), q[:, keep]))
        # Of F in the orthonormal basis J_l^T q / sqrt(w / scale) of the range.
        matrix = np.block([
            [self.coupling[i, j] * (w * (q.T @ p) * u) for j, (u, p) in enumerate(found)]
            for i, (w, q) in enumerate((w[:, None], q) for w, q in found)
        ])  # fmt: skip
        values, turn = np.linalg.eigh((matrix + matrix.T) / 2)
        values = self._damped_values(values, damping)
        ends = np.cumsum([0, *(len(w) for w, _ in found)]).tolist()

        def inside(y: Host) -> Host:
            parts = [
                (q.T @ (part.jacobian @ y[part.columns]).astype(np.float64)) / w[:, None]
                for part, (w, q) in zip(self.parts, found, strict=True)
            ]
            return as_array(np.concatenate(parts) * self.scale**0.5)

        def outside(c: Host) -> Host:
            z = [
                q @ (c[start:stop] / w[:, None])
                for (w, q), (start, stop) in zip(found, itertools.pairwise(ends), strict=True)
            ]
            return self.pull((np.stack(z) * self.scale**0.5).astype(v.dtype))

        rest = v
        for _ in range(2):
            rest = rest - outside(inside(rest))
        rest = rest / _of(v, damping)
        for _ in range(2):
            rest = rest - outside(inside(rest))
        c = turn.T @ inside(v)
        return as_array(rest + outside(turn @ (c / values[:, None])))

    def _damped_values(self, values: Host, damping: float) -> Host:
        """Eigenvalues plus damping; those that are zero to rounding are zero."""
        eps = float(np.finfo(np.float64).eps)
        rounding = len(values) * eps * np.abs(values).max(initial=0.0)
        values = np.where(np.abs(values) > rounding, values, 0.0)
        if (np.abs(values + damping) <= np.where(values != 0, rounding, 0.0)).any():
            raise self._singular(damping)
        return as_array(values + damping)

    def _singular(self, damping: float) -> NumericalError:
        return NumericalError(
            f"F: structure {self.name!r} plus damping {damping} is singular; it is indefinite, "
            "so that a damping may be the negative of an eigenvalue: expected another one"
        )

    def system(self, damping: float, right: Host) -> Host:
        """Solve ``((T (x) I) blockdiag(K_l) + damping) z = right`` by LU; z (L, rows, k)."""
        blocks = [
            [self.coupling[i, j] * k for j, k in enumerate(self.duals())]
            for i in range(len(self.parts))
        ]
        system = np.block(blocks) + damping * np.eye(len(right), like=right)
        z = self._by_lu(system, damping, right)
        return z.reshape(len(self.parts), self.rows, right.shape[1])

    def parameter_solve(self, v: Host, damping: float) -> Host:
        """``(F + damping I)^-1 v`` by LU of the matrix itself (P, P), float64."""
        matrix = self._widened().dense() + damping * np.eye(self.size, like=self.like)
        return self._by_lu(matrix, damping, v.astype(np.float64))

    def _by_lu(self, matrix: Host, damping: float, right: Host) -> Host:
        try:
            z = np.linalg.solve(matrix, right)
        except np.linalg.LinAlgError:
            z = np.full_like(right, np.nan)
        # Columns as long as that come from a matrix that is singular to rounding.
        size = np.linalg.norm(z, axis=0) * (np.linalg.norm(matrix, 1) if matrix.size else 0.0)
        if not (np.isfinite(z).all() and (size * _ROUNDING <= np.linalg.norm(right, axis=0)).all()):
            raise self._singular(damping)
        return as_array(z)


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


def parts_of(jacobian: Jacobian) -> list[Part]:
    """Parameters of each module, in the order of the layers."""
    widths = [layer.parameters for layer in jacobian.layers]
    if jacobian.parameters is None:
        ends = np.cumsum([0, *widths]).tolist()
        return [
            Part(name, own, slice(start, stop))
            for (name, own), (start, stop) in zip(
                jacobian.split().items(), itertools.pairwise(ends), strict=True
            )
        ]
    found: dict[str, list[Host]] = {}
    columns = jacobian.parameters.columns(widths)
    for owners, own in zip(jacobian.parameters.owners(widths), columns, strict=True):
        for name, which in owners.items():
            found.setdefault(name, []).append(own[which])
    return [
        Part(name, own, _positions(np.concatenate(found[name])))
        for name, own in jacobian.split().items()
    ]


def _positions(columns: Host) -> Host | slice:
    """`columns`, as a slice where they follow each other."""
    if len(columns) and columns[-1] - columns[0] == len(columns) - 1:
        start = int(columns[0])
        if (columns == np.arange(start, start + len(columns))).all():
            return slice(start, start + len(columns))
    return columns


def _of(v: Host, number: float) -> Any:
    """Give `number` the dtype of `v`, so that products keep it."""
    return v.dtype.type(number)


def _root(k: Host) -> Host:
    w, q = np.linalg.eigh(k)
    return as_array((q * np.sqrt(w.clip(0))) @ q.T)
