# SPDX-License-Identifier: Apache-2.0
"""What every structure of the Fisher matrix offers; vectors as columns.

Arrays are numpy's, or those of a device in numpy's words. There each matrix that is inverted reads
back what its factorisation says of it, and each round of refinement a few truths.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastfisher import psd
from fastfisher._device_array import as_array, contiguous
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError, NumericalError

Host = np.ndarray[Any, Any]

REFINEMENTS = 4
_EPS = float(np.finfo(np.float64).eps)
SAFE = 0.01
"""Condition number times rounding up to which a Cholesky inverse is a good start."""
DIGITS = 1e-4
"""Part of the digits that refinement is sure to win back at each step."""


class Structure:
    """A symmetric matrix of size `size` for vectors of dtype `dtype`.

    A subclass gives `matvec`, `solve` and, where the matrix is positive semi-definite, `spectrum`
    and `function`; the rest follows.
    """

    size: int
    dtype: np.dtype[Any]

    @property
    def like(self) -> Host:
        """Array of the kind that vectors are: of numpy, or on a device."""
        raise NotImplementedError(f"an array like those of structure {self.name!r}")

    def matvec(self, v: Host) -> Host:
        """``F v`` for v (P, k)."""
        raise NotImplementedError

    def solve(self, v: Host, damping: float) -> Host:
        """``(F + damping I)^-1 v`` for v (P, k)."""
        raise NotImplementedError

    def spectrum(self) -> Host:
        """Eigenvalues that may differ from zero, float64, in any order; the others are zero."""
        raise NotImplementedError(f"the eigenvalues of structure {self.name!r}")

    def function(self, f: Any, v: Host) -> Host:
        """``f(F) v`` for v (P, k) and a function of arrays of eigenvalues."""
        raise NotImplementedError(f"functions of structure {self.name!r}")

    def diagonal(self) -> Host:
        """Diagonal (P,)."""
        raise NotImplementedError(f"the diagonal of structure {self.name!r}")

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.spectrum().sum())

    def frobenius_norm(self) -> float:
        """Root of the sum of squares of all entries."""
        values = self.spectrum()
        top = float(abs(values).max(initial=0.0))
        # Squares of very small or large numbers leave the range of float64.
        return top * float(np.linalg.norm(values / top)) if 0 < top < math.inf else top

    def logdet(self, damping: float) -> float:
        """``log det(F + damping I)``."""
        values = self.spectrum()
        rest = self.size - len(values)
        smallest = min(values.min(initial=math.inf), 0.0 if rest else math.inf) + damping
        if smallest <= 0 and self.size:
            return -math.inf if smallest == 0 else math.nan
        return float(np.log(values + damping).sum() + (rest * math.log(damping) if rest else 0.0))

    def effective_dimension(self, damping: float) -> float:
        """``tr F (F + damping I)^-1``."""
        values = self.spectrum()
        return float((values / np.where(values + damping != 0, values + damping, 1)).sum())

    def dense(self) -> Host:
        """Matrix (P, P)."""
        return self.matvec(np.eye(self.size, dtype=self.dtype, like=self.like))

    def scaled(self, factor: float) -> Structure:
        """Structure of `factor` times the matrix."""
        raise NotImplementedError(f"a multiple of structure {self.name!r}")

    @property
    def name(self) -> str:
        """Name of the structure."""
        return type(self).__name__.lower()


def damped_inverses(k: Host, damping: float | Host, what: str) -> Host:
    """Inverses of positive semi-definite matrices (..., n, n) plus ``damping I``, float64.

    `damping` is one number, or one for each matrix.

    Rounding may leave eigenvalues below -damping: they count as zero then.

    Raises
    ------
    NotPositiveDefiniteError
        Singular to rounding, without damping.
    """
    if not np.isfinite(k).all():
        raise NonFiniteError(f"{what}: expected finite numbers, got NaN or infinity in its Gram")
    if k.size == 0:
        return np.zeros_like(k)
    flat = contiguous(k).reshape(-1, *k.shape[-2:])
    added = np.broadcast_to(damping, flat.shape[:1]).tolist()
    found: Any = psd.inverse(flat, damping=added)
    inverses = [
        one.value
        if one.status == "ok" and one.condition * _EPS < SAFE
        else _by_eigenvalues(flat[index], added[index], what)
        for index, one in enumerate(found)
    ]
    return np.stack(inverses).reshape(k.shape)


def _by_eigenvalues(k: Host, damping: float, what: str) -> Host:
    w, q = np.linalg.eigh(k)
    w = w.clip(0)
    top = w.max(initial=0.0)
    if damping <= 0 and (w <= len(w) * _EPS * top).any():
        raise _singular(what, w)
    return as_array((q / (w + damping)) @ q.T)


def _singular(what: str, w: Host) -> NotPositiveDefiniteError:
    return NotPositiveDefiniteError(
        f"{what}: singular (smallest eigenvalue {float(w.min(initial=0.0)):.3e}, largest "
        f"{float(w.max(initial=0.0)):.3e}); expected damping > 0"
    )


def damped_quotient(k: Host, damping: float, v: Host, axis: int, what: str) -> Host:
    """``(K + damping)^-1`` along an axis of v (o, i, k), by eigenvectors, float64.

    No inverse is formed, whose roundings would leave the null space of K where that is divided by a
    tiny damping; eigenvalues that are zero to rounding are zero.
    """
    if k.ndim == 1:
        w, q = k, None
    else:
        w, q = np.linalg.eigh(k)
        w = np.where(w > len(w) * _EPS * w.max(initial=0.0), w, 0.0)
    values = w + damping
    if (values <= 0).any():
        raise _singular(what, w)
    shape = [-1 if axis == n else 1 for n in range(v.ndim)]
    if q is None:
        return as_array(v / values.reshape(shape))
    inside = np.tensordot(q.T, v, (1, axis))  # the axis comes first
    scaled = inside / values.reshape([-1] + [1] * (v.ndim - 1))
    return as_array(np.moveaxis(np.tensordot(q, scaled, (1, 0)), 0, axis))


def amplifies(top: float, damping: float, dtype: Any) -> bool:
    """Whether Woodbury's difference loses its digits: rounding times `top` beside the damping."""
    return top * float(np.finfo(dtype).eps) > DIGITS * damping


def projected(k: Host, damping: float, push: Any, pull: Any, v: Host, scale: float) -> Host:
    """``(scale J^T J + damping I)^-1 v`` for a damping far below the rounding of the matrix.

    With the eigenpairs (w, U) of `k` = scale J J^T the part of v in the range of J^T is divided by
    w + damping and the rest by the damping; that rest is freed from the range again after the
    division, since what rounding left of it there would be blown up.

    Parameters
    ----------
    k : array, shape (..., n, n)
    push, pull : callables
        ``J y`` and ``J^T z``.
    """
    w, q = np.linalg.eigh(k)
    top = w[..., -1:] if w.shape[-1] else w
    keep = w > w.shape[-1] * _EPS * np.maximum(top, 0)
    w = np.where(keep, w, 1.0)[..., None]
    q = np.where(keep[..., None, :], q, 0.0)

    def in_range(y: Host, gain: Host) -> Host:
        c = np.swapaxes(q, -1, -2) @ push(y)
        return as_array(pull(q @ (c * gain)))

    rest = v
    for _ in range(2):
        rest = rest - in_range(rest, scale / w)
    rest = rest / damping
    for _ in range(2):
        rest = rest - in_range(rest, scale / w)
    return as_array(rest + in_range(v, scale / (w * (w + damping))))


def refined(apply: Any, approximate: Any, v: Host) -> Host:
    """Solve ``apply(x) = v``, v (..., n, k), from an `approximate` inverse, by refinement.

    Each step multiplies the residual by the error of the inverse; it stops where that no longer
    helps.
    """
    x = approximate(v)
    r = v - apply(x)
    size = np.linalg.norm(r, axis=-2)
    for _ in range(REFINEMENTS):
        if not size.any():
            break
        better = x + approximate(r)
        rest = v - apply(better)
        now = np.linalg.norm(rest, axis=-2)
        if not np.isfinite(now).all():
            break
        # Column by column: keep what is better.
        keep = (now < size)[..., None, :]
        x, r = np.where(keep, better, x), np.where(keep, rest, r)
        done = not (now < 0.5 * size).any()
        size = np.minimum(now, size)
        if done:
            break
    if not np.isfinite(x).all():
        raise NumericalError(f"solve: the solution overflows dtype {v.dtype}; raise the damping")
    return as_array(x)
