# SPDX-License-Identifier: Apache-2.0
"""``scale J' (G + rho I)^-1 J^T E`` without a vector of parameters, wherever there is a way.

With Gram matrices K'_l = J'_l J_l^T of each block, products of the factors' Gram matrices for
Kronecker factors, and weighted Gram matrices of the inputs for units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._device_array import as_array, contiguous
from fastfisher._jacobian import Jacobian
from fastfisher._lookup import Lookup
from fastfisher.ngd._damping import Damping
from fastfisher.ngd._push import coupled_parts, push_weight
from fastfisher.ngd._push_layers import diagonal_inverse, factor_dampings, unit_inverses, whitened
from fastfisher.structures import Structure
from fastfisher.structures._parts import parts_of
from fastfisher.structures._weights import Weight, weights
from fastfisher.structures.coupled import Coupled
from fastfisher.structures.diagonal import Diagonal
from fastfisher.structures.kfac import Kfac
from fastfisher.structures.unit import Unit

Host = np.ndarray[Any, Any]


def contract(
    structure: Structure, target: Jacobian, rows: Jacobian, scale: float, e: Host, damping: Damping
) -> Host:
    """Matrix (m d, k) for residuals `e` (n r, k) of the rows, float64."""
    e = e.astype(np.float64)
    result = np.zeros((target.shape[0], e.shape[1]), like=e)
    if isinstance(structure, Coupled):
        whole = structure.title == "full"
        targets = [target] if whole else [part.jacobian for part in parts_of(target)]
        found = coupled_parts(structure, e, damping)
        for (part, z, vector), j in zip(found, targets, strict=True):
            if z is None:
                assert vector is not None
                result += j @ contiguous(vector, structure.dtype)
                continue
            gram = j.gram(part.jacobian).reshape(j.shape[0], part.jacobian.shape[0])
            result += gram.astype(np.float64) @ z
        return result
    damping.watch(rows)
    for index, (weight, other) in enumerate(zip(weights(rows), weights(target), strict=True)):
        simple = weight.simple and not isinstance(weight.layer, Lookup)
        name = f"{index}: {weight.name}"
        if simple and isinstance(structure, Kfac):
            result += _kfac(weight, other, scale, e, damping, name)
        elif simple and isinstance(structure, Unit):
            result += _unit(structure, weight, other, scale, e, damping, name)
        elif simple and isinstance(structure, Diagonal):
            result += _diagonal(weight, other, scale, e, damping, name)
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
    result = np.empty((size, e.shape[1]), like=e)
    step = weight.chunk(2 * weight.columns.size)
    for start in range(0, e.shape[1], step):
        few = slice(start, start + step)
        vector = push_weight(structure, weight, scale, e[:, few], damping, index)
        parts = [_product(other, piece, vector) for piece in other.pieces(formed=not other.simple)]
        result[:, few] = np.concatenate(parts).reshape(size, -1) if parts else 0
    return result


def _product(weight: Weight, piece: slice, vector: Host) -> Host:
    """``J v`` (n, r, k) of one weight and some samples."""
    if not weight.simple:
        rows = weight.gradients(piece)
        flat = rows.reshape(*rows.shape[:2], -1) @ vector.reshape(-1, vector.shape[2])
        return as_array(flat)
    a, g = weight.factors(piece)
    inner = np.tensordot(a[:, 0], vector, (1, 1))  # (n, o, k)
    return as_array(g[:, :, 0] @ inner)


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
    return as_array(product.reshape(m * d, n * r) @ (e / damping.share(weight.layer)))


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
    to_a, to_g = other.factors(slice(None))
    to_a, to_g = to_a[:, 0].astype(np.float64), to_g[:, :, 0].astype(np.float64)
    m, d = to_g.shape[:2]
    result = np.zeros((m, d, e.shape[1]), like=e)
    only = Unit([weight], scale, structure.size, structure.dtype, structure.block)
    for one in only.blocks():
        wide = damping.in_samples(*one.shape)
        inverse = unit_inverses(one, scale, damping, name, wide)
        assert one.a is not None
        assert one.gain is not None
        y = one.pushed(e)
        if wide:
            gram = to_a[:, one.inputs] @ one.a.T
            solved = (gram * one.gain.T[:, None, :]) @ (inverse @ y)
        else:
            solved = to_a[:, one.inputs] @ (inverse @ (one.rows.swapaxes(1, 2) @ y))
        result += scale * (to_g[:, :, one.units] @ solved.swapaxes(0, 1))
    return result.reshape(m * d, e.shape[1])


def _diagonal(
    weight: Weight, other: Weight, scale: float, e: Host, damping: Damping, name: str
) -> Host:
    """Sum over units of Gram matrices of the inputs, weighted by the inverse diagonal."""
    inverse = diagonal_inverse(weight, scale, damping, name)
    a, g = weight.factors(slice(None))
    to_a, to_g = other.factors(slice(None))
    a, to_a = a[:, 0].astype(np.float64), to_a[:, 0].astype(np.float64)
    g, to_g = g[:, :, 0].astype(np.float64), to_g[:, :, 0].astype(np.float64)
    m, d = to_g.shape[:2]
    n, r = g.shape[:2]
    result = np.zeros((m, d, n, r), like=e)
    step = weight.chunk(m * (weight.in_features + 2 * n))
    for start in range(0, weight.out_features, step):
        units = slice(start, start + step)
        gram = to_a * inverse[units, None, :]
        gram = (gram.reshape(len(gram) * m, a.shape[1]) @ a.T).reshape(len(gram), m, n)
        for row in range(r):
            weighted = gram * g[:, row, units].T[:, None, :]
            result[..., row] += to_g[:, :, units] @ weighted.swapaxes(0, 1)
    return as_array(scale * result.reshape(m * d, n * r) @ e)
