# SPDX-License-Identifier: Apache-2.0
"""Orthonormal vectors, kept as rows (e, m, n), by native steps and small float64 matrices.

Panels stay where they are, on the CPU as numpy's arrays or on a device; products of panels are read
back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import (
    Array,
    dtype_name,
    empty,
    from_numpy,
    namespace,
    take_rows,
    to_dtype,
    to_numpy,
)

Host = np.ndarray[Any, Any]


def eigh(a: Host) -> tuple[Host, Host]:
    """Eigenvalues (e, m), ascending, and eigenvectors as rows (e, m, m)."""
    values, rows = np.empty(a.shape[:2]), np.empty(a.shape)
    _native.small_eigh(a, values, rows)
    return values, rows


def projected_eigh(a: Host, like: Array) -> tuple[Host, Host]:
    """`eigh` of the projected matrices of panels like `like`.

    Beside a device's passes in float32 LAPACK is worth it, twice as fast on one matrix; on the CPU
    its bits depend on its threads, and for float64 it is not accurate enough.
    """
    if isinstance(like, np.ndarray) or a.shape[0] > 4 or dtype_name(like) == "float64":
        return eigh(a)
    values, columns = np.linalg.eigh(a)
    return values, np.ascontiguousarray(columns.transpose(0, 2, 1))


def row_dots(x: Array, y: Array) -> Host:
    """``<y[e, k], x[e, k]>`` (e, k), added up in float64."""
    if isinstance(x, np.ndarray):
        return np.asarray(np.einsum("ekn,ekn->ek", x, y, dtype=np.float64))
    wide = to_dtype(x, "float64"), to_dtype(y, "float64")
    return to_numpy(namespace(x).einsum("ekn,ekn->ek", *wide))


def quotients(x: Array, product: Array) -> tuple[Host, Host]:
    """Rayleigh quotients (e, k) of unit rows `x`, and residual norms of these in their dtype."""
    name = dtype_name(x)
    if isinstance(x, np.ndarray):
        values = row_dots(x, product)
        residual = product - values[:, :, None].astype(name) * x
        return values, np.sqrt(row_dots(residual, residual))
    xp = namespace(x)
    wide, exact = to_dtype(x, "float64"), to_dtype(product, "float64")
    found = xp.einsum("ekn,ekn->ek", wide, exact)
    residual = exact - to_dtype(to_dtype(found, name), "float64")[:, :, None] * wide
    squares = xp.einsum("ekn,ekn->ek", residual, residual)
    # Read back at once.
    values, squares = to_numpy(xp.stack([found, squares]))
    return values, np.sqrt(squares)


def combine(weights: Host, x: Array) -> Array:
    """``weights x`` (e, j, n) in the dtype of `x`."""
    out = empty((x.shape[0], weights.shape[1], x.shape[2]), x, dtype_name(x))
    _native.panel_combine(from_numpy(weights, x), x, out, keep=False)
    return out


def picked(x: Array, order: Host) -> Array:
    """Rows `order` (e, j) of each panel."""
    e, m = x.shape[:2]
    rows = (order + np.arange(e)[:, None] * m).reshape(-1)
    return take_rows(x.reshape(e * m, *x.shape[2:]), rows).reshape(*order.shape, *x.shape[2:])


def remove(basis: Array, w: Array) -> tuple[Host, Host]:
    """Take the part of `w` in the span of `basis` out of it, in two passes.

    Return it (e, j, i) and the dots of what is left (e, j, j), read back at once.
    """
    i, j = basis.shape[1], w.shape[1]
    small = empty((w.shape[0], j, i + j), w, "float64")
    _native.panel_remove(basis, w, small)
    host = to_numpy(small)
    return host[:, :, :i], np.ascontiguousarray(host[:, :, i:])


def orthonormal(
    basis: Array, w: Array, inner: Host, rng: np.random.Generator, noise: Host, count: int
) -> tuple[Array, Host]:
    """`count` orthonormal rows q, orthogonal to `basis`, and r with ``w = r q`` (e, j, count).

    Directions of `w` below `noise` (e,) are rounding; random ones take their place, and r is zero
    there. `w` is orthogonal to `basis` to working precision already, `inner` is ``w w^T``.
    """
    eps = float(np.finfo(dtype_name(w)).eps)
    values, rows = eigh(inner)
    turn = rows.transpose(0, 2, 1)
    norms = np.sqrt(np.maximum(values, 0))[:, -count:]
    turn = turn[:, :, -count:]
    # A direction far below the largest is lost in the rounding of that one's Gram.
    floor = np.maximum(noise, 4 * eps * norms[:, -1])
    kept = norms > floor[:, None]
    inverse = np.where(kept, 1 / np.where(kept, norms, 1), 0.0)
    q = combine(inverse[:, :, None] * turn.transpose(0, 2, 1), w)
    r = turn * np.where(kept, norms, 0)[:, None, :]
    if not kept.all():
        fresh = rng.standard_normal(tuple(q.shape)) / np.sqrt(q.shape[2])
        q += from_numpy((fresh * ~kept[:, :, None]).astype(dtype_name(q)), q)
    # Small directions have grown, and with them what they hold of the basis and of each other.
    for _ in range(6):
        gram = remove(basis, q)[1]
        values, rows = eigh(gram)
        if np.abs(values - 1).max(initial=0.0) < 8 * eps:
            break
        if not (values > 0.25).all():
            q, r = _untangled(q, r, gram, rng)
            continue
        side = rows.transpose(0, 2, 1)
        size = np.sqrt(np.maximum(values, eps**2))[:, None, :]
        # The symmetric root, nearest to q itself; r follows.
        q = combine((side / size) @ side.transpose(0, 2, 1), q)
        r = r @ ((side * size) @ side.transpose(0, 2, 1))
    return q, r


def _untangled(q: Array, r: Host, gram: Host, rng: np.random.Generator) -> tuple[Array, Host]:
    """Rows `q` of ``w = r q`` where some are nearly those before: one by one, the largest first.

    Directions of `w` whose size its Gram matrix could not tell come as rows of any size and
    direction. Random ones take the place of what is nothing but rounding beside the larger ones.
    """
    e, j = gram.shape[:2]
    lower, weights = np.zeros(gram.shape), np.zeros(gram.shape)
    lost = np.zeros((e, j), bool)
    least = max(1e-12, 4 * float(np.finfo(dtype_name(q)).eps))
    for b, last in np.ndindex(e, j):
        c = j - 1 - last  # rows come with ascending sizes
        for k in range(j - 1, c, -1):
            inner = gram[b, c, k] - lower[b, c, k + 1 :] @ lower[b, k, k + 1 :]
            lower[b, c, k] = 0.0 if lost[b, k] else inner / lower[b, k, k]
        rest = gram[b, c, c] - (lower[b, c, c + 1 :] ** 2).sum()
        lost[b, c] = not rest > least * gram[b, c, c]
        lower[b, c, c] = 0.0 if lost[b, c] else np.sqrt(rest)
        if not lost[b, c]:
            weights[b, c, c] = 1.0
            weights[b, c] -= lower[b, c, c + 1 :] @ weights[b, c + 1 :]
            weights[b, c] /= lower[b, c, c]
    fresh = rng.standard_normal(tuple(q.shape)) / np.sqrt(q.shape[2])
    made = combine(weights, q)
    made += from_numpy((fresh * lost[:, :, None]).astype(dtype_name(q)), q)
    return made, r @ lower
