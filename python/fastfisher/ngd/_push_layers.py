# SPDX-License-Identifier: Apache-2.0
"""``scale (G + rho I)^-1 J^T e`` of one weight matrix: Kronecker factors, units, diagonal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher._lookup import Lookup
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError
from fastfisher.ngd._damping import Damping
from fastfisher.structures._base import damped_inverses, damped_quotient
from fastfisher.structures._kronecker import EXACT, along
from fastfisher.structures._weights import Weight, weights
from fastfisher.structures.diagonal import squares
from fastfisher.structures.kfac import Kfac
from fastfisher.structures.unit import Blocks, Unit

Host = np.ndarray[Any, Any]


_ROUGH = 1e-8
"""Rounding times both condition numbers up to which two inverses are multiplied."""


def gradient(weight: Weight, e: Host) -> Host:
    """``J^T e`` of one weight, (o, i, k), float64."""
    n, r = weight.layer.samples, weight.layer.n_outputs
    cotangents = e.reshape(n, r, e.shape[1])
    total = np.zeros((*weight.columns.shape, e.shape[1]), like=e)
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


def push_kfac(weight: Weight, scale: float, e: Host, damping: Damping, name: str) -> Host:
    """``scale (B + rho)^-1 (J^T e) (A + rho)^-1``, each inverse in its smaller space."""
    if not weight.factored:
        if weight.out_features > EXACT:
            return push_diagonal(weight, scale, e, damping, name)
        x = weight.layer.g.reshape(-1, weight.out_features).astype(np.float64)
        return as_array(scale * (_rows_solve(x, scale, damping, name).T @ e))[:, None]
    layer, k = weight.layer, e.shape[1]
    n, r, s = layer.samples, layer.n_outputs, weight.positions
    i, o = weight.in_features, weight.out_features
    rho_a, rho_b, a_side, b_side = factor_dampings(weight, scale, damping, name)
    e = e / damping.share(layer)  # (q B + rho)^-1 = (B + rho / q)^-1 / q
    if not (a_side or b_side):
        a, b = _factors(weight, scale)
        if _delicate(a, rho_a, b, rho_b):
            inner = gradient(weight, scale * e)
            inner = damped_quotient(b, rho_b, inner, 0, f"G, {name}, B")
            return damped_quotient(a, rho_a, inner, 1, f"G, {name}, A")
        left = damped_inverses(b, rho_b, f"G, {name}, B")
        right = damped_inverses(a, rho_a, f"G, {name}, A")
        solved = np.einsum("op,pik->oik", left, gradient(weight, scale * e), optimize=True)
        return as_array(np.einsum("oik,ij->ojk", solved, right, optimize=True))
    if isinstance(layer, Lookup):
        g = layer.g
    else:
        few, g = weight.factors(slice(None))
        inputs = whitened(few.reshape(-1, i), 1 / max(1, n * s), rho_a, a_side, f"G, {name}, A")
    cotangents = whitened(g.reshape(-1, o), scale, rho_b, b_side, f"G, {name}, B")
    weighted = cotangents.reshape(n, r, s, o, 1) * (scale * e).reshape(n, r, 1, 1, k)
    summed = weighted.sum(1).reshape(n * s, o, k)
    if not isinstance(layer, Lookup):
        return as_array(np.einsum("mok,mi->oik", summed, inputs, optimize=True))
    # Inputs are unit vectors and A is diagonal: rows of the table that are used, over their use.
    index = layer.index.reshape(-1)
    uses = np.bincount(index, minlength=i) / max(1, n * s) + rho_a
    result = np.zeros((i, o, k), like=e)
    np.add.at(result, index, summed / uses[index][:, None, None])
    return result.swapaxes(0, 1)


def factor_dampings(
    weight: Weight, scale: float, damping: Damping, name: str
) -> tuple[float, float, bool, bool]:
    """Say what A and B get, and whether each is inverted in sample space.

    Of a B that counts by a share of it only, what it gets is over that share.
    """
    share = damping.share(weight.layer)
    n, r, s = weight.layer.samples, weight.layer.n_outputs, weight.positions
    counts = n * s, n * r * s
    sizes = weight.in_features, weight.out_features
    with np.errstate(over="ignore"):
        trace_a, trace_b = _traces(weight, scale)
    for which, trace in (("activation", trace_a), ("gradient", trace_b)):
        if not math.isfinite(trace):
            raise NonFiniteError(
                f"layer {weight.name!r}: expected finite numbers, got NaN or infinity in its "
                f"{which} factor"
            )
    rho_a, rho_b = damping.pair(name, (trace_a, trace_b * share), counts, sizes)
    return (
        rho_a,
        rho_b / share,
        damping.in_samples(counts[0], sizes[0]),
        damping.in_samples(counts[1], sizes[1]),
    )


def push_unit(
    structure: Unit, weight: Weight, scale: float, e: Host, damping: Damping, name: str
) -> Host:
    """Blocks of the units of one weight."""
    result = np.zeros((*weight.columns.shape, e.shape[1]), like=e)
    only = Unit([weight], scale, structure.size, structure.dtype, structure.block)
    for one in only.blocks():
        y, wide = one.pushed(e), damping.in_samples(*one.shape)
        inverse = unit_inverses(one, scale, damping, name, wide)
        back = one.rows.swapaxes(1, 2)
        solved = back @ (inverse @ y) if wide else inverse @ (back @ y)
        result[one.units, one.inputs] = scale * solved
    return result


def unit_inverses(one: Blocks, scale: float, damping: Damping, name: str, wide: bool) -> Host:
    """Inverses of some units' blocks, in sample space where `wide`."""
    layer = one.weight.layer
    if wide:
        k = scale * one.gram()
    else:
        x = one.rows
        k = scale * (x.swapaxes(1, 2) @ x)
    size = layer.samples * layer.n_outputs
    rho = np.array([damping.of(name, t, size) for t in np.einsum("unn->u", k).tolist()])
    # A unit that no sample moves has no gradient either.
    dead = (rho == 0) & ~k.any((1, 2))
    return damped_inverses(k, rho + dead, f"G, unit of layer {one.weight.name!r}")


def push_diagonal(weight: Weight, scale: float, e: Host, damping: Damping, name: str) -> Host:
    """Entries by themselves."""
    inverse = diagonal_inverse(weight, scale, damping, name)
    return as_array(inverse[:, :, None] * gradient(weight, scale * e))


def diagonal_inverse(weight: Weight, scale: float, damping: Damping, name: str) -> Host:
    """Invert the entries (o, i); those that no sample moves have no gradient either: zero."""
    values = scale * squares(weight)
    rows = weight.layer.samples * weight.layer.n_outputs
    damping.in_samples(rows, 1)
    if damping.relative is None:
        rho: Any = damping.of(name, 0.0, 1)
    else:
        rho = damping.relative * values / max(1, rows)
        damping.used[name] = float(rho.max(initial=0.0))
    damped = values + rho
    return np.where(damped > 0, 1 / np.where(damped > 0, damped, 1), 0)


def whitened(x: Host, scale: float, rho: float, in_samples: bool, what: str) -> Host:
    """``x (scale x^T x + rho)^-1`` for rows x (m, b)."""
    x = x.astype(np.float64)
    inverse = damped_inverses(scale * (x @ x.T if in_samples else x.T @ x), rho, what)
    return as_array(inverse @ x if in_samples else x @ inverse)


def _rows_solve(x: Host, scale: float, damping: Damping, name: str) -> Host:
    """``x (scale x^T x + rho)^-1`` of parameters without factors."""
    rho = damping.of(name, scale * float(np.square(x).sum()), len(x))
    return whitened(x, scale, rho, damping.in_samples(*x.shape), f"G, {name}")


def _traces(weight: Weight, scale: float) -> tuple[float, float]:
    """Of A and B."""
    if isinstance(weight.layer, Lookup):
        return 1.0, scale * float(np.square(weight.layer.g, dtype=np.float64).sum())
    total_a = total_b = 0.0
    for piece in weight.pieces(formed=False):
        a, g = weight.factors(piece)
        total_a += float(np.square(a, dtype=np.float64).sum())
        total_b += float(np.square(g, dtype=np.float64).sum())
    return total_a / max(1, weight.layer.samples * weight.positions), scale * total_b


def _factors(weight: Weight, scale: float) -> tuple[Host, Host]:
    """Form A (i, i) and B (o, o), float64."""
    i, o = weight.in_features, weight.out_features
    like = weight.layer.g
    a, b = np.zeros((i, i), like=like), np.zeros((o, o), like=like)
    for piece in weight.pieces(formed=False):
        inputs, cotangents = (x.reshape(-1, x.shape[-1]) for x in weight.factors(piece))
        inputs, cotangents = inputs.astype(np.float64), cotangents.astype(np.float64)
        a += inputs.T @ inputs
        b += cotangents.T @ cotangents
    return a / max(1, weight.layer.samples * weight.positions), b * scale


def solve_kfac(structure: Kfac, rows: Any, v: Host, damping: Damping) -> Host:
    """``(B + rho)^-1 V (A + rho)^-1`` for any vectors v (P, k), with the factors as they stand."""
    right = v.reshape(len(v), -1).astype(np.float64)
    result = np.zeros_like(right)
    shared = structure.weight_sharing == "expand"
    covered = 0
    damping.watch(rows)
    for index, (weight, block) in enumerate(zip(weights(rows), structure.blocks, strict=True)):
        name = f"{index}: {weight.name}"
        a, b = block.a.astype(np.float64), block.g.astype(np.float64)
        if not block.exact:
            b = b * damping.share(weight.layer)
        trace_a = float(a.sum() if a.ndim == 1 else np.trace(a))
        own = right[block.columns]
        covered += block.columns.size
        n = weight.layer.samples * (weight.positions if shared else 1)
        counts = n, n * weight.layer.n_outputs
        if block.exact:
            rho_a, rho_b = damping.of(name, trace_a, counts[1]), 0.0
        else:
            traces = trace_a, float(np.trace(b))
            rho_a, rho_b = damping.pair(name, traces, counts, (a.shape[0], b.shape[0]))
        what = f"G, {name}"
        if not block.exact and _delicate(a, rho_a, b, rho_b):
            solved = damped_quotient(b, rho_b, own, 0, what + ", B")
            result[block.columns] = damped_quotient(a, rho_a, solved, 1, what + ", A")
            continue
        solved = along(damped_inverses(b, rho_b, what + ", B"), own, 0)
        if a.ndim == 2:
            solved = along(damped_inverses(a, rho_a, what + ", A"), solved, 1)
        else:
            solved = solved / (_positive(a + rho_a, what))[None, :, None]
        result[block.columns] = solved
    if covered < structure.size:
        rest = np.ones(structure.size, bool)
        for block in structure.blocks:
            rest[block.columns.reshape(-1)] = False
        if right[rest].any():
            rho = _positive(np.array([damping.of("rest", 0.0, 1)]), "G, parameters without a block")
            result[rest] = right[rest] / rho
    return result.reshape(v.shape)


def _delicate(a: Host, rho_a: float, b: Host, rho_b: float) -> bool:
    """Whether roundings of both inverses, multiplied, are worth more than the right digits."""
    if rho_a <= 0 or rho_b <= 0:
        return False  # regular, or refused
    tops = [float(x.sum() if x.ndim == 1 else np.trace(x)) for x in (a, b)]
    eps = float(np.finfo(np.float64).eps)
    return (1 + tops[0] / rho_a) * (1 + tops[1] / rho_b) * eps > _ROUGH


def _positive(values: Host, what: str) -> Host:
    if (values <= 0).any():
        raise NotPositiveDefiniteError(f"{what}: singular; expected damping > 0")
    return values
