# SPDX-License-Identifier: Apache-2.0
r"""Leading eigenpairs of a full Fisher matrix that stand out from the rest, as in wide networks.

There the C largest eigenvalues are O(width) above the others (section 1.1 of the theory), so that
one product with ``K = scale J J^T`` takes an error of the wanted space down by that ratio. The
start is the leading space of a cheap likeness of K (`Likeness`), one or two products with K follow,
and the last one is made through the vectors of parameters that are returned.

What is returned is proved. With U an orthonormal start of k vectors and P the projector on what is
orthogonal to it, no more than k eigenvalues of K are above ``|P K P|``, and for standard normal w_i
that are independent of U, and M for K or for the likeness,

    |P M P|^q = |(P M P)^q| <= a sqrt(2 / pi) max_i |(P M P)^q w_i|

but for a chance of a^-r with r of them (Halko, Martinsson and Tropp 2011, lemma 4.1): 1e-6 here, of
all powers q and both M together. What the likeness lacks has a norm of at most `Likeness.missing`,
which is added; where that is too much, be it that a single sample holds all the curvature, the
products are made with K. If these are too large as well, or nothing stands out, the answer is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._dual_products import Dual, Likeness, likeness_cost, product_cost
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._tall import turn
from fastfisher.factors import Dense

Host = np.ndarray[Any, Any]

__all__ = ["cost", "outliers"]

_PROBES = 3
_CHANCE = 1e-6
# Vectors of the likeness beside the wanted ones, which show the gap, and passes over it.
_BESIDE, _PASSES = 4, 2
# Next eigenvalue of the likeness beside the last wanted one, at most.
_GAP = 0.05
# Products with the vectors of the proof, at most.
_POWERS = 4
# More products with the wanted vectors, at most, before the one that checks.
_ROUNDS = 3
# Units and inputs of a layer at which the rounding of vectors is measured.
_SAMPLED = 32
# Below that many rows decompositions cost nothing; below that tolerance too many products follow.
_ROWS, _FINEST = 1000, 1e-8
# Largest magnitude of a row of inputs or cotangents, and its inverse the smallest: squares of
# others may be lost in float32.
_ROW = 1e15
# Rounding of the last products and of the returned vectors, in units of the largest eigenvalue.
_ROUNDED = 2.0


def cost(j: Jacobian, k: int, tol: float) -> float:
    """Multiply-adds of a look, but for the last product; infinite where it is not for these."""
    rows, layers = j.shape[0], j.layers
    wanted = max(k, j.n_outputs)
    if not (
        all(type(x) is Dense and isinstance(x.g, np.ndarray) for x in layers)
        and j.sample_map is None
        and rows >= max(_ROWS, 16 * (wanted + _BESIDE))
        and 0 < k <= wanted <= 2 * k + 16
        and _FINEST <= (tol or float(np.finfo(layers[0].g.dtype).eps)) < 1
        and _ordinary(layers)
    ):
        return math.inf
    near = _PASSES * (wanted + _BESIDE) * likeness_cost(layers)
    return near + (wanted + 2 * _PROBES) * product_cost(layers)


def _ordinary(layers: Sequence[Layer]) -> bool:
    """Whether squares of factors, and of their products, are all representable in float32."""
    largest = 0.0
    for x in layers:
        a, g = (
            np.maximum(rows.max(-1, initial=0), -rows.min(-1, initial=0)) for rows in (x.a, x.g)
        )
        for rows in (np.maximum(a, float(x.bias)), g):
            if not ((rows == 0) | ((rows > 1 / _ROW) & (rows < _ROW))).all():
                return False
        largest = max(largest, max(float(a.max()), float(x.bias)) * float(g.max()))
    return 1e-8 < largest < 1e8


def outliers(j: Jacobian, scale: float, k: int, tol: float, seed: int) -> linalg.EigshResult | None:
    """`k` largest eigenpairs of ``scale J^T J`` if they stand out, else None.

    Residual norms are bounds, made from the last product: with ``v = J^T u`` the residual is
    ``J^T r`` for ``r = scale J v - lambda u``, and |J^T r| is at most what the proof allows for r.
    The rounding of v, measured at some entries, is added, and 2 eps of the largest eigenvalue for
    that of the last product and of the vectors as they are returned.
    """
    rng = np.random.default_rng(seed)
    dual = Dual(j.layers, scale)  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        likeness = dual.likeness()
        missing = likeness.missing()
        start, least = _start(likeness, k, rng)
    if start is None:
        return None
    m = start.shape[1]
    eps = float(np.finfo(dual.dtype).eps)
    limit, matvecs = 0.9 * least, 0
    proof = _others(likeness, start, limit - missing, rng) if missing < limit else None
    if proof is None:
        missing, proof = 0.0, _others(dual, start, limit, rng)
        if proof is None:
            return None
        matvecs += proof[2]
    above, damped = proof[0] + missing, proof[1]
    u, product, values = _ritz(start, dual.product(start))
    matvecs += m
    above += 32 * eps * values[0]  # the products are rounded
    if not above < 0.9 * values[-1]:
        return None
    # Each product takes the error of the wanted vectors down by about this.
    step = max(damped / float(values[-1]), eps)

    def error() -> float:
        return step * float(np.linalg.norm(product - u * values, axis=0).max() / values[0])

    enough = tol or 8 * eps
    if error() * step**_ROUNDS > enough:
        return None
    for _ in range(_ROUNDS):
        if error() <= enough:
            break
        u = np.linalg.qr(product)[0]
        u, product, values = _ritz(u, dual.product(u))
        matvecs += m
    u = np.linalg.qr(product)[0] * np.sqrt(scale / values)
    return _checked(j, scale, u, start, above, k, tol, matvecs + m)


def _start(likeness: Likeness, k: int, rng: np.random.Generator) -> tuple[Host | None, float]:
    """Orthonormal leading vectors of the likeness, k or some more, and the last one's value.

    None if no gap follows them.
    """
    dual = likeness.dual
    c = dual.outputs
    width = max(k, c) + _BESIDE
    x = rng.standard_normal((dual.rows, width))
    # The sums over samples, one for each output.
    x[:, :c] = np.tile(np.eye(c), (dual.samples, 1))
    values = np.zeros(width)
    for _ in range(_PASSES):
        q = np.linalg.qr(x)[0]
        product = likeness.product(q)
        if not np.isfinite(product).all():
            return None, 0.0
        x, values = _ritz(q, product)[1:]
    if not (np.isfinite(values).all() and values[0] > 0):
        return None, 0.0
    # Below that a ratio would be one of roundings.
    values = np.maximum(values, 8 * np.finfo(dual.dtype).eps * values[0])
    ratios = values[k : width - _BESIDE + 1] / values[k - 1 : width - _BESIDE]
    best = int(np.argmin(ratios))
    if not ratios[best] < _GAP:
        return None, 0.0
    return np.linalg.qr(x[:, : k + best])[0], float(values[k + best - 1])


def _others(
    matrix: Dual | Likeness, start: Host, limit: float, rng: np.random.Generator
) -> tuple[float, float, int] | None:
    """Bound of ``|P M P|`` if it is below `limit`, its usual action on a vector, and products.

    Powers go on while each brings the bound nearer to the limit.
    """
    x = rng.standard_normal((len(start), _PROBES))
    x -= start @ (start.T @ x)
    sizes = np.log(np.linalg.norm(x, axis=0))
    last = math.inf
    for power in range(1, _POWERS + 1):
        x /= np.maximum(np.linalg.norm(x, axis=0), 1e-300)
        x = matrix.product(x)
        x -= start @ (start.T @ x)
        grown = np.linalg.norm(x, axis=0)
        if not grown.any():  # nothing is left at all
            return 0.0, 0.0, power * _PROBES
        sizes += np.log(np.maximum(grown, 1e-300))
        factor = math.log(_CHANCE / (2 * _POWERS)) / -_PROBES + math.log(2 / math.pi) / 2
        above = math.exp((factor + float(sizes.max())) / power)
        if above < limit:
            return above, float(grown.max()), power * _PROBES
        if grown.max() > 0.5 * limit or above > 0.9 * last:
            return None
        last = above
    return None


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
    u = u.astype(kind)
    v = j.T @ u
    z = (j @ v).astype(np.float64)
    # Rayleigh-Ritz: z^T z against v^T v = u^T z, where roundings of single entries average out.
    squares = u.T.astype(np.float64) @ z
    squares = (squares + squares.T) / 2
    if not np.abs(squares - np.eye(len(squares))).max() < 0.1:
        return None
    back = np.linalg.inv(np.linalg.cholesky(squares))
    small = scale * (back @ (z.T @ z) @ back.T)
    values, y = np.linalg.eigh((small + small.T) / 2)
    values, y = values[::-1], back.T @ y[:, ::-1]
    off = _rounding(j, v, u) @ y
    turn(v, y)
    r = scale * (z @ y) - (u @ y) * values
    inside = start.T @ r
    outside = np.linalg.norm(r - start @ inside, axis=0)
    bound = math.sqrt(above / scale) * outside
    bound += math.sqrt(values[0] / scale) * np.linalg.norm(inside, axis=0)
    bound = np.hypot(bound, values * np.linalg.norm(off, axis=0))
    bound += _ROUNDED * eps * values[0]
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


def _rounding(j: Jacobian, v: Host, u: Host) -> Host:
    """Errors of ``v = J^T u`` at a sample of the entries, scaled up to the norm of all."""
    rng = np.random.default_rng(0)
    cut, k = u.reshape(j.samples, j.n_outputs, -1).astype(np.float64), u.shape[1]
    found, first = [], 0
    for layer in j.layers:
        a, g = layer.a, layer.g
        size = (g.shape[2], a.shape[1])
        some = [np.sort(rng.choice(n, min(n, _SAMPLED), replace=False)) for n in size]
        weighed = g[:, :, some[0]].astype(np.float64).swapaxes(1, 2) @ cut  # (n, o, k)
        exact = np.tensordot(weighed, a[:, some[1]].astype(np.float64), (0, 0))  # (o, k, i)
        own = v[first : first + size[0] * size[1]].reshape(*size, k)[np.ix_(*some)]
        share = size[0] * size[1] / (len(some[0]) * len(some[1]))
        found.append((own - exact.swapaxes(1, 2)).reshape(-1, k) * math.sqrt(share))
        first += layer.parameters
    return np.concatenate(found)
