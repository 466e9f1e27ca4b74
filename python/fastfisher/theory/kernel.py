# SPDX-License-Identifier: Apache-2.0
"""Order parameters of given samples: the same recursion, entry by entry of N x N matrices.

Where samples have different norms or are not nearly orthogonal, the two scalars of
`order_parameters` become matrices that start from A^0 = X X^T / M_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, member, number
from fastfisher.theory._checks import widths as checked_widths
from fastfisher.theory._pairs import pair_layers
from fastfisher.theory.fisher import PARAMETERIZATIONS
from fastfisher.theory.gaussian import ACTIVATIONS

__all__ = ["mean_field_kernel"]


def mean_field_kernel(
    x: ArrayLike,
    widths: Sequence[int],
    *,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    parameterization: Literal["standard", "ntk"] = "standard",
) -> Floats:
    """Products of the gradients of one output at the given samples, in wide random networks.

    Parameters
    ----------
    x : array, shape (N, M_0)
        Samples.
    widths : sequence of int
        (M_0, ..., M_L).
    activation : "relu" | "tanh" | "erf" | "erf-sqrt2" | "linear"
        phi.
    sigma_w2, sigma_b2 : float
        Variances of weights (times the width below) and of biases.
    parameterization : "standard" | "ntk"
        Of the trainables.

    Returns
    -------
    array, shape (N, N), float64
        ``sum_l (M_{l-1} qh_ts^{l-1} + 1) qt_ts^l`` (standard, 1 for the biases) or
        ``sum_l q_ts^l qt_ts^l`` (ntk: the neural tangent kernel). F* is this over N, for each
        output.

    Raises
    ------
    ValueError
        Bad shapes, widths, names or variances; the message names the argument.

    Notes
    -----
    Memory and time O(N^2) for each layer; see `fastfisher.kernels.layer_kernels`, whose recursion
    this is. The diagonal comes from the recursion of one sample: exact, where closed forms lose
    digits.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> kernel = mean_field_kernel(x, (2, 9, 1), sigma_b2=0.1, parameterization="ntk")
    >>> print(kernel.round(6))
    [[2.3      1.377482]
     [1.377482 2.3     ]]
    """
    sizes = checked_widths(widths)
    member("activation", activation, [a for a in ACTIVATIONS if a != "hard-tanh"])
    member("parameterization", parameterization, PARAMETERIZATIONS)
    w = number("sigma_w2", sigma_w2, above=0)
    b = number("sigma_b2", sigma_b2, least=0)
    samples = array("x", x, rank=2)
    if samples.shape[1] != sizes[0]:
        raise ValueError(f"x: expected shape (N, {sizes[0]}), got {samples.shape}")
    depth = len(sizes) - 1
    steps = list(pair_layers(samples, None, depth=depth, activation=activation, w=w, b=b))
    gradient = np.ones_like(steps[0].overlap)
    result = np.zeros_like(gradient)
    for layer in reversed(range(depth)):
        step = steps[layer]
        if step.slope is not None:
            gradient = w * gradient * step.slope
        if parameterization == "ntk":
            result += step.covariance * gradient
        else:
            result += (sizes[layer] * step.overlap + 1) * gradient
    return result
