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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastfisher import psd
from fastfisher._device_array import as_array
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._pool import Pool
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError
from fastfisher.factors import Dense
from fastfisher.structures._base import Structure
from fastfisher.structures._kronecker import KEPT, Block, Deferred, along, blocks_of
from fastfisher.structures._rooted import in_range, widened
from fastfisher.structures._split import Solver, split_solve
from fastfisher.structures._weights import weights

__all__ = ["Block", "Kfac", "along", "kfac"]

Host = np.ndarray[Any, Any]

_factors = Pool(limit=KEPT)


@dataclass(eq=False)
class Kfac(Structure):
    """Blocks of all weights; parameters outside of them have a zero block."""

    blocks: Sequence[Block]
    size: int
    dtype: np.dtype[Any]
    weight_sharing: str = "expand"
    _eigen: list[tuple[Host, Host | None, Host, Host]] = field(default_factory=list)
    solvers: dict[tuple[float, str, str], list[Solver]] = field(default_factory=dict)

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
        """``(F + damping I)^-1 v`` by eigenvectors; with a `split` factor by factor.

        ``split="plain"``: (G + damping I)^-1 (x) (A + damping I)^-1; ``"pi"``: sqrt(damping) pi on
        A and sqrt(damping) / pi on G, pi^2 the ratio of their mean eigenvalues.
        """
        if split is not None:
            return split_solve(self, v, damping, split)
        self.check_damping(damping)
        if damping == 0:  # all eigenvalues are positive, and no parameter is left out
            return self.function(lambda w: 1 / np.where(w > 0, w, 1), v)
        return self.function(lambda w: 1 / (w + damping), v)

    def spectrum(self) -> Host:
        """Eigenvalues: products of those of the factors."""
        found = [np.zeros(0)]
        for values_a, _, values_g, _ in self.eigh():
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
        return [np.outer(g, a) for a, _, g, _ in self.eigh()]

    def rotated(self, block: Block, v: Host, *, back: bool = False) -> Host:
        """`v` (o, i, k) in the eigenbasis of a block, or from it."""
        _, q_a, _, q_g = self.eigh()[self.blocks.index(block)]
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

    def check_damping(self, damping: float) -> None:
        """Refuse a singular matrix without damping."""
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

    def eigh(self) -> list[tuple[Host, Host | None, Host, Host]]:
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


def kfac(
    jacobian: Jacobian, scale: float, weight_sharing: str = "expand", *, deferred: bool = False
) -> Kfac:
    """Blocks of ``scale J^T J``; `deferred` ones are made when they are first asked for.

    Those are for rows that nobody changes until then.
    """
    if weight_sharing not in ("expand", "reduce"):
        raise ValueError(f"weight_sharing: expected 'expand' or 'reduce', got {weight_sharing!r}")

    def made() -> list[Block]:
        # What is beyond the range becomes infinite, and is refused.
        with _factors.use_if_none(), np.errstate(over="ignore"):
            return blocks_of(weights(jacobian), scale, weight_sharing)

    first: list[Block] | None = None
    if not deferred and all(map(_shows_range, jacobian.layers)):
        first = made()
    if first is None or not _in_range(first, jacobian, scale):
        if not in_range(jacobian):
            # Squares would leave the range of float32.
            jacobian, first = widened(jacobian), None
        if first is not None:
            _finite(first)
    later = Deferred(lambda: _finite(made()))
    blocks: Sequence[Block] = later if deferred else first or list(later)
    kind = np.dtype(jacobian.layers[0].g.dtype)
    return Kfac(blocks, jacobian.shape[1], kind, weight_sharing)


def _shows_range(layer: Layer) -> bool:
    """Whether the sums of squares on the diagonals of A and G are those of whole arrays."""
    return type(layer) is Dense and all(
        isinstance(x, np.ndarray) and x.size for x in (layer.a, layer.g)
    )


def _in_range(blocks: list[Block], jacobian: Jacobian, scale: float) -> bool:
    """Tell by the diagonals what `in_range` finds in a pass over all arrays; False if unsure."""
    low, high = 1e-30, 1e30
    if scale <= 0:
        return False
    for block, layer in zip(blocks, jacobian.layers, strict=True):
        n, rows = len(layer.a), layer.g.size / layer.out_features
        top_a = float(np.diagonal(block.a)[: layer.in_features].max())
        top_g = float(np.diagonal(block.g).max()) / scale
        # A mean of squares and a sum of squares: the largest one lies between these.
        if not (low < top_a and n * top_a < high and low * rows < top_g < high):
            return False
    return True


def _finite(blocks: list[Block]) -> list[Block]:
    """Blocks whose factors are checked to be finite."""
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
    return blocks
