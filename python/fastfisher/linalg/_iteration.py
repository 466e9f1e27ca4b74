# SPDX-License-Identifier: Apache-2.0
"""State and steps of one iteration: what `_lanczos` decides on, pass by pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, from_numpy
from fastfisher.linalg._operators import Operator
from fastfisher.linalg._panels import combine, orthonormal, projected_eigh, remove

Host = np.ndarray[Any, Any]
Which = Literal["LA", "SA", "LM", "BE"]


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


def unit_rows(rows: Host) -> Host:
    """Rows of length one."""
    norms = np.linalg.norm(rows, axis=2, keepdims=True)
    unit: Host = rows / np.maximum(norms, np.finfo(rows.dtype).tiny)
    return unit


@dataclass
class Iteration:
    """State of one call: basis Q (e, m, n), H (e, m, m), next block q and its coupling S."""

    a: Operator
    k: int
    which: Which
    tol: float
    block: int
    limit: int
    most: int  # passes
    basis: Array = field(init=False)
    h: Host = field(init=False)
    q: Array = field(init=False)
    s: Host = field(init=False)
    norm: Host = field(init=False)
    seed: int = 0
    size: int = 0
    spare: int = 0  # rows of the basis behind the limit
    spent: int = 0  # passes made
    last: tuple[Host, Host, Host] | None = None

    def __post_init__(self) -> None:
        e = self.a.batch
        self.basis = self.a.empty((e, self.limit + self.spare, self.a.n))
        self.h = np.zeros((e, self.limit, self.limit))
        self.norm = np.zeros(e)

    @cached_property
    def rng(self) -> np.random.Generator:
        """Of what is drawn on the host."""
        return np.random.default_rng(self.seed)

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

    def draw(self, count: int) -> None:
        """Go on with a random block."""
        self.renew(self.random(count))

    def renew(self, start: Host) -> None:
        """Go on with `start`, made orthonormal to the basis and without coupling to it."""
        w, held = from_numpy(unit_rows(start), self.a.like), self.basis[:, : self.size]
        _, inner = remove(held, w)
        room = min(w.shape[1], self.a.n - self.size)
        self.q, _ = orthonormal(held, w, inner, self.rng, np.zeros(self.a.batch), room)
        self.s = np.zeros((self.a.batch, self.size, room))

    @property
    def left(self) -> int:
        """Passes that may still be made: what k vectors take, at least."""
        return max(self.most - self.spent, -(-(self.k - self.size) // self.block), 0)

    def advance(self, count: int | None = None) -> int:
        """Take q into the basis; return the passes that went in.

        About `count` times where several at once pay, or until the next look does.
        """
        self.expand()
        return 1

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
        self.spent += 1
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

    def due(self, since: int) -> bool:
        """Whether the estimates are worth a look: they cost as much as a pass or two."""
        return self.size >= self.k + 6 * self.block and since % 3 == 0

    def look(self, estimates: Host) -> None:
        """Take note of estimates (e, k) that are not small enough yet."""

    def looked_ahead(self, before: Host, slack: Host) -> Host | None:
        """Whether a probe that has been made already moved the Ritz values (e,); None without."""
        return None

    def wanted(self) -> tuple[Host, Array]:
        """Ritz values (e, k) and vectors (e, k, n)."""
        theta, rows, _ = self.ritz()
        weights = np.ascontiguousarray(rows[:, : self.k])
        return theta[:, : self.k], combine(weights, self.basis[:, : self.size])

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
