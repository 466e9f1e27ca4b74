# SPDX-License-Identifier: Apache-2.0
"""``scale (G + rho I)^-1 J^T e`` for every structure, through the smaller space of each matrix.

By the push-through identity ``(J^T J + rho)^-1 J^T = J^T (J J^T + rho)^-1`` nothing but matrices of
sample space is inverted where samples are fewer than parameters, so that rho may tend to zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastfisher._device_array import contiguous
from fastfisher.errors import NumericalError
from fastfisher.ngd._damping import Damping
from fastfisher.ngd._push_layers import push_diagonal, push_kfac, push_unit
from fastfisher.structures import Structure
from fastfisher.structures._base import damped_inverses
from fastfisher.structures._coupled_solve import solve_dense, solve_system
from fastfisher.structures._parts import Part
from fastfisher.structures._weights import Weight, weights
from fastfisher.structures.coupled import Coupled
from fastfisher.structures.diagonal import Diagonal
from fastfisher.structures.ekfac import Ekfac
from fastfisher.structures.kfac import Kfac
from fastfisher.structures.unit import Unit
from fastfisher.theory import tridiagonal_coefficients

Host = np.ndarray[Any, Any]


def can_push(structure: Structure) -> bool:
    """Whether the update has a form in sample space."""
    if isinstance(structure, Kfac):
        # The gradient is no combination of inputs that were averaged over positions.
        return not isinstance(structure, Ekfac) and structure.weight_sharing == "expand"
    return isinstance(structure, (Coupled, Unit, Diagonal))


def push(structure: Structure, rows: Any, scale: float, e: Host, damping: Damping) -> Host:
    """Update (P, k) for residuals `e` (n r, k) of the rows of a Jacobian."""
    e = e.astype(np.float64)
    result = np.zeros((structure.size, e.shape[1]), like=e)
    if isinstance(structure, Coupled):
        for part, z, vector in coupled_parts(structure, e, damping):
            if z is not None:
                vector = part.jacobian.T @ contiguous(z, structure.dtype)
            result[part.columns] = vector
        return result
    if not can_push(structure):
        raise TypeError(f"no push-through for structure {structure.name!r}")
    damping.watch(rows)
    for index, weight in enumerate(weights(rows)):
        result[weight.columns] = push_weight(structure, weight, scale, e, damping, index)
    return result


def push_weight(
    structure: Structure, weight: Weight, scale: float, e: Host, damping: Damping, index: int
) -> Host:
    """Update (o, i, k) of one weight."""
    name = f"{index}: {weight.name}"
    if isinstance(structure, Kfac):
        return push_kfac(weight, scale, e, damping, name)
    if isinstance(structure, Diagonal):
        return push_diagonal(weight, scale, e, damping, name)
    assert isinstance(structure, Unit)
    return push_unit(structure, weight, scale, e, damping, name)


def coupled_parts(
    structure: Coupled, e: Host, damping: Damping
) -> Iterator[tuple[Part, Host | None, Host | None]]:
    """Of each block z (n r, k), where ``J_l^T z`` is its update, or the update itself."""
    if not structure.diagonal_only:
        yield from _tridiagonal(structure, e, damping)
        return
    for index, part in enumerate(structure.parts):
        j = part.jacobian
        in_samples = damping.in_samples(*j.shape)
        k = structure.compact(index, in_samples=in_samples)
        rho = damping.of(part.name, float(np.trace(k)), structure.rows)
        inverse = damped_inverses(k, rho, f"G, block {part.name!r}")
        if in_samples:
            yield part, inverse @ e * structure.scale, None
        else:
            gradient = j.T @ contiguous(e, structure.dtype)
            yield part, None, inverse @ gradient.astype(np.float64) * structure.scale


def _tridiagonal(
    structure: Coupled, e: Host, damping: Damping
) -> Iterator[tuple[Part, Host | None, Host | None]]:
    """Indefinite: by LU, or by the limit formula at zero damping."""
    depth = len(structure.parts)
    rows = structure.rows * depth
    in_samples = damping.in_samples(rows, structure.size)
    rho = damping.of("all", structure.trace() if damping.relative is not None else 0.0, rows)
    if rho == 0:
        z = _limit(structure.duals(), e)
        damping.spaces = {"sample"}
    elif in_samples:
        z = solve_system(structure, rho, np.tile(e, (depth, 1)))
    else:
        z = np.tile(e, (depth, 1, 1))
        gradient = structure.pull((z * structure.scale).astype(structure.dtype))
        vector = solve_dense(structure, gradient, rho)
        yield from ((part, None, vector[part.columns]) for part in structure.parts)
        return
    yield from (
        (part, one * structure.scale, None) for part, one in zip(structure.parts, z, strict=True)
    )


def _limit(duals: list[Host], e: Host) -> Host:
    """``v_j = K_j^-1 (c_j I + n_j W) e`` with ``T c = 1``, ``T n = 0`` (theory of the limit).

    T is regular, and n zero, unless the number of layers is 3 s + 2; then W takes the part of e
    out that the condition on the null space forbids.
    """
    depth = len(duals)
    inverses = [damped_inverses(k, 0.0, f"G, block {j}") for j, k in enumerate(duals)]
    at = np.arange(depth)
    c = tridiagonal_coefficients(depth)
    right = [c[j] * e for j in range(depth)]
    if depth % 3 == 2:
        null = np.where(at % 3 == 0, 1.0, np.where(at % 3 == 1, -1.0, 0.0))
        weight = sum(null[j] ** 2 * inverses[j] for j in range(depth))
        target = sum(null[j] * c[j] * inverses[j] for j in range(depth)) @ e
        w = -np.linalg.solve(weight, target)
        right = [c[j] * e + null[j] * w for j in range(depth)]
    result = np.stack([inverse @ side for inverse, side in zip(inverses, right, strict=True)])
    if not np.isfinite(result).all():
        raise NumericalError("G: structure 'tridiagonal' is singular; expected damping > 0")
    return result
