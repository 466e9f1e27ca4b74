# SPDX-License-Identifier: Apache-2.0
"""Order parameters of many random networks at once: sweeps over variances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, count, member
from fastfisher.theory._checks import widths as checked_widths
from fastfisher.theory.gaussian import ACTIVATIONS
from fastfisher.theory.order_parameters import plain_arrays

__all__ = ["OrderParameterSweep", "order_parameter_sweep"]


@dataclass(frozen=True, eq=False, slots=True)
class OrderParameterSweep:
    """Order parameters for arrays of variances; last axes of arrays are layers l = 0..L-1.

    Attributes
    ----------
    widths : tuple of int
        (M_0, ..., M_L).
    activation : str
    sigma_w2, sigma_b2 : arrays, shape (...)
        Variances, broadcast against each other.
    qh1, qh2, q1, q2, qt1, qt2 : arrays, shape (..., L)
        As in `OrderParameters`.
    """

    widths: tuple[int, ...]
    activation: str
    sigma_w2: Floats
    sigma_b2: Floats
    qh1: Floats
    qh2: Floats
    q1: Floats
    q2: Floats
    qt1: Floats
    qt2: Floats

    @property
    def K1(self) -> Floats:
        """Squared norms (...) of the gradient of one output, weights only."""
        total: Floats = (np.array(self.widths[:-1]) * self.qh1 * self.qt1).sum(-1)
        return total

    @property
    def K2(self) -> Floats:
        """Products (...) of the gradients of one output at two samples."""
        total: Floats = (np.array(self.widths[:-1]) * self.qh2 * self.qt2).sum(-1)
        return total

    def lambda_max(self, *, samples: int) -> Floats:
        """Largest eigenvalues (...) of the Fisher matrix, ``(N - 1) / N K_2 + K_1 / N``."""
        n = count("samples", samples)
        return ((n - 1) * self.K2 + self.K1) / n


def order_parameter_sweep(
    widths: Sequence[int],
    *,
    sigma_w2: ArrayLike,
    sigma_b2: ArrayLike = 0.0,
    activation: str = "relu",
) -> OrderParameterSweep:
    """`order_parameters` of networks of one shape, for arrays of variances.

    Parameters
    ----------
    widths : sequence of int
        (M_0, ..., M_L).
    sigma_w2, sigma_b2 : arrays that broadcast against each other
        Variances of weights (times the width below), > 0, and of biases, >= 0.
    activation : "relu" | "tanh" | "erf" | "erf-sqrt2" | "linear"
        phi of the hidden layers.

    Returns
    -------
    OrderParameterSweep

    Raises
    ------
    ValueError
        Bad widths, names or variances; variances that grow beyond float64 in a deep network. The
        message names the argument.
    TypeError
        Complex variances.

    Notes
    -----
    All layers of all networks in L steps on arrays: 1,000 pairs of variances at depth 100 take a
    fraction of a second.

    Examples
    --------
    >>> import numpy as np
    >>> sweep = order_parameter_sweep((9,) * 100 + (1,), sigma_w2=[1.9, 2.0], activation="relu")
    >>> sweep.q1[:, -1].round(6)
    array([0.011841, 2.      ])
    """
    sizes = checked_widths(widths)
    member("activation", activation, [a for a in ACTIVATIONS if a != "hard-tanh"])
    for name, value in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2)):
        if np.iscomplexobj(value):
            raise TypeError(f"{name}: expected real numbers, got dtype {np.asarray(value).dtype}")
    try:
        w, b = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (sigma_w2, sigma_b2)))
    except (TypeError, ValueError):
        raise ValueError(
            f"sigma_w2: expected arrays that broadcast against each other, got {sigma_w2!r} and "
            f"{sigma_b2!r}"
        ) from None
    array("sigma_w2", w.ravel(), rank=1)
    array("sigma_b2", b.ravel(), rank=1)
    if w.size and w.min() <= 0:
        raise ValueError(f"sigma_w2: expected numbers > 0, got {w.min():g}")
    if b.size and b.min() < 0:
        raise ValueError(f"sigma_b2: expected numbers >= 0, got {b.min():g}")
    with np.errstate(over="ignore", invalid="ignore"):
        arrays = plain_arrays(len(sizes) - 1, activation, w, b, (1.0, 0.0))
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError(
            f"sigma_w2: order parameters overflow at depth {len(sizes) - 1}, "
            f"expected less than {w.max():g}"
        )
    return OrderParameterSweep(sizes, activation, w, b, *arrays)
