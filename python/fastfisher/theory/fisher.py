# SPDX-License-Identifier: Apache-2.0
"""Spectrum of the Fisher matrix of regression in wide random networks.

To leading order in the widths the dual Fisher matrix F* = J J^T / N has two kinds of entries only,

    F* = (1/N) [K_2 1 1^T + (K_1 - K_2) I_N] (x) I_C

hence C outliers (N-1)/N K_2 + K_1/N, with eigenvectors 1 (x) e_k / sqrt(N), above C (N-1)
eigenvalues around (K_1 - K_2)/N; the other P - CN eigenvalues of F are zero.

References
----------
Karakida, Akaho and Amari 2019, Universal statistics of Fisher information in deep neural networks
(AISTATS; arXiv 1806.01316); Karakida, Akaho and Amari 2021, Pathological spectra of the Fisher
information metric and its variants in deep neural networks (Neural Computation; arXiv 1910.05992).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fastfisher.theory._checks import Floats, count, member
from fastfisher.theory.order_parameters import OrderParameters

__all__ = [
    "PaperForm",
    "Spectrum",
    "fisher_spectrum",
    "layer_spectra",
    "ntk_spectrum",
    "paper_form",
]

PARAMETERIZATIONS = ("standard", "ntk")


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Predicted spectrum of a matrix with a few equal outliers above a bulk, all else zero.

    Attributes
    ----------
    trace, sum_of_squares : float
        Sums of the eigenvalues and of their squares.
    lambda_max : float
        The largest eigenvalue, `multiplicity` times.
    multiplicity : int
        Number of outliers.
    bulk_mean : float
        Mean of the `bulk_size` eigenvalues of the bulk.
    bulk_size, size : int
        Number of eigenvalues in the bulk, and of all.
    """

    trace: float
    sum_of_squares: float
    lambda_max: float
    multiplicity: int
    bulk_mean: float
    bulk_size: int
    size: int

    @property
    def mean(self) -> float:
        """Mean of all eigenvalues, zeros included."""
        return self.trace / self.size

    @property
    def second_moment(self) -> float:
        """Mean of the squares of all eigenvalues."""
        return self.sum_of_squares / self.size

    @property
    def zeros(self) -> int:
        """Number of eigenvalues that are exactly zero."""
        return max(0, self.size - self.multiplicity - self.bulk_size)


class PaperForm(NamedTuple):
    """Statistics as the papers state them: `m`, `s` are averages over alpha M^2 parameters."""

    m: float
    s: float
    lambda_max: float


def fisher_spectrum(
    order: OrderParameters,
    *,
    samples: int,
    parameterization: Literal["standard", "ntk"] = "standard",
) -> Spectrum:
    """Spectrum of the Fisher matrix F = J^T J / N of regression (unit variance).

    Parameters
    ----------
    order : OrderParameters
        Of a network without `hidden_normalization` (else see `hidden_normalized_spectrum`).
    samples : int
        N.
    parameterization : "standard" | "ntk"
        Of the trainables. In ``ntk`` K_i becomes sum_l q_i^l qt_i^l, biases included.

    Returns
    -------
    Spectrum
        In curvature units, loss / parameter^2.

    Raises
    ------
    ValueError
        Bad `samples` or names; hidden pre-activations that are normalised.

    Notes
    -----
    For M -> infinity at fixed N, L, C (Karakida et al. 2021, theorem 3.1)::

        trace          = C K_1
        sum lambda^2   = C [(N-1)/N K_2^2 + K_1^2 / N]
        lambda_max     = (N-1)/N K_2 + K_1/N           C times
        bulk           = (K_1 - K_2)/N on average      C (N-1) times

    At finite width lambda_max is higher: 5 to 10 % at M = 200, 1 to 3.5 % at M = 800.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((200, 200, 200, 1), activation="tanh", sigma_w2=3, sigma_b2=0.64)
    >>> round(fisher_spectrum(order, samples=100).lambda_max, 2)
    50.79
    """
    k1, k2 = _plain_sums(order, parameterization)
    biases = parameterization == "standard" or order.sigma_b2 > 0
    pairs = zip(order.widths[:-1], order.widths[1:], strict=True)
    size = sum(above * (below + biases) for below, above in pairs)
    return _two_level(k1, k2, order.outputs, count("samples", samples), size)


def ntk_spectrum(order: OrderParameters, *, samples: int) -> Spectrum:
    """Spectrum of the tangent kernel Theta = J J^T, NC x NC, in NTK parameterisation.

    Parameters
    ----------
    order, samples
        As for `fisher_spectrum`.

    Returns
    -------
    Spectrum

    Notes
    -----
    With k_i = sum_l q_i^l qt_i^l the mean is k_1 whatever N and the width, while the C largest are
    (N-1) k_2 + k_1: the more samples, the worse the condition.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((1000, 1000, 1000, 2), activation="relu", sigma_w2=2)
    >>> round(ntk_spectrum(order, samples=20).lambda_max, 2)
    32.06
    """
    n = count("samples", samples)
    k1, k2 = _plain_sums(order, "ntk")
    c = order.outputs
    return _two_level(n * k1, n * k2, c, n, n * c)


def layer_spectra(
    order: OrderParameters,
    *,
    samples: int,
    parameterization: Literal["standard", "ntk"] = "standard",
) -> tuple[Spectrum, ...]:
    """Spectrum of each layer's diagonal block of the Fisher matrix, from below.

    Parameters
    ----------
    order, samples, parameterization
        As for `fisher_spectrum`.

    Returns
    -------
    tuple of Spectrum

    Notes
    -----
    The formulas of `fisher_spectrum` with each layer's share of K_1 and K_2. The first block has no
    outliers for centred inputs: its largest eigenvalue is the edge of the bulk, above
    `lambda_max`.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((600, 600, 600, 1), activation="relu", sigma_b2=0.1)
    >>> [round(block.lambda_max, 1) for block in layer_spectra(order, samples=80)]
    [7.5, 140.3, 351.6]
    """
    n = count("samples", samples)
    ones, twos = _plain_layers(order, parameterization)
    biases = parameterization == "standard" or order.sigma_b2 > 0
    pairs = zip(order.widths[:-1], order.widths[1:], strict=True)
    return tuple(
        _two_level(float(k1), float(k2), order.outputs, n, above * (below + biases))
        for k1, k2, (below, above) in zip(ones, twos, pairs, strict=True)
    )


def paper_form(order: OrderParameters, *, samples: int) -> PaperForm:
    """Statistics in the scaling of the papers, in standard parameterisation.

    Parameters
    ----------
    order, samples
        As for `fisher_spectrum`; the network has a hidden layer.

    Returns
    -------
    PaperForm

    Notes
    -----
    ``m = C kappa_1 / M``, ``s = alpha C [(N-1)/N kappa_2^2 + kappa_1^2 / N]``,
    ``lambda_max = alpha M [(N-1)/N kappa_2 + kappa_1 / N]``: of order 1/M, 1 and M.

    Examples
    --------
    >>> from fastfisher.theory import order_parameters
    >>> order = order_parameters((200, 200, 200, 1), activation="tanh", sigma_w2=3, sigma_b2=0.64)
    >>> round(paper_form(order, samples=100).m, 8)
    0.00477761
    """
    spectrum = fisher_spectrum(order, samples=samples)
    leading = order.alpha * order.width**2
    return PaperForm(
        spectrum.trace / leading, spectrum.sum_of_squares / leading, spectrum.lambda_max
    )


def _plain_layers(order: OrderParameters, parameterization: str) -> tuple[Floats, Floats]:
    member("parameterization", parameterization, PARAMETERIZATIONS)
    if order.hidden_normalization is not None:
        raise ValueError(
            "order: expected hidden_normalization None, "
            f"got {order.hidden_normalization!r}; see hidden_normalized_spectrum"
        )
    if parameterization == "ntk":
        return order.q1 * order.qt1, order.q2 * order.qt2
    return order.layer_K1, order.layer_K2


def _plain_sums(order: OrderParameters, parameterization: str) -> tuple[float, float]:
    ones, twos = _plain_layers(order, parameterization)
    return float(ones.sum()), float(twos.sum())


def _two_level(k1: float, k2: float, c: int, n: int, size: int) -> Spectrum:
    """Spectrum of ((k1 - k2) I + k2 1 1^T) / n, c times, as part of a matrix of `size`.

    A matrix smaller than its dual has no room for all of the bulk: what is left of the trace is
    shared by fewer eigenvalues.
    """
    bulk_size = min(c * (n - 1), max(size - c, 0))
    share = c * (n - 1) / bulk_size if bulk_size else 1.0
    return Spectrum(
        trace=c * k1,
        sum_of_squares=c * ((n - 1) / n * k2**2 + k1**2 / n),
        lambda_max=(n - 1) / n * k2 + k1 / n,
        multiplicity=c,
        bulk_mean=(k1 - k2) / n * share,
        bulk_size=bulk_size,
        size=size,
    )
