# SPDX-License-Identifier: Apache-2.0
"""The two kernels of a wide network: of its random outputs, and of their training."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.kernels._layers import checked, layer_kernels
from fastfisher.theory._checks import Floats, member
from fastfisher.theory._pairs import finite, pair_layers, single_layers

__all__ = ["nngp", "ntk"]


def nngp(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    depth: int,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    diagonal: bool = False,
) -> Floats:
    """Covariance of one output of a wide random network between two sets of samples.

    Parameters
    ----------
    x, y, depth, activation, sigma_w2, sigma_b2, diagonal
        As in `layer_kernels`.

    Returns
    -------
    array, shape (n, m), float64
        ``E f(x) f(y)`` over random networks of infinite width; (n,) with `diagonal`.

    Raises
    ------
    ValueError, TypeError
        As `layer_kernels`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.kernels.nngp(np.eye(2), depth=3, activation="erf", diagonal=True).round(6)
    array([0.901149, 0.901149])
    """
    found = checked(x, y, depth, activation, sigma_w2, sigma_b2, diagonal=diagonal)
    samples, others, depth, w, b = found
    if diagonal:
        steps = single_layers(samples, depth=depth, activation=activation, w=w, b=b)
    else:
        steps = pair_layers(samples, others, depth=depth, activation=activation, w=w, b=b)
    with np.errstate(over="ignore", invalid="ignore"):  # checked at the end
        for step in steps:  # keeps one layer at a time
            kernel = step.covariance
    finite(kernel, depth)
    return kernel


def ntk(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    depth: int,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    layers: Literal["sum", "each"] = "sum",
    diagonal: bool = False,
) -> Floats:
    """Neural tangent kernel of a wide network between two sets of samples.

    Parameters
    ----------
    x, y, depth, activation, sigma_w2, sigma_b2, diagonal
        As in `layer_kernels`.
    layers : "sum" | "each"
        Of all parameters, or of each layer's weight and bias.

    Returns
    -------
    array, shape (n, m), or (L, n, m) with ``layers="each"``, float64
        ``J J^T`` of one output in NTK parameterisation, in the limit of large widths; n in place
        of (n, m) with `diagonal`.

    Raises
    ------
    ValueError, TypeError
        As `layer_kernels`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x, y = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> ff.kernels.ntk(x, y, depth=3, sigma_b2=0.1).round(6)
    array([[3.6     , 2.071924]])
    """
    member("layers", layers, ("sum", "each"))
    found = layer_kernels(
        x,
        y,
        depth=depth,
        activation=activation,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        diagonal=diagonal,
    )
    return found.ntk if layers == "sum" else found.layers
