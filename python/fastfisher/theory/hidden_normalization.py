# SPDX-License-Identifier: Apache-2.0
"""Spectrum of the Fisher matrix with hidden pre-activations normalised over the batch.

References
----------
Karakida, Akaho and Amari 2019, The normalization method for alleviating pathological sharpness in
wide neural networks (NeurIPS; arXiv 1906.02926). The formulas here are derived for this library.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastfisher.theory._checks import count
from fastfisher.theory.order_parameters import OrderParameters

__all__ = ["HiddenNormalizedSpectrum", "hidden_normalized_spectrum"]


@dataclass(frozen=True, slots=True)
class HiddenNormalizedSpectrum:
    """Spectrum of the Fisher matrix with normalised hidden pre-activations.

    Attributes
    ----------
    trace : float
        Sum of the eigenvalues.
    outlier : float
        The largest eigenvalue where the activation's mean is not zero, `multiplicity` times. For an
        odd activation it lies within the bulk: there is no outlier.
    multiplicity : int
        C.
    """

    trace: float
    outlier: float
    multiplicity: int


def hidden_normalized_spectrum(order: OrderParameters, *, samples: int) -> HiddenNormalizedSpectrum:
    """Spectrum of the Fisher matrix with hidden pre-activations normalised over the batch.

    Parameters
    ----------
    order : OrderParameters
        With `hidden_normalization` set.
    samples : int
        N, the size of the batch too.

    Returns
    -------
    HiddenNormalizedSpectrum

    Raises
    ------
    ValueError
        `order` without hidden normalisation, bad `samples`.

    Notes
    -----
    The last layer alone makes the outlier::

        trace / C = M_{L-1} qh_1^{L-1} + 1 + sum_{l<L} M_{l-1} (qh_1^{l-1} - qh_2^{l-1}) qt_1^l
        outlier   = M_{L-1} [(N-1)/N qh_2^{L-1} + qh_1^{L-1}/N] + 1

    (1 from the biases of the last layer; those of hidden layers are cancelled.) With ``relu`` the
    outlier stays of order M: hidden normalisation alone does not remove the sharpness.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((600, 600, 600, 1), sigma_b2=0.1, hidden_normalization="batch")
    >>> round(hidden_normalized_spectrum(order, samples=40).outlier, 1)
    101.6
    """
    if order.hidden_normalization is None:
        raise ValueError("order: expected hidden_normalization 'mean' or 'batch', got None")
    n, width = count("samples", samples), order.widths[-2]
    bias = 0.0 if order.biases else 1.0  # order.biases counts it already
    outlier = width * ((n - 1) / n * order.qh2[-1] + order.qh1[-1] / n) + 1
    return HiddenNormalizedSpectrum(
        order.outputs * (order.K1 + bias), float(outlier), order.outputs
    )
