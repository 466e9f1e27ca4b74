# SPDX-License-Identifier: Apache-2.0
"""Training at many learning rates from one start: the colour maps of the report.

Full-batch descent on ``E = 1/(2 N) sum_t |z(x_t) - y_t|^2`` with z the outputs, normalised if the
network normalises them. All learning rates of a network are a leading axis of its weights, so that
small networks cost few calls. (`_online` does so one sample at a time.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfisher.models import MLP
from fastfisher.models.activations import ACTIVATIONS
from fastfisher.report._random import VARIANCES
from fastfisher.report._section import Tick, count_nothing

__all__ = [
    "BLOWN_UP",
    "copies",
    "descent_map",
    "first_unstable",
    "largest_good",
    "learning_rates",
    "teacher_task",
]

Floats = NDArray[Any]

# A run whose loss exceeds its start by this factor is not followed any further.
BLOWN_UP = 1e8
# Learning rates computed side by side: as many as keep the weights of one layer within this many
# numbers. More do not save calls worth naming, and leave the cache.
_TOGETHER = 2**20


def teacher_task(
    widths: Sequence[int],
    samples: int,
    *,
    activation: str,
    normalization: str | None = None,
    seed: int,
    dtype: str = "float64",
) -> tuple[MLP, Floats, Floats]:
    """Random network, Gaussian inputs, and the outputs of another network of its kind as targets.

    Parameters
    ----------
    widths, activation, normalization, seed, dtype
        As for `MLP`; variances by the activation. Inputs and teacher have seeds of their own.
    samples : int
        Number of inputs N.

    Returns
    -------
    model : fastfisher.models.MLP
    x : array, shape (n, i)
    y : array, shape (n, c)
        Normalised like the outputs of the model, so that zero loss is within reach.
    """
    x = np.random.default_rng((seed, 1)).standard_normal((samples, widths[0])).astype(dtype)
    student, teacher = (
        MLP(
            widths,
            activation=cast(Any, activation),
            normalization=cast(Any, normalization),
            seed=number,
            dtype=cast(Any, dtype),
            **VARIANCES[activation],
        )
        for number in (seed, seed + 10**6)
    )
    return student, x, np.asarray(teacher(x))


def first_unstable(loss: Floats, rates: ArrayLike, *, evaluations: int = 5) -> float:
    """Smallest learning rate at which one of the first losses exceeds the one at the start.

    Parameters
    ----------
    loss : array, shape (e, steps + 1)
        Of `descent_map`. Later losses are no sign of stability: above the critical learning rate a
        wide network may blow up first and recover where the curvature is smaller.
    rates : array, shape (e,)
        Learning rates in ascending order.
    evaluations : int
        How many losses to look at.

    Returns
    -------
    float
        NaN if there is none.
    """
    grows = loss[:, :evaluations].max(axis=1) > loss[:, 0]
    return float(learning_rates(rates)[grows.argmax()]) if grows.any() else float("nan")


def largest_good(loss: Floats, rates: ArrayLike, *, share: float = 0.01) -> float:
    """Largest learning rate whose last loss is below `share` of the first; 0 if there is none."""
    good = loss[:, -1] < share * loss[:, 0]
    return float(learning_rates(rates)[good].max(initial=0.0))


def descent_map(
    model: MLP, x: Floats, y: Floats, *, rates: ArrayLike, steps: int, tick: Tick = count_nothing
) -> Floats:
    """Loss of full-batch gradient descent at each of many learning rates.

    Parameters
    ----------
    model : fastfisher.models.MLP
        Start of all runs; left as it is. Standard parameterisation, no normalised hidden layers;
        outputs are normalised as the model does.
    x : array, shape (n, i), dtype of the model
        Inputs.
    y : array, shape (n, c), dtype of the model
        Targets of the outputs, normalised or not as they are.
    rates : array, shape (e,)
        Learning rates eta, loss / parameter^2 to the power -1.
    steps : int
        Number of steps.
    tick : callable
        Called with the number of learning rates finished; those that go together count together.

    Returns
    -------
    array, shape (e, steps + 1), float64
        Loss before each step and after the last; infinite from where a run exceeded 1e8 times its
        start or overflowed.

    Raises
    ------
    ValueError
        A model of another kind, shapes that do not fit, learning rates that are not positive.
    """
    if model.parameterization != "standard" or model.hidden_normalization is not None:
        raise ValueError(
            "model: expected the standard parameterisation without normalised hidden layers, "
            f"got {model!r}"
        )
    x, y = np.asarray(x, model.dtype), np.asarray(y, model.dtype)
    expected = (len(x), model.widths[-1])
    if y.shape != expected:
        raise ValueError(f"y: expected shape {expected}, got {y.shape}")
    etas = learning_rates(rates)
    loss = np.full((etas.size, steps + 1), np.inf)
    largest = max(i * o for i, o in zip(model.widths, model.widths[1:], strict=False))
    together = max(1, _TOGETHER // largest)
    for first in range(0, etas.size, together):
        part = slice(first, first + together)
        loss[part] = _descend(model, x, y, etas[part], steps)
        tick(len(etas[part]))
    return loss


def _descend(model: MLP, x: Floats, y: Floats, etas: Floats, steps: int) -> Floats:
    """Do the work of `descent_map` for learning rates side by side, axis e."""
    layers, n = len(model.widths) - 1, len(x)
    activation = ACTIVATIONS[model.activation]
    # (e, i, o) and (e, 1, o)
    weights = [copies(model.parameters[f"{k}.weight"].T, etas.size) for k in range(layers)]
    biases = [
        copies(model.parameters[f"{k}.bias"][None], etas.size)
        if f"{k}.bias" in model.parameters
        else None
        for k in range(layers)
    ]
    loss = np.full((etas.size, steps + 1), np.inf)
    alive, factor = np.arange(etas.size), etas.astype(x.dtype)[:, None, None]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step in range(steps + 1):
            inputs: list[Floats] = [x]
            slopes: list[Floats] = []
            for k in range(layers):
                u = inputs[-1] @ weights[k]
                if biases[k] is not None:
                    u += biases[k]
                if k < layers - 1:
                    inputs.append(activation.value(u))
                    slopes.append(activation.slope(u, inputs[-1]))
            z, deviation = _normalised(u, model.normalization)
            residual = z - y
            now = np.einsum("enc,enc->e", residual, residual, dtype=np.float64) / (2 * n)
            start = loss[alive, 0] if step else now
            good = np.isfinite(now) & (now <= BLOWN_UP * start)
            loss[alive[good], step] = now[good]
            if not good.any() or step == steps:
                break
            if not good.all():  # the others go on alone
                alive, factor = alive[good], factor[good]
                weights = [weight[good] for weight in weights]
                biases = [None if bias is None else bias[good] for bias in biases]
                inputs = [x, *(h[good] for h in inputs[1:])]
                slopes = [slope[good] for slope in slopes]
                z, residual = z[good], residual[good]
                deviation = None if deviation is None else deviation[good]
            signal = _pulled_back(residual / n, z, deviation, model.normalization)
            for k in range(layers - 1, -1, -1):
                change = np.swapaxes(inputs[k], -1, -2) @ signal
                bias = biases[k]
                if bias is not None:
                    bias -= factor * signal.sum(axis=1, keepdims=True)
                if k:
                    signal = (signal @ np.swapaxes(weights[k], 1, 2)) * slopes[k - 1]
                change *= factor
                weights[k] -= change
    return loss


def _normalised(f: Floats, kind: str | None) -> tuple[Floats, Floats | None]:
    """Normalise outputs (e, n, c) over samples or outputs; also what they were divided by."""
    if kind is None:
        return f, None
    axis = 2 if kind == "layer" else 1
    z = f - f.mean(axis=axis, keepdims=True)
    if kind == "mean":
        return z, None
    deviation = np.sqrt((z * z).mean(axis=axis, keepdims=True))
    return z / deviation, deviation


def _pulled_back(signal: Floats, z: Floats, deviation: Floats | None, kind: str | None) -> Floats:
    """Gradient with respect to the plain outputs: ``(1/s) (I - 1 1^T / n - z z^T / n)``."""
    if kind is None:
        return signal
    axis = 2 if kind == "layer" else 1
    centred = signal - signal.mean(axis=axis, keepdims=True)
    if deviation is not None:
        centred = (centred - z * (signal * z).mean(axis=axis, keepdims=True)) / deviation
    result: Floats = centred
    return result


def learning_rates(rates: ArrayLike) -> Floats:
    """Check a list of learning rates."""
    etas = np.asarray(rates, dtype=np.float64)
    if etas.ndim != 1 or not (np.isfinite(etas).all() and (etas > 0).all()):
        raise ValueError("rates: expected a list of finite numbers > 0")
    return etas


def copies(array: Floats, count: int) -> Floats:
    """`count` copies along a new first axis."""
    result: Floats = np.repeat(array[None], count, axis=0)
    return result
