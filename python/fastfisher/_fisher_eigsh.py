# SPDX-License-Identifier: Apache-2.0
"""Eigenpairs of a full Fisher matrix, by the cheaper of its Gram matrix and its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._arrays import Array, in_library, in_numpys_words
from fastfisher._device_array import bare, contiguous
from fastfisher._layer import Layer
from fastfisher._memory import free_memory
from fastfisher.factors import Dense, Explicit
from fastfisher.structures import Structure
from fastfisher.structures.coupled import Coupled

Host = np.ndarray[Any, Any]

# Products with the matrix that an iteration takes, seen for up to 20 outliers.
_MATVECS = (40, 12)


def in_terms_of_library(function: Callable[[Host], Host]) -> Callable[[Array], Array]:
    """Let a function of arrays in numpy's words take arrays of the caller's library."""
    return lambda v: in_library(function(in_numpys_words(v)), v)


def by_products(
    structure: Structure, k: int, which: Any, tol: float, seed: int, v0: Host | None = None
) -> Any:
    """Eigenpairs by products with a structure."""
    start = None if v0 is None else bare(v0)
    return linalg.eigsh(
        in_terms_of_library(structure.matvec), k, which=which, tol=tol, v0=start, seed=seed,
        n=structure.size, dtype=str(structure.dtype), like=bare(structure.like),
    )  # fmt: skip


def full_eigsh(
    structure: Coupled, k: int, which: Any, tol: float, seed: int, v0: Host | None = None
) -> Any:
    """Eigenpairs of ``scale J^T J``."""
    j, scale = structure.parts[0].jacobian, structure.scale
    rows, size = j.shape

    def otherwise() -> Any:
        return by_products(structure, k, which, tol, seed, v0)

    wide = which in ("LA", "LM") and k <= min(rows, size) and rows < size
    matvecs = _MATVECS[0] + _MATVECS[1] * k
    if not (wide and _gram_cost(j.layers) < matvecs * _product_cost(j.layers) and _fits(rows, j)):
        return otherwise()
    dual = j.gram().reshape(rows, rows)
    dual *= structure.dtype.type(scale)
    start = None if v0 is None else bare(j @ v0)
    found = linalg.eigsh(bare(dual), k, which=which, tol=tol, v0=start, seed=seed)
    # v is J^T u up to a factor; of the null space nothing is known here.
    v = j.T @ contiguous(in_numpys_words(found.vectors))
    squares = np.diagonal(_inner(v, v))
    if not (squares > np.finfo(v.dtype).eps * squares.max(initial=0.0)).all():
        return otherwise()
    # The roundings of the Gram matrix turn the vectors of close eigenvalues into each other.
    # Orthogonal but for roundings, so that a Cholesky factor is as good as a QR factorisation.
    _turn(v, np.linalg.inv(np.linalg.cholesky(_inner(v, v))).T)
    product = structure.matvec(v)
    projected = _inner(v, product)
    values, turn = np.linalg.eigh((projected + projected.T) / 2)
    order = np.argsort(-np.abs(values) if which == "LM" else -values)
    values, turn = values[order].astype(structure.dtype), turn[:, order]
    _turn(v, turn)
    _turn(product, turn)
    residual = _distances(product, v, values)
    limit = (tol or 32 * float(np.finfo(structure.dtype).eps)) * float(
        np.abs(values).max(initial=0.0)
    )
    return linalg.EigshResult(
        values, v, residual, residual <= limit, found.certified, found.matvecs + k
    )


def _pieces(x: Host) -> list[slice]:
    """Rows of a tall matrix, some at a time: what fits the cache needs no fresh memory."""
    step = 1 << 14
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _turn(x: Host, turn: Host) -> None:
    """``x @ turn`` in place."""
    small = turn.astype(x.dtype)
    for rows in _pieces(x):
        x[rows] = x[rows] @ small


def _distances(x: Host, y: Host, values: Host) -> Host:
    """Norms of the columns of ``x - values y``."""
    total = np.zeros(len(values), like=x)
    for rows in _pieces(x):
        total += np.square(x[rows] - values * y[rows]).sum(0, dtype=np.float64)
    return np.sqrt(total).astype(x.dtype)


def _inner(x: Host, y: Host) -> Host:
    """``x^T y`` for tall x and y, added up in float64."""
    total = np.zeros((x.shape[1], y.shape[1]), like=x)
    for rows in _pieces(x):
        total += x[rows].T @ y[rows]
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
    return rows * rows * int(j.layers[0].g.itemsize) * 3 < free_memory(j.layers[0].g) // 2
