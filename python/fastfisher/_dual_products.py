# SPDX-License-Identifier: Apache-2.0
r"""Products with ``J J^T`` of dense layers without a vector of parameters, and its likeness.

With the inputs a_l and the cotangents g_l of the layers l, n and m samples, c and d outputs,

    (J J^T)[(n, c), (m, d)] = sum_l A_l[n, m] <g_l[n, c], g_l[m, d]>,    A_l = a_l a_l^T (+ 1).

A product is three steps a layer: with g_l^T, with A_l, with g_l; half the work of a product with J
and one with J^T where there are as many samples as inputs.

The likeness replaces what is hard in this, the middle step at full width. In wide networks both
factors of an entry are a common part and small deviations (section 1 of the theory): with Q_l the
span of the mean cotangents and s_l the leading eigenvector of A_l, the products of the parts in Q_l
are exact, those of the others see ``s_l s_l^T`` for A_l, and the blocks of single samples are exact
again. Only products of two deviations are missing: with X_l = A_l - s_l s_l^T but for its diagonal
and the part d_l of g_l outside Q_l, block by block,

    (K - likeness)[n, m] = scale sum_l X_l[n, m] d_l[n] d_l[m]^T,

at most ``scale sum_l |X_l| max_n |d_l[n] d_l[n]^T|`` as a matrix: ``|X_l| I +- X_l`` is positive
semidefinite, and so is its Schur product with ``d_l d_l^T`` (Horn and Johnson 1991, 5.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastfisher import _native
from fastfisher._layer import Layer
from fastfisher.factors import Dense

Host = np.ndarray[Any, Any]

__all__ = ["Dual", "Likeness", "likeness_cost", "product_cost"]


def product_cost(layers: Sequence[Layer]) -> float:
    """Multiply-adds of a product with one vector."""
    total = 0.0
    for layer in layers:
        n, c, o = layer.g.shape
        total += n * o * (n + 2 * c)
    return total


def likeness_cost(layers: Sequence[Layer]) -> float:
    """Multiply-adds of a product of the likeness with one vector."""
    total = 0.0
    for layer in layers:
        n, c, o = layer.g.shape
        total += n * min(c, o) * (n + 2 * c) + 2 * n * c * o + n * c * c
    return total


class Dual:
    """``scale J J^T`` for vectors (n c, k) in float64; products are made in the layers' dtype."""

    def __init__(self, layers: Sequence[Dense], scale: float) -> None:
        self.scale = scale
        self.layers = [(_weights(layer), layer.g) for layer in layers]
        self.samples, self.outputs = layers[0].samples, layers[0].n_outputs
        self.rows = self.samples * self.outputs
        self.dtype = np.dtype(layers[0].g.dtype)

    def product(self, u: Host) -> Host:
        """``scale J J^T u``."""
        n, k = self.samples, u.shape[1]
        rows = self._packed(u)
        total = np.zeros((n, k, self.outputs))
        # Two arrays for all layers: fresh memory costs as much as a step.
        widest = max(g.shape[2] for _, g in self.layers)
        one, other = (np.empty(n * k * widest, rows.dtype) for _ in range(2))
        for weights, g in self.layers:
            shape = (n, k, g.shape[2])
            size = n * k * g.shape[2]
            inner, mixed = one[:size].reshape(shape), other[:size].reshape(shape)
            np.matmul(rows, g, out=inner)
            _native.matmul(weights, inner.reshape(n, -1), mixed.reshape(n, -1))
            total += np.matmul(mixed, g.swapaxes(1, 2))
        return self._unpacked(total)

    def likeness(self) -> Likeness:
        """Cheap matrix with nearly the same leading eigenvectors."""
        return Likeness(self)

    def _packed(self, u: Host) -> Host:
        """Vectors as (n, k, c), in the dtype of the layers."""
        cut = u.reshape(self.samples, self.outputs, -1).swapaxes(1, 2)
        return np.ascontiguousarray(cut, self.dtype)

    def _unpacked(self, u: Host) -> Host:
        return np.ascontiguousarray(u.swapaxes(1, 2)).reshape(self.rows, -1) * self.scale


class Likeness:
    """See the module."""

    def __init__(self, dual: Dual) -> None:
        self.dual = dual
        self.parts = [self._part(weights, g) for weights, g in dual.layers]

    @staticmethod
    def _part(weights: Host, g: Host) -> _Part:
        basis = np.linalg.qr(g.mean(0).T)[0].astype(g.dtype)  # (o, q)
        wide = weights.astype(np.float64)
        lead = np.ones(len(wide))
        for _ in range(4):
            lead = wide @ lead
            lead /= float(np.linalg.norm(lead)) or 1.0  # inputs may be zero
        size = np.sqrt(max(float(lead @ wide @ lead), 0.0))
        lead = (lead * size).astype(g.dtype)
        flat, turned = _flat(g)
        n, c, _ = g.shape
        common = (flat @ basis).reshape((c, n, -1) if turned else (n, c, -1))
        common = common.swapaxes(0, 1) if turned else common
        own = g @ g.swapaxes(1, 2)
        rounded = 8 * np.finfo(g.dtype).eps * np.trace(own, axis1=1, axis2=2)
        own -= common @ common.swapaxes(1, 2)
        alone = np.linalg.norm(own.astype(np.float64), axis=(1, 2)) + rounded
        rest = wide - np.outer(lead, lead)  # wide: squares of small entries vanish in float32
        np.fill_diagonal(rest, 0)
        missing = float(np.linalg.norm(rest)) * float(alone.max())
        own *= (np.diagonal(weights) - lead**2)[:, None, None]
        return _Part(weights, flat, turned, basis, common, lead, own, missing)

    def missing(self) -> float:
        """Bound of the norm of what the likeness lacks; see the module."""
        return self.dual.scale * sum(part.missing for part in self.parts)

    def product(self, u: Host) -> Host:
        """``scale`` times the likeness times `u`."""
        rows = self.dual._packed(u)
        n, k, c = rows.shape
        total = np.zeros(rows.shape)
        for part in self.parts:
            inner = (part.weights @ (rows @ part.common).reshape(n, -1)).reshape(n, k, -1)
            total += inner @ part.common.swapaxes(1, 2)
            weighed = part.lead[:, None, None] * rows
            axes = (2, 0, 1) if part.turned else (0, 2, 1)  # of samples and outputs, vectors last
            rest = part.flat.T @ np.ascontiguousarray(weighed.transpose(axes)).reshape(-1, k)
            rest -= part.basis @ (part.basis.T @ rest)
            back = (part.flat @ rest).reshape((c, n, k) if part.turned else (n, c, k))
            total += part.lead[:, None, None] * back.transpose(np.argsort(axes))
            total += rows @ part.own
        return self.dual._unpacked(total)


class _Part(NamedTuple):
    """Of one layer: A (n, n); g as rows, `turned` with the outputs outside; what replaces them.

    `missing` bounds the norm of what the replacement lacks.
    """

    weights: Host
    flat: Host
    turned: bool
    basis: Host
    common: Host
    lead: Host
    own: Host
    missing: float


def _flat(g: Host) -> tuple[Host, bool]:
    """`g` (n, c, o) as rows (-1, o), and whether n is inside c, where that needs no copy."""
    turned = g.swapaxes(0, 1)
    inside = not g.flags.c_contiguous and turned.flags.c_contiguous
    return (turned if inside else g).reshape(-1, g.shape[2]), inside


def _weights(layer: Dense) -> Host:
    """Form ``a a^T``, with the bias."""
    found = layer.a @ layer.a.T
    if layer.bias:
        found += 1
    return np.asarray(found)
