# SPDX-License-Identifier: Apache-2.0
"""``scale (G + rho I)^-1 J^T e`` for every structure, through the smaller space of each matrix.

By the push-through identity ``(J^T J + rho)^-1 J^T = J^T (J J^T + rho)^-1`` nothing but matrices of
sample space is inverted where samples are fewer than parameters, so that rho may tend to zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher.errors import NumericalError
from fastfisher.ngd._damping import Damping
from fastfisher.structures import Structure
from fastfisher.structures._base import damped_inverses
from fastfisher.structures._weights import Weight, weights
from fastfisher.structures.coupled import Coupled
from fastfisher.structures.diagonal import Diagonal, squares
from fastfisher.structures.ekfac import Ekfac
from fastfisher.structures.kfac import Kfac
from fastfisher.structures.unit import Unit
from fastfisher.theory import tridiagonal_coefficients

Host = np.ndarray[Any, Any]


def push(structure: Structure, rows: Any, scale: float, e: Host, damping: Damping) -> Host:
    """Update (P, k) for residuals `e` (n r, k) of the rows of a Jacobian."""
    e = e.astype(np.float64)
    if isinstance(structure, Coupled):
        if structure.diagonal_only:
            return _blocks(structure, e, damping)
        return _tridiagonal(structure, e, damping)
    if isinstance(structure, Ekfac) or not isinstance(structure, (Kfac, Unit, Diagonal)):
        raise TypeError(f"no push-through for structure {structure.name!r}")
    result = np.zeros((structure.size, e.shape[1]))
    for index, weight in enumerate(weights(rows)):
        name = f"{index}: {weight.name}"
        if isinstance(structure, Kfac):
            part = _kfac(weight, scale, e, damping, name)
        elif isinstance(structure, Diagonal):
            part = _diagonal(weight, scale, e, damping, name)
        else:
            part = _unit(structure, weight, scale, e, damping, name)
        result[weight.columns] = part
    return result


def gradient(weight: Weight, e: Host) -> Host:
    """``J^T e`` of one weight, (o, i, k), float64."""
    n, r = weight.layer.samples, weight.layer.n_outputs
    cotangents = e.reshape(n, r, e.shape[1])
    total = np.zeros((*weight.columns.shape, e.shape[1]))
    formed = not weight.simple
    for piece in weight.pieces(formed=formed):
        few = cotangents[piece]
        if formed:
            total += np.einsum("nroi,nrk->oik", weight.gradients(piece), few, optimize=True)
        else:
            a, g = weight.factors(piece)
            inner = np.einsum("nro,nrk->nok", g[:, :, 0], few, optimize=True)
            total += np.einsum("nok,ni->oik", inner, a[:, 0], optimize=True)
    return total


def _blocks(structure: Coupled, e: Host, damping: Damping) -> Host:
    result = np.zeros((structure.size, e.shape[1]))
    for index, part in enumerate(structure.parts):
        j = part.jacobian
        k = structure.compact(index)
        rho = damping.of(part.name, float(np.trace(k)), structure.rows)
        inverse = damped_inverses(k, rho, f"G, block {part.name!r}")
        if structure.small(part):
            gradient = j.T @ np.ascontiguousarray(e, structure.dtype)
            result[part.columns] = inverse @ gradient.astype(np.float64) * structure.scale
        else:
            z = (inverse @ e * structure.scale).astype(structure.dtype)
            result[part.columns] = j.T @ np.ascontiguousarray(z)
    return result


def _tridiagonal(structure: Coupled, e: Host, damping: Damping) -> Host:
    """Indefinite: by LU, or by the limit formula at zero damping."""
    duals = structure.duals()
    trace = sum(float(np.trace(k)) for k in duals)
    rho = damping.of("all", trace, structure.rows * len(duals))
    z = structure.system(rho, np.tile(e, (len(duals), 1))) if rho > 0 else _limit(duals, e)
    return structure.pull((z * structure.scale).astype(structure.dtype))


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


def _kfac(weight: Weight, scale: float, e: Host, damping: Damping, name: str) -> Host:
    """``(B + rho)^-1 (J^T e) (A + rho)^-1``, each inverse in its smaller space."""
    if not weight.factored:
        x = weight.layer.g.reshape(-1, weight.out_features).astype(np.float64)
        return _rows(x, scale, e, damping, name)[:, None]
    a, g = weight.factors(slice(None))
    n, s, i = a.shape
    r, o = g.shape[1], g.shape[3]
    inputs = _whitened(a.reshape(-1, i), 1 / max(1, n * s), damping, name + ", A")
    cotangents = _whitened(g.reshape(-1, o), scale, damping, name + ", B")
    weighted = cotangents.reshape(n, r, s, o, 1) * (scale * e).reshape(n, r, 1, 1, e.shape[1])
    summed = weighted.sum(1).reshape(n * s, o, e.shape[1])
    return np.asarray(np.einsum("mok,mi->oik", summed, inputs, optimize=True))


def _whitened(x: Host, scale: float, damping: Damping, name: str) -> Host:
    """``x (scale x^T x + rho)^-1`` for rows x (m, b)."""
    x = x.astype(np.float64)
    wide = x.shape[0] < x.shape[1]
    k = scale * (x @ x.T if wide else x.T @ x)
    rho = damping.of(name, float(np.trace(k)), x.shape[0])
    inverse = damped_inverses(k, rho, f"G, {name}")
    return np.asarray(inverse @ x if wide else x @ inverse)


def _rows(x: Host, scale: float, e: Host, damping: Damping, name: str) -> Host:
    """``scale (scale x^T x + rho)^-1 x^T e``."""
    return np.asarray(scale * (_whitened(x, scale, damping, name).T @ e))


def _unit(
    structure: Unit, weight: Weight, scale: float, e: Host, damping: Damping, name: str
) -> Host:
    """Blocks of the units of one weight."""
    size = weight.layer.samples * weight.layer.n_outputs
    result = np.zeros((*weight.columns.shape, e.shape[1]))
    only = Unit([weight], scale, structure.size, structure.dtype, structure.block)
    for one in only.blocks():
        x, y = one.rows, one.pushed(e)
        wide = x.shape[1] < x.shape[2]
        k = scale * (x @ x.swapaxes(1, 2) if wide else x.swapaxes(1, 2) @ x)
        rho = np.array([damping.of(name, t, size) for t in np.einsum("unn->u", k).tolist()])
        # A unit that no sample moves has no gradient either.
        dead = (rho == 0) & ~k.any((1, 2))
        inverse = damped_inverses(k, rho + dead, f"G, unit of layer {weight.name!r}")
        back = x.swapaxes(1, 2)
        solved = back @ (inverse @ y) if wide else inverse @ (back @ y)
        result[one.units, one.inputs] = scale * solved
    return result


def _diagonal(weight: Weight, scale: float, e: Host, damping: Damping, name: str) -> Host:
    values = scale * squares(weight)
    n, r = weight.layer.samples, weight.layer.n_outputs
    right = scale * gradient(weight, e)
    if damping.relative is None:
        rho: Any = damping.of(name, 0.0, 1)
    else:
        rho = damping.relative * values / max(1, n * r)
        damping.used[name] = float(rho.max(initial=0.0))
    damped = values + rho
    # Entries that no sample moves have no gradient either.
    return np.where(damped > 0, 1 / np.where(damped > 0, damped, 1), 0)[:, :, None] * right
