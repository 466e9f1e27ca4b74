# SPDX-License-Identifier: Apache-2.0
"""Kernels of every layer in one pass: forward q^l, backward qt^l, their products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, count, member, number
from fastfisher.theory._pairs import finite, pair_layers, single_layers

__all__ = ["LayerKernels", "checked", "layer_kernels"]

KERNEL_ACTIVATIONS = ("relu", "tanh", "erf", "erf-sqrt2", "linear")


@dataclass(frozen=True, eq=False, slots=True)
class LayerKernels:
    """Kernels of each layer between n and m samples; entry l - 1 of an array belongs to layer l.

    Attributes
    ----------
    forward : array, shape (L, n, m), float64
        q^l, covariances of the layer's pre-activations: sigma_w2 (1/M) h.h' + sigma_b2.
    backward : array, shape (L, n, m), float64
        qt^l, overlaps ``sum_i delta_i delta'_i`` of the gradients of one output for them.
    """

    forward: Floats
    backward: Floats

    @property
    def depth(self) -> int:
        """Number of affine layers L."""
        return len(self.forward)

    @property
    def nngp(self) -> Floats:
        """Covariance (n, m) of one output."""
        kernel: Floats = self.forward[-1]
        return kernel

    @property
    def layers(self) -> Floats:
        """Tangent kernels (L, n, m) of the layers, ``q^l * qt^l``."""
        return self.forward * self.backward

    @property
    def ntk(self) -> Floats:
        """Tangent kernel (n, m), the sum over the layers."""
        kernel: Floats = np.einsum("l...,l...->...", self.forward, self.backward)
        return kernel


def layer_kernels(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    depth: int,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    diagonal: bool = False,
) -> LayerKernels:
    """Covariances and gradient overlaps of each layer, all from one pass over the layers.

    Parameters
    ----------
    x : array, shape (n, M_0)
        Samples; taken to float64.
    y : array, shape (m, M_0), optional
        The other samples; x itself if left out.
    depth : int
        L, the number of affine layers: 1 is a linear model, 3 has two hidden layers.
    activation : "relu" | "tanh" | "erf" | "erf-sqrt2" | "linear"
        phi of the hidden layers; ``erf`` is erf(u), ``erf-sqrt2`` is erf(u / sqrt(2)).
    sigma_w2, sigma_b2 : float
        Variances of weights (times the width below) and of biases.
    diagonal : bool
        Only pairs of a sample with itself: arrays (L, n), at a cost of O(n); without y.

    Returns
    -------
    LayerKernels

    Raises
    ------
    ValueError
        Bad shapes, names, numbers or samples, kernels that overflow; the message names the
        argument.
    TypeError
        Complex samples.

    Notes
    -----
    NTK parameterisation, f = u^L, u^l = sqrt(sigma_w2 / M_{l-1}) omega^l h^{l-1} + sqrt(sigma_b2)
    beta^l. The recursions are ::

        q^1 = sigma_w2 X Y^T / M_0 + sigma_b2,    q^{l+1} = sigma_w2 E[phi(u) phi(v)] + sigma_b2
        qt^L = 1,                                 qt^l = sigma_w2 qt^{l+1} E[phi'(u) phi'(v)]

    Closed forms for all activations but ``tanh``, a Hermite series there with an error below 1e-12,
    for pairs of pre-activations of variance up to 1000. Where ``erf`` is in its chaotic phase, a
    deep network multiplies the rounding of a covariance as it does the distance of two samples.
    Pairs of equal samples take the recursion of one sample, also between two sets for ``relu``.
    Time and memory O(L n m), and n m M_0 for the products of the samples.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> found = ff.kernels.layer_kernels(x, depth=2, sigma_b2=0.1)
    >>> print(found.nngp.round(6))
    [[1.2      0.873788]
     [0.873788 1.2     ]]
    >>> print(found.ntk.round(6))
    [[2.3      1.377482]
     [1.377482 2.3     ]]
    """
    samples, others, depth, w, b = checked(
        x, y, depth, activation, sigma_w2, sigma_b2, diagonal=diagonal
    )
    with np.errstate(over="ignore", invalid="ignore"):  # checked at the end
        if diagonal:
            steps = list(single_layers(samples, depth=depth, activation=activation, w=w, b=b))
        else:
            steps = list(pair_layers(samples, others, depth=depth, activation=activation, w=w, b=b))
        forward = np.stack([step.covariance for step in steps])
        backward = np.ones_like(forward)
        for layer in reversed(range(depth - 1)):
            slope = steps[layer].slope
            assert slope is not None
            backward[layer] = w * backward[layer + 1] * slope
        found = LayerKernels(forward, backward)
        finite(found.ntk, depth)
    return found


def checked(
    x: ArrayLike,
    y: ArrayLike | None,
    depth: int,
    activation: str,
    sigma_w2: float,
    sigma_b2: float,
    *,
    diagonal: bool,
) -> tuple[Floats, Floats | None, int, float, float]:
    """Arguments of all kernels as float64 arrays and numbers; y is None where it is x."""
    member("activation", activation, KERNEL_ACTIVATIONS)
    depth = count("depth", depth)
    w = number("sigma_w2", sigma_w2, above=0)
    b = number("sigma_b2", sigma_b2, least=0)
    samples = array("x", x, rank=2)
    if samples.shape[1] == 0:
        raise ValueError(f"x: expected at least one input, got shape {samples.shape}")
    if y is None or y is x:
        return samples, None, depth, w, b
    if diagonal:
        raise ValueError("y: diagonal=True takes one set of samples, got two")
    others = array("y", y, rank=2)
    if others.shape[1] != samples.shape[1]:
        raise ValueError(f"y: expected shape (m, {samples.shape[1]}), got {others.shape}")
    return samples, others, depth, w, b
