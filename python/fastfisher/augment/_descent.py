# SPDX-License-Identifier: Apache-2.0
"""Self-paced augmentation in the kernel regime: gradient descent on outputs instead of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfisher.augment._selection import check_rule, select
from fastfisher.errors import NumericalError
from fastfisher.theory._checks import array, count, number, symmetric

__all__ = ["SelfPacedRun", "self_paced_descent"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SelfPacedRun:
    """What `self_paced_descent` found, step by step.

    Attributes
    ----------
    outputs : array, shape (steps + 1, t, c)
        Outputs at all points, from the start on.
    losses : array, shape (steps + 1, n)
        Half the squared distance of each sample's outputs, as it is, to its targets.
    chosen : array of bool, shape (steps, n)
        Which samples were augmented in each step.
    copies : array of int, shape (steps, n)
        Which copy stood in for a sample where it was augmented.
    """

    outputs: Floats
    losses: Floats
    chosen: NDArray[np.bool_]
    copies: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.intp]:
        """Number of samples augmented in each step (steps,)."""
        counts: NDArray[np.intp] = self.chosen.sum(axis=1)
        return counts

    @property
    def fractions(self) -> Floats:
        """Share of samples augmented in each step (steps,), r_t in the paper."""
        fractions: Floats = self.counts / self.losses.shape[1]
        return fractions

    @property
    def loss(self) -> Floats:
        """Mean loss of the samples as they are (steps + 1,)."""
        mean: Floats = self.losses.mean(axis=1)
        return mean


def self_paced_descent(
    kernel: ArrayLike,
    f0: ArrayLike,
    y: ArrayLike,
    *,
    lr: float,
    steps: int,
    threshold: float | None = None,
    quantile: float | None = None,
    mode: Literal["above", "below"] = "above",
    copies: ArrayLike | None = None,
    seed: int = 0,
) -> SelfPacedRun:
    """Gradient descent with self-paced augmentation of a network with a constant tangent kernel.

    Parameters
    ----------
    kernel : array, shape (t, k)
        Theta between all points and the training points. The k = n (1 + a) training points come
        first, in this order: the n samples, copy 0 of each, copy 1 of each, ...; other points, to
        follow the outputs there, come after them.
    f0 : array, shape (t,) or (t, c)
        Outputs at the start at all points: those of a network, or zeros.
    y : array, shape (n,) or (n, c)
        Targets of the samples, and of their copies.
    lr : float
        eta, for the loss ``(1 / 2n) sum ||f - y||^2``.
    steps : int
        Number of steps.
    threshold, quantile, mode
        Which samples are augmented, by their own loss ``||f(x) - y||^2 / 2``; see `select`.
    copies : array of int, shape (steps, n), optional
        Which of the copies 0..a-1 to take in each step. By default each is drawn at random, as
        augmentation anew in each step does.
    seed : int
        Seed of that draw.

    Returns
    -------
    SelfPacedRun

    Raises
    ------
    ValueError
        Shapes that do not fit, numbers out of range.
    NumericalError
        The outputs overflow: the learning rate is too large.

    Notes
    -----
    With S_t the samples chosen at step t and x~_i the copy of x_i for i in S_t, else x_i itself
    (derived for this library)::

        f <- f - (eta / n) sum_i Theta(., x~_i) (f(x~_i) - y_i)

    Each output has the kernel Theta. Once no loss is on the side of the threshold that is
    augmented, it is gradient descent without augmentation. Wide networks follow within O(M^-1/2),
    as long as no loss comes so close to the threshold that the two decide differently. Cost:
    t n c multiply-adds a step.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])  # 2 samples, a copy of each
    >>> run = self_paced_descent(z @ z.T, np.zeros(4), [1.0, -0.2], lr=1.0, steps=4, threshold=0.1)
    >>> run.counts.tolist()
    [1, 1, 0, 0]
    """
    check_rule(threshold, quantile, mode)
    eta, steps = number("lr", lr, above=0), count("steps", steps, least=0)
    targets = _columns("y", y)
    n, c = targets.shape
    theta = array("kernel", kernel, rank=2)
    t, k = theta.shape
    if n == 0 or k % n or k < 2 * n or t < k:
        raise ValueError(
            f"kernel: expected shape (t, k) with k a multiple of n = {n}, at least {2 * n}, and "
            f"t >= k, got {theta.shape}"
        )
    symmetric("kernel", theta[:k])
    f = _columns("f0", f0)
    if f.shape != (t, c):
        raise ValueError(f"f0: expected shape {(t, c)}, got {f.shape}")
    picks = _copies(copies, steps, n, k // n - 1, seed)
    outputs, losses = np.empty((steps + 1, t, c)), np.empty((steps + 1, n))
    chosen = np.zeros((steps, n), dtype=bool)
    samples = np.arange(n)
    for step in range(steps + 1):
        outputs[step] = f
        with np.errstate(over="ignore"):
            losses[step] = ((f[:n] - targets) ** 2).sum(axis=1) / 2
        if not (np.isfinite(losses[step]).all() and np.isfinite(f).all()):
            raise NumericalError(
                f"lr: the outputs overflow at step {step} with the learning rate {eta:g}"
            )
        if step < steps:
            picked = select(losses[step], threshold=threshold, quantile=quantile, mode=mode)
            chosen[step] = picked.chosen
            used = np.where(picked.chosen, (1 + picks[step]) * n + samples, samples)
            with np.errstate(over="ignore", invalid="ignore"):
                f = f - eta / n * (theta[:, used] @ (f[used] - targets))
    return SelfPacedRun(outputs, losses, chosen, picks)


def _columns(name: str, value: ArrayLike) -> Floats:
    """One column an output."""
    given = np.asarray(value)
    if given.ndim == 1:
        return array(name, value, rank=1)[:, None]
    return array(name, value, rank=2)


def _copies(copies: Any, steps: int, n: int, a: int, seed: int) -> NDArray[np.intp]:
    if copies is None:
        return np.random.default_rng(seed).integers(a, size=(steps, n))
    given = np.asarray(copies)
    if given.dtype.kind not in "iu":
        raise TypeError(f"copies: expected an integer dtype, got dtype {given.dtype}")
    if given.shape != (steps, n):
        raise ValueError(f"copies: expected shape {(steps, n)}, got {given.shape}")
    if given.size and not 0 <= given.min() <= given.max() < a:
        raise ValueError(
            f"copies: expected numbers from 0 to {a - 1}, got {given.min()} to {given.max()}"
        )
    return given.astype(np.intp)
