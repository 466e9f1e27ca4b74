# SPDX-License-Identifier: Apache-2.0
"""Training with cross-entropy: a network, the kernel's recursion, bounds of the sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import regression, theory
from fastfisher.models import MLP
from fastfisher.report import _device
from fastfisher.report._random import VARIANCES, dual, gaussian, probabilities, softmax_dual
from fastfisher.report._section import Tick

__all__ = ["Training", "train"]

Floats = NDArray[np.float64]

ACTIVATION: Any = "relu"
SAMPLES, OUTPUTS = 50, 2
# Steps looked at: on a log scale, with the first.
LOOKS = 14


@dataclass(frozen=True, eq=False)
class Training:
    """One run of full-batch gradient descent on the cross-entropy.

    Attributes
    ----------
    steps : array of int, shape (t,)
        Steps at which `loss`, `top`, `regression`, `bounds` were measured.
    loss, predicted_loss : array, shape (t,) and (all steps,)
        Of the network, and of the recursion with the kernel of infinite width from its outputs.
    top, bounds, predicted_top : array, shape (t,), (2, t) and (all steps,)
        Largest eigenvalue of the Fisher matrix of classification; its bounds from the network's
        outputs at that step; the first outlier of theory along the recursion.
    regression, predicted_regression : array, shape (t,), float
        The same for regression.
    rate : float
        Learning rate, half the critical one of the first step.
    samples : int
    """

    steps: NDArray[np.int64]
    loss: Floats
    predicted_loss: Floats
    top: Floats
    bounds: Floats
    predicted_top: Floats
    regression: Floats
    predicted_regression: float
    rate: float
    samples: int

    def inside(self, tolerance: float = 0.05) -> NDArray[np.bool_]:
        """Tell where `top` is between the bounds, within a tolerance for finite width."""
        low, high = self.bounds
        above = self.top >= (1 - tolerance) * low
        return np.asarray(above & (self.top <= (1 + tolerance) * high))

    def drift(self) -> float:
        """Relative change of the regression's largest eigenvalue during training."""
        return float(self.regression.max() / self.regression.min() - 1)

    def plain(self) -> dict[str, Any]:
        """Return it for results.json."""
        looks = self.steps
        return {
            "steps": looks.tolist(),
            "loss": self.loss.tolist(),
            "loss_predicted": self.predicted_loss[looks].tolist(),
            "lambda_max": self.top.tolist(),
            "lambda_max_predicted": self.predicted_top[looks].tolist(),
            "lower_bound": self.bounds[0].tolist(),
            "upper_bound": self.bounds[1].tolist(),
            "lambda_max_of_regression": self.regression.tolist(),
            "lambda_max_of_regression_predicted": self.predicted_regression,
        }


def train(width: int, *, steps: int, seed: int, tick: Tick) -> Training:
    """Train three layers of `width` on labels of another random network."""
    widths = (width, width, width, OUTPUTS)
    options: dict[str, Any] = {"activation": ACTIVATION, **VARIANCES[ACTIVATION]}
    order = theory.order_parameters(widths, **options)
    x = gaussian(SAMPLES, width, seed=seed)
    x32 = x.astype(np.float32)
    teacher = np.asarray(MLP(widths, seed=seed + 1, dtype="float32", **options)(x32))
    # Without its mean, which is most of it, the labels are balanced.
    labels = np.eye(OUTPUTS)[(teacher - teacher.mean(0)).argmax(1)]
    mlp = MLP(widths, seed=seed, dtype="float32", **options)
    looks = _looks(steps)
    losses, tops, bounds, plain = [], [], [], []
    rate, start = 0.0, np.empty(0)
    for step in range(steps + 1):
        jacobian = mlp.jacobian(x32)
        g = probabilities(jacobian.outputs)
        if step in looks:
            matrix = dual(jacobian)
            spectrum = theory.softmax_spectrum(order, g)
            tops.append(_top(softmax_dual(matrix, g)))
            plain.append(_top(matrix))
            bounds.append((spectrum.lower_bound, spectrum.upper_bound))
            losses.append(_cross_entropy(g, labels))
        if step == 0:
            rate, start = 1 / tops[0], np.asarray(jacobian.outputs, np.float64)
        if step < steps:
            pull = np.asarray(rate * (g - labels).reshape(-1) / SAMPLES, np.float32)
            mlp = mlp.with_parameters(jacobian.flatten(mlp.parameters) - jacobian.T @ pull)
            tick()
    kernel = theory.mean_field_kernel(x, widths, **options)
    curve = regression.cross_entropy_curve(kernel, labels, start, lr=rate, steps=steps)
    return Training(
        steps=looks,
        loss=np.array(losses),
        predicted_loss=curve.losses,
        top=np.array(tops),
        bounds=np.array(bounds).T,
        predicted_top=np.array([_first(order, f) for f in curve.outputs]),
        regression=np.array(plain),
        predicted_regression=theory.fisher_spectrum(order, samples=SAMPLES).lambda_max,
        rate=rate,
        samples=SAMPLES,
    )


def _looks(steps: int) -> NDArray[np.int64]:
    spaced = np.geomspace(1, steps, min(LOOKS - 1, steps)).round().astype(np.int64)
    return np.unique(np.concatenate([[0], spaced]))


def _first(order: theory.OrderParameters, outputs: Floats) -> float:
    """Predict the largest eigenvalue from outputs."""
    return float(theory.softmax_spectrum(order, probabilities(outputs)).outliers[0])


def _top(matrix: Floats) -> float:
    return float(_device.largest(matrix, tol=1e-8)[0])


def _cross_entropy(g: Floats, labels: Floats) -> float:
    return float(-np.log((g * labels).sum(1)).mean())
