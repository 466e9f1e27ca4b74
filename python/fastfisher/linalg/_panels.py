# SPDX-License-Identifier: Apache-2.0
"""Orthonormal vectors, kept as rows (e, m, n), by native steps and small float64 matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher import _native

Host = np.ndarray[Any, Any]


def eigh(a: Host) -> tuple[Host, Host]:
    """Eigenvalues (e, m), ascending, and eigenvectors as rows (e, m, m)."""
    values, rows = np.empty(a.shape[:2]), np.empty(a.shape)
    _native.small_eigh(a, values, rows)
    return values, rows


def dots(x: Host, y: Host) -> Host:
    """``y x^T`` (e, j, i) in float64."""
    out = np.empty((x.shape[0], y.shape[1], x.shape[1]))
    _native.panel_dots(x, y, out)
    return out


def combine(weights: Host, x: Host) -> Host:
    """``weights x`` (e, j, n) in the dtype of `x`."""
    out = np.empty((x.shape[0], weights.shape[1], x.shape[2]), x.dtype)
    _native.panel_combine(weights, x, out, keep=False)
    return out


def remove(basis: Host, w: Host) -> Host:
    """Take the part of `w` in the span of `basis` out of it, in two passes; return it (e, j, i)."""
    total = np.zeros((w.shape[0], w.shape[1], basis.shape[1]))
    if basis.shape[1] == 0:
        return total
    for _ in range(2):
        part = dots(basis, w)
        _native.panel_combine(-part, basis, w, keep=True)
        total += part
    return total


def orthonormal(
    basis: Host, w: Host, rng: np.random.Generator, noise: Host, count: int
) -> tuple[Host, Host]:
    """`count` orthonormal rows q, orthogonal to `basis`, and r with ``w = r q`` (e, j, count).

    Directions of `w` below `noise` (e,) are rounding; random ones take their place, and r is zero
    there. `w` is orthogonal to `basis` to working precision already.
    """
    eps = float(np.finfo(w.dtype).eps)
    values, rows = eigh(dots(w, w))
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
        fresh = np.asarray(rng.standard_normal(q.shape) / np.sqrt(q.shape[2]), q.dtype)
        q[~kept] = fresh[~kept]
    # Small directions have grown, and with them what they hold of the basis and of each other.
    for _ in range(4):
        remove(basis, q)
        values, rows = eigh(dots(q, q))
        if np.abs(values - 1).max(initial=0.0) < 8 * eps:
            break
        side = rows.transpose(0, 2, 1)
        size = np.sqrt(np.maximum(values, eps**2))[:, None, :]
        # The symmetric root, nearest to q itself; r follows.
        q = combine((side / size) @ side.transpose(0, 2, 1), q)
        r = r @ ((side * size) @ side.transpose(0, 2, 1))
    return q, r
