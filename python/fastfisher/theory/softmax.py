# SPDX-License-Identifier: Apache-2.0
"""Spectrum of the Fisher matrix of softmax outputs in wide random networks.

With g = softmax(f) and Q(t) = diag(g(t)) - g(t) g(t)^T the Fisher matrix of classification is
F = (1/N) sum_t J(t)^T Q(t) J(t), the expectation over the model's own labels. Since Q(t) 1 = 0,
only C - 1 eigenvalues leave the bulk, one for each non-zero eigenvalue of E[Q], and they need not
be equal.

References
----------
Karakida, Akaho and Amari 2021, Pathological spectra of the Fisher information metric and its
variants in deep neural networks (Neural Computation; arXiv 1910.05992), theorem 3.3. The formula of
the single outliers and the mean-field ensemble are derived for this library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, count
from fastfisher.theory.fisher import _plain_sums
from fastfisher.theory.order_parameters import OrderParameters

__all__ = [
    "SoftmaxSpectrum",
    "SoftmaxStatistics",
    "softmax_ensemble",
    "softmax_spectrum",
    "softmax_statistics",
]


@dataclass(frozen=True, eq=False, slots=True)
class SoftmaxStatistics:
    """What the spectrum needs to know of the probabilities g (N, C).

    Attributes
    ----------
    samples : int
        N.
    beta1 : float
        ``mean_t tr Q(t)``.
    beta2 : float
        ``(1/N^2) sum_{s != t} tr Q(s) Q(t)``.
    beta3 : float
        ``(1/N^2) sum_t tr Q(t)^2``.
    eigenvalues : array, shape (C - 1,)
        Of ``E[Q] = mean_t Q(t)``, descending, without the one that is zero.
    second : array, shape (C - 1,)
        ``v^T E[Q^2] v`` for their eigenvectors v.
    """

    samples: int
    beta1: float
    beta2: float
    beta3: float
    eigenvalues: Floats
    second: Floats


@dataclass(frozen=True, eq=False, slots=True)
class SoftmaxSpectrum:
    """Predicted spectrum with softmax outputs.

    Attributes
    ----------
    trace, sum_of_squares : float
        Sums of the eigenvalues and of their squares.
    outliers : array, shape (C - 1,)
        The largest eigenvalues, descending; the smallest of them may lie within the bulk.
    lower_bound, upper_bound : float
        Of the largest eigenvalue.
    """

    trace: float
    sum_of_squares: float
    outliers: Floats
    lower_bound: float
    upper_bound: float


def softmax_statistics(probabilities: ArrayLike) -> SoftmaxStatistics:
    """Averages of Q(t) = diag(g) - g g^T that decide the spectrum.

    Parameters
    ----------
    probabilities : array, shape (N, C)
        Softmax outputs g(t), rows that sum to 1.

    Returns
    -------
    SoftmaxStatistics

    Raises
    ------
    ValueError
        No distribution in a row, or no rows.

    Examples
    --------
    >>> import numpy as np
    >>> round(softmax_statistics(np.full((8, 4), 0.25)).beta1, 6)
    0.75
    """
    g = array("probabilities", probabilities, rank=2)
    n, c = g.shape
    if n == 0 or c < 2:
        raise ValueError(f"probabilities: expected shape (N, C), N >= 1, C >= 2, got {g.shape}")
    if g.min() < 0 or np.abs(g.sum(1) - 1).max() > 1e-4:
        raise ValueError("probabilities: expected rows of numbers >= 0 that sum to 1")
    squares = (g * g).sum(1)
    cubes = (g**3).sum(1)
    mean = np.diag(g.mean(0)) - g.T @ g / n
    # Q^2 = diag(g^2) - g^2 g^T - g (g^2)^T + |g|^2 g g^T
    cross = (g * g).T @ g / n
    mean_square = np.diag((g * g).mean(0)) - cross - cross.T + (g.T * squares) @ g / n
    own = float((squares - 2 * cubes + squares**2).sum()) / n**2
    w, v = np.linalg.eigh(mean)
    w, v = w[:0:-1], v[:, :0:-1]
    return SoftmaxStatistics(
        samples=n,
        beta1=float(1 - squares.mean()),
        beta2=float((mean * mean).sum()) - own,
        beta3=own,
        eigenvalues=w,
        second=np.einsum("ik,ij,jk->k", v, mean_square, v),
    )


def softmax_spectrum(order: OrderParameters, probabilities: ArrayLike) -> SoftmaxSpectrum:
    """Spectrum of the Fisher matrix of classification, given the softmax outputs.

    Parameters
    ----------
    order : OrderParameters
        Of the network; standard parameterisation.
    probabilities : array, shape (N, C)
        Softmax outputs g(t), of a network or of `softmax_ensemble`.

    Returns
    -------
    SoftmaxSpectrum
        In curvature units, loss / parameter^2.

    Raises
    ------
    ValueError
        `probabilities` that are none, or not C of them.

    Notes
    -----
    With eigenpairs (w_i, v_i) of E[Q]::

        trace        = beta_1 K_1
        sum lambda^2 = beta_2 K_2^2 + beta_3 K_1^2
        outliers     = K_2 w_i + (K_1 - K_2)/N v_i^T E[Q^2] v_i / w_i       i = 1..C-1
        K_2 w_1 <= lambda_max <= sqrt(beta_2 K_2^2 + beta_3 K_1^2)

    All of it is below what `fisher_spectrum` says of regression. During training the bounds hold at
    every step with the current outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((1000, 1000, 1000, 10), sigma_b2=0.1)
    >>> g = softmax_ensemble(order, samples=100, networks=1, seed=0)[0]
    >>> spectrum = softmax_spectrum(order, g)
    >>> bool(spectrum.lower_bound < spectrum.outliers[0] < spectrum.upper_bound)
    True
    """
    k1, k2 = _plain_sums(order, "standard")
    return _spectrum(k1, k2, statistics_of(order, probabilities))


def softmax_ensemble(
    order: OrderParameters, *, samples: int, networks: int, seed: int = 0
) -> Floats:
    """Softmax outputs of random networks at infinite width: no forward pass.

    Parameters
    ----------
    order : OrderParameters
        Of the network.
    samples, networks : int
        N samples at each of so many networks.
    seed : int
        Of the draws.

    Returns
    -------
    array, shape (networks, N, C), float64

    Notes
    -----
    ``f_k(t) = sqrt(q_2^L) xi_k + sqrt(q_1^L - q_2^L) zeta_k(t)`` with independent normal xi, zeta:
    xi is shared by the samples of a network, so averages of Q differ between networks even at
    infinite width.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((1000, 1000, 1000, 10), sigma_b2=0.1)
    >>> softmax_ensemble(order, samples=5, networks=2).shape
    (2, 5, 10)
    """
    shape = (count("networks", networks), count("samples", samples), order.outputs)
    q1, q2 = float(order.q1[-1]), float(order.q2[-1])
    if q2 < 0:
        raise ValueError(f"order: expected outputs of covariance >= 0, got {q2:g}")
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((shape[0], 1, shape[2]))
    f = np.sqrt(q2) * shared + np.sqrt(max(q1 - q2, 0.0)) * rng.standard_normal(shape)
    g: Floats = np.exp(f - f.max(2, keepdims=True))
    g /= g.sum(2, keepdims=True)
    return g


def statistics_of(order: OrderParameters, probabilities: ArrayLike) -> SoftmaxStatistics:
    """`softmax_statistics` of as many outputs as the network has."""
    statistics = softmax_statistics(probabilities)
    c = statistics.eigenvalues.size + 1
    if c != order.outputs:
        raise ValueError(f"probabilities: expected {order.outputs} outputs, got {c}")
    return statistics


def _spectrum(k1: float, k2: float, statistics: SoftmaxStatistics) -> SoftmaxSpectrum:
    w = statistics.eigenvalues
    spread = np.divide(statistics.second, w, out=np.zeros_like(w), where=w > 0)
    outliers = np.sort(k2 * w + (k1 - k2) / statistics.samples * spread)[::-1]
    squares = statistics.beta2 * k2**2 + statistics.beta3 * k1**2
    return SoftmaxSpectrum(
        statistics.beta1 * k1, squares, outliers, float(k2 * w[0]), float(squares**0.5)
    )
