# SPDX-License-Identifier: Apache-2.0
"""Unit-wise Fisher matrix, one block for the incoming weights of each unit, and parts of those.

A block is ``scale X^T X`` with the rows X (m, b) of one unit: for dense layers the inputs of the
layer, weighted by the unit's cotangent (m = N), else the gradients of all rows (m = N R). Whatever
is smaller of X X^T and X^T X is inverted, for all units of a layer in one call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.structures._base import (
    Structure,
    amplifies,
    damped_inverses,
    projected,
    refined,
)
from fastfisher.structures._weights import CHUNK_BYTES, Weight, weights
from fastfisher.structures.diagonal import squares

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """Blocks ``scale X^T X`` of some units of one weight.

    Attributes
    ----------
    units, inputs : slices of the weight
    columns : (u, b), in the parameter vector
    formed : X (u, m, b), float64, or None
    a, cotangents, gain : (n, b), (n, r, u) and (n, u), float64, or None
        Where rows are the inputs times a gain, the root of a sum over r of squared cotangents.
    """

    weight: Weight
    units: slice
    inputs: slice
    columns: Host
    formed: Host | None
    a: Host | None
    cotangents: Host | None
    gain: Host | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows m and parameters b of each block."""
        if self.formed is not None:
            return int(self.formed.shape[1]), int(self.formed.shape[2])
        assert self.a is not None
        return int(self.a.shape[0]), int(self.a.shape[1])

    @property
    def rows(self) -> Host:
        """X (u, m, b)."""
        if self.formed is not None:
            return self.formed
        assert self.a is not None
        assert self.gain is not None
        return as_array(self.gain.T[:, :, None] * self.a[None])

    def gram(self) -> Host:
        """``X X^T`` (u, m, m)."""
        if self.formed is not None:
            return as_array(self.formed @ self.formed.swapaxes(1, 2))
        assert self.a is not None
        assert self.gain is not None
        gain = self.gain.T
        return as_array(gain[:, :, None] * (self.a @ self.a.T) * gain[:, None, :])

    def pushed(self, e: Host) -> Host:
        """Y (u, m, k) with ``X^T Y = J^T e`` for residuals e (n r, k)."""
        if self.cotangents is None or self.gain is None:
            return np.broadcast_to(e, (len(self.columns), *e.shape))
        n, r, _ = self.cotangents.shape
        y = np.einsum("nru,nrk->unk", self.cotangents, e.reshape(n, r, e.shape[1]), optimize=True)
        gain = self.gain.T[:, :, None]
        return as_array(np.where(gain > 0, y / np.where(gain > 0, gain, 1), 0))


@dataclass(eq=False)
class Unit(Structure):
    """Blocks of `block` inputs of each unit; None for all of them."""

    weights: list[Weight]
    scale: float
    size: int
    dtype: np.dtype[Any]
    block: int | None = None

    @property
    def like(self) -> Host:
        """Array like vectors."""
        return self.weights[0].layer.g if self.weights else np.zeros(0)

    @property
    def name(self) -> str:
        """Name of the structure."""
        return "unit" if self.block is None else f"('block', {self.block})"

    def matvec(self, v: Host) -> Host:
        """``F v``; for dense layers two products a layer, no block formed."""
        result = np.zeros_like(v)
        for weight in self.weights:
            for inputs in self._ranges(weight):
                columns = weight.columns[:, inputs]
                result[columns] = self._product(weight, inputs, v[columns])
        return as_array(result * v.dtype.type(self.scale))

    def solve(self, v: Host, damping: float) -> Host:
        """``(F + damping I)^-1 v``, all blocks of some units in one call."""
        covered = sum(math.prod(weight.place.shape) for weight in self.weights)
        if damping == 0 and covered < self.size:
            raise NotPositiveDefiniteError(
                f"F: {self.size - covered} parameters do not reach the outputs; expected damping > "
                "0"
            )
        x = v / v.dtype.type(damping) if damping else np.zeros_like(v)
        for one in self.blocks():
            x[one.columns] = _solve(one.rows, self.scale, damping, v[one.columns])
        return x

    def spectrum(self) -> Host:
        """Eigenvalues; those of a block that must be zero are left out."""
        found = [np.zeros(0)]
        for one in self.blocks():
            found.append(np.linalg.eigvalsh(_compact(one.rows, self.scale)).clip(0).reshape(-1))
        return np.concatenate(found)

    def function(self, f: Any, v: Host) -> Host:
        """``f(F) v``, through the eigenvectors of each block."""
        x = as_array(f(np.zeros(1)) * v, v.dtype)
        for one in self.blocks():
            x[one.columns] = _function(one.rows, self.scale, f, v[one.columns])
        return x

    def diagonal(self) -> Host:
        """Diagonal (P,)."""
        total = np.zeros(self.size, like=self.like)
        for weight in self.weights:
            total[weight.columns] = squares(weight)
        return (total * self.scale).astype(self.dtype)

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.diagonal().astype(np.float64).sum())

    def _ranges(self, weight: Weight) -> list[slice]:
        step = weight.in_features if self.block is None else self.block
        return [slice(k, k + step) for k in range(0, weight.in_features, max(1, step))]

    def _product(self, weight: Weight, inputs: slice, v: Host) -> Host:
        """``X^T X v`` for all units, v (o, i, k)."""
        result = np.zeros(v.shape, np.float64, like=v)
        for piece in weight.pieces(formed=not weight.simple):
            if weight.simple:
                a, g = weight.factors(piece)
                x = a[:, 0, inputs]
                inner = np.einsum("ni,oik->nok", x, v, optimize=True)
                inner *= np.square(g[:, :, 0]).sum(1)[:, :, None]
                result += np.einsum("ni,nok->oik", x, inner, optimize=True)
            else:
                x = _unit_rows(weight.gradients(piece)[..., inputs])
                result += x.swapaxes(1, 2) @ (x @ v)
        return result.astype(v.dtype)

    def blocks(self) -> Iterator[Blocks]:
        """Blocks of some units at a time."""
        for weight in self.weights:
            n, r = weight.layer.samples, weight.layer.n_outputs
            m = n if weight.simple else n * r
            for inputs in self._ranges(weight):
                b = len(range(*inputs.indices(weight.in_features)))
                # The rows, their Gram, its inverse.
                each = 8 * (m * b + 3 * min(m, b) ** 2)
                step = max(1, 4 * CHUNK_BYTES // max(1, each))
                for start in range(0, weight.out_features, step):
                    yield _blocks_of(weight, slice(start, start + step), inputs)


def _blocks_of(weight: Weight, units: slice, inputs: slice) -> Blocks:
    columns = weight.columns[units, inputs]
    if weight.simple:
        a, g = weight.factors(slice(None))
        cotangents = g[:, :, 0, units].astype(np.float64)
        gain = np.sqrt(np.square(cotangents).sum(1))
        few = a[:, 0, inputs].astype(np.float64)
        return Blocks(weight, units, inputs, columns, None, few, cotangents, gain)
    parts = [weight.gradients(piece, units)[..., inputs] for piece in weight.pieces()]
    if parts:
        rows = _unit_rows(np.concatenate(parts)).astype(np.float64)
    else:
        rows = np.zeros((columns.shape[0], 0, columns.shape[1]), like=weight.layer.g)
    return Blocks(weight, units, inputs, columns, rows, None, None, None)


def unit(jacobian: Jacobian, scale: float, block: int | None = None) -> Unit:
    """Blocks of the units' incoming weights, or of `block` of these each, of ``scale J^T J``."""
    if block is not None and (
        isinstance(block, bool) or not isinstance(block, Integral) or block < 1
    ):
        raise ValueError(f"structure: expected ('block', b) with an integer b >= 1, got {block!r}")
    return Unit(
        weights(jacobian), scale, jacobian.shape[1], np.dtype(jacobian.layers[0].g.dtype), block
    )


def _unit_rows(q: Host) -> Host:
    """Gradients (n, r, o, i) as rows (o, n r, i) of each unit."""
    n, r, o, i = q.shape
    return q.reshape(n * r, o, i).swapaxes(0, 1)


def _compact(x: Host, scale: float) -> Host:
    """Smaller one of ``scale X X^T`` and ``scale X^T X`` of each block."""
    wide = x.shape[1] < x.shape[2]
    return scale * (x @ x.swapaxes(1, 2) if wide else x.swapaxes(1, 2) @ x)


def _solve(x: Host, scale: float, damping: float, v: Host) -> Host:
    """``(scale X^T X + damping)^-1 v`` of each block, for v (u, b, k)."""
    wide = x.shape[1] < x.shape[2]
    if wide and damping == 0:
        raise NotPositiveDefiniteError(
            f"F: blocks of {x.shape[2]} parameters have rank at most {x.shape[1]}; expected "
            "damping > 0"
        )
    k = scale * (x @ x.swapaxes(1, 2) if wide else x.swapaxes(1, 2) @ x)
    back = x.swapaxes(1, 2)
    y = v.astype(np.float64)
    top = float(np.einsum("unn->u", k).max(initial=0.0))
    if wide and amplifies(top, damping, np.float64):
        return projected(k, damping, lambda y: x @ y, lambda z: back @ z, y, scale).astype(v.dtype)
    inverse = damped_inverses(k, damping, "F, a unit's block")

    def apply(y: Host) -> Host:
        return as_array(scale * (back @ (x @ y)) + damping * y)

    def approximate(y: Host) -> Host:
        if not wide:
            return as_array(inverse @ y)
        inner = inverse @ (x @ y) * scale
        return as_array((y - back @ inner) / damping)

    return refined(apply, approximate, y).astype(v.dtype)


def _function(x: Host, scale: float, f: Any, v: Host) -> Host:
    """``f(scale X^T X) v`` of each block."""
    y = v.astype(np.float64)
    w, q = np.linalg.eigh(_compact(x, scale))
    w = w.clip(0)
    if x.shape[1] >= x.shape[2]:
        return as_array(q @ (f(w)[:, :, None] * (q.swapaxes(1, 2) @ y)), v.dtype)
    keep = w > w.shape[1] * np.finfo(np.float64).eps * w.max(1, initial=0.0)[:, None]
    gain = np.where(keep, (f(w) - f(np.zeros(1))) / np.where(keep, w, 1), 0) * scale
    c = q.swapaxes(1, 2) @ (x @ y)
    return as_array(f(np.zeros(1)) * y + x.swapaxes(1, 2) @ (q @ (gain[:, :, None] * c)), v.dtype)
