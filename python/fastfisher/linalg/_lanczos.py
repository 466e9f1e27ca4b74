# SPDX-License-Identifier: Apache-2.0
"""Block Lanczos with thick restart, full reorthogonalisation and a probe for missed copies.

All operators of a batch go in step. With the basis Q as rows, ``Q A = H Q + S q`` where q is the
next block and S the coupling to it; H is kept whole, in float64, so that a restart (Wu and Simon
2000: keep Ritz vectors, go on with q) and a probe (keep the converged ones, go on with a random
block orthogonal to them) are the same step with another q.

Q and q stay on the device of the operator; H, S and all decisions are on the host. Passes over a
dense matrix on a device are queued as many at a time as can be told ahead, and read back once; what
a step in which a direction vanished left is thrown away, and from there on each pass is read back
twice, as for other operators: the new rows of H with the Gram matrix of the product, and the Gram
matrix of q, again if it was not orthonormal. A restart reads nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, from_numpy
from fastfisher.linalg._operators import Dense, Operator
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

# Vectors of a block of `_native.lanczos_steps`.
_QUEUED = 8
# A block further from orthonormal than that before its last sweep is not orthonormal after it.
_APART = 0.1


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
    """State of one call: basis Q (e, m, n), H (e, m, m), next block q and its coupling S.

    Where passes are queued (`queue`), q is the rows of the basis behind the first `size`.
    """

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
    fresh: Host | None = None  # what q was made of, if nobody has seen whether it is orthonormal
    slope: float | None = None  # by which the logarithm of the estimates falls a pass
    seen: tuple[int, float] | None = None  # passes made, and that logarithm, at the last look
    made: int = 0

    def __post_init__(self) -> None:
        e = self.a.batch
        self.queue = self.a.on_device and isinstance(self.a, Dense) and self.block <= _QUEUED
        self.h = np.zeros((e, self.limit, self.limit))
        self.norm = np.zeros(e)

    def start(self, given: Host | None) -> None:
        """Random first block, with the caller's vectors in front."""
        w = self.random(self.block)
        if given is not None:
            w[:, : min(self.block, given.shape[0])] = given[: self.block]
        self.renew(w)

    def random(self, count: int) -> Host:
        """Random vectors; uniform numbers take a fifth of the time of normal ones."""
        made = self.rng.random((self.a.batch, count, self.a.n), self.a.dtype.type)
        made -= self.a.dtype.type(0.5)
        return made

    def renew(self, start: Host) -> None:
        """Go on with `start`, made orthonormal to the basis and without coupling to it."""
        norms = np.linalg.norm(start, axis=2, keepdims=True)
        start /= np.maximum(norms, np.finfo(start.dtype).tiny)
        w, m, b = from_numpy(start, self.a.like), self.size, start.shape[1]
        if self._room(b) > 0:
            self.basis[:, m : m + b], self.fresh = w, start
            self.q, self.s = self.basis[:, m : m + b], np.zeros((self.a.batch, m, b))
            return
        held = self.basis[:, : self.size]
        _, inner = remove(held, w)
        room = min(w.shape[1], self.a.n - self.size)
        self.q, _ = orthonormal(held, w, inner, self.rng, np.zeros(self.a.batch), room)
        self.s = np.zeros((self.a.batch, self.size, room))

    def _room(self, width: int) -> int:
        """Count the passes that may be queued with a block of that width."""
        if not self.queue or width != self.block:
            return 0
        return min(self.limit - self.size, self.a.n - self.size - self.block) // self.block

    def advance(self, count: int) -> int:
        """Take q into the basis, up to `count` times; return the passes made."""
        count = min(count, self._room(self.q.shape[1]))
        if count < 1:
            self.expand()
            return 1
        b, fresh, self.fresh = self.block, self.fresh, None
        small = self.a.passes(self.basis, self.size, count, b, fresh=fresh is not None)
        if fresh is not None and not (small[0, :, :, -1] < _APART).all():
            self.queue = False
            self.renew(fresh)
            self.expand()
        else:
            for step in range(1, count + 1):
                if not self._taken(small[step]):
                    self.queue = False
                    self.expand()
                    break
            else:
                self.made += count
                return count
        self.made += count
        return count + 1

    def _taken(self, small: Host) -> bool:
        """Whether q of a queued step could go into the basis."""
        m, b = self.size, self.block
        p = m + b
        part, r = small[:, :, :p], small[:, :, p : p + b]
        norm = np.maximum(self.norm, np.sqrt((part**2).sum(2)).max(1))
        sizes, eps = np.diagonal(r, axis1=1, axis2=2), np.finfo(self.a.dtype).eps
        floor = eps * np.maximum(norm, 4 * sizes.max(1))
        if not ((small[:, :, -1] < _APART) & (sizes > floor[:, None])).all():
            return False
        self.norm = norm
        self._project(part)
        self.s = np.zeros((self.a.batch, p, b))
        self.s[:, m:p] = r
        self.q = self.basis[:, p : p + b]
        return True

    def _project(self, part: Host) -> None:
        """Rows of H for q, which is in the basis from here on."""
        m, b = self.size, part.shape[1]
        self.last, self.size = None, m + b
        self.h[:, m : m + b, : self.size] = part
        self.h[:, : self.size, m : m + b] = part.transpose(0, 2, 1)
        own = part[:, :, m:]
        self.h[:, m : m + b, m : m + b] = (own + own.transpose(0, 2, 1)) / 2

    def expand(self) -> None:
        """Take q into the basis: one pass over the matrix."""
        self.made += 1
        m, b = self.size, self.q.shape[1]
        self.basis[:, m : m + b] = self.q
        w = self.a.apply(self.q, unit=True)
        held = self.basis[:, : m + b]
        part, inner = remove(held, w)
        self._project(part)
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

    def look(self, estimates: Host) -> None:
        """Note how far the estimates (e, k) are from the tolerance, and how fast they fall."""
        goal = (self.tol * self.norm)[:, None]
        far = float(np.log(np.maximum(estimates / goal, 1).max()))
        before = self.seen
        if before is None and self.size - 2 * self.block > self.k:
            before = self.made - 2, self._earlier(self.size - 2 * self.block)
        if before is not None and before[0] < self.made:
            self.slope = max((before[1] - far) / (self.made - before[0]), 0.2)
        self.seen = self.made, far

    def _earlier(self, m: int) -> float:
        """Tell what a look at the first m vectors of the basis would have found."""
        theta, y = projected_eigh(self.h[:, :m, :m], self.basis)
        order = preferred(theta, self.which, self.k)[:, : self.k]
        rows = np.take_along_axis(y, order[:, :, None], 1)
        estimates = np.sqrt(((rows @ self.h[:, :m, m : self.size]) ** 2).sum(2))
        return float(np.log(np.maximum(estimates / (self.tol * self.norm)[:, None], 1).max()))

    def restart(self, theta: Host, rows: Host, keep: int) -> None:
        """Shrink the basis to the first `keep` Ritz vectors."""
        self.basis[:, :keep] = combine(
            np.ascontiguousarray(rows[:, :keep]), self.basis[:, : self.size]
        )
        if self.queue:
            kept, b = self.q * 1, self.q.shape[1]  # its old place and its new one may overlap
            self.basis[:, keep : keep + b] = kept
            self.q = self.basis[:, keep : keep + b]
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
        a.empty((a.batch, limit + block, n)), limit,
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
    it.seen = None
    while passes > 0:
        if it.size + it.q.shape[1] > it.limit:
            theta, rows, _ = it.ritz()
            keep = min(it.size - 1, k + max(b, (it.limit - k - b) // 2))
            it.restart(theta, rows, keep)
        done = it.advance(min(passes, _ahead(it)))
        passes -= done
        since += done
        if it.size >= n:
            break
        full = it.size + it.q.shape[1] > it.limit
        # Decompositions of H cost as much as passes do: none before it can be converged.
        if it.size > k and (full or (it.size >= k + 6 * b and (since % 3 == 0 or it.queue))):
            _, _, estimates = it.ritz()
            if (estimates[:, :k] <= it.tol * it.norm[:, None]).all():
                break
            if it.queue:
                it.look(estimates[:, :k])
    return passes


def _ahead(it: Iteration) -> int:
    """Count the passes to the next look: less than the slope says, as estimates fall ever faster."""
    first = it.k + 6 * it.block - it.size
    if first > 0 or it.seen is None or it.slope is None:
        return max(1, -(-first // it.block))
    return max(1, math.ceil(0.75 * it.seen[1] / it.slope))


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
        it.renew(it.random(min(it.block, n - k)))
        moved = np.zeros(e, bool)
        settled = ~crowded
        steps = 0
        while steps < 12:
            if passes <= 0 or it.size + it.q.shape[1] > it.limit:
                break
            done = it.advance(min(passes, max(1, 3 - steps)))
            passes -= done
            steps += done
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
