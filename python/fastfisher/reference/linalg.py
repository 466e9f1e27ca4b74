# SPDX-License-Identifier: Apache-2.0
"""References of the steps of an eigenvalue iteration."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def eigh_ends(a: Array, scale: Array, which: str, k: int) -> tuple[Array, Array]:
    """`k` eigenvalues (e, k), ascending, of ``scale[e]^2 a[e]`` and their vectors as rows.

    From the lower triangle of each matrix alone.
    """
    lower = np.tril(a.astype(np.float64)) * scale[:, None, None] ** 2
    values, vectors = np.linalg.eigh(lower + np.tril(lower, -1).transpose(0, 2, 1))
    n = values.shape[1]
    order = {
        "LA": np.arange(n)[::-1],
        "SA": np.arange(n),
        "BE": np.r_[np.arange(k // 2), np.arange(n - k + k // 2, n)],
    }
    take = np.argsort(-np.abs(values), 1) if which == "LM" else np.tile(order[which], (len(a), 1))
    take = np.sort(take[:, :k], 1)
    return (
        np.take_along_axis(values, take, 1),
        np.take_along_axis(vectors, take[:, None, :], 2).transpose(0, 2, 1),
    )


def largest(x: Array) -> float:
    """``max |x|``, NaN or infinity where there is one, 0 for no entry."""
    return float(np.abs(x.astype(np.float64)).max(initial=0.0))


def drawn_rows(seed: int, e: int, b: int, n: int) -> Array:
    """Uniform numbers (e, b, n) between -1 and 1: high bits of SplitMix64 of seed and count."""
    z = np.arange(1, e * b * n + 1, dtype=np.uint64) + np.uint64(seed % 2**32 * 2**32)
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> np.uint64(shift)) * np.uint64(factor)
    high = (z ^ z >> np.uint64(31)) >> np.uint64(40)
    return ((high.astype(np.float64) - 2**23 + 0.5) / 2**23).reshape(e, b, n)


def lanczos_steps(
    a: Array, scale: Array, basis: Array, first: int, count: int, b: int, *, fresh: bool
) -> tuple[Array, list[tuple[Array, Array]]]:
    """`basis` with `count` blocks more, and (part, r) of the first block and of each step.

    ``scale[e]^2 a[e] q = part basis + r q'`` with r lower triangular, its diagonal positive.
    """
    lower = np.tril(a.astype(np.float64))
    full = lower + np.tril(lower, -1).transpose(0, 2, 1)
    full *= scale[:, None, None] ** 2
    rows = basis.astype(np.float64)
    steps = []
    for step in range(count + 1):
        p = first + step * b
        w = rows[:, p - b : p] @ full if step else rows[:, p : p + b]
        part = w @ rows[:, :p].transpose(0, 2, 1)
        rest = w - part @ rows[:, :p]
        q, r = np.linalg.qr(rest.transpose(0, 2, 1))
        signs = np.where(np.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)
        factor = (signs[:, :, None] * r).transpose(0, 2, 1)
        if step or fresh:
            rows[:, p : p + b] = (q * signs[:, None, :]).transpose(0, 2, 1)
        steps.append((part, factor))
    return rows, steps


def moments(a: Array, scale: float, *, one: bool = False) -> Array:
    """``scale a^T a`` for `a` (n, i), with `one` of ``[a 1]``."""
    wide = a.astype(np.float64)
    if one:
        wide = np.concatenate([wide, np.ones((len(wide), 1))], 1)
    return np.asarray(scale * (wide.T @ wide))


def sandwich(left: Array, w: Array, b: Array | None, right: Array) -> tuple[Array, Array | None]:
    """``left [w b] right`` as (out, out_b); without a bias the second one is None."""
    joined = w.astype(np.float64)
    if b is not None:
        joined = np.concatenate([joined, b.astype(np.float64)[:, None]], 1)
    found = left.astype(np.float64) @ joined @ right.astype(np.float64)
    return (found, None) if b is None else (found[:, :-1], found[:, -1])


def panel_combine(weights: Array, x: Array, keep: bool, y: Array) -> Array:
    """``keep * y + weights x`` for weights (e, j, i), x (e, i, n), y (e, j, n)."""
    combined = np.einsum("eji,ein->ejn", weights.astype(np.float64), x.astype(np.float64))
    return np.asarray(combined + y.astype(np.float64) if keep else combined)


def panel_dots(x: Array, y: Array) -> Array:
    """``<y[e, j], x[e, i]>`` (e, j, i)."""
    return np.asarray(np.einsum("ejn,ein->eji", y.astype(np.float64), x.astype(np.float64)))


def panel_remove(x: Array, y: Array) -> tuple[Array, Array]:
    """Rest of `y` (e, j, n) without its part in the span of the orthonormal `x` (e, i, n).

    And (e, j, i + j): that part in terms of `x`, then the dots of the rest.
    """
    part = panel_dots(x, y)
    rest = panel_combine(-part, x, True, y)
    return rest, np.concatenate([part, panel_dots(rest, rest)], 2)


def small_eigh(a: Array) -> tuple[Array, Array]:
    """Eigenvalues (e, m), ascending, and eigenvectors as rows (e, m, m)."""
    values, vectors = np.linalg.eigh(a.astype(np.float64))
    return values, vectors.transpose(0, 2, 1)


def symm(a: Array, x: Array, scale: Array) -> Array:
    """``scale[e]^2 a[e] x[e, k]`` (e, k, n), from the lower triangle of each matrix alone."""
    lower = np.tril(a.astype(np.float64))
    full = lower + np.tril(lower, -1).transpose(0, 2, 1)
    product = np.einsum("enm,ekm->ekn", full, x.astype(np.float64))
    return np.asarray(product * scale[:, None, None] ** 2)


def symmetry(a: Array) -> Array:
    """Largest ``|a_ij|`` and ``|a_ij - a_ji|`` of each matrix, (e, 2)."""
    wide = a.astype(np.float64)
    apart = np.abs(wide - wide.transpose(0, 2, 1))
    return np.stack([np.abs(wide).max((1, 2)), apart.max((1, 2))], 1)
