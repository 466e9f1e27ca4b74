# SPDX-License-Identifier: Apache-2.0
"""The largest stable learning rate, from the largest eigenvalue of the Fisher matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastfisher._arrays import Array, to_numpy
from fastfisher._fisher import Fisher, fisher
from fastfisher.errors import NumericalError

__all__ = ["LrBound", "largest", "lr_bound"]


@dataclass(frozen=True, slots=True)
class LrBound:
    """Largest stable learning rate.

    Attributes
    ----------
    lr : float
        ``2 (1 + momentum) / lambda_max``.
    safe_lr : float
        The same with the upper end of the interval that is sure to hold the eigenvalue.
    lambda_max : float
        Largest eigenvalue.
    residual_norm : float
        An eigenvalue lies within that distance of `lambda_max`.
    certified : bool
        Whether a search for a larger eigenvalue found none.
    vector : array, shape (P,)
        Eigenvector.
    """

    lr: float
    safe_lr: float
    lambda_max: float
    residual_norm: float
    certified: bool
    vector: Array


def lr_bound(
    model: Any,
    x: Any = None,
    *,
    momentum: float = 0.0,
    likelihood: Any = "gaussian",
    v0: Array | None = None,
    seed: int = 0,
    **options: Any,
) -> LrBound:
    """Learning rate at which gradient descent on the mean loss ceases to be stable.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters), fastfisher.models.MLP, Jacobian or Fisher
        A Fisher matrix is taken as it is.
    x : array, mapping or iterable of batches, optional
        Samples; none with a Jacobian or a Fisher matrix.
    momentum : float
        Of heavy-ball momentum, 0 <= momentum < 1.
    likelihood : str or Likelihood
        Of the loss: "gaussian" for ``sum ||f - y||^2 / (2 N)``, "categorical" for the mean
        cross-entropy, where the bound changes along training.
    v0 : array, shape (P,), optional
        A guess of the eigenvector, for instance the last one.
    seed : int
        Of the search for a larger eigenvalue.
    **options
        Of `fastfisher.fisher`.

    Returns
    -------
    LrBound

    Raises
    ------
    NumericalError
        The Fisher matrix is zero: every learning rate is stable.
    ValueError, TypeError
        As in `fastfisher.fisher`; a momentum outside of [0, 1).

    Notes
    -----
    ``eta_c = 2 / lambda_max(F)`` of Karakida, Akaho and Amari 2019 (for cross-entropy the same
    paper's conditions with the softmax Fisher matrix). Above it a wide network may still recover
    at a smaller curvature. Cost: one `Fisher.eigsh` with k = 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((20, 5))
    >>> bound = ff.diagnostics.lr_bound(ff.models.MLP((5, 50, 2)), x)
    >>> bool(0 < bound.safe_lr <= bound.lr < 2)
    True
    """
    if not (isinstance(momentum, (int, float)) and 0 <= momentum < 1):
        raise ValueError(f"momentum: expected a number from 0 to less than 1, got {momentum!r}")
    value, residual, certified, vector = largest(
        model, x, likelihood=likelihood, v0=v0, seed=seed, **options
    )
    if not value > 0:
        raise NumericalError("lr_bound: the Fisher matrix is zero, every learning rate is stable")
    top = 2 * (1 + momentum)
    return LrBound(top / value, top / (value + residual), value, residual, certified, vector)


def largest(
    model: Any, x: Any, *, v0: Array | None, seed: int, **options: Any
) -> tuple[float, float, bool, Array]:
    """Largest eigenvalue, the norm of its residual, its certificate and its eigenvector."""
    if isinstance(model, Fisher):
        plain = options.pop("likelihood", "gaussian") == "gaussian"
        if x is not None or options or not plain:
            given = ["x"] * (x is not None) + ["likelihood"] * (not plain) + list(options)
            raise ValueError(f"{given[0]}: expected none with a Fisher matrix, which has its own")
        F = model
    else:
        F = fisher(model, x, **options)
    found = F.eigsh(1, v0=v0, seed=seed)
    if F.shape[0] == 0:
        return 0.0, 0.0, True, found.vectors.reshape(-1)
    value, residual = float(to_numpy(found.values)[0]), float(to_numpy(found.residual_norms)[0])
    if not math.isfinite(value):
        raise NumericalError("lr_bound: the largest eigenvalue overflows")
    return value, residual, bool(found.certified), found.vectors[:, 0]
