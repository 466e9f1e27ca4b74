# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients, for all columns of a right-hand side in the same passes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import (
    Array,
    detached,
    device_name,
    from_numpy,
    library,
    namespace,
    to_dtype,
    to_numpy,
)
from fastfisher._numbers import integer, number
from fastfisher.errors import ConvergenceWarning, NonFiniteError, NotPositiveDefiniteError
from fastfisher.linalg._operators import Operator
from fastfisher.linalg._products import inner, product, single

__all__ = ["CgResult", "cg"]

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class CgResult:
    """Solution `x` of `cg`, with the true `residual_norms` relative to b, per column."""

    x: Array
    residual_norms: Host
    converged: Any
    iterations: int


def cg(
    A: Any, b: Array, *, damping: float = 0.0, tol: float = 1e-6, max_iter: int | None = None,
    preconditioner: Callable[[Array], Array] | None = None, n: int | None = None,
) -> CgResult:  # fmt: skip
    """Solve ``(A + damping I) x = b`` by conjugate gradients, all columns in the same passes.

    Parameters
    ----------
    A : as in `eigsh`, not a batch; positive definite with the damping
    b : array, shape (n,) or (n, k)
        On a GPU where A is; a callable takes arrays of its library there (of others numpy's).
    damping : float
        Added to the diagonal.
    tol : float
        Residual norm relative to that of b, for each column.
    max_iter : int, optional
        Passes at most (10 n).
    preconditioner : callable, optional
        Takes residuals (n, k), float64, and returns an approximate solution; numpy's arrays, on a
        GPU those of b's library.
    n : int, optional
        Size of a callable.

    Raises
    ------
    NonFiniteError
        b or a product holds NaN or infinity.
    NotPositiveDefiniteError
        A direction of curvature that is not positive was met.

    Warns
    -----
    ConvergenceWarning
        The tolerance was not reached.

    Examples
    --------
    >>> import numpy as np
    >>> cg(np.diag([1.0, 2.0]), np.array([1.0, 1.0])).x
    array([1. , 0.5])
    """
    a = single(A, n, b)
    columns, one = _right_side(a, b)
    damping, tol = number("damping", damping), number("tol", tol, low=0, below=1)
    max_iter = 10 * a.n if max_iter is None else integer("max_iter", max_iter, least=1)
    if preconditioner is not None and not callable(preconditioner):
        raise TypeError(f"preconditioner: expected a function, got {preconditioner!r}")
    a.beside(damping)
    # Squares of very small or large numbers leave the range of float64.
    largest = np.zeros(columns.shape[1])
    if a.n:
        largest = to_numpy(namespace(columns).amax(abs(columns), 0)).copy()
    largest[largest == 0] = 1.0
    right = columns / from_numpy(largest, columns)
    size = np.sqrt(inner((right.T, right.T))[0])

    def damped(x: Array) -> Array:
        ax = product(a, x.T).T
        half = float(a.scale[0])
        return ax + damping * half * half * x

    def prepared(r: Array) -> Array:
        if preconditioner is None:
            return r
        z = preconditioner(r)
        return z if a.on_device else np.asarray(z)

    # Whatever the scale of the preconditioner, its first result is of order one.
    x = namespace(right).zeros_like(right)
    r, z = right, prepared(right)
    unit = 1.0
    if preconditioner is not None and a.n and right.shape[1]:
        unit = 2.0 ** -math.frexp(float(namespace(z).amax(abs(z))))[1]
    z = z * unit
    p = z
    squares, rz = inner((r.T, r.T), (r.T, z.T))
    done = 0
    while done < max_iter and (np.sqrt(squares) > tol * size).any():
        ap = damped(p)
        curve = inner((p.T, ap.T))[0]
        active = np.sqrt(squares) > tol * size
        if (curve[active] <= 0).any():
            raise NotPositiveDefiniteError(
                f"A: expected A + damping I to be positive definite, got a direction of curvature "
                f"{curve[active].min():.3e}"
            )
        step = from_numpy(np.where(active, rz / np.where(active, curve, 1), 0), x)
        x = x + step * p
        r = r - step * ap
        z = prepared(r) * unit
        squares, new = inner((r.T, r.T), (r.T, z.T))
        p = z + from_numpy(np.where(active, new / np.where(active, rz, 1), 0), x) * p
        rz = new
        done += 1
    rest = right - damped(x)
    final = np.sqrt(inner((rest.T, rest.T))[0]) / np.where(size > 0, size, 1)
    converged = final <= max(tol, 8 * float(np.finfo(a.dtype).eps)) * 1.1
    if not converged.all():
        warnings.warn(
            f"cg: {int((~converged).sum())} of {converged.size} columns did not reach tol = "
            f"{tol:.1e}; the largest residual is {final.max():.1e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    half = float(a.scale[0])
    x = to_dtype(x * half * from_numpy(largest, x) * half, str(a.dtype))
    solution = a.hand_over(x[:, 0] if one else x)
    return CgResult(solution, final, bool(converged[0]) if one else converged, done)


def _right_side(a: Operator, b: Array) -> tuple[Array, bool]:
    """Columns (n, k) in float64 where the operator is, and whether `b` is one vector."""
    where = device_name(a.like)
    if device_name(b) != where or (a.on_device and library(b) != library(a.like)):
        raise TypeError(
            f"b: expected an array of library {library(a.like)} on {where}, got one of "
            f"{library(b)} on {device_name(b)}"
        )
    if a.on_device:
        values = to_dtype(detached(b), "float64")
    else:
        values = np.asarray(to_numpy(b), np.float64)
    shape = tuple(values.shape)
    if len(shape) not in (1, 2) or shape[0] != a.n:
        raise ValueError(f"b: expected shape ({a.n},) or ({a.n}, k), got {shape}")
    if not bool(namespace(values).isfinite(values).all()):
        host = to_numpy(values)
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"b: expected finite numbers, got {host[at]} at index {at}")
    return (values[:, None], True) if len(shape) == 1 else (values, False)
