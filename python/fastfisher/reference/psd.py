# SPDX-License-Identifier: Apache-2.0
"""Reference of `psd`: one matrix at a time, by its eigenvalues or numpy's factorisations."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def psd(
    a: Array, task: str, *, damping: float = 0.0, p: float = 2.0, b: Array | None = None
) -> Any:
    """Give the result of a task on the lower triangle of `a` (n, n) in float64; eigh gives a pair.

    Raises numpy's LinAlgError where the matrix with its damping is not positive definite.
    """
    low = np.tril(a.astype(np.float64))
    full = low + np.tril(low, -1).T + damping * np.eye(len(a))
    if task == "eigh":
        return np.linalg.eigh(full)
    factor = np.linalg.cholesky(full)
    if task == "cholesky":
        return factor
    if task == "inverse_root":
        values, vectors = np.linalg.eigh(full)
        return (vectors * values ** (-1 / p)) @ vectors.T
    right = np.eye(len(a)) if b is None else b.astype(np.float64)
    return np.linalg.solve(factor.T, np.linalg.solve(factor, right))
