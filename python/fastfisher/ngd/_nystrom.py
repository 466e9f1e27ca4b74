# SPDX-License-Identifier: Apache-2.0
"""Randomised Nystrom preconditioner of conjugate gradients, from products alone.

For a positive semi-definite K (n, n) and an orthonormal sketch Omega (n, r), with Y = K Omega,
``K ~ Y (Omega^T Y)^+ Y^T = U diag(lambda) U^T``; the preconditioner of K + rho is

    P^-1 = (lambda_r + rho) U (diag(lambda) + rho)^-1 U^T + (I - U U^T)

(Frangella, Tropp and Udell 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher._device_array import as_array

Host = np.ndarray[Any, Any]

_SHARE = 10
_LEAST = 10


def nystrom(
    product: Callable[[Host], Host],
    n: int,
    rho: float,
    *,
    rank: int | None,
    seed: int,
    like: Host | None = None,
) -> Callable[[Host], Host]:
    """Preconditioner of ``K + rho I`` for vectors (n, k), by default numpy's, else like `like`.

    `product` takes such vectors to K.
    """
    if rank is None:
        rank = min(n, max(_LEAST, n // _SHARE))
    if isinstance(rank, bool) or int(rank) != rank or not 0 <= rank <= n:
        raise ValueError(f"rank: expected an integer from 0 to {n}, got {rank!r}")
    u, values = _sketch(product, n, int(rank), seed, np.zeros(0) if like is None else like)
    least = float(values[-1]) if len(values) else 0.0
    weights = (least + rho) / (values + rho) - 1

    def precondition(x: Host) -> Host:
        return as_array(x + u @ (weights[:, None] * (u.T @ x)))

    return precondition


def _sketch(
    product: Callable[[Host], Host], n: int, rank: int, seed: int, like: Host
) -> tuple[Host, Host]:
    """Orthonormal U (n, r) and eigenvalues, descending."""
    if rank == 0:
        return np.zeros((n, 0), like=like), np.zeros(0, like=like)
    omega, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, rank)))
    omega = np.asarray(omega, like=like)
    y = product(omega)
    # A small shift keeps the Cholesky factor real; it is taken off again.
    shift = np.sqrt(n) * float(np.finfo(np.float64).eps) * float(np.linalg.norm(y))
    y = y + shift * omega
    inner = omega.T @ y
    w, q = np.linalg.eigh(0.5 * (inner + inner.T))
    keep = w > rank * float(np.finfo(np.float64).eps) * w.max(initial=0.0)
    if not keep.any():
        return np.zeros((n, 0), like=like), np.zeros(0, like=like)
    u, s, _ = np.linalg.svd(y @ (q[:, keep] / np.sqrt(w[keep])), full_matrices=False)
    return u, (s**2 - shift).clip(0)
