# SPDX-License-Identifier: Apache-2.0
"""Full-batch gradient descent on the squared loss, and the linear theory of its first steps.

With ``E = 1/(2 N) sum_t ||f(x_t) - y_t||^2`` and residual ``r = f - y`` (sample-major vector of
length N C), one step of gradient descent changes the outputs, to first order in the step, by ``-eta
F* r``, ``F* = J J^T / N``. A residual along an eigenvector of F* with eigenvalue lambda is hence
multiplied by ``1 - eta lambda``: it grows as soon as ``eta > 2 / lambda``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfisher.models import MLP
from fastfisher.models.activations import ACTIVATIONS

__all__ = ["Descent", "descend", "linear_descent"]

Floats = NDArray[np.float64]

# A run whose loss exceeds its start by this factor has left the linear regime for good.
_BLOWN_UP = 1e8


@dataclass(frozen=True, eq=False)
class Descent:
    """Curves of one run: residual along the direction that was asked for, and loss, from step 0 on.

    Attributes
    ----------
    projection : array, shape (steps + 1,)
        ``v . (f_t - y)``, signed; NaN after a run blew up.
    loss : array, shape (steps + 1,)
        The loss E; NaN after a run blew up.
    """

    projection: Floats
    loss: Floats

    def growth(self, steps: int) -> float:
        """Return the factor per step of ``|projection|``: geometric mean over the first `steps`."""
        start, end = abs(self.projection[0]), abs(self.projection[steps])
        return float((end / start) ** (1 / steps)) if start > 0 else float("nan")


def descend(
    model: MLP,
    x: Floats,
    y: Floats,
    *,
    eta: float,
    steps: int,
    direction: Floats,
    tick: Callable[[], None] = lambda: None,
) -> Descent:
    """Train a copy of `model` by gradient descent.

    Parameters
    ----------
    model : fastfisher.models.MLP
        Starting point; left as it is. Standard parameterisation, outputs as they are.
    x : array, shape (n, i)
        Inputs.
    y : array, shape (n, c)
        Targets.
    eta : float
        Learning rate.
    steps : int
        Number of steps.
    direction : array, shape (n * c,)
        Unit vector in sample space to project the residual on.
    tick : callable
        Called after each step.

    Returns
    -------
    Descent
    """
    projection = np.full(steps + 1, np.nan)
    loss = np.full(steps + 1, np.nan)
    n = x.shape[0]
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            inputs, slopes, outputs = _forward(model, x)
            residual = outputs - y
            projection[step] = direction @ residual.reshape(-1)
            loss[step] = (residual**2).sum() / (2 * n)
            if not np.isfinite(loss[step]) or loss[step] > _BLOWN_UP * loss[0]:
                loss[step] = projection[step] = np.nan
                break
            if step < steps:
                gradient = _backward(model, inputs, slopes, residual / n)
                model = model.with_parameters(
                    {name: value - eta * gradient[name] for name, value in model.parameters.items()}
                )
                tick()
    return Descent(projection, loss)


def linear_descent(
    fisher: Floats,
    residual: Floats,
    *,
    eta: float,
    steps: int,
    direction: Floats,
    samples: int,
) -> Descent:
    """Do as `descend` would if the Jacobian never changed: ``r_{t+1} = r_t - eta F* r_t``.

    Parameters
    ----------
    fisher : array, shape (n * c, n * c)
        Dual Fisher matrix F* at the start.
    residual : array, shape (n * c,)
        Residual ``f - y`` at the start.
    eta, steps, direction
        As for `descend`.
    samples : int
        N, the divisor of the loss.

    Returns
    -------
    Descent
    """
    projection = np.empty(steps + 1)
    loss = np.empty(steps + 1)
    for step in range(steps + 1):
        projection[step] = direction @ residual
        loss[step] = residual @ residual / (2 * samples)
        residual = residual - eta * (fisher @ residual)
    return Descent(projection, loss)


def _forward(model: MLP, x: Floats) -> tuple[list[Floats], list[Floats], Floats]:
    """Return inputs of each layer, slopes of the activation above each hidden one, outputs."""
    activation = ACTIVATIONS[model.activation]
    inputs, slopes = [x], []
    layers = len(model.widths) - 1
    for layer in range(layers):
        u = inputs[-1] @ model.parameters[f"{layer}.weight"].T + model.parameters[f"{layer}.bias"]
        if layer < layers - 1:
            value = activation.value(u)
            slopes.append(activation.slope(u, value))
            inputs.append(value)
    return inputs, slopes, u


def _backward(
    model: MLP, inputs: list[Floats], slopes: list[Floats], signal: Floats
) -> dict[str, Floats]:
    """Return ``J^T u`` by parameter for one u (n, c): cheaper than the factors of all outputs."""
    gradient = {}
    for layer in reversed(range(len(inputs))):
        gradient[f"{layer}.weight"] = signal.T @ inputs[layer]
        gradient[f"{layer}.bias"] = signal.sum(axis=0)
        if layer:
            signal = (signal @ model.parameters[f"{layer}.weight"]) * slopes[layer - 1]
    return gradient
