# SPDX-License-Identifier: Apache-2.0
"""What a capture costs in memory, and how samples are cut into blocks to fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastfisher._memory import DEFAULT_MEMORY

_LEAST_WORKSPACE = 1 << 20
_WORTH = 0.75  # gradients are formed for memory if that saves a quarter


@dataclass(frozen=True)
class Cost:
    """Bytes of a sample's factors while they are kept, and of a capture under way.

    `compact` is `factors` if the layers whose gradients are smaller than their factors are kept as
    gradients: convolutions with few channels and many positions.
    """

    factors: float
    capture: float
    compact: float


@dataclass(frozen=True)
class Blocks:
    """Samples of a left block and of a right block, and bytes for the Gram's workspace."""

    left: int
    right: int
    workspace: int
    compact: bool = False


def plan_blocks(n: int, m: int | None, cost: Cost, limit: int, *, may_form: bool = True) -> Blocks:
    """Cut `n` samples, or `n` and `m` of two sets (None: the first meets itself), into blocks.

    Raises
    ------
    MemoryError
        Not even single samples fit.
    """
    samples = n if m is None else n + m
    wanted = max(DEFAULT_MEMORY, int(samples * cost.factors) // 8)
    whole = _cut(n, m, cost.factors, cost.capture, limit, min(wanted, limit // 4))
    fits = whole is not None and whole.left >= n and whole.right >= (n if m is None else m)
    if not fits and may_form and cost.compact < _WORTH * cost.factors:
        # What is kept as gradients needs less room to be multiplied, too.
        work = min(DEFAULT_MEMORY, limit // 8)
        formed = _cut(n, m, cost.compact, cost.capture, limit, work)
        if formed is not None:
            return replace(formed, compact=True)
    if whole is None:
        needed = 2 * (_LEAST_WORKSPACE + cost.capture + 2 * cost.factors)
        raise MemoryError(
            f"memory_limit: {limit} bytes, expected at least {math.ceil(needed)} for two samples "
            "at a time"
        )
    return whole


def _cut(
    n: int, m: int | None, factors: float, capture: float, limit: int, work: int
) -> Blocks | None:
    work = max(work, min(limit // 2, _LEAST_WORKSPACE))
    rest = limit - work - capture
    if (n if m is None else n + m) * factors <= rest:
        return Blocks(n, n if m is None else m, work)
    if m is not None and min(n, m) * factors <= rest / 2:
        # One side stays, the other streams.
        width = int((rest - min(n, m) * factors) // factors)
        return Blocks(n, min(width, m), work) if n <= m else Blocks(min(width, n), m, work)
    width = int(rest // (2 * factors))
    if width < 1:
        return None
    if m is None:
        width = math.ceil(n / math.ceil(n / width))  # blocks of one size
        return Blocks(width, width, work)
    return Blocks(min(width, n), min(width, m), work)
