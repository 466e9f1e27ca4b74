# SPDX-License-Identifier: Apache-2.0
"""Spectrum of the metric of the input space, and of all activations, in wide random networks.

    A_x = (1/N) sum_t sum_k grad_x f_k grad_x f_k^T,    M_0 x M_0

says how far the outputs move with the input. C of its eigenvalues are of order one, with
eigenvectors (1/N) sum_t grad_x f_k(x_t), the others of order 1/M: few directions in which
noise matters.

References
----------
Karakida, Akaho and Amari 2021, Pathological spectra of the Fisher information metric and its
variants in deep neural networks (Neural Computation; arXiv 1910.05992), theorem 5.1. The softmax
outliers and the finite-size factor are derived for this library.
"""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from fastfisher.theory._checks import count, member
from fastfisher.theory.fisher import Spectrum, _two_level
from fastfisher.theory.order_parameters import OrderParameters
from fastfisher.theory.softmax import SoftmaxSpectrum, _spectrum, statistics_of

__all__ = ["metric_finite_size_factor", "metric_spectrum", "softmax_metric_spectrum"]

Space = Literal["input", "features"]


def metric_spectrum(
    order: OrderParameters, *, samples: int, space: Literal["input", "features"] = "input"
) -> Spectrum:
    """Spectrum of the metric of the input or feature space, for regression.

    Parameters
    ----------
    order : OrderParameters
        Of a network without `hidden_normalization`.
    samples : int
        N.
    space : "input" | "features"
        Derivatives for the input h^0, or for all of (h^0, ..., h^{L-1}) as one vector.

    Returns
    -------
    Spectrum
        In units of loss / input^2.

    Raises
    ------
    ValueError
        Bad numbers or names.

    Notes
    -----
    With T_i = sigma_w2 qt_i^1 (input) or sigma_w2 sum_l qt_i^l (features)::

        trace          = C T_1
        sum lambda^2   = C [(N-1)/N T_2^2 + T_1^2 / N]
        lambda_max     = (N-1)/N T_2 + T_1/N       C times

    T_2 > 0 for odd activations without biases too: these outliers need no mean. At finite width
    multiply lambda_max by `metric_finite_size_factor`.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((1000, 1000, 1000, 10), activation="tanh", sigma_w2=3,
    ...                          sigma_b2=0.64)
    >>> round(metric_spectrum(order, samples=100).lambda_max, 3)
    0.812
    """
    t1, t2 = _overlaps(order, space)
    size = order.widths[0] if space == "input" else sum(order.widths[:-1])
    return _two_level(t1, t2, order.outputs, count("samples", samples), size)


def softmax_metric_spectrum(
    order: OrderParameters,
    probabilities: ArrayLike,
    *,
    space: Literal["input", "features"] = "input",
) -> SoftmaxSpectrum:
    """Spectrum of the metric of the input or feature space, for classification.

    Parameters
    ----------
    order : OrderParameters
        Of a network without `hidden_normalization`.
    probabilities : array, shape (N, C)
        Softmax outputs.
    space : "input" | "features"
        As for `metric_spectrum`.

    Returns
    -------
    SoftmaxSpectrum
        The formulas of `softmax_spectrum` with T_i in place of K_i.

    Raises
    ------
    ValueError
        Bad probabilities or names.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((1000, 1000, 1000, 4), sigma_b2=0.1)
    >>> softmax_metric_spectrum(order, np.full((50, 4), 0.25)).outliers.shape
    (3,)
    """
    return _spectrum(*_overlaps(order, space), statistics_of(order, probabilities))


def metric_finite_size_factor(order: OrderParameters) -> float:
    """Factor by which the outliers of the input metric exceed `metric_spectrum` at finite width.

    Parameters
    ----------
    order : OrderParameters
        Of a network without `hidden_normalization`.

    Returns
    -------
    float

    Notes
    -----
    ``1 + (T_1/T_2 - 1) C/M_0 + sum_{l=1}^{L-1} (qt_1^l/qt_2^l - 1) C/M_l``: a heuristic that
    holds to about 1 % of the outlier for C/M_l up to 1/30.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((1000, 1000, 1000, 10), activation="tanh", sigma_w2=3,
    ...                          sigma_b2=0.64)
    >>> round(metric_finite_size_factor(order), 3)
    1.043
    """
    _overlaps(order, "input")
    c, ratios = order.outputs, order.qt1 / order.qt2 - 1
    hidden = (ratio / width for ratio, width in zip(ratios, order.widths[1:-1], strict=False))
    return float(1 + c * (ratios[0] / order.widths[0] + sum(hidden)))


def _overlaps(order: OrderParameters, space: Space) -> tuple[float, float]:
    """T_1 and T_2."""
    member("space", space, ("input", "features"))
    if order.hidden_normalization is not None:
        raise ValueError(
            f"order: expected hidden_normalization None, got {order.hidden_normalization!r}"
        )
    if space == "input":
        return order.sigma_w2 * float(order.qt1[0]), order.sigma_w2 * float(order.qt2[0])
    return order.sigma_w2 * float(order.qt1.sum()), order.sigma_w2 * float(order.qt2.sum())
