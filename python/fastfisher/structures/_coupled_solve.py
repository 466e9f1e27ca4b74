# SPDX-License-Identifier: Apache-2.0
"""Solves of matrices whose blocks meet, ``F = scale J_b^T (T (x) I) J_b``; they may be indefinite.

Through sample space by Woodbury, or for dampings far below the rounding of F by eigenvectors in the
range of J_b^T; LU where one matrix is solved, never Cholesky.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher.errors import NumericalError

if TYPE_CHECKING:
    from fastfisher.structures.coupled import Coupled

Host = np.ndarray[Any, Any]

_ROUNDING = 64 * float(np.finfo(np.float64).eps)


def cast(v: Host, number: float) -> Any:
    """Give `number` the dtype of `v`, so that products keep it."""
    return v.dtype.type(number)


def by_woodbury(structure: Coupled, v: Host, damping: float) -> Host:
    """By Woodbury: ``(v - J_b^T (damping + T K)^-1 T J_b v scale) / damping``."""
    z = np.stack([part.jacobian @ v[part.columns] for part in structure.parts]).astype(np.float64)
    right = np.tensordot(structure.coupling, z, 1).reshape(-1, v.shape[1])
    inner = solve_system(structure, damping, right) * structure.scale
    return as_array((v - structure.pull(inner.astype(v.dtype))) / cast(v, damping))


def by_eigenvectors(structure: Coupled, v: Host, damping: float) -> Host:
    """By eigenvectors in the range of J_b^T and division in its complement.

    For a damping far below the rounding of F, as `projected`; F is indefinite there.
    """
    eps = float(np.finfo(np.float64).eps)
    if structure.size <= structure.rows * len(structure.parts):
        w, q = np.linalg.eigh(structure.dense())
        w = _damped_values(structure, w, damping)
        return as_array(q @ ((q.T @ v) / w[:, None]))
    found = []
    for k in structure.duals():
        w, q = np.linalg.eigh(k)
        keep = w > len(w) * eps * w.max(initial=0.0)
        found.append((np.sqrt(w[keep]), q[:, keep]))
    # Of F in the orthonormal basis J_l^T q / sqrt(w / scale) of the range.
    matrix = np.block([
        [structure.coupling[i, j] * (w * (q.T @ p) * u) for j, (u, p) in enumerate(found)]
        for i, (w, q) in enumerate((w[:, None], q) for w, q in found)
    ])  # fmt: skip
    values, turn = np.linalg.eigh((matrix + matrix.T) / 2)
    values = _damped_values(structure, values, damping)
    ends = np.cumsum([0, *(len(w) for w, _ in found)]).tolist()

    def inside(y: Host) -> Host:
        parts = [
            (q.T @ (part.jacobian @ y[part.columns]).astype(np.float64)) / w[:, None]
            for part, (w, q) in zip(structure.parts, found, strict=True)
        ]
        return as_array(np.concatenate(parts) * structure.scale**0.5)

    def outside(c: Host) -> Host:
        z = [
            q @ (c[start:stop] / w[:, None])
            for (w, q), (start, stop) in zip(found, itertools.pairwise(ends), strict=True)
        ]
        return structure.pull((np.stack(z) * structure.scale**0.5).astype(v.dtype))

    rest = v
    for _ in range(2):
        rest = rest - outside(inside(rest))
    rest = rest / cast(v, damping)
    for _ in range(2):
        rest = rest - outside(inside(rest))
    c = turn.T @ inside(v)
    return as_array(rest + outside(turn @ (c / values[:, None])))


def _damped_values(structure: Coupled, values: Host, damping: float) -> Host:
    """Eigenvalues plus damping; those that are zero to rounding are zero."""
    eps = float(np.finfo(np.float64).eps)
    rounding = len(values) * eps * np.abs(values).max(initial=0.0)
    values = np.where(np.abs(values) > rounding, values, 0.0)
    if (np.abs(values + damping) <= np.where(values != 0, rounding, 0.0)).any():
        raise _singular(structure, damping)
    return as_array(values + damping)


def _singular(structure: Coupled, damping: float) -> NumericalError:
    return NumericalError(
        f"F: structure {structure.name!r} plus damping {damping} is singular; it is indefinite, "
        "so that a damping may be the negative of an eigenvalue: expected another one"
    )


def solve_system(structure: Coupled, damping: float, right: Host) -> Host:
    """Solve ``((T (x) I) blockdiag(K_l) + damping) z = right`` by LU; z (L, rows, k)."""
    blocks = [
        [structure.coupling[i, j] * k for j, k in enumerate(structure.duals())]
        for i in range(len(structure.parts))
    ]
    system = np.block(blocks) + damping * np.eye(len(right), like=right)
    z = _by_lu(structure, system, damping, right)
    return z.reshape(len(structure.parts), structure.rows, right.shape[1])


def solve_dense(structure: Coupled, v: Host, damping: float) -> Host:
    """``(F + damping I)^-1 v`` by LU of the matrix itself (P, P), float64."""
    matrix = structure.widened().dense() + damping * np.eye(structure.size, like=structure.like)
    return _by_lu(structure, matrix, damping, v.astype(np.float64))


def _by_lu(structure: Coupled, matrix: Host, damping: float, right: Host) -> Host:
    try:
        z = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        z = np.full_like(right, np.nan)
    # Columns as long as that come from a matrix that is singular to rounding.
    size = np.linalg.norm(z, axis=0) * (np.linalg.norm(matrix, 1) if matrix.size else 0.0)
    if not (np.isfinite(z).all() and (size * _ROUNDING <= np.linalg.norm(right, axis=0)).all()):
        raise _singular(structure, damping)
    return as_array(z)
