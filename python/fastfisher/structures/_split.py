# SPDX-License-Identifier: Apache-2.0
"""Solves of a K-FAC matrix with a damping on each factor: ``(G + on_g)^-1 V (A + on_a)^-1``.

By Cholesky factors of both where the damping is large enough to know that nothing is lost. Else by
inverses; where these lose digits the product is refined, and where refinement need not converge the
eigenvectors are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher import psd
from fastfisher._device_array import as_array
from fastfisher._pool import Pool
from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.structures._base import DIGITS, SAFE, refined
from fastfisher.structures._factor import factors, form, has_factors
from fastfisher.structures._kronecker import KEPT, Block, along, split_dampings
from fastfisher.structures._sandwich import SandwichItem, sandwich

if TYPE_CHECKING:
    from fastfisher.structures.kfac import Kfac

Host = np.ndarray[Any, Any]

_memory = Pool(limit=KEPT)

_LOST = 0.3
"""Rounding times condition number from which refinement of a float32 inverse need not converge."""
_ROUGH = 1e-12
"""Rounding times both condition numbers from which a product of inverses is refined."""


@dataclass(frozen=True, slots=True)
class Dampings:
    """What A and G of one block get, where inverses of theirs have lost digits."""

    on_a: float
    on_g: float


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """Cholesky factors of damped A and G of one block."""

    a: Host
    g: Host


Inverses = tuple[Host, Host, Dampings | None]
"""Of A and of G, and what to refine their product with."""

Solver = Inverses | Dampings | Factors
"""What solves with one block."""


def split_solve(structure: Kfac, v: Host, damping: float, split: str) -> Host:
    """``(F + damping)^-1 v`` for v (P, k) with the damping split between the factors."""
    if split not in ("plain", "pi"):
        raise ValueError(f"split: expected None, 'plain' or 'pi', got {split!r}")
    covered = sum(math.prod(block.place.shape) for block in structure.blocks)
    if covered < structure.size and damping == 0:
        structure.check_damping(0.0)
    x = np.empty_like(v) if covered == structure.size else v / v.dtype.type(damping)
    items: list[SandwichItem] = []
    for block, pair in zip(structure.blocks, _solvers(structure, damping, split), strict=True):
        if isinstance(pair, Factors):
            if (item := block.place.sandwich(pair.g, pair.a, v, x)) is not None:
                items.append(item)
            else:
                block.place.put(_by_factors(pair, block.place.take(v)), x)
            continue
        if isinstance(pair, Dampings):
            gain = 1 / _damped_values(structure, block, pair)
            changed = as_array(gain[:, :, None] * structure.rotated(block, block.place.take(v)))
            block.place.put(structure.rotated(block, changed, back=True), x)
            continue
        a, g, dampings = pair
        if dampings is not None:
            block.place.put(_refined(structure, block, a, g, dampings, block.place.take(v)), x)
        elif a.ndim == 2 and (item := block.place.sandwich(g, a, v, x)) is not None:
            items.append(item)
        else:
            block.place.put(along(g, block.times_a(block.place.take(v), a), 0), x)
    sandwich(items)
    return x


def _by_factors(pair: Factors, v: Host) -> Host:
    """``(G + on_g)^-1 V (A + on_a)^-1`` for v (o, i, k)."""
    columns = as_array(np.moveaxis(v, 2, 0))
    found, none = np.empty_like(columns), np.empty(0, v.dtype)
    sandwich(
        [
            SandwichItem(pair.g, one, none, pair.a, out, none)
            for one, out in zip(columns, found, strict=True)
        ]
    )
    return np.moveaxis(found, 0, 2)


def _refined(structure: Kfac, block: Block, a: Host, g: Host, pair: Dampings, v: Host) -> Host:
    """``(G + on_g)^-1 V (A + on_a)^-1`` from inverses of few digits, v (o, i, k)."""
    kind, shape = structure.dtype.type, v.shape

    def product(left: Host, right: Host, y: Host) -> Host:
        inner = y.reshape(shape)
        return as_array(along(left, along(right, inner, 1), 0)).reshape(-1, shape[2])

    def apply(y: Host) -> Host:
        inner = y.reshape(shape)
        inner = block.times_a(inner) + kind(pair.on_a) * inner
        inner = along(block.g, inner, 0) + kind(pair.on_g) * inner
        return as_array(inner).reshape(-1, shape[2])

    found = refined(apply, lambda y: product(g, a, y), v.reshape(-1, shape[2]))
    return found.reshape(shape)


def _damped_values(structure: Kfac, block: Block, pair: Dampings) -> Host:
    """Eigenvalues (o, i) of ``(G + on_g) (x) (A + on_a)``."""
    values_a, _, values_g, _ = structure.eigh()[structure.blocks.index(block)]
    a, g = values_a + structure.dtype.type(pair.on_a), values_g + structure.dtype.type(pair.on_g)
    for which, values in (("activation", a), ("gradient", g)):
        if (values <= 0).any():
            raise NotPositiveDefiniteError(
                f"F, layer {block.name!r}: singular {which} factor; expected damping > 0 that "
                f"does not underflow {structure.dtype}"
            )
    return as_array(np.outer(g, a))


def _solvers(structure: Kfac, damping: float, split: str) -> list[Solver]:
    """Say how to solve with each block; what all need is one call each."""
    key = (damping, split, form())
    solvers = structure.solvers.get(key)
    if solvers is None:
        split_up = [block for block in structure.blocks if not block.exact]
        found_dampings = iter(split_dampings([(b.a, b.g) for b in split_up], damping, split))
        # Of an exact block only A gets one.
        dampings = [(damping, 0.0) if b.exact else next(found_dampings) for b in structure.blocks]
        with _memory.use_if_none():
            found: list[Solver | None] = _both_factors(structure, dampings)
            left = [k for k, one in enumerate(found) if one is None]
            inverses = _both_inverses(
                structure, [structure.blocks[k] for k in left], [dampings[k] for k in left]
            )
        for k, one in zip(left, inverses, strict=True):
            found[k] = one
        solvers = [one for one in found if one is not None]
        structure.solvers = {key: solvers}
    return solvers


def _both_factors(structure: Kfac, dampings: list[tuple[float, float]]) -> list[Solver | None]:
    """Cholesky factors of A and G of each block, in one call; None for a block without.

    Those have only blocks whose damping says that rounding does no harm: a condition number is at
    most the trace over the damping.
    """
    blocks = structure.blocks
    good = [k for k, pair in enumerate(dampings) if _is_safe(structure, blocks[k], pair)]
    matrices = [m for k in good for m in (blocks[k].a, blocks[k].g)]
    added = [damping for k in good for damping in dampings[k]]
    done = factors(matrices, added)
    found: list[Solver | None] = [None] * len(blocks)
    for k, a, g in zip(good, done[::2], done[1::2], strict=True):
        if a is not None and g is not None:
            found[k] = Factors(a, g)
    return found


def _is_safe(structure: Kfac, block: Block, dampings: tuple[float, float]) -> bool:
    if block.exact or block.a.ndim != 2 or not min(dampings) > 0 or not has_factors(block.g):
        return False
    traces = [float(np.trace(m, dtype=np.float64)) for m in (block.a, block.g)]
    conditions = [1 + trace / on for trace, on in zip(traces, dampings, strict=True)]
    return not _are_rough(structure, conditions)


def _both_inverses(
    structure: Kfac, blocks: list[Block], dampings: list[tuple[float, float]]
) -> list[Solver]:
    """Inverses of A and G of each block, all in one call.

    Only the dampings for a block with so little that inverses would lose their digits.
    """
    matrices, added = [], []
    for block, (on_a, on_g) in zip(blocks, dampings, strict=True):
        if block.a.ndim == 2:
            matrices.append(block.a)
            added.append(on_a)
        matrices.append(block.g)
        added.append(on_g)
    found: Any = psd.inverse(matrices, damping=added) if matrices else []
    done = iter(found)
    pairs: list[Solver] = []
    for block, (on_a, on_g) in zip(blocks, dampings, strict=True):
        of_a = next(done) if block.a.ndim == 2 else None
        of_g = next(done)
        if not block.exact and _delicate(structure, of_a, of_g):
            pairs.append(Dampings(on_a, on_g))
            continue
        a = 1 / (block.a + structure.dtype.type(on_a)) if of_a is None else _sound(block, of_a)
        again = not block.exact and _rough(structure, of_a, of_g)
        pairs.append((a, _sound(block, of_g), Dampings(on_a, on_g) if again else None))
    return pairs


def _delicate(structure: Kfac, of_a: Any, of_g: Any) -> bool:
    """Whether an inverse failed for rounding, or both lose their digits in a product.

    In float32 that is left to the factors one by one: products are so in any case.
    """
    known = [one for one in (of_a, of_g) if one is not None]
    eps = float(np.finfo(structure.dtype).eps)
    if any(one.status == "failed" for one in known):
        return True
    conditions = [one.condition for one in known]
    if structure.dtype == np.float64:
        return not math.prod(conditions) * eps < DIGITS
    return not max(conditions) * eps < _LOST


def _rough(structure: Kfac, of_a: Any, of_g: Any) -> bool:
    """Whether the product of both inverses is worth refining."""
    return _are_rough(structure, [one.condition for one in (of_a, of_g) if one is not None])


def _are_rough(structure: Kfac, conditions: list[float]) -> bool:
    eps = float(np.finfo(structure.dtype).eps)
    if structure.dtype == np.float64:
        return not math.prod(conditions) * eps < _ROUGH
    return not max(conditions) * eps < SAFE


def _sound(block: Block, one: Any) -> Host:
    if one.status == "failed":
        raise NotPositiveDefiniteError(
            f"F, layer {block.name!r}: {one.reason}; expected a larger damping"
        )
    return as_array(one.value)
