# SPDX-License-Identifier: Apache-2.0
"""The public functions: normalise arguments, one native call, wrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastfisher._arrays import Array
from fastfisher.psd._call import run
from fastfisher.psd._results import EighResult, PsdResult

__all__ = ["cholesky", "eigh", "inverse", "inverse_root", "solve"]

Damping = float | str | Sequence[float | str]
Matrices = Array | Sequence[Array]


def cholesky(
    a: Matrices, /, *, damping: Damping = 0, on_error: str | None = None
) -> PsdResult | list[PsdResult] | Any:
    """Lower Cholesky factors, ``A + damping I = L L^T``.

    Parameters
    ----------
    a : array, shape (n, n) or (b, n, n), or list of arrays (n, n)
        float32, float64, or 16-bit floats, whose results are float32. The lower triangle is read.
    damping : float, "auto", or a list of them, one per matrix
        Added to the diagonal; see `fastfisher.psd`.
    on_error : "status" or "raise", optional
        Whether a matrix that fails raises. Default: ``"status"`` for a list or stack, ``"raise"``
        for one matrix.

    Returns
    -------
    PsdResult, or a list of them for a list or stack

    Raises
    ------
    NotPositiveDefiniteError
        The matrix with its damping is not positive definite; with its smallest eigenvalue.
    NonFiniteError
        The lower triangle holds NaN or infinity; with its first index.
    ValueError, TypeError
        Wrong shapes or dtypes, whatever `on_error` says.

    Notes
    -----
    n^3 / 6 multiply-adds a matrix, in the dtype of the result.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.psd.cholesky(np.array([[4.0, 0.0], [2.0, 2.0]])).value
    array([[2., 0.],
           [1., 1.]])
    """
    return run("cholesky", a, damping=damping, on_error=on_error)


def inverse(
    a: Matrices, /, *, damping: Damping = 0, on_error: str | None = None
) -> PsdResult | list[PsdResult] | Any:
    """Inverses ``(A + damping I)^-1``, symmetric bit for bit.

    Parameters, results and errors are those of `cholesky`.

    Notes
    -----
    n^3 / 2 multiply-adds a matrix: factor, its inverse and their product in one sweep over blocks
    (Bientinesi, Gunter, van de Geijn 2008).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> good, bad = ff.psd.inverse([np.array([[4.0, 0.0], [2.0, 2.0]]), -np.eye(3)])
    >>> good.value
    array([[ 0.5, -0.5],
           [-0.5,  1. ]])
    >>> bad.status
    'failed'
    """
    return run("inverse", a, damping=damping, on_error=on_error)


def inverse_root(
    a: Matrices, /, *, p: float, damping: Damping = 0, on_error: str | None = None
) -> PsdResult | list[PsdResult] | Any:
    """Inverse roots ``(A + damping I)^(-1/p)``, symmetric bit for bit, by eigenvectors.

    Parameters
    ----------
    a, damping, on_error
        As in `cholesky`.
    p : float
        Positive; 2 gives the inverse square root.

    Returns
    -------
    PsdResult, or a list of them for a list or stack

    Notes
    -----
    On a CUDA device, matrices of up to 160 rows (112 in float64), which fit in the shared memory of
    a block, are worked on all at once; larger ones one after another by ``linalg.eigh`` of their
    library, with the same statuses.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.psd.inverse_root(np.diag([16.0, 81.0]), p=4).value.round(6)
    array([[0.5     , 0.      ],
           [0.      , 0.333333]])
    """
    return run("inverse_root", a, damping=damping, on_error=on_error, p=p)


def solve(
    a: Matrices, b: Array | Sequence[Array], /, *, damping: Damping = 0, on_error: str | None = None
) -> PsdResult | list[PsdResult] | Any:
    """Solutions x of ``(A + damping I) x = b``.

    Parameters
    ----------
    a, damping, on_error
        As in `cholesky`.
    b : array, shape (n,) or (n, k), or a list of them, one per matrix
        For a stack (b, n, n) also one array (b, n) or (b, n, k). In the dtype of the result.

    Returns
    -------
    PsdResult, or a list of them for a list or stack

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.psd.solve(np.diag([2.0, 4.0]), np.ones(2)).value
    array([0.5 , 0.25])
    """
    return run("solve", a, damping=damping, on_error=on_error, b=b)


def eigh(
    a: Matrices, /, *, damping: Damping = 0, on_error: str | None = None
) -> EighResult | list[EighResult] | Any:
    """Eigenvalues, ascending, and eigenvectors of ``A + damping I``.

    Parameters are those of `cholesky`. An indefinite matrix is no error here, unless damping is
    ``"auto"``.

    Returns
    -------
    EighResult, or a list of them for a list or stack

    Notes
    -----
    On a CUDA device, matrices of up to 160 rows (112 in float64), which fit in the shared memory of
    a block, are worked on all at once; larger ones one after another by ``linalg.eigh`` of their
    library, with the same statuses.

    LAPACK decomposes matrices on the CPU and does not let itself be interrupted: Ctrl-C takes
    effect between two of them (of 2500 rows some 15 s).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.psd.eigh(np.array([[2.0, 0.0], [1.0, 2.0]])).values
    array([1., 3.])
    """
    return run("eigh", a, damping=damping, on_error=on_error)
