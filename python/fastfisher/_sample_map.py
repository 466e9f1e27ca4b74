# SPDX-License-Identifier: Apache-2.0
"""Output normalisations that couple samples, as linear maps of sample space.

Normalising the outputs of a network over the batch turns its Jacobian J, (N*C) x P, into R J, where
R acts on each output k by itself, through the symmetric N x N matrix

    mean:   R_k = I - 1 1^T / N
    batch:  R_k = (I - 1 1^T / N - z_k z_k^T / N) / s_k

with the normalised outputs z_k and their standard deviation s_k over the batch (biased, 1/N).
Both are ``scale_k (I - B_k B_k^T)`` with one or two orthonormal columns B_k, all that is stored.
The factors of the layers stay those of the plain network: a Gram is R1 K R2^T, nothing runs twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import (
    Array,
    dtype_name,
    empty,
    final,
    from_numpy,
    library,
    namespace,
    to_numpy,
)
from fastfisher._gram_checks import Outputs, check_out

_OUTPUT_AXES: dict[Outputs, tuple[int, ...]] = {"full": (1, 3), "diagonal": (2,)}
_SEPARATE: dict[Outputs, Outputs] = {"trace": "diagonal", "sum": "full"}
"""Form of the plain Gram for maps that do not commute with sums over outputs."""


@dataclass(frozen=True, eq=False, slots=True)
class SampleMap:
    """The map R; `mean` and `batch` make it.

    Parameters
    ----------
    basis : array, shape (c, n, r), or (1, n, r) when all outputs share it
        Orthonormal columns B_k of the directions that are removed.
    scale : array, shape (c, 1, 1) or (1, 1, 1)
        Factor of each output.
    """

    basis: Array
    scale: Array

    @classmethod
    def mean(cls, outputs: Array) -> SampleMap:
        """Map of ``f - mean over samples``, for `outputs` f (n, c)."""
        n = outputs.shape[0]
        basis = np.full((1, n, 1), 1 / math.sqrt(max(n, 1)), dtype_name(outputs))
        return cls(from_numpy(basis, outputs), from_numpy(np.ones_like(basis[:, :1]), outputs))

    @classmethod
    def batch(cls, normalised: Array, deviation: Array) -> SampleMap:
        """Map of ``z = (f - mean) / s``, for `normalised` z (n, c) and `deviation` s (1, c)."""
        xp = namespace(normalised)
        basis = xp.stack([xp.ones_like(normalised), normalised], -1).swapaxes(0, 1)
        return cls(basis / math.sqrt(max(normalised.shape[0], 1)), 1 / deviation.reshape(-1, 1, 1))

    @property
    def shared(self) -> bool:
        """Whether one matrix serves all outputs, so that R commutes with sums over outputs."""
        return bool(self.basis.shape[0] == 1)

    def apply(self, u: Array) -> Array:
        """``R u`` for u (n, c, k). R is symmetric: this is ``R^T u`` too."""
        return _rows(self, u.swapaxes(0, 1), slice(None)).swapaxes(0, 1)


def mapped_gram(
    plain: Callable[[Outputs], Array],
    left: SampleMap | None,
    right: SampleMap | None,
    *,
    outputs: Outputs,
    square: bool,
    out: Array | None = None,
) -> Array:
    """``R1 K R2^T`` in the form `outputs`, where ``plain(form)`` gives the Gram K in any form.

    Notes
    -----
    Rounding errors are relative to the plain Gram, whose large common part is what the maps remove.
    A `square` Gram is symmetric bit for bit with a diagonal >= 0, as the plain one is.
    """
    shared = all(side is None or side.shared for side in (left, right))
    form = outputs if shared else _SEPARATE.get(outputs, outputs)
    raw = plain(form)
    k = _sandwich(raw, left, right, form)
    if form != outputs:
        k = k.sum(-1) if outputs == "trace" else k.sum(-1).sum(1)
    target = (
        empty(tuple(k.shape), raw)
        if out is None
        else check_out(out, tuple(k.shape), raw, dtype_name(raw))
    )
    _store(k, target, square=square, form=outputs)
    return final(target, raw) if out is None else out


def _sandwich(k: Array, left: SampleMap | None, right: SampleMap | None, form: Outputs) -> Array:
    """``R1 K R2^T`` for a Gram `k` of `form`, in its axis order; outputs go in front meanwhile."""
    xp = namespace(k)
    axes = _OUTPUT_AXES.get(form, ())
    front = tuple(range(len(axes)))
    blocks = xp.moveaxis(k, axes, front)
    blocks = _rows(left, blocks, (slice(None), None) if form == "full" else _output(left, form))
    blocks = _rows(right, blocks.swapaxes(-1, -2), _output(right, form)).swapaxes(-1, -2)
    return xp.moveaxis(blocks, front, axes)


def _store(k: Array, target: Array, *, square: bool, form: Outputs) -> None:
    """Write `k` into `target`; of a `square` Gram make it symmetric and its diagonal >= 0."""
    rows = k.shape[0] * (k.shape[1] if form == "full" else 1)
    if square and rows:
        matrix = k.reshape(rows, rows, *(k.shape[2:] if form == "diagonal" else ()))
        k = (0.5 * (matrix + matrix.swapaxes(0, 1))).reshape(k.shape)
    if library(k) != library(target):
        k = from_numpy(to_numpy(k), target)
    target[...] = k
    if square:
        n = np.arange(rows)
        main = (*divmod(n, k.shape[1]), *divmod(n, k.shape[1])) if form == "full" else (n, n)
        target[main] = target[main].clip(0)  # only rounding makes it negative


def _output(side: SampleMap | None, form: Outputs) -> Any:
    """Index of the output axis of a map, for the blocks of `form`."""
    if form in ("full", "diagonal"):
        return slice(None)
    return 0 if side is None or side.shared else form


def _rows(side: SampleMap | None, blocks: Array, index: Any) -> Array:
    """Apply a map to the row axis of `blocks` (..., n, m), its output axis taken at `index`."""
    if side is None:
        return blocks
    basis = side.basis[index]
    return side.scale[index] * (blocks - basis @ (basis.swapaxes(-1, -2) @ blocks))
