# SPDX-License-Identifier: Apache-2.0
"""Training of wide networks with the cross-entropy loss: a recursion of the outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.errors import NumericalError
from fastfisher.theory._checks import Floats, array, count, number

__all__ = ["CrossEntropyCurve", "cross_entropy_curve"]


@dataclass(frozen=True, eq=False, slots=True)
class CrossEntropyCurve:
    """Training with the cross-entropy loss; entry t of an array is after t steps.

    Attributes
    ----------
    outputs : array, shape (steps + 1, N, C), float64
        f_t at the training samples.
    losses : array, shape (steps + 1,)
        Mean of ``-log softmax(f)`` of the targets.
    changes : None or array, shape (steps + 1, m, C)
        f_t - f_0 at the other samples.
    """

    outputs: Floats
    losses: Floats
    changes: Floats | None


def cross_entropy_curve(
    kernel: ArrayLike,
    targets: ArrayLike,
    start: ArrayLike,
    *,
    lr: float,
    steps: int,
    cross: ArrayLike | None = None,
) -> CrossEntropyCurve:
    """Gradient descent on the cross-entropy loss of a wide network.

    Parameters
    ----------
    kernel : array, shape (N, N) or (N, C, N, C)
        Tangent kernel of the training samples: of each output, or of all pairs of outputs.
    targets : array, shape (N, C)
        Probabilities of the classes, one-hot for labels.
    start : array, shape (N, C)
        Outputs f_0.
    lr : float
    steps : int
    cross : array, shape (m, N) or (m, C, N, C), optional
        Tangent kernel of other samples with the training samples.

    Returns
    -------
    CrossEntropyCurve

    Raises
    ------
    ValueError
        Bad shapes or numbers; targets that are no probabilities.
    NumericalError
        Training that diverges beyond float64.

    Notes
    -----
    ``f_{t+1} = f_t - (eta / N) Theta (softmax(f_t) - Y)`` (Karakida, Akaho and Amari 2021, arXiv
    1910.05992): exact in the limit of large widths, where the kernel stays what it was. There is
    no closed form, the loss being no square. O(N^2 C) a step.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> curve = ff.regression.cross_entropy_curve(
    ...     np.eye(2), np.eye(2), np.zeros((2, 2)), lr=1.0, steps=2
    ... )
    >>> curve.losses.round(4)
    array([0.6931, 0.4741, 0.3477])
    """
    f = array("start", start, rank=2)
    n, c = f.shape
    if n == 0 or c == 0:
        raise ValueError(f"start: expected shape (N, C) with N, C > 0, got {f.shape}")
    y = array("targets", targets, rank=2, shape=(n, c))
    if (y < 0).any() or not np.allclose(y.sum(1), 1, rtol=0, atol=1e-6):
        raise ValueError("targets: expected probabilities, rows >= 0 of sum 1")
    lr = number("lr", lr, above=0)
    steps = count("steps", steps, least=0)
    theta = _matrix("kernel", kernel, n, c, n)
    between = None if cross is None else _matrix("cross", cross, None, c, n)
    outputs = np.empty((steps + 1, n, c))
    sums = np.zeros((steps + 1, n, c))
    losses = np.empty(steps + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps + 1):
            outputs[t] = f
            losses[t], r = _loss(f, y)
            if t < steps:
                sums[t + 1] = sums[t] + r
                f = f - (lr / n) * _times(theta, r)
        changes = None
        if between is not None:
            changes = np.stack([-(lr / n) * _times(between, s) for s in sums])
    found = (outputs, losses) if changes is None else (outputs, losses, changes)
    if not all(np.isfinite(values).all() for values in found):
        raise NumericalError("lr: training diverges beyond the largest float64 number")
    return CrossEntropyCurve(outputs, losses, changes)


def _loss(f: Floats, y: Floats) -> tuple[float, Floats]:
    """Mean loss, and softmax(f) - y."""
    shifted = f - f.max(1, keepdims=True)
    g = np.exp(shifted)
    total = g.sum(1, keepdims=True)
    return float((y * (np.log(total) - shifted)).sum() / len(f)), g / total - y


def _matrix(name: str, kernel: ArrayLike, m: int | None, c: int, n: int) -> Floats:
    rank = 4 if np.ndim(kernel) == 4 else 2
    checked = array(name, kernel, rank=rank)
    rows = checked.shape[0] if m is None else m
    expected = (rows, n) if rank == 2 else (rows, c, n, c)
    if checked.shape != expected:
        first = "m" if m is None else m
        raise ValueError(
            f"{name}: expected shape ({first}, {n}) or ({first}, {c}, {n}, {c}), "
            f"got {checked.shape}"
        )
    return checked


def _times(kernel: Floats, r: Floats) -> Floats:
    product: Floats = kernel @ r if kernel.ndim == 2 else np.tensordot(kernel, r, 2)
    return product
