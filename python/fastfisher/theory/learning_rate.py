# SPDX-License-Identifier: Apache-2.0
"""Largest stable learning rates of gradient descent, from the largest eigenvalue of curvature."""

from __future__ import annotations

from typing import Literal

from fastfisher.theory._checks import count, member, number

__all__ = ["critical_learning_rate", "online_learning_rate"]


def critical_learning_rate(lambda_max: float, *, momentum: float = 0.0) -> float:
    """Learning rate above which gradient descent on the squared loss diverges at first.

    Parameters
    ----------
    lambda_max : float
        Largest eigenvalue of the Fisher matrix, measured or predicted.
    momentum : float
        mu of heavy-ball momentum, in [0, 1).

    Returns
    -------
    float
        ``2 (1 + mu) / lambda_max``.

    Raises
    ------
    ValueError
        `lambda_max` not positive, `momentum` outside [0, 1).

    Notes
    -----
    In the linear regime a step multiplies residual i by 1 - eta lambda_i. Above the rate a wide
    nonlinear network may first blow up and then settle where the curvature is smaller.

    Examples
    --------
    >>> critical_learning_rate(50.0)
    0.04
    >>> critical_learning_rate(50.0, momentum=0.9)
    0.076
    """
    top = number("lambda_max", lambda_max, above=0)
    mu = number("momentum", momentum, least=0)
    if mu >= 1:
        raise ValueError(f"momentum: expected a number in [0, 1), got {mu:g}")
    return 2 * (1 + mu) / top


def online_learning_rate(
    lambda_max: float, *, width: int | None = None, loss: Literal["mean", "sum"] = "mean"
) -> float:
    """Largest stable learning rate of online learning, one sample at a time.

    Parameters
    ----------
    lambda_max : float
        Largest eigenvalue of H.
    width : int, optional
        M; ``sum`` needs it.
    loss : "mean" | "sum"
        Squared loss ``(1/2M) |f - y|^2`` or ``(1/2) |f - y|^2``.

    Returns
    -------
    float
        ``2 / lambda_max`` or ``2 / (M lambda_max)``; near isometry about 2 / (qh* L).

    Raises
    ------
    ValueError
        Numbers or names out of range, no `width`.

    Examples
    --------
    >>> online_learning_rate(5.0), online_learning_rate(5.0, width=100, loss="sum")
    (0.4, 0.004)
    """
    member("loss", loss, ("mean", "sum"))
    top = number("lambda_max", lambda_max, above=0)
    if loss == "mean":
        return 2 / top
    if width is None:
        raise ValueError("width: loss='sum' needs the width, got None")
    return 2 / (count("width", width) * top)
