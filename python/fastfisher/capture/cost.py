# SPDX-License-Identifier: Apache-2.0
"""What a capture costs in memory, and how samples are cut into blocks to fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastfisher._memory import DEFAULT_MEMORY

_LEAST_WORKSPACE = 1 << 20
_WORTH = 0.75  # gradients are formed for memory if that saves a quarter


_PIECE_BYTES = 30 << 20  # of autograd's arrays: about what the cache holds
_PIECE_FACTORS = 48 << 20
_DEVICE_PIECE_BYTES = 4 << 30  # a GPU has work enough, and launches cost
LEAST_PIECE = 8


@dataclass(frozen=True)
class Cost:
    """Bytes of a sample: its factors while they are kept, and its capture under way.

    `compact` is `factors` if the layers whose gradients are smaller than their factors are kept as
    gradients: convolutions with few channels and many positions.
    """

    factors: float
    capture: float
    compact: float
    on_device: bool = False

    def most(self, other: Cost) -> Cost:
        """Return the larger one of each."""
        return Cost(
            max(self.factors, other.factors),
            max(self.capture, other.capture),
            max(self.compact, other.compact),
            self.on_device or other.on_device,
        )

    @property
    def piece(self) -> int:
        """Samples to capture at a time, by the bytes of their factors and of all that is made."""
        if self.on_device:
            return max(LEAST_PIECE, int(_DEVICE_PIECE_BYTES // max(self.factors, 1.0)))
        made = self.capture - self.factors
        few = min(_PIECE_FACTORS // max(self.factors, 1.0), _PIECE_BYTES // max(made, 1.0))
        return max(LEAST_PIECE, int(few))


@dataclass(frozen=True)
class Blocks:
    """Samples of a left block, of a right block and of one capture; bytes of the Gram's workspace.

    With `compact` layers are kept as gradients where these are smaller than their factors.
    """

    left: int
    right: int
    workspace: int
    piece: int
    compact: bool = False

    def within(self, other: Blocks) -> bool:
        """Whether these take no more memory than `other`."""
        return (
            self.left <= other.left
            and self.right <= other.right
            and self.piece <= other.piece
            and self.compact >= other.compact
        )


def plan_blocks(n: int, m: int | None, cost: Cost, limit: int, *, may_form: bool = True) -> Blocks:
    """Cut `n` samples, or `n` and `m` of two sets (None: the first meets itself), into blocks.

    Raises
    ------
    MemoryError
        Not even single samples fit.
    """
    samples = n if m is None else n + m
    piece = max(1, min(cost.piece, int(limit / 4 / max(cost.capture, 1.0))))
    wanted = max(DEFAULT_MEMORY, int(samples * cost.factors) // 8)
    work = min(wanted, limit // 4)
    whole = _widest(n, m, cost, cost.factors, piece, limit, work)
    if not _holds(whole, n, m) and may_form and cost.compact < _WORTH * cost.factors:
        # What is kept as gradients needs less room to be multiplied, too.
        work = min(DEFAULT_MEMORY, limit // 8)
        formed = _widest(n, m, cost, cost.compact, piece, limit, work)
        if formed is not None:
            return replace(formed, compact=True)
    if whole is None:
        raise _too_little(limit, cost.capture + 2 * cost.factors)
    return whole


def plan_at_once(n: int, m: int | None, cost: Cost, limit: int) -> Blocks:
    """Blocks that are not captured in pieces: what autograd keeps of one fits, beside another.

    Raises
    ------
    MemoryError
        Not even single samples fit.
    """
    work = min(max(DEFAULT_MEMORY, (n + (m or 0)) * int(cost.factors) // 8), limit // 4)
    rest = limit - max(work, min(limit // 2, _LEAST_WORKSPACE))
    both = max(cost.capture + cost.factors, 1.0)
    least, most = (0, n) if m is None else (min(n, m), max(n, m))
    if least * cost.factors + most * cost.capture > rest:
        most = int(rest // both)
        if most < 1:
            raise _too_little(limit, both)
    left, right = min(n, most), min(n if m is None else m, most)
    return Blocks(left, right, limit - rest, max(left, right))


def _too_little(limit: int, captured: float) -> MemoryError:
    # Half of a small limit is workspace, of a large one a quarter.
    needed = 2 * captured
    if captured > _LEAST_WORKSPACE:
        needed = max(needed, captured + _LEAST_WORKSPACE, 4 * captured / 3)
    return MemoryError(
        f"memory_limit: {limit} bytes, expected at least {math.ceil(needed)} for two samples at a "
        "time"
    )


def _widest(
    n: int, m: int | None, cost: Cost, factors: float, piece: int, limit: int, work: int
) -> Blocks | None:
    """Blocks of all samples, with smaller pieces where that spares a second capture.

    Else those with the pieces that were wanted, or the largest ones that leave room for blocks.
    """
    found: Blocks | None = None
    for width in dict.fromkeys((piece, min(piece, LEAST_PIECE), min(piece, LEAST_PIECE // 2))):
        blocks = _cut(n, m, cost, factors, width, limit, work)
        if _holds(blocks, n, m):
            return blocks
        found = found or blocks
    return found


def _holds(blocks: Blocks | None, n: int, m: int | None) -> bool:
    """Whether one block of each side has all samples."""
    return blocks is not None and blocks.left >= n and blocks.right >= (n if m is None else m)


def _cut(
    n: int, m: int | None, cost: Cost, factors: float, piece: int, limit: int, work: int
) -> Blocks | None:
    work = max(work, min(limit // 2, _LEAST_WORKSPACE))
    rest = limit - work - piece * cost.capture
    if (n if m is None else n + m) * factors <= rest:
        return Blocks(n, n if m is None else m, work, piece)
    if m is not None and min(n, m) * factors <= rest / 2:
        # One side stays, the other streams.
        width = int((rest - min(n, m) * factors) // factors)
        left, right = (n, min(width, m)) if n <= m else (min(width, n), m)
        return Blocks(left, right, work, piece)
    width = int(rest // (2 * factors))
    if width < 1:
        return None
    if m is None:
        width = math.ceil(n / math.ceil(n / width))  # blocks of one size
        return Blocks(width, width, work, piece)
    return Blocks(min(width, n), min(width, m), work, piece)
