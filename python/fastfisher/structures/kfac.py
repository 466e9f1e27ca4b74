# SPDX-License-Identifier: Apache-2.0
"""Kronecker-factored Fisher matrix: one block ``G (x) A`` a layer (Martens and Grosse 2015).

    A = mean over samples and positions of a a^T          G = scale * sum of g g^T

With `weight_sharing` "expand" every position counts as a sample of its own (Eschenhagen et al.
2023), with "reduce" the inputs of a sample are averaged over positions first and its cotangents
summed. Parameters row-major from W (o, i), so that ``(G (x) A) vec(V) = vec(G V A)``.

Parameters whose gradients are no products get an exact block up to 1,024 of them, else its
diagonal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastfisher import psd
from fastfisher._device_array import as_array
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError
from fastfisher.structures._base import DIGITS, SAFE, Structure, refined
from fastfisher.structures._kronecker import Block, along, blocks_of, split_dampings
from fastfisher.structures._weights import weights

__all__ = ["Block", "Kfac", "along", "kfac"]

Host = np.ndarray[Any, Any]


_LOST = 0.3
"""Rounding times condition number from which refinement of a float32 inverse need not converge."""
_ROUGH = 1e-12
"""Rounding times both condition numbers from which a product of inverses is refined."""


@dataclass(frozen=True, slots=True)
class Dampings:
    """What A and G of one block get, where inverses of theirs have lost digits."""

    on_a: float
    on_g: float


Inverses = tuple[Host, Host, Dampings | None]
"""Of A and of G, and what to refine their product with."""


@dataclass(eq=False)
class Kfac(Structure):
    """Blocks of all weights; parameters outside of them have a zero block."""

    blocks: list[Block]
    size: int
    dtype: np.dtype[Any]
    weight_sharing: str = "expand"
    _eigen: list[tuple[Host, Host | None, Host, Host]] = field(default_factory=list)
    _inverses: dict[tuple[float, str], list[Inverses | Dampings]] = field(default_factory=dict)

    @property
    def like(self) -> Host:
        """Array like vectors."""
        return self.blocks[0].g if self.blocks else np.zeros(0)

    def matvec(self, v: Host) -> Host:
        """``F v``."""
        result = np.zeros_like(v)
        for block in self.blocks:
            block.place.put(along(block.g, block.times_a(block.place.take(v)), 0), result)
        return result

    def solve(self, v: Host, damping: float, split: str | None = None) -> Host:
        """``(F + damping I)^-1 v`` by eigenvectors; with a `split` by inverses of both factors.

        ``split="plain"``: (G + damping I)^-1 (x) (A + damping I)^-1; ``"pi"``: sqrt(damping) pi on
        A and sqrt(damping) / pi on G, pi^2 the ratio of their mean eigenvalues.
        """
        if split is not None:
            return self._split_solve(v, damping, split)
        self._check_damping(damping)
        if damping == 0:  # all eigenvalues are positive, and no parameter is left out
            return self.function(lambda w: 1 / np.where(w > 0, w, 1), v)
        return self.function(lambda w: 1 / (w + damping), v)

    def spectrum(self) -> Host:
        """Eigenvalues: products of those of the factors."""
        found = [np.zeros(0)]
        for values_a, _, values_g, _ in self._eigh():
            found.append(np.outer(values_g, values_a).reshape(-1))
        return np.concatenate(found)

    def function(self, f: Any, v: Host) -> Host:
        """``f(F) v`` in the eigenbasis of the factors."""
        x = as_array(f(np.zeros(1)) * v, v.dtype)
        for block, values in zip(self.blocks, self.eigenvalues(), strict=True):
            inside = self.rotated(block, block.place.take(v))
            changed = as_array(f(values)[:, :, None] * inside, v.dtype)
            block.place.put(self.rotated(block, changed, back=True), x)
        return x

    def eigenvalues(self) -> list[Host]:
        """Eigenvalues (o, i) of each block in its eigenbasis."""
        return [np.outer(g, a) for a, _, g, _ in self._eigh()]

    def rotated(self, block: Block, v: Host, *, back: bool = False) -> Host:
        """`v` (o, i, k) in the eigenbasis of a block, or from it."""
        _, q_a, _, q_g = self._eigh()[self.blocks.index(block)]
        if q_a is not None:
            v = along(q_a if back else q_a.T, v, 1)
        return along(q_g if back else q_g.T, v, 0)

    def diagonal(self) -> Host:
        """Diagonal (P,)."""
        result = np.zeros(self.size, self.dtype, like=self.like)
        for block in self.blocks:
            a = block.a if block.a.ndim == 1 else np.diagonal(block.a)
            result[block.columns] = np.outer(np.diagonal(block.g), a)
        return result

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.diagonal().astype(np.float64).sum())

    def scaled(self, factor: float) -> Kfac:
        """Structure of `factor` times the matrix."""
        blocks = []
        for block in self.blocks:
            kind = block.g.dtype.type
            if block.exact:
                blocks.append(replace(block, a=block.a * kind(factor)))
            else:
                blocks.append(replace(block, g=block.g * kind(factor)))
        return Kfac(blocks, self.size, self.dtype, self.weight_sharing)

    def with_samples_of(self, other: Kfac) -> Kfac:
        """Sum with the matrix of other samples; of A the mean over all vectors."""
        mine = [(b.name, b.place.shape, b.a.shape) for b in self.blocks]
        theirs = [(b.name, b.place.shape, b.a.shape) for b in other.blocks]
        if mine != theirs:
            raise ValueError(f"x: the layers of the batches differ: {mine}, then {theirs}")
        blocks = []
        for b, c in zip(self.blocks, other.blocks, strict=True):
            if b.exact:
                blocks.append(replace(b, a=b.a + c.a))
                continue
            kind = b.a.dtype.type
            count = b.count + c.count
            share = c.count / max(1, count)
            a = b.a * kind(1 - share) + c.a * kind(share)
            blocks.append(replace(b, a=a, g=b.g + c.g, count=count))
        return Kfac(blocks, self.size, self.dtype, self.weight_sharing)

    def _check_damping(self, damping: float) -> None:
        if damping > 0:
            return
        values = self.spectrum()
        smallest = values.min(initial=math.inf) if len(values) == self.size else 0.0
        limit = float(np.finfo(self.dtype).eps) * values.max(initial=0.0)
        if self.size and smallest <= limit:
            raise NotPositiveDefiniteError(
                f"F: structure {self.name!r} is singular (smallest eigenvalue {smallest:.3e}); "
                "expected damping > 0"
            )

    def _split_solve(self, v: Host, damping: float, split: str) -> Host:
        if split not in ("plain", "pi"):
            raise ValueError(f"split: expected None, 'plain' or 'pi', got {split!r}")
        covered = sum(math.prod(block.place.shape) for block in self.blocks)
        if covered < self.size and damping == 0:
            self._check_damping(0.0)
        x = np.empty_like(v) if covered == self.size else v / v.dtype.type(damping)
        most = max((math.prod(block.place.shape) for block in self.blocks), default=0)
        memory = np.empty(most, v.dtype, like=v)
        inverses = self._both_inverses(damping, split)
        for block, pair in zip(self.blocks, inverses, strict=True):
            if isinstance(pair, Dampings):
                gain = 1 / self._damped_values(block, pair)
                changed = as_array(gain[:, :, None] * self.rotated(block, block.place.take(v)))
                block.place.put(self.rotated(block, changed, back=True), x)
                continue
            a, g, dampings = pair
            if dampings is not None:
                block.place.put(self._refined(block, a, g, dampings, block.place.take(v)), x)
            elif not block.place.sandwich(g, a, v, x, memory):
                block.place.put(along(g, block.times_a(block.place.take(v), a), 0), x)
        return x

    def _refined(self, block: Block, a: Host, g: Host, pair: Dampings, v: Host) -> Host:
        """``(G + on_g)^-1 V (A + on_a)^-1`` from inverses of few digits, v (o, i, k)."""
        kind, shape = self.dtype.type, v.shape

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

    def _damped_values(self, block: Block, pair: Dampings) -> Host:
        """Eigenvalues (o, i) of ``(G + on_g) (x) (A + on_a)``."""
        values_a, _, values_g, _ = self._eigh()[self.blocks.index(block)]
        a, g = values_a + self.dtype.type(pair.on_a), values_g + self.dtype.type(pair.on_g)
        for which, values in (("activation", a), ("gradient", g)):
            if (values <= 0).any():
                raise NotPositiveDefiniteError(
                    f"F, layer {block.name!r}: singular {which} factor; expected damping > 0 that "
                    f"does not underflow {self.dtype}"
                )
        return as_array(np.outer(g, a))

    def _both_inverses(self, damping: float, split: str) -> list[Inverses | Dampings]:
        """Inverses of A and G of each block, all in one call.

        Only the dampings for a block with so little that inverses would lose their digits.
        """
        key = (damping, split)
        if key not in self._inverses:
            matrices, added = [], []
            split_up = [block for block in self.blocks if not block.exact]
            found_dampings = iter(split_dampings([(b.a, b.g) for b in split_up], damping, split))
            # Of an exact block only A gets one.
            dampings = [(damping, 0.0) if b.exact else next(found_dampings) for b in self.blocks]
            for block, (on_a, on_g) in zip(self.blocks, dampings, strict=True):
                if block.a.ndim == 2:
                    matrices.append(block.a)
                    added.append(on_a)
                matrices.append(block.g)
                added.append(on_g)
            found: Any = psd.inverse(matrices, damping=added)
            done = iter(found)
            pairs: list[Inverses | Dampings] = []
            for block, (on_a, on_g) in zip(self.blocks, dampings, strict=True):
                of_a = next(done) if block.a.ndim == 2 else None
                of_g = next(done)
                if not block.exact and self._delicate(of_a, of_g):
                    pairs.append(Dampings(on_a, on_g))
                    continue
                if of_a is None:
                    a = 1 / (block.a + self.dtype.type(on_a))
                else:
                    a = self._sound(block, of_a)
                again = not block.exact and self._rough(of_a, of_g)
                pairs.append((a, self._sound(block, of_g), Dampings(on_a, on_g) if again else None))
            self._inverses.clear()
            self._inverses[key] = pairs
        return self._inverses[key]

    def _delicate(self, of_a: Any, of_g: Any) -> bool:
        """Whether an inverse failed for rounding, or both lose their digits in a product.

        In float32 that is left to the factors one by one: products are so in any case.
        """
        known = [one for one in (of_a, of_g) if one is not None]
        eps = float(np.finfo(self.dtype).eps)
        if any(one.status == "failed" for one in known):
            return True
        conditions = [one.condition for one in known]
        if self.dtype == np.float64:
            return not math.prod(conditions) * eps < DIGITS
        return not max(conditions) * eps < _LOST

    def _rough(self, of_a: Any, of_g: Any) -> bool:
        """Whether the product of both inverses is worth refining."""
        conditions = [one.condition for one in (of_a, of_g) if one is not None]
        eps = float(np.finfo(self.dtype).eps)
        if self.dtype == np.float64:
            return not math.prod(conditions) * eps < _ROUGH
        return not max(conditions) * eps < SAFE

    def _sound(self, block: Block, one: Any) -> Host:
        if one.status == "failed":
            raise NotPositiveDefiniteError(
                f"F, layer {block.name!r}: {one.reason}; expected a larger damping"
            )
        return as_array(one.value)

    def _eigh(self) -> list[tuple[Host, Host | None, Host, Host]]:
        """Eigenvalues and eigenvectors of A and of G, of each block."""
        if not self._eigen and self.blocks:
            matrices = [m for block in self.blocks for m in (block.a, block.g) if m.ndim == 2]
            found: Any = psd.eigh(matrices)
            done = iter(found)
            for block in self.blocks:
                a: tuple[Host, Host | None] = (block.a, None)
                if block.a.ndim == 2:
                    one = next(done)
                    a = (_sound_values(one.values), one.vectors)
                other = next(done)
                self._eigen.append((*a, _sound_values(other.values), other.vectors))
        return self._eigen


def _sound_values(w: Host) -> Host:
    """Eigenvalues of a sum of squares: what is zero to rounding is zero."""
    return np.where(w > len(w) * np.finfo(w.dtype).eps * w.max(initial=0.0), w, 0)


def kfac(jacobian: Jacobian, scale: float, weight_sharing: str = "expand") -> Kfac:
    """Blocks of ``scale J^T J``."""
    if weight_sharing not in ("expand", "reduce"):
        raise ValueError(f"weight_sharing: expected 'expand' or 'reduce', got {weight_sharing!r}")
    blocks = blocks_of(weights(jacobian), scale, weight_sharing)
    named = [
        (block, which, factor)
        for block in blocks
        for which, factor in (("activation", block.a), ("gradient", block.g))
    ]
    # Sums of squares: an input that is not finite shows on the diagonal.
    flags = [np.isfinite(f if f.ndim == 1 else np.diagonal(f)).all() for _, _, f in named]
    if flags:
        for (block, which, _), fine in zip(named, np.stack(flags).tolist(), strict=True):
            if not fine:
                raise NonFiniteError(
                    f"layer {block.name!r}: expected finite numbers, got NaN or infinity in its "
                    f"{which} factor"
                )
    kind = np.dtype(jacobian.layers[0].g.dtype)
    return Kfac(blocks, jacobian.shape[1], kind, weight_sharing)
