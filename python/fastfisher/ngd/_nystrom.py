# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients with a randomised Nystrom preconditioner, from products alone.

For a positive semi-definite K (n, n) and an orthonormal sketch Omega (n, r), with Y = K Omega,
``K ~ Y (Omega^T Y)^+ Y^T = U diag(lambda) U^T``; the preconditioner of K + rho is

    P^-1 = (lambda_r + rho) U (diag(lambda) + rho)^-1 U^T + (I - U U^T)

(Frangella, Tropp and Udell 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher.errors import ConvergenceWarning

Host = np.ndarray[Any, Any]

_SHARE = 10
_LEAST = 10


def nystrom_cg(
    product: Callable[[Host], Host],
    right: Host,
    rho: float,
    *,
    tol: float,
    max_iter: int | None,
    rank: int | None,
    seed: int,
) -> Host:
    """Solve ``(K + rho I) z = right`` for one vector (n,), float64; `product` takes (n, k)."""
    n = len(right)
    if rank is None:
        rank = min(n, max(_LEAST, n // _SHARE))
    if isinstance(rank, bool) or int(rank) != rank or not 0 <= rank <= n:
        raise ValueError(f"rank: expected an integer from 0 to {n}, got {rank!r}")
    if max_iter is not None and (isinstance(max_iter, bool) or max_iter < 1):
        raise ValueError(f"max_iter: expected an integer of at least 1, got {max_iter!r}")
    # Squares of very small or large numbers leave the range of float64.
    size = float(np.abs(right).max(initial=0.0))
    if size == 0:
        return np.zeros(n)
    u, values = _sketch(product, n, int(rank), seed)
    least = float(values[-1]) if len(values) else 0.0

    def precondition(x: Host) -> Host:
        inside = u.T @ x
        return np.asarray(x + u @ (inside * ((least + rho) / (values + rho) - 1)))

    z, r = np.zeros(n), right.astype(np.float64) / size
    goal = tol * float(np.linalg.norm(r))
    limit = 10 * n if max_iter is None else max_iter
    y = precondition(r)
    p, slope = y, float(r @ y)
    for _ in range(limit):
        bent = product(p[:, None])[:, 0] + rho * p
        step = slope / float(p @ bent)
        z, r = z + step * p, r - step * bent
        if float(np.linalg.norm(r)) <= goal:
            return z * size
        y = precondition(r)
        now = float(r @ y)
        p, slope = y + (now / slope) * p, now
    warnings.warn(
        f"nystrom: relative residual {float(np.linalg.norm(r)) / goal * tol:.1e} after {limit} "
        f"iterations, expected {tol:.1e}",
        ConvergenceWarning,
        stacklevel=2,
    )
    return z * size


def _sketch(product: Callable[[Host], Host], n: int, rank: int, seed: int) -> tuple[Host, Host]:
    """Orthonormal U (n, r) and eigenvalues, descending."""
    if rank == 0:
        return np.zeros((n, 0)), np.zeros(0)
    omega, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, rank)))
    y = product(omega)
    # A small shift keeps the Cholesky factor real; it is taken off again.
    shift = np.sqrt(n) * float(np.finfo(np.float64).eps) * float(np.linalg.norm(y))
    y = y + shift * omega
    inner = omega.T @ y
    w, q = np.linalg.eigh(0.5 * (inner + inner.T))
    keep = w > rank * float(np.finfo(np.float64).eps) * w.max(initial=0.0)
    if not keep.any():
        return np.zeros((n, 0)), np.zeros(0)
    u, s, _ = np.linalg.svd(y @ (q[:, keep] / np.sqrt(w[keep])), full_matrices=False)
    return u, (s**2 - shift).clip(0)
