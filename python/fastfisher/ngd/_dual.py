# SPDX-License-Identifier: Apache-2.0
"""The exact update from the kernel alone: z with ``J^T z = (F + rho I)^-1 J^T e / N``.

Neither the Jacobian nor a vector of parameters is needed, so that the kernel may come from blocks
of samples that were captured one after the other. With S S^T = H, the curvature of the outputs, and
S E = e,

    z = S (S^T K S / N + rho)^-1 E / N,   K = J J^T,

or, where there is no such E, ``z = (H K / N + rho)^-1 e / N`` by LU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher import psd
from fastfisher._device_array import as_array
from fastfisher.errors import NotPositiveDefiniteError, NumericalError
from fastfisher.likelihoods import Gaussian, Likelihood, likelihood_at

Host = np.ndarray[Any, Any]

_SAFE = 0.01
"""Condition number times rounding up to which a Cholesky solution is taken."""
_ROUNDINGS = 64


@dataclass(eq=False)
class Dual:
    """System of sample space for one kernel; solved for any damping without another Gram.

    Attributes
    ----------
    matrix : array, shape (rows, rows)
        ``S^T K S / N`` over `scale`, in the dtype of the solves; without a root ``H K / N``. It may
        be the caller's kernel itself, which is large: it is read only.
    scale : float
        Factor of the matrix, which is not worth a pass over it.
    right : array, shape (rows,)
        ``E / N``; without a root ``e / N``.
    root : array, shape (N, C, R), or None
        S; None stands for the identity over the root of `variance`, or for no root at all.
    symmetric : bool
    """

    matrix: Host
    scale: float
    right: Host
    root: Host | None
    symmetric: bool

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return self.scale * float(np.trace(self.matrix, dtype=np.float64))

    def damping(self, absolute: float, relative: float | None) -> float:
        """Say what goes on the diagonal; a `relative` one is a part of the mean eigenvalue."""
        if relative is None:
            return absolute
        return relative * self.trace / max(1, len(self.matrix))

    def solve(self, rho: float) -> Host:
        """Solve for z (N C,), float64."""
        if self.right.size == 0:
            return np.zeros(len(self.right), like=self.right)
        z = self._symmetric(rho) if self.symmetric else self._by_lu(rho)
        z = z.astype(np.float64)
        if self.root is not None:
            n, _, r = self.root.shape
            z = (self.root @ z.reshape(n, r, 1)).reshape(-1)
        return z

    def _symmetric(self, rho: float) -> Host:
        kind = self.matrix.dtype
        right = (self.right / self.scale).astype(kind)
        found: Any = psd.solve([self.matrix], [right], damping=[rho / self.scale])
        one = found[0]
        if one.status == "ok" and one.condition * float(np.finfo(kind).eps) < _SAFE:
            return as_array(one.value)
        # Rounding may leave eigenvalues below -rho: they count as zero then.
        w, q = np.linalg.eigh(self.matrix.astype(np.float64))
        w = self.scale * w.clip(0)
        top = w.max(initial=0.0)
        if rho <= 0 and (w <= len(w) * float(np.finfo(kind).eps) * top).any():
            raise NotPositiveDefiniteError(
                f"G: singular (smallest eigenvalue {w.min(initial=0.0):.3e}, largest {top:.3e}); "
                "expected damping > 0"
            )
        return as_array(q @ ((q.T @ self.right.astype(np.float64)) / (w + rho)))

    def _by_lu(self, rho: float) -> Host:
        matrix = self.scale * self.matrix.astype(np.float64)
        matrix[np.diag_indices(len(matrix))] += rho
        try:
            z = np.linalg.solve(matrix, self.right.astype(np.float64))
        except np.linalg.LinAlgError:
            z = np.full_like(self.right, np.nan)
        if not np.isfinite(z).all():
            raise NumericalError(
                f"G: singular in sample space with damping {rho:.3g} (its trace is "
                f"{self.trace:.3g}); expected an absolute damping > 0, a smaller learning rate, or "
                "adaptive=True"
            )
        return as_array(z)


def dual_of(
    kernel: Host, e: Host, *, likelihood: Likelihood, outputs: Host | None, dtype: Any
) -> Dual:
    """System for a `kernel` (N C, N C), residuals e (N, C) and outputs f (N, C).

    Matrices are made in the dtype of the kernel and solved in `dtype`.
    """
    n, c = e.shape
    if type(likelihood) is Gaussian:
        # (K / (N variance) + rho)^-1 e / N
        matrix, scale = kernel.astype(dtype, copy=False), 1 / (max(1, n) * likelihood.variance)
        right = e.reshape(-1).astype(np.float64) / max(1, n)
        return Dual(matrix, scale, right, None, symmetric=True)
    if outputs is None:
        raise ValueError("outputs: expected those of the model for this likelihood, got None")
    scale = 1 / max(1, n)
    f, right = as_array(outputs, np.float64), e.astype(np.float64)
    likelihood = likelihood_at(likelihood, f)
    inner = likelihood.unrooted(f, right[:, :, None])
    root = likelihood.root(f)
    error = np.linalg.norm((root @ inner)[:, :, 0] - right, axis=1)
    rounding = float(np.finfo(e.dtype).eps)
    four = kernel.reshape(n, c, n, c)
    if (error > _ROUNDINGS * rounding * np.linalg.norm(right, axis=1)).any():
        h = likelihood.hessian(f)
        matrix = np.einsum("ncd,ndmk->ncmk", h, four, optimize=True).reshape(n * c, n * c)
        return Dual(matrix, scale, right.reshape(-1) * scale, None, symmetric=False)
    few = root.astype(kernel.dtype)
    r = root.shape[2]
    left = np.matmul(few.swapaxes(1, 2), four.reshape(n, c, n * c)).reshape(n * r, n, c)
    both = np.matmul(left.swapaxes(0, 1), few).swapaxes(0, 1).reshape(n * r, n * r)
    matrix = np.add(both, both.T, dtype=dtype)
    return Dual(matrix, 0.5 * scale, inner.reshape(-1) * scale, root, symmetric=True)
