# SPDX-License-Identifier: Apache-2.0
"""Block Lanczos with thick restart, full reorthogonalisation and a probe for missed copies.

All operators of a batch go in step. With the basis Q as rows, ``Q A = H Q + S q`` where q is the
next block and S the coupling to it; H is kept whole, in float64, so that a restart (Wu and Simon
2000: keep Ritz vectors, go on with q) and a probe (keep the converged ones, go on with a random
block orthogonal to them) are the same step with another q.

Q and q stay on the device of the operator; H, S and all decisions are on the host. A pass reads
back twice as a rule: the new rows of H with the Gram matrix of the product, and the Gram matrix of
q, again if it was not orthonormal. A restart reads nothing. `_queued` does with less for dense
matrices on a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastfisher._arrays import Array
from fastfisher.linalg._iteration import Host, Iteration, Which, preferred
from fastfisher.linalg._operators import Operator
from fastfisher.linalg._panels import picked, quotients
from fastfisher.linalg._queued import Queued

__all__ = ["Found", "Which", "lanczos", "ordered", "preferred"]


@dataclass
class Found:
    """Scaled eigenpairs (e, k), (e, k, n) in the order of `which`, vectors where panels are."""

    values: Host
    vectors: Array
    residual_norms: Host
    norm: Host
    certified: Host


def ordered(
    values: Host, vectors: Array, norms: Host, norm: Host, certified: Host, which: Which
) -> Found:
    """Pairs in the order of `which`."""
    order = preferred(values, which, values.shape[1])
    if (order == np.arange(values.shape[1])).all():  # as a rule
        return Found(values, vectors, norms, norm, certified)
    return Found(
        np.take_along_axis(values, order, 1),
        picked(vectors, order),
        np.take_along_axis(norms, order, 1),
        norm,
        certified,
    )


def lanczos(
    a: Operator,
    k: int,
    which: Which,
    *,
    tol: float,
    max_iter: int,
    block: int,
    start: Host | None,
    seed: int,
) -> Found:
    """Eigenpairs of each operator; `max_iter` counts the passes over them."""
    limit = min(a.n, k + max(k, 14 * block))
    kind = Queued if Queued.fits(a, block) else Iteration
    it = kind(a, k, which, tol, block, limit, max_iter, seed=seed)
    it.start(start)
    _converge(it)
    certified = _probe(it)
    theta, vectors = it.wanted()
    return _verified(it, theta, vectors, certified)


def _converge(it: Iteration) -> None:
    """Expand and restart until the wanted estimates are small or no passes are left."""
    n, k, b = it.a.n, it.k, it.block
    since = 0
    while it.left > 0:
        if it.size + it.q.shape[1] > it.limit:
            theta, rows, _ = it.ritz()
            keep = min(it.size - 1, k + max(b, (it.limit - k - b) // 2))
            it.restart(theta, rows, keep)
        since += it.advance()
        if it.size >= n:
            break
        full = it.size + it.q.shape[1] > it.limit
        if it.size > k and (full or it.due(since)):
            _, _, estimates = it.ritz()
            if (estimates[:, :k] <= it.tol * it.norm[:, None]).all():
                break
            it.look(estimates[:, :k])


def _probe(it: Iteration) -> Host:
    """Look for missed copies with random blocks orthogonal to what was found.

    A block finds as many copies of an eigenvalue as it is wide, so a short look serves unless a
    cluster fills it. Whatever the look turns up takes part in the next one.
    """
    k, n, e = it.k, it.a.n, it.a.batch
    certified = np.zeros(e, bool)
    if it.size >= n:
        return np.ones(e, bool)
    eps = float(np.finfo(it.a.dtype).eps)
    slack = (max(it.tol, 16 * eps) * it.norm)[:, None]
    gap = (max(1e-6, 64 * eps) * it.norm)[:, None, None]
    for _ in range(2 + k // it.block):
        theta, rows, estimates = it.ritz()
        if not (estimates[:, :k] <= 4 * it.tol * it.norm[:, None]).all():
            break  # not even converged: nothing to certify
        before = theta[:, :k]
        near = np.abs(before[:, :, None] - before[:, None, :]) <= gap
        crowded = (near.sum(1) >= it.block).any(1)
        ahead = None if crowded.any() else it.looked_ahead(before, slack)
        if ahead is not None and not ahead.any():
            return ~ahead
        it.restart(theta, rows, k)
        it.draw(min(it.block, n - k))
        moved = np.zeros(e, bool)
        settled = ~crowded
        steps = 0
        while steps < 12:
            if it.left == 0 or it.size + it.q.shape[1] > it.limit:
                break
            steps += it.advance(max(1, 3 - steps))
            if steps < 3 and it.size < n:
                continue
            after, _, estimates = it.ritz()
            moved = (np.abs(after[:, :k] - before) > slack).any(1)
            # Either resolved, or too far from the wanted ones to become one of them.
            rest = np.abs(after[:, k : k + 1] - after[:, k - 1 : k])
            new = estimates[:, k : k + 1]
            settled = ~crowded | ((new <= slack) | (new < rest))[:, 0]
            if moved.any() or settled.all() or it.size >= n:
                break
        # A look that was cut short says nothing.
        certified = settled & ~moved & (steps >= 3 or it.size >= n)
        _, _, estimates = it.ritz()
        # A further copy that is still on its way turns the vectors of those that are there.
        turned = (estimates[:, :k] > slack).any()
        if moved.any() or turned:
            _converge(it)
        if not moved.any():
            break
    return certified


def _verified(it: Iteration, theta: Host, vectors: Array, certified: Host) -> Found:
    """Residuals from one more product, Rayleigh quotients as values."""
    product = it.a.apply(vectors, unit=True)
    values, norms = quotients(vectors, product)
    return ordered(values, vectors, norms, it.norm, certified, it.which)
