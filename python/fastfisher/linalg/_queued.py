# SPDX-License-Identifier: Apache-2.0
"""Iteration on dense matrices of a device: passes are queued, and decisions follow behind.

The host waits for a device's answer longer than a pass takes. So as many passes are queued as can
be told ahead (`_native.lanczos_steps`), some more while the first look is taken, and behind those
before any other look the probe for missed copies, in case they were the last: the device would
wait for the host instead. What a step left in which a direction vanished is thrown away, with all
behind it; from there on each pass is waited for, as on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastfisher._arrays import Array, from_numpy
from fastfisher.linalg._iteration import Host, Iteration, preferred, unit_rows
from fastfisher.linalg._operators import Dense, Operator
from fastfisher.linalg._panels import combine, projected_eigh

# Vectors of a block of `_native.lanczos_steps`.
_WIDEST = 8
# A block further from orthonormal than that before its last sweep is not orthonormal after it.
_APART = 0.1
# Passes that keep the device busy during the first look, and passes of a probe.
_MEANWHILE = 3
_PROBE = 3
# Bytes of a matrix of which so many passes take no longer than a look.
_SHORT = 2**31


@dataclass(frozen=True)
class Passes:
    """Queued passes from row `first` of the basis on, and how to read what they found."""

    first: int
    count: int
    read: Callable[[], Host]
    fresh: bool


@dataclass
class Queued(Iteration):
    """Iteration that does not wait. Its q is the rows of the basis behind the first `size`."""

    queue: bool = True  # until a direction vanishes
    pending: list[Passes] = field(default_factory=list)
    probe: Passes | None = None
    found: tuple[Host, Host] | None = None  # Ritz values and weights of the rows, by a probe
    fresh: int | None = None  # seed of a q that is not orthonormal yet, -1 for one that was given
    given: Host | None = None
    draws: int = 0
    made: int = 0
    seen: tuple[int, float] | None = None  # passes made and log of the estimates at the last look
    slope: float | None = None  # by which that falls a pass

    @staticmethod
    def fits(a: Operator, block: int) -> bool:
        """Whether passes of this operator can be queued."""
        return a.on_device and isinstance(a, Dense) and block <= _WIDEST

    def __post_init__(self) -> None:
        # q, and behind it a probe with its next block.
        self.spare = (2 + _PROBE) * self.block
        super().__post_init__()

    def _room(self) -> int:
        """Count the passes that there are rows for."""
        if not self.queue or self.q.shape[1] != self.block:
            return 0
        return min(self.limit - self.size, self.a.n - self.size - self.block) // self.block

    def start(self, given: Host | None) -> None:
        """Random first block, with the caller's vectors in front."""
        if given is None:
            return self.draw(self.block)
        return super().start(given)

    def draw(self, count: int) -> None:
        """Go on with a random block."""
        self.q = self.basis[:, self.size : self.size + count]
        self.pending, self.probe, self.seen = [], None, None
        if self._room() < 1:
            return super().draw(count)
        self.fresh, self.given = self._seed(), None
        self.s = np.zeros((self.a.batch, self.size, count))
        return None

    def _seed(self) -> int:
        self.draws += 1
        return (int(self.seed) * 1009 + self.draws) % 2**31

    def advance(self, count: int | None = None) -> int:
        """Take q into the basis; return the passes that went in."""
        room = self._room()
        if room < 1:
            self.pending = []
            self.expand()
            return 1
        told = self._ahead() if count is None else count
        queued = sum(passes.count for passes in self.pending)
        # What a vanished direction throws away has been spent: never more than half of the rest.
        want = min(told, room, queued + max(1, self.left // 2))
        self._submit(want - queued)
        queued = max(queued, want)
        if count is None and self.slope is None:
            self._submit(min(_MEANWHILE, room - queued, self.left // 2))
        elif count is None and self._probing(told <= queued):
            self._submit_probe(self.size + (queued + 1) * self.block)
        done = 0
        while self.queue and done < want:
            done += self._absorb()
        return done

    def _submit(self, count: int) -> None:
        if count < 1:
            return
        first = self.size + sum(passes.count for passes in self.pending) * self.block
        self.pending.append(self._passes(first, count, self.fresh))
        self.fresh = None

    def _probing(self, told: bool) -> bool:
        """Whether a probe is worth its passes: if it is told, or if the device had to wait."""
        waits = self.a.n**2 * self.a.dtype.itemsize <= _SHORT
        return self.left >= _PROBE if told else waits and self.left >= 4 * _PROBE

    def _submit_probe(self, first: int) -> None:
        """Queue a probe from a random block orthogonal to the basis and q as they will be."""
        if first + (_PROBE + 1) * self.block <= min(self.a.n, self.basis.shape[1]):
            self.probe = self._passes(first, _PROBE, self._seed())

    def _passes(self, first: int, count: int, fresh: int | None) -> Passes:
        self.spent += count
        seed = -1 if fresh is None else fresh
        read = self.a.passes(  # type: ignore[attr-defined]
            self.basis, first, count, self.block, fresh=fresh is not None, seed=seed
        )
        return Passes(first, count, read, fresh is not None)

    def _absorb(self) -> int:
        """Take what the first queued passes found into H; return how many went in."""
        passes = self.pending.pop(0)
        small, b, count = passes.read(), self.block, passes.count
        apart = small[:, :, :, -1]
        if passes.fresh and not (apart[0] < _APART).all():
            self._stop()
            self.renew(self.random(b) if self.given is None else self.given)
            return 0
        steps = small[1:]
        with np.errstate(over="ignore", invalid="ignore"):  # behind a singular step
            norm = np.sqrt((steps[:, :, :, :-1] ** 2).sum(3)).max(2)
            norm = np.maximum.accumulate(np.maximum(norm, self.norm), 0)
            at = passes.first + np.arange(1, count + 1)[:, None] * b + np.arange(b)
            sizes = steps[np.arange(count)[:, None], :, np.arange(b), at].transpose(0, 2, 1)
            floor = np.finfo(self.a.dtype).eps * np.maximum(norm, 4 * sizes.max(2))
            right = ((apart[1:] < _APART) & (sizes > floor[:, :, None])).all((1, 2))
        taken = count if right.all() else int(np.argmin(right))
        for step in range(taken):
            self._project(steps[step, :, :, : self.size + b])
        m = self.size
        self.made += taken
        self.q = self.basis[:, m : m + b]
        if taken > 0:
            self.norm = norm[taken - 1]
            self.s = np.zeros((self.a.batch, m, b))
            self.s[:, m - b :] = steps[taken - 1, :, :, m : m + b]
        if taken < count:
            self._stop()
        return taken

    def _stop(self) -> None:
        """Wait for each pass from here on."""
        self.queue, self.pending, self.probe = False, [], None

    def due(self, since: int) -> bool:
        """Whether the estimates are worth a look."""
        if not self.queue:
            return super().due(since)
        return self.size >= self.k + 6 * self.block

    def _ahead(self) -> int:
        """Count the passes to the next look: fewer than the slope says, as it grows steeper."""
        first = self.k + 6 * self.block - self.size
        if first > 0 or self.seen is None or self.slope is None:
            return max(1, -(-first // self.block))
        return max(1, math.ceil(0.75 * self.seen[1] / self.slope))

    def look(self, estimates: Host) -> None:
        """Note how far the estimates (e, k) are from the tolerance, and how fast they fall."""
        if not self.queue:
            return
        self.probe = None
        far, before, earlier = self._far(estimates), self.seen, self.size - self.block
        if before is None and earlier > self.k:
            before = self.made - 1, self._far(self._earlier(earlier))
        if before is not None and before[0] < self.made:
            self.slope = max((before[1] - far) / (self.made - before[0]), 0.2)
        self.seen = self.made, far

    def _far(self, estimates: Host) -> float:
        return float(np.log(np.maximum(estimates / (self.tol * self.norm)[:, None], 1).max()))

    def _earlier(self, m: int) -> Host:
        """Estimates that a look at the first m vectors of the basis would have found."""
        theta, y = projected_eigh(self.h[:, :m, :m], self.basis)
        order = preferred(theta, self.which, self.k)[:, : self.k]
        rows = np.take_along_axis(y, order[:, :, None], 1)
        found: Host = np.sqrt(((rows @ self.h[:, :m, m : self.size]) ** 2).sum(2))
        return found

    def restart(self, theta: Host, rows: Host, keep: int) -> None:
        """Shrink the basis to the first `keep` Ritz vectors."""
        self.pending, self.probe = [], None
        kept, b = self.q * 1, self.q.shape[1]  # its old place and its new one may overlap
        super().restart(theta, rows, keep)
        self.q = self.basis[:, keep : keep + b]
        self.q[:] = kept

    def looked_ahead(self, before: Host, slack: Host) -> Host | None:
        """Whether the queued probe moved the Ritz values (e,); None if it was not behind this q."""
        probe, self.probe = self.probe, None
        k, m, b = self.k, self.size, self.block
        if not self.queue or probe is None or probe.first != m + b:
            return None
        small = probe.read()
        if not (small[:, :, :, -1] < _APART).all():
            return None
        # The wanted Ritz vectors and the probe's blocks, all orthonormal; q is left out.
        count = _PROBE * b
        rows = np.concatenate(list(small[1:]), 1)
        y = self.ritz()[1][:, :k]
        own = np.tril(rows[:, :, probe.first : probe.first + count])
        h = np.zeros((self.a.batch, k + count, k + count))
        h[:, k:, k:] = own + np.tril(own, -1).transpose(0, 2, 1)
        h[:, k:, :k] = rows[:, :, :m] @ y.transpose(0, 2, 1)
        h[:, :k, k:] = h[:, k:, :k].transpose(0, 2, 1)
        h[:, np.arange(k), np.arange(k)] = before
        theta, z = projected_eigh(h, self.basis)
        order = preferred(theta, self.which, k)[:, :k]
        after = np.take_along_axis(theta, order, 1)
        moved: Host = (np.abs(after - before) > slack).any(1)
        if not moved.any():
            z = np.take_along_axis(z, order[:, :, None], 1)
            gap = np.zeros((self.a.batch, k, b))
            self.found = after, np.concatenate([z[:, :, :k] @ y, gap, z[:, :, k:]], 2)
        return moved

    def wanted(self) -> tuple[Host, Array]:
        """Ritz values (e, k) and vectors (e, k, n)."""
        if self.found is None:
            return super().wanted()
        values, weights = self.found
        return values, combine(weights, self.basis[:, : weights.shape[2]])

    def renew(self, start: Host) -> None:
        """Go on with `start`, made orthonormal to the basis and without coupling to it."""
        m, b = self.size, start.shape[1]
        self.q = self.basis[:, m : m + b]
        if self._room() < 1:
            return super().renew(start)
        self.basis[:, m : m + b] = from_numpy(unit_rows(start), self.a.like)
        self.fresh, self.given, self.s = -1, start, np.zeros((self.a.batch, m, b))
        return None
