# SPDX-License-Identifier: Apache-2.0
"""Some eigenpairs of a symmetric matrix or operator, each with its residual norm."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import Array, device_name, eigh, from_numpy, to_dtype, to_numpy
from fastfisher._numbers import integer, number
from fastfisher.errors import ConvergenceWarning, NonFiniteError, NumericalError
from fastfisher.linalg._lanczos import Found, Which, lanczos, ordered, preferred
from fastfisher.linalg._operators import Dense, Operator, operator
from fastfisher.linalg._panels import picked, row_dots

__all__ = ["EigshResult", "eigsh"]

# Up to this size a dense matrix is reduced, unless the caller speaks of iterations: those win
# earlier on spectra that fall off fast, and far later on others.
_REDUCED = 900
# Up to this one it is reduced whatever the caller says.
_SMALL = 500
# Up to these ones that is what remains if the iteration does not converge, or may have missed a
# copy of an eigenvalue.
_LARGE = 3000
_CERTIFIED = 1500
# More pairs than that are taken from a decomposition of the whole.
_FEW = 128


@dataclass(frozen=True, eq=False, slots=True)
class EigshResult:
    """Eigenpairs found by `eigsh`; for a batch every array has a leading axis b.

    Attributes
    ----------
    values : array, shape (k,)
        Eigenvalues: descending for "LA", "LM" (by magnitude) and "BE", ascending for "SA".
    vectors : array, shape (n, k)
        Orthonormal eigenvectors as columns.
    residual_norms : array, shape (k,)
        ``|A v - value v|`` of each, from a product made for that purpose; of a Fisher matrix's
        outliers upper bounds of it.
    converged : bool array, shape (k,)
        Whether that reached the tolerance.
    certified : bool, for a batch a bool array (b,)
        False if a copy of a repeated or clustered eigenvalue may have been missed.
    matvecs : int
        Products with a vector, of each matrix.
    """

    values: Array
    vectors: Array
    residual_norms: Array
    converged: Any
    certified: Any
    matvecs: int


def eigsh(
    A: Any,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 0,
    max_iter: int | None = None,
    block: int | None = None,
    v0: Array | None = None,
    seed: int = 0,
    n: int | None = None,
    dtype: str | None = None,
    like: Array | None = None,
) -> EigshResult:
    """Find `k` eigenpairs of a symmetric matrix by block Lanczos with thick restart.

    Parameters
    ----------
    A : array (n, n) or (b, n, n), float32 | float64, Jacobian, scipy LinearOperator or callable
        A Jacobian stands for the smaller of ``J J^T`` and ``J^T J``,
        which have the same non-zero eigenvalues. A callable takes (n, k) and returns A times that.
        On the CPU or a GPU; vectors and results stay where A is.
    k : int
        Number of eigenpairs; all n are returned if it is larger.
    which : "LA" | "SA" | "LM" | "BE"
        Largest, smallest, largest magnitude, or both ends, the high one with the odd pair.
    tol : float
        Residual norm relative to the norm of A; 0 means the rounding unit of the dtype.
    max_iter : int, optional
        Passes over the matrix at most, a block of vectors each; more only where k vectors take
        them.
    block : int, optional
        Vectors a pass.
    v0 : array, shape (n,) or (n, j), optional
        Start vectors.
    seed : int
        Of the other start vectors and of the probes.
    n, dtype : int, str, optional
        Size of a callable, and dtype of its vectors ("float64").
    like : array, optional
        On a GPU: a callable takes and returns arrays of its library there (else numpy's, or those
        of `v0` if that is on a GPU).

    Returns
    -------
    EigshResult
        In the library of A, values and vectors in its dtype.

    Warns
    -----
    ConvergenceWarning
        The tolerance was not reached; the pairs are the best so far.

    Raises
    ------
    NonFiniteError
        An entry or a product is NaN or infinite.
    NumericalError
        An eigenvalue overflows the dtype.
    ValueError, TypeError
        A is not symmetric (the message names an entry), or an argument does not fit.

    Notes
    -----
    Dense matrices of up to 900 rows (500 if `max_iter` or `block` is given) are reduced to
    tridiagonal form, a matrix a thread, which finds every copy of an eigenvalue. Others are
    iterated on: one triangle of a matrix is read, once for a block of vectors, projected problems
    are solved in float64, and random blocks orthogonal to what was found look for missed copies;
    up to 1500 rows, a reduction follows if they may have missed one. The result is the same bits
    for any number of threads.

    On a GPU the same iteration runs with its vectors there. Passes over dense matrices, in blocks
    of up to 8 vectors, are queued as many at a time as can be told ahead, at times some too many,
    which `matvecs` and `max_iter` count; random vectors are drawn there. Of a callable each pass
    reads a few small matrices back, mostly twice, and once more to check its products. Reductions,
    of batches too, are the decompositions of the caller's library, in float64.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.linalg.eigsh(np.diag([1.0, 3.0, 2.0]), 2).values
    array([3., 2.])
    """
    a = operator(A, n, dtype, v0 if like is None else like)
    if which not in ("LA", "SA", "LM", "BE"):
        raise ValueError(f"which: expected 'LA', 'SA', 'LM' or 'BE', got {which!r}")
    k = integer("k", k, least=0)
    max_iter = None if max_iter is None else integer("max_iter", max_iter, least=1)
    block = None if block is None else integer("block", block, least=1)
    tol, seed = number("tol", tol, low=0, below=1), integer("seed", seed, least=0)
    start = _start(v0, a)
    k = min(k, a.n)
    width = block or (8 if a.batch == 1 else 4)
    eps = float(np.finfo(a.dtype).eps)
    dense = isinstance(a, Dense)
    small = (_SMALL if max_iter or block else _REDUCED) if dense else 96
    if k == 0 or a.batch == 0 or a.n <= max(small, 2 * (2 * k + 14 * width)):
        found = _at_once(a, k, which)
    else:
        found = lanczos(
            a,
            k,
            which,
            tol=tol or eps,
            max_iter=max_iter or _passes(a, width),
            block=width,
            start=start,
            seed=seed,
        )
        lost = (found.residual_norms > _reach(a, tol) * found.norm[:, None]).any()
        missed = not found.certified.all()
        if (
            dense
            and max_iter is None
            and ((lost and a.n <= _LARGE) or (missed and a.n <= _CERTIFIED))
        ):
            found = _at_once(a, k, which)
    return _result(a, found, tol)


def _passes(a: Operator, width: int) -> int:
    if isinstance(a, Dense) and a.n <= _LARGE:
        return max(60, a.n // 8)
    return max(300, 10 * a.n // width)


def _reach(a: Operator, tol: float) -> float:
    # With tol = 0 restarts and the product that checks have roundings of their own.
    return tol if tol > 0 else 4 * float(np.finfo(a.dtype).eps) * max(4.0, math.sqrt(a.n))


def _start(v0: Array | None, a: Operator) -> np.ndarray[Any, Any] | None:
    if v0 is None:
        return None
    if device_name(v0) not in ("cpu", device_name(a.like)):
        raise TypeError(
            f"v0: expected an array on {device_name(a.like)}, got one on {device_name(v0)}"
        )
    host = to_numpy(v0)
    if host.ndim not in (1, 2) or host.shape[0] != a.n:
        raise ValueError(f"v0: expected shape ({a.n},) or ({a.n}, j), got {tuple(host.shape)}")
    if not np.isfinite(host).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"v0: expected finite numbers, got {host[where]} at index {where}")
    rows = host.reshape(a.n, -1).T
    # Neither their squares nor they themselves need fit into the dtype of the vectors.
    largest = np.abs(rows).max(1, initial=0)
    return np.asarray(rows[largest > 0] / largest[largest > 0, None])


def _at_once(a: Operator, k: int, which: Which) -> Found:
    """Without an iteration over the matrix: by reduction, or all pairs where many are wanted."""
    if k == 0 or a.batch == 0:
        none = np.zeros((a.batch, k))
        vectors = np.zeros((a.batch, k, a.n), a.dtype)
        return Found(none, vectors, none, np.zeros(a.batch), np.ones(a.batch, bool))
    if not isinstance(a, Dense) or a.on_device or k > min(a.n // 4, _FEW):
        return _whole(a, k, which)
    values, vectors, norms, norm = a.ends(k, which)
    found = ordered(values, vectors, norms, norm, np.ones(a.batch, bool), which)
    if (found.residual_norms > _reach(a, 0) * norm[:, None]).any():
        return _whole(a, k, which)
    return found


def _whole(a: Operator, k: int, which: Which) -> Found:
    """By a decomposition of the whole matrix, in float64."""
    full = a.dense()
    if full is None:
        unit = np.eye(a.n, dtype=a.dtype)[None]
        full = to_dtype(a.apply(from_numpy(unit, a.like)), "float64")
        _expect_symmetric(full[0], a)
        full = (full + full.swapaxes(1, 2)) / 2
    found, y = eigh(full)
    theta = to_numpy(found)
    order = preferred(theta, which, k)[:, :k]
    values = np.take_along_axis(theta, order, 1)
    vectors = to_dtype(picked(y.swapaxes(1, 2), order), str(a.dtype))
    wide = to_dtype(vectors, "float64")
    residual = wide @ full - from_numpy(values[:, :, None], wide) * wide
    norm = np.abs(theta).max(1, initial=0.0)
    norms = np.sqrt(row_dots(residual, residual))
    return Found(values, vectors, norms, norm, np.ones(a.batch, bool))


def _expect_symmetric(full: Array, a: Operator) -> None:
    limit = float(np.sqrt(np.finfo(a.dtype).eps)) * float(abs(full).max())
    if float(abs(full - full.T).max()) <= limit:
        return
    host = to_numpy(full)
    apart = np.abs(host - host.T)
    i, j = (int(x) for x in np.unravel_index(int(np.argmax(apart)), apart.shape))
    raise ValueError(
        f"A: expected a symmetric operator, got A[{i}, {j}] = {host[j, i]} and "
        f"A[{j}, {i}] = {host[i, j]}"
    )


def _result(a: Operator, found: Found, tol: float) -> EigshResult:
    reach = _reach(a, tol)
    limit = reach * found.norm
    converged = found.residual_norms <= limit[:, None]
    if not converged.all():
        worst = float((found.residual_norms / np.maximum(found.norm[:, None], 1e-300)).max())
        warnings.warn(
            f"eigsh: {int((~converged).sum())} of {converged.size} pairs did not reach tol = "
            f"{reach:.1e}; the largest residual is {worst:.1e} of the norm of A",
            ConvergenceWarning,
            stacklevel=3,
        )
    with np.errstate(over="ignore", under="ignore"):
        values = a.unscaled(found.values).astype(a.dtype)
        norms = a.unscaled(found.residual_norms).astype(a.dtype)
    if not np.isfinite(values).all():
        raise NumericalError(f"eigsh: an eigenvalue overflows {a.dtype}; scale A down")
    arrays = [values, found.vectors.swapaxes(1, 2), norms]
    if a.single:
        arrays = [x[0] for x in arrays]
    out = [a.hand_over(x) for x in arrays]
    flags = converged[0] if a.single else converged
    certified = bool(found.certified[0]) if a.single else found.certified
    return EigshResult(out[0], out[1], out[2], flags, certified, a.matvecs)
