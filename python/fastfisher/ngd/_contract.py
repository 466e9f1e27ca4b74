# SPDX-License-Identifier: Apache-2.0
"""``scale J' (G + rho I)^-1 J^T E`` without a vector of parameters, wherever there is a way.

With Gram matrices K'_l = J'_l J_l^T of each block, products of the factors' Gram matrices for
Kronecker factors, and weighted Gram matrices of the inputs for units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._jacobian import Jacobian
from fastfisher._lookup import Lookup
from fastfisher.ngd._damping import Damping
from fastfisher.ngd._push import coupled_parts, push_weight
from fastfisher.ngd._push_layers import factor_dampings, unit_inverses, whitened
from fastfisher.structures import Structure
from fastfisher.structures._weights import Weight, weights
from fastfisher.structures.coupled import Coupled, parts_of
from fastfisher.structures.kfac import Kfac
from fastfisher.structures.unit import Unit

Host = np.ndarray[Any, Any]


def contract(
    structure: Structure, target: Jacobian, rows: Jacobian, scale: float, e: Host, damping: Damping
) -> Host:
    """Matrix (m d, k) for residuals `e` (n r, k) of the rows, float64."""
    e = e.astype(np.float64)
    result = np.zeros((target.shape[0], e.shape[1]))
    if isinstance(structure, Coupled):
        whole = structure.title == "full"
        targets = [target] if whole else [part.jacobian for part in parts_of(target)]
        found = coupled_parts(structure, e, damping)
        for (part, z, vector), j in zip(found, targets, strict=True):
            if z is None:
                assert vector is not None
                result += j @ np.ascontiguousarray(vector, structure.dtype)
                continue
            gram = j.gram(part.jacobian).reshape(j.shape[0], -1)
            result += gram.astype(np.float64) @ z
        return result
    for index, (weight, other) in enumerate(zip(weights(rows), weights(target), strict=True)):
        simple = weight.simple and not isinstance(weight.layer, Lookup)
        name = f"{index}: {weight.name}"
        if simple and isinstance(structure, Kfac):
            result += _kfac(weight, other, scale, e, damping, name)
        elif simple and isinstance(structure, Unit):
            result += _unit(structure, weight, other, scale, e, damping, name)
        else:
            result += _by_vectors(structure, weight, other, scale, e, damping, index)
    return result


def _by_vectors(
    structure: Structure,
    weight: Weight,
    other: Weight,
    scale: float,
    e: Host,
    damping: Damping,
    index: int,
) -> Host:
    """Form updates (o, i, k), some columns at a time."""
    size = other.layer.samples * other.layer.n_outputs
    result = np.empty((size, e.shape[1]))
    step = weight.chunk(2 * weight.columns.size)
    for start in range(0, e.shape[1], step):
        few = slice(start, start + step)
        vector = push_weight(structure, weight, scale, e[:, few], damping, index)
        parts = [
            np.einsum("nroi,oik->nrk", other.gradients(piece), vector, optimize=True)
            for piece in other.pieces()
        ]
        result[:, few] = np.concatenate(parts).reshape(size, -1) if parts else 0
    return result


def _kfac(
    weight: Weight, other: Weight, scale: float, e: Host, damping: Damping, name: str
) -> Host:
    """``scale (D' (B + rho)^-1 D^T) o (A' (A + rho)^-1 A^T)`` with cotangents D, entrywise."""
    rho_a, rho_b, a_side, b_side = factor_dampings(weight, scale, damping, name)
    a, g = weight.factors(slice(None))
    n, r, _, o = g.shape
    inputs = whitened(a[:, 0], 1 / max(1, n), rho_a, a_side, f"G, {name}, A")
    cotangents = whitened(g.reshape(-1, o), scale, rho_b, b_side, f"G, {name}, B")
    to_a, to_g = other.factors(slice(None))
    m, d = to_g.shape[:2]
    product = (to_g.reshape(-1, o) @ cotangents.T).reshape(m, d, n, r)
    product *= (to_a[:, 0] @ inputs.T)[:, None, :, None] * scale
    return np.asarray(product.reshape(m * d, n * r) @ e)


def _unit(
    structure: Unit,
    weight: Weight,
    other: Weight,
    scale: float,
    e: Host,
    damping: Damping,
    name: str,
) -> Host:
    """Sum over units of their cotangents times the Gram matrix of the inputs, solved for."""
    a = weight.factors(slice(None))[0][:, 0].astype(np.float64)
    to_a, to_g = other.factors(slice(None))
    to_a, to_g = to_a[:, 0].astype(np.float64), to_g[:, :, 0].astype(np.float64)
    m, d = to_g.shape[:2]
    result = np.zeros((m, d, e.shape[1]))
    only = Unit([weight], scale, structure.size, structure.dtype, structure.block)
    for one in only.blocks():
        wide = damping.in_samples(one.rows.shape[1], one.rows.shape[2])
        inverse = unit_inverses(one, scale, damping, name, wide)
        assert one.gain is not None
        y = one.pushed(e)
        if wide:
            gram = to_a[:, one.inputs] @ a[:, one.inputs].T
            solved = (gram * one.gain.T[:, None, :]) @ (inverse @ y)
        else:
            solved = to_a[:, one.inputs] @ (inverse @ (one.rows.swapaxes(1, 2) @ y))
        result += scale * np.einsum("mdu,umk->mdk", to_g[:, :, one.units], solved, optimize=True)
    return result.reshape(m * d, -1)
