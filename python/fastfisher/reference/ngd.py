# SPDX-License-Identifier: Apache-2.0
"""Reference of `fastfisher.ngd`: updates by P x P matrices, by definition.

Jacobians (N, C, P), residuals (N, C), matrices of `fastfisher.reference.fisher`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher.reference.fisher import hessian

Array = np.ndarray[Any, np.dtype[np.float64]]


def gradient(jacobian: Array, residual: Array) -> Array:
    """Gradient (P,) of the mean loss."""
    total = np.zeros(jacobian.shape[2])
    for j, e in zip(jacobian, residual, strict=True):
        total += j.T @ e
    return total / len(jacobian)


def update(jacobian: Array, residual: Array, matrix: Array, rho: float) -> Array:
    """``(G + rho I)^-1 J^T e / N``."""
    damped = matrix + rho * np.eye(len(matrix))
    return np.asarray(np.linalg.solve(damped, gradient(jacobian, residual)))


def limit_update(jacobian: Array, residual: Array, matrix: Array, *, rank_tol: float) -> Array:
    """``G^+ J^T e / N``: without damping, for residuals that G can reach."""
    w, q = np.linalg.eigh(matrix)
    keep = np.abs(w) > rank_tol * np.abs(w).max()
    inner = q[:, keep].T @ gradient(jacobian, residual)
    return np.asarray(q[:, keep] @ (inner / w[keep]))


def kfac_update(v: Array, a: Array, b: Array, rho_a: float, rho_b: float) -> Array:
    """``((B + rho_b I) (x) (A + rho_a I))^-1 vec(V)`` for V (o, i), by the whole matrix."""
    o, i = v.shape
    matrix = np.kron(b + rho_b * np.eye(o), a + rho_a * np.eye(i))
    return np.asarray(np.linalg.solve(matrix, v.reshape(-1)).reshape(o, i))


def pi_dampings(a: Array, b: Array, rho: float) -> tuple[float, float]:
    """``sqrt(rho) pi`` for A and ``sqrt(rho) / pi`` for B (Martens and Grosse 2015)."""
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(b) / len(b)))
    return float(np.sqrt(rho) * pi), float(np.sqrt(rho) / pi)


def damped_outputs(jacobian: Array, outputs: Array, likelihood: str, rho: float) -> Array:
    """``G = sum_n J_n^T (H_n + rho I) J_n / N``."""
    total = np.zeros((jacobian.shape[2],) * 2)
    for j, f in zip(jacobian, outputs, strict=True):
        total += j.T @ (hessian(likelihood, f) + rho * np.eye(len(f))) @ j
    return total / len(jacobian)


def dual_change(
    kernel: Array, outputs: Array, likelihood: str, residual: Array, rho: float
) -> Array:
    """``(K / N) (H K / N + rho I)^-1 e`` (N, C) for the kernel K (N C, N C) = J J^T."""
    n, c = residual.shape
    h = np.zeros((n * c, n * c))
    for t in range(n):
        h[t * c : (t + 1) * c, t * c : (t + 1) * c] = hessian(likelihood, outputs[t])
    inner = np.linalg.solve(h @ kernel / n + rho * np.eye(n * c), residual.reshape(-1))
    return np.asarray(kernel @ inner / n).reshape(n, c)
