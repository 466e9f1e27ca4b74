# SPDX-License-Identifier: Apache-2.0
"""Isotropic constants of natural gradient and its approximations in wide networks.

An update with the matrix G in place of the Fisher matrix moves the outputs on the training set by
-eta Theta_G (f - y), Theta_G = (1/N) J (G + rho I)^{-1} J^T. In the limit rho -> 0 several
approximations give Theta_G = alpha I, so they train as fast as exact natural gradient at the
learning rate 1 / alpha.

References
----------
Karakida and Osawa 2020, Understanding approximate Fisher information for fast convergence of
natural gradient descent in wide neural networks (NeurIPS; arXiv 2010.00879). The limit of the
tridiagonal method at depth 3 s + 2 is derived for this library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, count, member, number
from fastfisher.theory._checks import widths as checked_widths

__all__ = [
    "forster_transform",
    "isotropic_constant",
    "tridiagonal_coefficients",
    "tridiagonal_matrix",
]

STRUCTURES = ("full", "layer", "tridiagonal", "kfac", "unit")


def isotropic_constant(
    structure: Literal["full", "layer", "tridiagonal", "kfac", "unit"],
    widths: Sequence[int],
    *,
    samples: int | None = None,
    active_fraction: float = 1.0,
    last_factor: Literal["identity", "mean"] = "identity",
) -> float:
    """Alpha of ``Theta_G = alpha I`` as damping goes to zero.

    Parameters
    ----------
    structure : "full" | "layer" | "tridiagonal" | "kfac" | "unit"
        G: the exact Fisher matrix, its blocks of layers, those of neighbouring layers too,
        Kronecker factors, or blocks of single units.
    widths : sequence of int
        (M_0, ..., M_L).
    samples : int, optional
        N; ``kfac`` needs it.
    active_fraction : float
        gamma of ``unit``: the share of units with non-zero slope on a sample, 1/2 for ``relu`` and
        1 for smooth activations (`fastfisher.theory.active_fraction`).
    last_factor : "identity" | "mean"
        Gradient factor of the last layer in ``kfac``: B_L = I as the definition says, or I / N.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Names or numbers out of range; `samples` missing for ``kfac``; widths too small for the
        structure to be isotropic.

    Notes
    -----
    In NTK parameterisation, N fixed and M -> infinity::

        full 1,  layer L,  tridiagonal 1^T T^{-1} 1,  kfac N (L - 1) + 1 (or N L with I / N),
        unit gamma sum_{l<L} M_l / C + 1

    ``kfac`` asks for N <= M_{l-1} and N C <= M_l. With fewer inputs than samples, M_0 < N, it is
    isotropic after `forster_transform` and without biases, with N (L - 2) + M_0 + 1 (or
    N (L - 1) + M_0). ``unit`` holds up to O(1 / sqrt M).

    Examples
    --------
    >>> widths = (300, 300, 300, 1)
    >>> for structure in ("full", "layer", "tridiagonal", "kfac"):
    ...     print(structure, isotropic_constant(structure, widths, samples=30))
    full 1.0
    layer 3.0
    tridiagonal 1.0
    kfac 61.0
    >>> isotropic_constant("unit", widths, active_fraction=0.5)
    301.0
    """
    member("structure", structure, STRUCTURES)
    member("last_factor", last_factor, ("identity", "mean"))
    sizes = checked_widths(widths)
    depth, c = len(sizes) - 1, sizes[-1]
    if structure == "full":
        return 1.0
    if structure == "layer":
        return float(depth)
    if structure == "tridiagonal":
        return float((depth + 2) // 3)
    if structure == "unit":
        gamma = number("active_fraction", active_fraction, above=0)
        if gamma > 1:
            raise ValueError(f"active_fraction: expected a number in (0, 1], got {gamma:g}")
        return gamma * sum(sizes[1:-1]) / c + 1
    if samples is None:
        raise ValueError("samples: 'kfac' needs the number of samples, got None")
    n = count("samples", samples)
    _check_kfac(sizes, n)
    last = 1.0 if last_factor == "identity" else float(n)
    if depth == 1:
        return last
    return n * (depth - 2) + min(sizes[0], n) + last


def tridiagonal_matrix(depth: int) -> Floats:
    """Matrix T (L, L) of ones on the three diagonals.

    Examples
    --------
    >>> print(tridiagonal_matrix(3))
    [[1. 1. 0.]
     [1. 1. 1.]
     [0. 1. 1.]]
    """
    depth = count("depth", depth)
    index = np.arange(depth)
    ones: Floats = (np.abs(index[:, None] - index) <= 1).astype(np.float64)
    return ones


def tridiagonal_coefficients(depth: int) -> Floats:
    """Coefficients c (L,) with ``T c = 1``: layer l of the tridiagonal update goes with c_l.

    Parameters
    ----------
    depth : int
        L.

    Returns
    -------
    array, shape (L,), float64
        Their sum is alpha of `isotropic_constant`. For L = 3 s + 2 the matrix T is singular and
        this is one solution of many; as damping goes to zero the update also moves along the
        null vector (1, -1, 0, 1, -1, ...), by an amount that depends on the kernels of the
        layers. Otherwise layers with c_l = 0 do not move at all.

    Examples
    --------
    >>> tridiagonal_coefficients(3).tolist(), tridiagonal_coefficients(4).tolist()
    ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0])
    """
    depth = count("depth", depth)
    coefficients = np.zeros(depth)
    coefficients[(1 if depth % 3 == 0 else 0) :: 3] = 1.0
    return coefficients


def forster_transform(x: ArrayLike, *, max_iter: int = 10_000, tol: float = 1e-12) -> Floats:
    """Map samples linearly and scale each to unit norm so that ``Z^T Z = (N / M_0) I``.

    Parameters
    ----------
    x : array, shape (N, M_0)
        Samples in general position, N > M_0.
    max_iter : int
        Steps of the iteration at most.
    tol : float
        Largest deviation of ``(M_0 / N) Z^T Z`` from the identity, entry by entry.

    Returns
    -------
    array, shape (N, M_0), float64
        Z, rows of norm 1.

    Raises
    ------
    ValueError
        Too few samples, a sample of zeros, or samples that are not in general position.

    Notes
    -----
    Alternates ``Z <- Z (Z^T Z)^{-1/2}`` and rows to norm 1 (Forster 2002; used for K-FAC with
    M_0 < N by Karakida and Osawa 2020).

    Examples
    --------
    >>> import numpy as np
    >>> z = forster_transform(np.random.default_rng(0).standard_normal((40, 15)))
    >>> bool(np.allclose(z.T @ z, 40 / 15 * np.eye(15)))
    True
    """
    z = array("x", x, rank=2)
    n, m = z.shape
    count("max_iter", max_iter)
    number("tol", tol, above=0)
    if n <= m:
        raise ValueError(f"x: expected more samples than inputs, got shape {z.shape}")
    for _ in range(max_iter):
        norms: Floats = np.sqrt((z * z).sum(1, keepdims=True))
        if not norms.all():
            raise ValueError(f"x: sample {int(norms.argmin())} is zero")
        z = z / norms
        second = z.T @ z * (m / n)
        if np.abs(second - np.eye(m)).max() <= tol:
            return z
        w, v = np.linalg.eigh(second)
        if w[0] <= m * np.finfo(np.float64).eps * w[-1]:
            raise ValueError("x: expected samples that span the input space")
        z = z @ (v / np.sqrt(w)) @ v.T
    raise ValueError(
        f"x: not isotropic after {max_iter} steps; expected samples in general position"
    )


def _check_kfac(sizes: tuple[int, ...], n: int) -> None:
    for layer, width in enumerate(sizes[1:-1], 1):
        if width < n * sizes[-1]:
            raise ValueError(
                f"widths: 'kfac' needs M_{layer} >= N C = {n * sizes[-1]}, got {width}"
            )
