# SPDX-License-Identifier: Apache-2.0
"""Eigenpairs of a full Fisher matrix, by the cheaper of its Gram matrix and its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._arrays import Array, in_library, in_numpys_words
from fastfisher._device_array import bare, contiguous
from fastfisher._fisher_outliers import cost as look_cost
from fastfisher._fisher_outliers import outliers
from fastfisher._layer import Layer
from fastfisher._memory import free_memory
from fastfisher._tall import distances, inner, turn
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
    products, gram = matvecs * _product_cost(j.layers), _gram_cost(j.layers)
    if wide and v0 is None and look_cost(j, k, tol) < 0.75 * min(products, gram):
        standing = outliers(j, scale, k, tol, seed)
        if standing is not None:
            return standing
    if not (wide and gram < products and _fits(rows, j)):
        return otherwise()
    dual = j.gram().reshape(rows, rows)
    dual *= structure.dtype.type(scale)
    start = None if v0 is None else bare(j @ v0)
    found = linalg.eigsh(bare(dual), k, which=which, tol=tol, v0=start, seed=seed)
    # v is J^T u up to a factor; of the null space nothing is known here.
    v = j.T @ contiguous(in_numpys_words(found.vectors))
    squares = np.diagonal(inner(v, v))
    if not (squares > np.finfo(v.dtype).eps * squares.max(initial=0.0)).all():
        return otherwise()
    # The roundings of the Gram matrix turn the vectors of close eigenvalues into each other.
    # Orthogonal but for roundings, so that a Cholesky factor is as good as a QR factorisation.
    turn(v, np.linalg.inv(np.linalg.cholesky(inner(v, v))).T)
    product = structure.matvec(v)
    projected = inner(v, product)
    values, y = np.linalg.eigh((projected + projected.T) / 2)
    order = np.argsort(-np.abs(values) if which == "LM" else -values)
    values, y = values[order].astype(structure.dtype), y[:, order]
    turn(v, y)
    turn(product, y)
    residual = distances(product, v, values)
    limit = (tol or 32 * float(np.finfo(structure.dtype).eps)) * float(
        np.abs(values).max(initial=0.0)
    )
    return linalg.EigshResult(
        values, v, residual, residual <= limit, found.certified, found.matvecs + k
    )


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
