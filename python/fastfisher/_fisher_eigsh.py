# SPDX-License-Identifier: Apache-2.0
"""Eigenpairs of a full Fisher matrix, by the cheaper of its Gram matrix and its products."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._layer import Layer
from fastfisher._memory import free_memory
from fastfisher.factors import Dense, Explicit
from fastfisher.structures.coupled import Coupled

Host = np.ndarray[Any, Any]

# Products with the matrix that an iteration takes, seen for 10 to 20 outliers.
_MATVECS = 160


def full_eigsh(structure: Coupled, k: int, which: Any, tol: float, seed: int) -> Any:
    """Eigenpairs of ``scale J^T J``."""
    j, scale = structure.parts[0].jacobian, structure.scale
    rows, size = j.shape
    wide = which in ("LA", "LM") and k <= min(rows, size) and rows < size
    if not (wide and _gram_cost(j.layers) < _MATVECS * _product_cost(j.layers) and _fits(rows, j)):
        return linalg.eigsh(
            structure.matvec, k, which=which, tol=tol, seed=seed, n=size, dtype=str(structure.dtype)
        )
    dual = j.gram().reshape(rows, rows)
    dual *= structure.dtype.type(scale)
    found = linalg.eigsh(dual, k, which=which, tol=tol, seed=seed)
    # v = J^T u sqrt(scale / lambda) for each pair; of the null space nothing is known here.
    v = j.T @ np.ascontiguousarray(found.vectors)
    if not (np.linalg.norm(v, axis=0) > 0).all():
        return linalg.eigsh(
            structure.matvec, k, which=which, tol=tol, seed=seed, n=size, dtype=str(structure.dtype)
        )
    # The roundings of the Gram matrix turn the vectors of close eigenvalues into each other.
    v /= np.linalg.norm(v, axis=0)
    # Orthogonal but for roundings, so that a Cholesky factor is as good as a QR factorisation.
    v = v @ np.linalg.inv(np.linalg.cholesky(_inner(v, v))).T.astype(v.dtype)
    product = structure.matvec(v)
    projected = _inner(v, product)
    values, turn = np.linalg.eigh((projected + projected.T) / 2)
    order = np.argsort(-np.abs(values) if which == "LM" else -values)
    values, turn = values[order].astype(structure.dtype), turn[:, order].astype(structure.dtype)
    v, product = v @ turn, product @ turn
    residual = np.linalg.norm(product - values * v, axis=0)
    limit = (tol or 32 * float(np.finfo(structure.dtype).eps)) * float(np.abs(values).max())
    return linalg.EigshResult(
        values, v, residual, residual <= limit, found.certified, found.matvecs + k
    )


def _inner(x: Host, y: Host) -> Host:
    """``x^T y`` for tall x and y, added up in float64."""
    step = 1 << 14
    total = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), step):
        total += x[start : start + step].T @ y[start : start + step]
    return total


def _gram_cost(layers: tuple[Layer, ...]) -> float:
    """Multiply-adds of the Gram matrix, at most."""
    total = 0.0
    for layer in layers:
        n, c = layer.samples, layer.n_outputs
        if isinstance(layer, Dense):
            total += n * n / 2 * (layer.in_features + c * c * layer.out_features)
        else:
            total += (n * c) ** 2 / 2 * layer.parameters
    return total


def _product_cost(layers: tuple[Layer, ...]) -> float:
    """Multiply-adds of ``J^T J v``."""
    total = 0.0
    for layer in layers:
        n, c = layer.samples, layer.n_outputs
        if isinstance(layer, Explicit):
            total += 2 * n * c * layer.parameters
        else:
            positions = int(getattr(layer, "positions", 1))
            total += 2 * n * positions * (layer.parameters + c * layer.out_features)
    return total


def _fits(rows: int, j: Any) -> bool:
    return rows * rows * int(j.layers[0].g.itemsize) * 3 < free_memory() // 2
