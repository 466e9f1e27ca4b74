# SPDX-License-Identifier: Apache-2.0
"""What normalisation does to the largest eigenvalues of the Fisher matrix of regression.

Subtracting the batch's mean from the outputs projects the outliers' eigenvectors out of the dual
Fisher matrix; normalising hidden layers, or each sample over its outputs, leaves outliers of
order M.

References
----------
Karakida, Akaho and Amari 2019, The normalization method for alleviating pathological sharpness in
wide neural networks (NeurIPS; arXiv 1906.02926). The estimate from the data and the outliers
of layer normalisation are derived for this library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, count, member
from fastfisher.theory.fisher import _plain_sums
from fastfisher.theory.kernel import mean_field_kernel
from fastfisher.theory.order_parameters import OrderParameters

__all__ = [
    "NormalizedSpectrum",
    "layer_normalized_outliers",
    "mean_subtracted_lambda_max",
    "normalized_spectrum",
]


@dataclass(frozen=True, slots=True)
class NormalizedSpectrum:
    """Spectrum of the Fisher matrix with normalised outputs.

    Attributes
    ----------
    trace : float
        Sum of the eigenvalues.
    sum_of_squares : float or None
        Sum of their squares, to leading order; None where there is no formula (``layer``).
    lower_bound, upper_bound : float or None
        Of the largest eigenvalue. The upper bound holds up to an unknown constant below the root,
        which matters less the larger N / M; None where there is none (``layer``).
    """

    trace: float
    sum_of_squares: float | None
    lower_bound: float
    upper_bound: float | None


def normalized_spectrum(
    order: OrderParameters,
    *,
    samples: int,
    normalization: Literal["mean", "batch", "layer"],
    deviations: ArrayLike | None = None,
) -> NormalizedSpectrum:
    """Spectrum of the Fisher matrix of a network whose outputs are normalised.

    Parameters
    ----------
    order : OrderParameters
        Of the network as it is.
    samples : int
        N, the size of the batch too.
    normalization : "mean" | "batch" | "layer"
        As for `fastfisher.models.MLP`: of each output over samples, or (``layer``) of each sample
        over its outputs.
    deviations : array, shape (C,) or (N,), optional
        Standard deviations that the outputs are divided by, of each output (``batch``) or of each
        sample (``layer``). By default those of theory: s_k^2 = q_1^L - q_2^L, or the mean of
        1 / s^2 over networks with Gaussian outputs, C / (q_1^L (C - 3)).

    Returns
    -------
    NormalizedSpectrum

    Raises
    ------
    ValueError
        Bad numbers or names; ``layer`` with fewer than three outputs, or fewer than four without
        `deviations`.

    Notes
    -----
    With Q_1 = mean 1/s_k^2, Q_2 = mean 1/s_k^4 (both 1 for ``mean``) and ``mean``, ``batch``::

        trace         = Q_1 C (K_1 - K_2) (1 - 1/N)       (batch: without the last factor)
        sum lambda^2  = Q_2 C (K_1 - K_2)^2 / N + O(M)
        Q_1 (K_1 - K_2)/N <= lambda_max <= sqrt(Q_2 C (K_1 - K_2)^2 / N + c M),   c >= 0 unknown

    ``layer``, with eta_1 = mean_t 1/s_t^2::

        trace = (C - 2) eta_1 K_1,   lambda_max >= [(N-1)/N K_2 + K_1/N] eta_1 (C - 2)/C

    so outliers of order M stay. For ``mean`` at fixed N lambda_max still grows like M / N.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((400, 400, 400, 1), activation="tanh", sigma_w2=3, sigma_b2=0.64)
    >>> round(normalized_spectrum(order, samples=400, normalization="mean").lower_bound, 2)
    1.67
    """
    member("normalization", normalization, ("mean", "batch", "layer"))
    n, c = count("samples", samples), order.outputs
    k1, k2 = _plain_sums(order, "standard")
    if normalization == "layer":
        eta = _inverse_variances(order, n, deviations)
        outlier = (n - 1) / n * k2 + k1 / n
        return NormalizedSpectrum((c - 2) * eta * k1, None, outlier * eta * (c - 2) / c, None)
    if normalization == "mean":
        if deviations is not None:
            raise ValueError("deviations: normalization='mean' divides by none")
        inverse, rank_factor = np.ones(c), 1 - 1 / n
    else:
        spread = order.q1[-1] - order.q2[-1]
        s = np.full(c, spread**0.5) if deviations is None else _deviations(deviations, c)
        inverse, rank_factor = 1 / s**2, 1.0
    gap = k1 - k2
    squares = float((inverse**2).sum()) * gap**2 / n
    return NormalizedSpectrum(
        float(inverse.sum()) * gap * rank_factor,
        squares,
        float(inverse.mean()) * gap / n,
        float(squares**0.5),
    )


def mean_subtracted_lambda_max(
    x: ArrayLike,
    widths: Sequence[int],
    *,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
) -> float:
    """Estimate the largest eigenvalue with mean-subtracted outputs from the samples themselves.

    Parameters
    ----------
    x, widths, activation, sigma_w2, sigma_b2
        As for `mean_field_kernel`.

    Returns
    -------
    float
        ``lambda_max(P K(X) P) / N`` with P = I - 1 1^T / N and the mean-field kernel K.

    Notes
    -----
    Sharper than the lower bound of `normalized_spectrum`; networks of three layers exceed it by
    some 14 % at M / N = 16, 30 % at 4 and 50 % at 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((20, 50))
    >>> mean_subtracted_lambda_max(x, (50, 400, 400, 1)) > 0
    True
    """
    kernel = mean_field_kernel(
        x, widths, activation=activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2
    )
    kernel = kernel - kernel.mean(0)
    kernel -= kernel.mean(1, keepdims=True)
    return float(np.linalg.eigvalsh(kernel)[-1]) / len(kernel)


def layer_normalized_outliers(
    order: OrderParameters, normalized: ArrayLike, deviations: ArrayLike
) -> Floats:
    """Outliers of the Fisher matrix when each sample's outputs are normalised, C - 1 of them.

    Parameters
    ----------
    order : OrderParameters
        Of the network as it is.
    normalized : array, shape (N, C)
        Normalised outputs z.
    deviations : array, shape (N,)
        Standard deviation s_t of each sample's outputs.

    Returns
    -------
    array, shape (C - 1,), float64
        In descending order.

    Notes
    -----
    With P_t = I - 1 1^T / C - z_t z_t^T / C and eigenpairs (w, v) of E_t[P_t / s_t^2]::

        outlier = K_2 w + (K_1 - K_2)/N v^T E_t[P_t / s_t^4] v / w

    Examples
    --------
    >>> import numpy as np
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((400, 400, 400, 5), sigma_b2=0.1)
    >>> f = np.random.default_rng(0).standard_normal((30, 5))
    >>> f -= f.mean(1, keepdims=True)
    >>> s = f.std(1)
    >>> layer_normalized_outliers(order, f / s[:, None], s).shape
    (4,)
    """
    c = order.outputs
    z = array("normalized", normalized, rank=2)
    if z.shape[1] != c or c < 3:
        raise ValueError(f"normalized: expected shape (N, {max(c, 3)}), got {z.shape}")
    s = _deviations(deviations, z.shape[0])
    k1, k2 = _plain_sums(order, "standard")

    def average(power: int) -> Floats:
        weights = s**-power
        projector = np.eye(c) - 1 / c
        result: Floats = weights.mean() * projector - (z.T * weights) @ z / (c * z.shape[0])
        return result

    w, v = np.linalg.eigh(average(2))
    w, v = w[:0:-1], v[:, :0:-1]  # the smallest belongs to 1, which every P_t removes
    second = np.einsum("ik,ij,jk->k", v, average(4), v)
    outliers: Floats = k2 * w + (k1 - k2) / z.shape[0] * second / w
    return np.sort(outliers)[::-1]


def _deviations(deviations: ArrayLike, size: int) -> Floats:
    s = array("deviations", deviations, rank=1, shape=(size,))
    if size and s.min() <= 0:
        raise ValueError(f"deviations: expected numbers > 0, got {s.min()}")
    return s


def _inverse_variances(order: OrderParameters, n: int, deviations: ArrayLike | None) -> float:
    """eta_1, the mean of 1 / s_t^2 over samples."""
    c = order.outputs
    if c < 3:
        raise ValueError(f"normalization: 'layer' needs three outputs or more, got {c}")
    if deviations is not None:
        return float(np.mean(_deviations(deviations, n) ** -2.0))
    if c < 4:
        raise ValueError("deviations: needed with three outputs, where the mean diverges")
    return float(c / (order.q1[-1] * (c - 3)))
