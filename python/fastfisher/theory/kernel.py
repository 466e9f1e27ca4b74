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
from fastfisher.theory.fisher import PARAMETERIZATIONS
from fastfisher.theory.gaussian import ACTIVATIONS, pair_overlap, same_overlap

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
    Memory and time O(N^2) for each layer, for ``tanh`` times some 10^4 nodes of the trapezoid rule.
    The diagonal comes from the recursion of one sample: exact, where closed forms lose digits.

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
    overlap = samples @ samples.T / sizes[0]
    overlap = (overlap + overlap.T) / 2
    overlaps, variances, slopes = [overlap], [], []
    for _ in sizes[1:-1]:
        q = w * overlaps[-1] + b
        value, slope = _layer(activation, q)
        variances.append(q)
        overlaps.append(value)
        slopes.append(slope)
    variances.append(w * overlaps[-1] + b)
    gradient = np.ones_like(overlap)
    result = np.zeros_like(overlap)
    for layer in reversed(range(len(sizes) - 1)):
        if parameterization == "ntk":
            result += variances[layer] * gradient
        else:
            result += (sizes[layer] * overlaps[layer] + 1) * gradient
        if layer:
            gradient = w * gradient * slopes[layer - 1]
    return result


def _layer(activation: str, q: Floats) -> tuple[Floats, Floats]:
    """E[phi phi] and E[phi' phi'] for all pairs of samples of covariance q (n, n)."""
    n = q.shape[0]
    diagonal = np.diagonal(q)
    rows, columns = np.triu_indices(n, 1)
    upper = pair_overlap(activation, diagonal[rows], diagonal[columns], q[rows, columns])
    results = []
    same = np.array([same_overlap(activation, float(a)) for a in diagonal]).reshape(n, 2)
    for pairs, own in zip(upper, same.T, strict=True):
        matrix = np.empty_like(q)
        matrix[rows, columns] = matrix[columns, rows] = pairs
        np.fill_diagonal(matrix, own)
        results.append(matrix)
    return results[0], results[1]
