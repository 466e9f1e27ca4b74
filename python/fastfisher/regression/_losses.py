# SPDX-License-Identifier: Apache-2.0
"""Predicted training and test losses of wide networks, with the scatter of single networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.kernels import LayerKernels
from fastfisher.regression._dynamics import Dynamics
from fastfisher.regression._eigen import targets_of
from fastfisher.regression._posterior import ensemble
from fastfisher.theory._checks import Floats, count

__all__ = ["PredictedLosses", "predicted_losses"]


@dataclass(frozen=True, eq=False, slots=True)
class PredictedLosses:
    """Losses ``1 / (2 N) sum ||f - y||^2`` after 0, 1, ..., T steps; arrays of shape (T + 1,).

    Attributes
    ----------
    train, test : arrays
        Means over networks, or those of the network whose start was given.
    train_std, test_std : arrays
        Standard deviations over networks; zero for a given start.
    """

    train: Floats
    train_std: Floats
    test: Floats
    test_std: Floats


def predicted_losses(
    dynamics: Dynamics,
    y: ArrayLike,
    test_y: ArrayLike,
    *,
    lr: float,
    steps: int,
    kernels: tuple[LayerKernels, LayerKernels, LayerKernels] | None = None,
    starts: tuple[ArrayLike, ArrayLike] | None = None,
) -> PredictedLosses:
    """Training and test losses of wide networks, step by step.

    Parameters
    ----------
    dynamics : Dynamics
        Of `gradient_descent` or `natural_gradient`, with the test samples.
    y, test_y : arrays, shapes (N,) or (N, C), and (m,) or (m, C)
        Targets.
    lr : float
    steps : int
    kernels : three LayerKernels
        Of the training samples, of test with training samples, of the test samples: for networks
        with random starts.
    starts : two arrays, shaped as the targets
        Outputs of one network at the start, in place of `kernels`.

    Returns
    -------
    PredictedLosses

    Raises
    ------
    ValueError
        Both or neither of kernels and starts; bad shapes, learning rate or steps; no test samples.
    TypeError
        Kernels that are none of `layer_kernels`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> rng = np.random.default_rng(0)
    >>> x, z = rng.standard_normal((20, 30)), rng.standard_normal((10, 30))
    >>> kernels = tuple(ff.kernels.layer_kernels(*p, depth=3) for p in ((x,), (z, x), (z,)))
    >>> natural = ff.regression.natural_gradient(*kernels[:2])
    >>> found = ff.regression.predicted_losses(
    ...     natural, x[:, 0], z[:, 0], lr=1.0, steps=1, kernels=kernels
    ... )
    >>> found.train.round(3), found.test.round(3), found.test_std.round(3)
    (array([1.463, 0.   ]), array([1.247, 0.633]), array([0.9 , 0.32]))
    """
    if (kernels is None) == (starts is None):
        raise ValueError("starts: expected either kernels or starts")
    steps = count("steps", steps, least=0)
    if dynamics.modes is None or len(dynamics.modes) == 0:
        raise ValueError("dynamics: expected one with test samples (cross), got one without")
    n, m = len(dynamics.values), len(dynamics.modes)
    target, test_target = targets_of("y", y, n), targets_of("test_y", test_y, m)
    if target.shape[1:] != test_target.shape[1:]:
        raise ValueError(
            f"test_y: expected shape {(m, *target.shape[1:])}, got {test_target.shape}"
        )
    if starts is not None:
        start, test_start = targets_of("starts", starts[0], n), targets_of("starts", starts[1], m)
        for f, like in ((start, target), (test_start, test_target)):
            if f.shape != like.shape:
                raise ValueError(f"starts: expected shape {like.shape}, got {f.shape}")
        e = start - target
        train = dynamics.training_curve(e, lr=lr, steps=steps)
        test = test_start + dynamics.prediction_curve(e, lr=lr, steps=steps) - test_target
        zeros = np.zeros(steps + 1)
        return PredictedLosses(_losses(train), zeros, _losses(test), zeros)
    assert kernels is not None
    if len(kernels) != 3 or not all(isinstance(k, LayerKernels) for k in kernels):
        raise TypeError(
            f"kernels: expected three LayerKernels, got {[type(k).__name__ for k in kernels]}"
        )
    own, cross, prior = (k.nngp for k in kernels)
    found = []
    for t in range(steps + 1):
        train_law = ensemble(dynamics, target, kernel=own, lr=lr, steps=t)
        test_law = ensemble(dynamics, target, kernel=own, cross=cross, prior=prior, lr=lr, steps=t)
        found.append((*train_law.loss(target), *test_law.loss(test_target)))
    return PredictedLosses(*np.array(found).T)


def _losses(residuals: Floats) -> Floats:
    """Mean losses (T,) of residuals (T, n) or (T, n, C)."""
    flat = residuals.reshape(len(residuals), -1)
    losses: Floats = np.square(flat).sum(1) / (2 * residuals.shape[1])
    return losses
