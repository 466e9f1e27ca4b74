# SPDX-License-Identifier: Apache-2.0
r"""Leading eigenpairs of a full Fisher matrix that stand out from the rest, as in wide networks.

There the C largest eigenvalues are O(width) above the others (section 1.1 of the theory), so that
one product with ``K = scale J J^T`` takes an error of the wanted space down by that ratio. The start
is the leading space of a cheap likeness of K (`Likeness`), one or two products with K follow, and
the last one is made through the vectors of parameters that are returned.

What is returned is proved. With U an orthonormal start of k vectors and P the projector on what is
orthogonal to it, no more than k eigenvalues of K are above ``|P K P|``, and for standard normal w_i
that are independent of U

    |P K P|^2 = |(P K P)^2| <= a sqrt(2 / pi) max_i |(P K P)^2 w_i|

but for a chance of a^-r with r of them (Halko, Martinsson and Tropp 2011, lemma 4.1): 1e-6 here. So
whatever the likeness missed shows up in those, be it that a single sample holds all the curvature;
then, or where nothing stands out, the answer is None.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._dual_products import Dual
from fastfisher._jacobian import Jacobian
from fastfisher._tall import inner, turn
from fastfisher.factors import Dense
from fastfisher.structures._rooted import is_extreme

Host = np.ndarray[Any, Any]

__all__ = ["fits", "outliers"]

_PROBES = 4
_CHANCE = 1e-6
# Vectors of the likeness beside the wanted ones, which show the gap, and passes over it.
_BESIDE, _PASSES = 4, 3
# Next eigenvalue of the likeness beside the last wanted one, at most.
_GAP = 0.1
# Products with the wanted vectors, at most, before the one that checks.
_ROUNDS = 4
# Below that many rows decompositions cost nothing.
_ROWS = 1000


def fits(j: Jacobian, k: int) -> bool:
    """Whether the factors are of the kind, on the CPU, and k is small beside the rows."""
    rows = j.shape[0]
    return (
        j.sample_map is None
        and rows >= _ROWS
        and rows >= 16 * (max(k, j.n_outputs) + _BESIDE)
        and all(type(x) is Dense and isinstance(x.g, np.ndarray) for x in j.layers)
        and not is_extreme(j)
    )


def outliers(
    j: Jacobian, scale: float, k: int, tol: float, seed: int
) -> linalg.EigshResult | None:
    """`k` largest eigenpairs of ``scale J^T J`` if they stand out, else None.

    Residual norms are bounds, made from the product ``J v`` with the vectors as they are returned:
    with ``v = J^T u`` the residual is ``J^T r`` for ``r = scale J v - lambda u``, and |J^T r| is at
    most what the proof allows for r, to which the rounding of v is added.
    """
    rng = np.random.default_rng(seed)
    dual = Dual(j.layers, scale)  # type: ignore[arg-type]
    start = _start(dual, k, rng)
    if start is None:
        return None
    m = start.shape[1]
    kind = np.dtype(j.layers[0].g.dtype)
    eps = float(np.finfo(kind).eps)

    def rest(x: Host) -> Host:
        return x - start @ (start.T @ x)

    probes = rest(rng.standard_normal((dual.rows, _PROBES)))
    product = dual.product(np.concatenate([start, probes], 1))
    once = rest(product[:, m:])
    twice = rest(dual.product(once))
    matvecs = m + 2 * _PROBES
    grown = np.linalg.norm(twice, axis=0)
    above = math.sqrt(_CHANCE ** (-1 / _PROBES) * math.sqrt(2 / math.pi) * float(grown.max()))
    u, product, values = _ritz(start, product[:, :m])
    if not above < 0.9 * values[-1]:
        return None
    # Each product takes the error of the wanted vectors down by about this.
    step = max(float(np.linalg.norm(twice) / np.linalg.norm(once) / values[-1]), eps)
    error = step * float(np.linalg.norm(product - u * values, axis=0).max() / values[0])
    for _ in range(_ROUNDS):
        if error <= (tol or 8 * eps):
            break
        u = np.linalg.qr(product)[0]
        u, product, values = _ritz(u, dual.product(u))
        matvecs += m
        error = step * float(np.linalg.norm(product - u * values, axis=0).max() / values[0])
    else:
        return None
    u = np.linalg.qr(product)[0] * np.sqrt(scale / values)
    return _checked(j, scale, u, start, above, k, tol, matvecs + m)


def _start(dual: Dual, k: int, rng: np.random.Generator) -> Host | None:
    """Orthonormal leading vectors of the likeness, k or some more, if a gap follows them."""
    c = dual.outputs
    width = max(k, c) + _BESIDE
    x = rng.standard_normal((dual.rows, width))
    # The sums over samples, one for each output.
    x[:, :c] = np.tile(np.eye(c), (dual.samples, 1))
    likeness = dual.likeness()
    values = np.zeros(width)
    for _ in range(_PASSES):
        u, x, values = _ritz(q := np.linalg.qr(x)[0], likeness.product(q))
    if not (np.isfinite(values).all() and values[k - 1] > 0):
        return None
    ratios = values[k : width - _BESIDE + 1] / values[k - 1 : width - _BESIDE]
    best = int(np.argmin(ratios))
    if not ratios[best] < _GAP:
        return None
    return np.asarray(np.linalg.qr(x[:, : k + best])[0])


def _ritz(u: Host, product: Host) -> tuple[Host, Host, Host]:
    """Ritz vectors of the span of `u`, their products, and values, descending."""
    small = u.T @ product
    values, y = np.linalg.eigh((small + small.T) / 2)
    return u @ y[:, ::-1], product @ y[:, ::-1], values[::-1]


def _checked(
    j: Jacobian, scale: float, u: Host, start: Host, above: float, k: int, tol: float, matvecs: int
) -> linalg.EigshResult | None:
    """Eigenpairs in the span of ``J^T u``, if the bounds of their residuals are small enough."""
    kind = np.dtype(j.layers[0].g.dtype)
    eps = float(np.finfo(kind).eps)
    v = j.T @ u.astype(kind)
    z = (j @ v).astype(np.float64)
    # Rayleigh-Ritz: z^T z against v^T v.
    squares = inner(v, v)
    if not np.isfinite(squares).all() or np.abs(squares - np.eye(len(squares))).max() > 0.1:
        return None
    back = np.linalg.inv(np.linalg.cholesky(squares))
    small = scale * (back @ (z.T @ z) @ back.T)
    values, y = np.linalg.eigh((small + small.T) / 2)
    values, y = values[::-1], back.T @ y[:, ::-1]
    turn(v, y)
    r = scale * (z @ y) - (u @ y) * values
    inside = start.T @ r
    outside = np.linalg.norm(r - start @ inside, axis=0)
    bound = math.sqrt(above / scale) * outside
    bound += math.sqrt(values[0] / scale) * np.linalg.norm(inside, axis=0)
    bound = np.hypot(bound, 2 * eps * values[0])
    # Above the others in any case, and each a different one.
    if not above < values[-1] - np.linalg.norm(bound):
        return None
    if not (bound[:k] <= (tol or 32 * eps) * values[0]).all():
        return None
    return linalg.EigshResult(
        values[:k].astype(kind),
        v if k == v.shape[1] else np.ascontiguousarray(v[:, :k]),
        bound[:k].astype(kind),
        np.ones(k, bool),
        True,
        matvecs,
    )
