# SPDX-License-Identifier: Apache-2.0
"""Order parameters of wide random networks: overlaps of activations and of gradients.

Subscript 1 is one and the same sample, 2 two different samples. For l = 1..L, from below

    q_i^l = sigma_w2 qh_i^{l-1} + sigma_b2,    qh_i^l = E[phi(u) phi(v)]

with u, v of variance q_1^l and covariance q_i^l, and from above, qt_i^L = 1,

    qt_i^l = sigma_w2 qt_i^{l+1} E[phi'(u) phi'(v)]

Everything on the Fisher matrix to leading order in the widths follows from two numbers

    K_i = sum_l M_{l-1} qh_i^{l-1} qt_i^l = alpha M kappa_i

References
----------
Karakida, Akaho and Amari 2019, Universal statistics of Fisher information in deep neural networks
(AISTATS; arXiv 1806.01316).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastfisher.theory._checks import Floats, member, number
from fastfisher.theory._checks import widths as checked_widths
from fastfisher.theory._pairs import recursion, single_recursion
from fastfisher.theory.gaussian import ACTIVATIONS, mean_activation, same_overlap

__all__ = ["HiddenNormalization", "OrderParameters", "order_parameters", "plain_arrays"]

HiddenNormalization = Literal["mean", "batch"]


@dataclass(frozen=True, eq=False, slots=True)
class OrderParameters:
    """Order parameters of a network of L layers; entry l of an array belongs to layer l = 0..L-1.

    Attributes
    ----------
    widths : tuple of int
        (M_0, ..., M_L).
    activation : str
        phi of the hidden layers.
    sigma_w2, sigma_b2 : float
        Variances of weights (times the width below) and of biases.
    hidden_normalization : None | "mean" | "batch"
        Of the hidden pre-activations, over the batch.
    biases : bool
        Whether `layer_K1` and `layer_K2` count the derivatives for the biases.
    qh1, qh2 : array, shape (L,)
        Overlaps (1/M) h.h' of the layer's inputs: entry 0 is of the samples themselves.
    q1, q2 : array, shape (L,)
        Variance and covariance of the layer's pre-activations; the last are those of the outputs.
    qt1, qt2 : array, shape (L,)
        Overlaps ``sum_i delta_i delta'_i`` of gradients of one output for the pre-activations.
    """

    widths: tuple[int, ...]
    activation: str
    sigma_w2: float
    sigma_b2: float
    hidden_normalization: HiddenNormalization | None
    biases: bool
    qh1: Floats
    qh2: Floats
    q1: Floats
    q2: Floats
    qt1: Floats
    qt2: Floats

    @property
    def depth(self) -> int:
        """Number of affine layers L."""
        return len(self.widths) - 1

    @property
    def outputs(self) -> int:
        """Number of outputs C = M_L."""
        return self.widths[-1]

    @property
    def layer_K1(self) -> Floats:
        """Squared norm of the gradient of one output for each layer's weights (and biases).

        Under `hidden_normalization` the gradients of hidden layers are centred over the batch,
        which leaves M_{l-1} (qh_1 - qh_2) qt_1.
        """
        feats = self.qh1.copy()
        if self.hidden_normalization is not None:
            feats[:-1] -= self.qh2[:-1]
        return np.array(self.widths[:-1]) * feats * self.qt1 + self._bias_terms(self.qt1)

    @property
    def layer_K2(self) -> Floats:
        """Product of the gradients of one output at two samples, for each layer."""
        return np.array(self.widths[:-1]) * self.qh2 * self.qt2 + self._bias_terms(self.qt2)

    @property
    def K1(self) -> float:
        """Squared norm of the gradient of one output, for all parameters."""
        return float(self.layer_K1.sum())

    @property
    def K2(self) -> float:
        """Product of the gradients of one output at two samples."""
        return float(self.layer_K2.sum())

    @property
    def width(self) -> int:
        """The width M that `alpha` and the kappas are relative to: that of the first hidden layer.

        Raises
        ------
        ValueError
            A network of one layer has no hidden width.
        """
        if self.depth < 2:
            raise ValueError("widths: alpha and kappa need a hidden layer, got one layer")
        return self.widths[1]

    @property
    def alpha(self) -> float:
        """``sum_{l=1}^{L-1} alpha_{l-1} alpha_l`` with alpha_l = M_l / M: P is about alpha M^2."""
        pairs = zip(self.widths[:-2], self.widths[1:-1], strict=True)
        return sum(below * above for below, above in pairs) / self.width**2

    @property
    def kappa1(self) -> float:
        """``K1 / (alpha M)``."""
        return self.K1 / (self.alpha * self.width)

    @property
    def kappa2(self) -> float:
        """``K2 / (alpha M)``."""
        return self.K2 / (self.alpha * self.width)

    def _bias_terms(self, qt: Floats) -> Floats:
        return qt if self.biases else np.zeros_like(qt)


def order_parameters(
    widths: Sequence[int],
    *,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    hidden_normalization: HiddenNormalization | None = None,
    biases: bool = False,
    input_variance: float = 1.0,
    input_covariance: float = 0.0,
) -> OrderParameters:
    """Order parameters of a random network in the limit of large widths.

    Parameters
    ----------
    widths : sequence of int
        (M_0, ..., M_L), as for `fastfisher.models.MLP`; they may differ.
    activation : "relu" | "tanh" | "erf" | "erf-sqrt2" | "linear"
        phi of the hidden layers.
    sigma_w2, sigma_b2 : float
        Variances of weights (times the width below) and of biases.
    hidden_normalization : None | "mean" | "batch"
        Normalise hidden pre-activations over the batch: subtract their mean, or also divide by
        their standard deviation.
    biases : bool
        Count the parameters of biases: a term of order one in K_1 and K_2, of use below widths of
        some 300.
    input_variance, input_covariance : float
        qh_1^0 and qh_2^0: mean square of a sample's components, and mean product of two samples'.

    Returns
    -------
    OrderParameters

    Raises
    ------
    ValueError
        Bad widths, names or variances; variances that grow beyond float64 in a deep network. The
        message names the argument.

    Notes
    -----
    With `hidden_normalization` (Karakida, Akaho and Amari 2019, arXiv 1906.02926; the recursion is
    derived for this library), in large batches, hidden pre-activations have the variance v^l and no
    covariance::

        mean: v^l = sigma_w2 (qh_1^{l-1} - qh_2^{l-1}),     batch: v^l = 1
        qh_1^l = E[phi(sqrt(v) z)^2],                       qh_2^l = E[phi(sqrt(v) z)]^2
        qt_1^l = sigma_w2 qt_1^{l+1} E[phi'(sqrt(v) z)^2] g,
        g = 1 (mean) or 1 / (sigma_w2 (qh_1^{l-1} - qh_2^{l-1})) (batch)

    Examples
    --------
    >>> order = order_parameters((800, 800, 800, 1), activation="tanh", sigma_w2=3, sigma_b2=0.64)
    >>> round(order.kappa1, 8), round(order.kappa2, 8)
    (0.9555219, 0.11861537)
    """
    sizes = checked_widths(widths)
    member("activation", activation, ACTIVATIONS)
    member("hidden_normalization", hidden_normalization, (None, "mean", "batch"))
    if activation == "hard-tanh":
        raise ValueError(
            "activation: 'hard-tanh' has no closed form for two samples; "
            "conditional_law takes it, for one sample"
        )
    w = number("sigma_w2", sigma_w2, above=0)
    b = number("sigma_b2", sigma_b2, least=0)
    first = number("input_variance", input_variance, above=0)
    second = number("input_covariance", input_covariance)
    if abs(second) > first:
        raise ValueError(
            f"input_covariance: expected at most input_variance = {first:g} in size, got {second:g}"
        )
    if hidden_normalization is None:
        return _plain(sizes, activation, w, b, (first, second), biases=biases)
    return _normalized(
        sizes, activation, w, b, (first, second), hidden_normalization, biases=biases
    )


def _plain(
    sizes: tuple[int, ...],
    activation: str,
    w: float,
    b: float,
    inputs: tuple[float, float],
    *,
    biases: bool,
) -> OrderParameters:
    with np.errstate(over="ignore", invalid="ignore"):
        arrays = plain_arrays(len(sizes) - 1, activation, np.array(w), np.array(b), inputs)
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError(
            f"sigma_w2: order parameters overflow at depth {len(sizes) - 1}, "
            f"expected less than {w:g}"
        )
    return OrderParameters(sizes, activation, w, b, None, biases, *arrays)


def plain_arrays(
    depth: int, activation: str, w: Floats, b: Floats, inputs: tuple[float, float]
) -> tuple[Floats, ...]:
    """qh1, qh2, q1, q2, qt1, qt2 (..., L) of variances w, b (...)."""
    ones = np.ones_like(w)
    one = list(single_recursion(inputs[0] * ones, depth=depth, activation=activation, w=w, b=b))
    first, second = one[0].covariance, w * inputs[1] + b
    angle = None
    if activation == "relu":
        half = w * (inputs[0] - inputs[1]) / (2 * first)  # sin^2(angle / 2)
        angle = 2 * np.arcsin(np.sqrt(half.clip(0, 1)))
    start, sides = (inputs[1] * ones, second, angle), (first, first)
    two = list(recursion(start, sides, depth=depth, activation=activation, w=w, b=b, known=one))
    if inputs[0] == inputs[1]:  # one and the same sample
        two = one
    results = []
    for name in ("overlap", "covariance"):
        results += [np.stack([getattr(layer, name) for layer in k], -1) for k in (one, two)]
    for steps in (one, two):
        qt = np.ones((*w.shape, depth))
        for layer in reversed(range(depth - 1)):
            slope = steps[layer].slope
            assert slope is not None
            qt[..., layer] = w * qt[..., layer + 1] * slope
        results.append(qt)
    return tuple(results)


def _normalized(
    sizes: tuple[int, ...],
    activation: str,
    w: float,
    b: float,
    inputs: tuple[float, float],
    kind: HiddenNormalization,
    *,
    biases: bool,
) -> OrderParameters:
    depth = len(sizes) - 1
    qh, q, qt = np.ones((2, depth)), np.zeros((2, depth)), np.zeros((2, depth))
    qh[:, 0] = inputs
    slopes, gains = np.ones(depth), np.ones(depth)
    for layer in range(depth - 1):
        spread = w * (qh[0, layer] - qh[1, layer])
        if kind == "mean":
            variance = spread
        else:
            variance, gains[layer] = 1.0, 1 / spread
        q[0, layer] = variance
        qh[0, layer + 1], slopes[layer] = same_overlap(activation, variance)
        qh[1, layer + 1] = mean_activation(activation, variance) ** 2
    q[:, -1] = w * qh[:, -1] + b
    qt[:, -1] = 1.0
    for layer in reversed(range(depth - 1)):
        # Gradients of hidden layers are centred over the batch: those of two samples cancel.
        qt[0, layer] = w * qt[0, layer + 1] * slopes[layer] * gains[layer]
    return OrderParameters(sizes, activation, w, b, kind, biases, *qh, *q, *qt)
