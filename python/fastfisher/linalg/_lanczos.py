# SPDX-License-Identifier: Apache-2.0
"""Block Lanczos with thick restart, full reorthogonalisation and a probe for missed copies.

All operators of a batch go in step. With the basis Q as rows, ``Q A = H Q + S q`` where q is the
next block and S the coupling to it; H is kept whole, in float64, so that a restart (Wu and Simon
2000: keep Ritz vectors, go on with q) and a probe (keep the converged ones, go on with a random
block orthogonal to them) are the same step with another q.

Q and q stay on the device of the operator; H, S and all decisions are on the host. A pass reads
back twice as a rule: the new rows of H with the Gram matrix of the product, and the Gram matrix of
q, again if it was not orthonormal. A restart reads nothing, so that a cycle of p passes waits for
the device 2 p times, 3 p at worst seen; the first block, a probe and the residuals twice more each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, from_numpy
from fastfisher.linalg._operators import Operator
from fastfisher.linalg._panels import (
    combine,
    orthonormal,
    picked,
    projected_eigh,
    remove,
    row_dots,
)

__all__ = ["Found", "Which", "lanczos", "ordered", "preferred"]

Host = np.ndarray[Any, Any]
Which = Literal["LA", "SA", "LM", "BE"]


@dataclass
class Found:
    """Scaled eigenpairs (e, k), (e, k, n) in the order of `which`, vectors where panels are."""

    values: Host
    vectors: Array
    residual_norms: Host
    norm: Host
    certified: Host


def preferred(theta: Host, which: Which, k: int) -> Host:
    """Positions (e, m) of the Ritz values, the wanted k first and in the order of the result."""
    if which == "LA":
        return np.argsort(-theta, axis=1, kind="stable")
    if which == "SA":
        return np.argsort(theta, axis=1, kind="stable")
    if which == "LM":
        return np.argsort(-np.abs(theta), axis=1, kind="stable")
    down = np.argsort(-theta, axis=1, kind="stable")
    m = theta.shape[1]
    # From both ends in turn, the high one first; of these the wanted are put in descending order.
    turns = np.array([t // 2 if t % 2 == 0 else m - 1 - t // 2 for t in range(m)], dtype=np.intp)
    turns[: min(k, m)].sort()
    return down[:, turns]


def ordered(
    values: Host, vectors: Array, norms: Host, norm: Host, certified: Host, which: Which
) -> Found:
    """Pairs in the order of `which`."""
    order = preferred(values, which, values.shape[1])
    return Found(
        np.take_along_axis(values, order, 1),
        picked(vectors, order),
        np.take_along_axis(norms, order, 1),
        norm,
        certified,
    )


@dataclass
class Iteration:
    """State of one call: basis Q (e, m, n), H (e, m, m), next block q and its coupling S."""

    a: Operator
    k: int
    which: Which
    tol: float
    block: int
    rng: np.random.Generator
    basis: Array
    limit: int
    h: Host = field(init=False)
    q: Array = field(init=False)
    s: Host = field(init=False)
    norm: Host = field(init=False)
    size: int = 0
    last: tuple[Host, Host, Host] | None = None

    def __post_init__(self) -> None:
        e = self.a.batch
        self.h = np.zeros((e, self.limit, self.limit))
        self.norm = np.zeros(e)

    def start(self, given: Host | None) -> None:
        """Random first block, with the caller's vectors in front."""
        w = self.rng.standard_normal((self.a.batch, self.block, self.a.n)).astype(self.a.dtype)
        if given is not None:
            w[:, : min(self.block, given.shape[0])] = given[: self.block]
        self.renew(w)

    def renew(self, start: Host) -> None:
        """Go on with `start`, made orthonormal to the basis and without coupling to it."""
        norms = np.linalg.norm(start, axis=2, keepdims=True)
        start /= np.maximum(norms, np.finfo(start.dtype).tiny)
        w, held = from_numpy(start, self.a.like), self.basis[:, : self.size]
        _, inner = remove(held, w)
        room = min(w.shape[1], self.a.n - self.size)
        self.q, _ = orthonormal(held, w, inner, self.rng, np.zeros(self.a.batch), room)
        self.s = np.zeros((self.a.batch, self.size, room))

    def expand(self) -> None:
        """Take q into the basis: one pass over the matrix."""
        self.last = None
        m, b = self.size, self.q.shape[1]
        self.basis[:, m : m + b] = self.q
        w = self.a.apply(self.q, unit=True)
        self.size = m + b
        held = self.basis[:, : self.size]
        part, inner = remove(held, w)
        self.h[:, m : m + b, : self.size] = part
        self.h[:, : self.size, m : m + b] = part.transpose(0, 2, 1)
        own = part[:, :, m:]
        self.h[:, m : m + b, m : m + b] = (own + own.transpose(0, 2, 1)) / 2
        self.norm = np.maximum(self.norm, np.sqrt((part**2).sum(2)).max(1))
        noise = np.finfo(self.a.dtype).eps * self.norm
        room = min(b, self.a.n - self.size)
        self.s = np.zeros((self.a.batch, self.size, room))
        if room > 0:
            self.q, r = orthonormal(held, w, inner, self.rng, noise, room)
            self.s[:, m : m + b] = r

    def ritz(self) -> tuple[Host, Host, Host]:
        """Ritz values in the order of preference, coefficients (e, m, m) as rows, estimates."""
        if self.last is not None:
            return self.last
        theta, y = projected_eigh(self.h[:, : self.size, : self.size], self.basis)
        order = preferred(theta, self.which, self.k)
        theta = np.take_along_axis(theta, order, 1)
        rows = np.take_along_axis(y, order[:, :, None], 1)
        self.norm = np.maximum(self.norm, np.abs(theta).max(1, initial=0.0))
        self.last = theta, rows, np.sqrt(((rows @ self.s) ** 2).sum(2))
        return self.last

    def restart(self, theta: Host, rows: Host, keep: int) -> None:
        """Shrink the basis to the first `keep` Ritz vectors."""
        self.basis[:, :keep] = combine(
            np.ascontiguousarray(rows[:, :keep]), self.basis[:, : self.size]
        )
        self.s = rows[:, :keep] @ self.s
        self.last = None
        self.h[:] = 0
        index = np.arange(keep)
        self.h[:, index, index] = theta[:, :keep]
        self.size = keep


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
    n = a.n
    limit = min(n, k + max(k, 14 * block))
    it = Iteration(
        a, k, which, tol, block, np.random.default_rng(seed),
        a.empty((a.batch, limit, n)), limit,
    )  # fmt: skip
    it.start(start)
    passes = _converge(it, max_iter)
    certified, passes = _probe(it, passes)
    theta, rows, _ = it.ritz()
    vectors = combine(np.ascontiguousarray(rows[:, :k]), it.basis[:, : it.size])
    return _verified(it, theta[:, :k], vectors, certified)


def _converge(it: Iteration, passes: int) -> int:
    """Expand and restart until the wanted estimates are small; return the passes left."""
    n, k, b = it.a.n, it.k, it.block
    since = 0
    while passes > 0:
        if it.size + it.q.shape[1] > it.limit:
            theta, rows, _ = it.ritz()
            keep = min(it.size - 1, k + max(b, (it.limit - k - b) // 2))
            it.restart(theta, rows, keep)
        it.expand()
        passes -= 1
        since += 1
        if it.size >= n:
            break
        full = it.size + it.q.shape[1] > it.limit
        # Decompositions of H cost as much as passes do: none before it can be converged.
        if it.size > k and (full or (since % 3 == 0 and it.size >= k + 6 * b)):
            _, _, estimates = it.ritz()
            if (estimates[:, :k] <= it.tol * it.norm[:, None]).all():
                break
    return passes


def _probe(it: Iteration, passes: int) -> tuple[Host, int]:
    """Look for missed copies with random blocks orthogonal to what was found.

    A block finds as many copies of an eigenvalue as it is wide, so a short look serves unless a
    cluster fills it. Whatever the look turns up takes part in the next one.
    """
    k, n, e = it.k, it.a.n, it.a.batch
    certified = np.zeros(e, bool)
    if it.size >= n:
        return np.ones(e, bool), passes
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
        it.restart(theta, rows, k)
        it.renew(it.rng.standard_normal((e, min(it.block, n - k), n)).astype(it.a.dtype))
        moved = np.zeros(e, bool)
        settled = ~crowded
        for step in range(12):
            if passes <= 0 or it.size + it.q.shape[1] > it.limit:
                break
            it.expand()
            passes -= 1
            if step < 2 and it.size < n:
                continue
            after, _, estimates = it.ritz()
            moved = (np.abs(after[:, :k] - before) > slack).any(1)
            # Either resolved, or too far from the wanted ones to become one of them.
            rest = np.abs(after[:, k : k + 1] - after[:, k - 1 : k])
            new = estimates[:, k : k + 1]
            settled = ~crowded | ((new <= slack) | (new < rest))[:, 0]
            if moved.any() or settled.all() or it.size >= n:
                break
        certified = settled & ~moved
        if not moved.any():
            break
        passes = _converge(it, passes)
    return certified, passes


def _verified(it: Iteration, theta: Host, vectors: Array, certified: Host) -> Found:
    """Residuals from one more product, Rayleigh quotients as values."""
    product = it.a.apply(vectors, unit=True)
    values = row_dots(vectors, product)
    residual = product - from_numpy(values[:, :, None].astype(it.a.dtype), vectors) * vectors
    norms = np.sqrt(row_dots(residual, residual))
    return ordered(values, vectors, norms, it.norm, certified, it.which)
