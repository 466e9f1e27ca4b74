# SPDX-License-Identifier: Apache-2.0
"""Symmetric matrices: checks, eigenpairs, and division that refuses singular ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.theory._checks import ASYMMETRY, Floats, array, number, on_cpu, symmetric

__all__ = ["eigenpairs", "kernel_matrix", "over", "regular", "rounding", "targets_of"]


def kernel_matrix(name: str, matrix: ArrayLike, jitter: float, *, noise: float = 0.0) -> Floats:
    """Kernel with noise, and jitter times its mean eigenvalue, added to the diagonal."""
    kernel = symmetric(name, matrix)
    number("jitter", jitter, least=0)
    index = np.diag_indices(len(kernel))
    kernel[index] += noise + jitter * np.trace(kernel) / len(kernel)
    return kernel


def eigenpairs(name: str, matrix: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues and vectors of a positive semi-definite matrix; rounding below 0 becomes 0."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -max(rounding(values), ASYMMETRY * values[-1]):
        raise NotPositiveDefiniteError(
            f"{name}: expected a positive semi-definite matrix, got an eigenvalue {values[0]:.3g} "
            f"beside {values[-1]:.3g}"
        )
    return values.clip(0), vectors


def rounding(values: Floats) -> float:
    """Size below which an eigenvalue is not known to differ from zero."""
    return float(len(values) * np.finfo(np.float64).eps * np.abs(values).max())


def regular(name: str, values: Floats, remedy: str) -> None:
    """Require eigenvalues above rounding."""
    if values.min() <= rounding(values):
        raise NotPositiveDefiniteError(
            f"{name}: singular, eigenvalues from {values.min():.3g} to {values.max():.3g}; "
            f"expected {remedy}"
        )


def over(
    name: str, p: Floats, q: Floats, remedy: str = "samples that are not parallel, or damping"
) -> Floats:
    """``P Q^{-1}`` of a positive definite Q."""
    values, vectors = eigenpairs(name, q)
    regular(name, values, remedy)
    quotient: Floats = ((p @ vectors) / values) @ vectors.T
    return quotient


def targets_of(name: str, y: ArrayLike, n: int) -> Floats:
    """Require (n,) or (n, C)."""
    on_cpu(name, y)
    values = np.asarray(y)
    checked = array(name, values, rank=1 if values.ndim == 1 else 2)
    if checked.shape[0] != n:
        raise ValueError(f"{name}: expected shape ({n},) or ({n}, C), got {checked.shape}")
    return checked
