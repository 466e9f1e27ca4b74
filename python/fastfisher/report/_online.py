# SPDX-License-Identifier: Apache-2.0
"""Learning one sample at a time, at many learning rates from one start.

Square layers, no biases, loss ``1/(2 M) |f(x_t) - y_t|^2`` with a new sample each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfisher.models import MLP
from fastfisher.models.activations import ACTIVATIONS
from fastfisher.report._maps import BLOWN_UP, copies, learning_rates
from fastfisher.report._section import Tick, count_nothing

__all__ = ["isometric_task", "online_map"]

Floats = NDArray[Any]

_CACHED = 2**16  # numbers


def online_map(
    weights: Sequence[Floats],
    x: Floats,
    y: Floats,
    *,
    activation: str,
    rates: ArrayLike,
    tick: Tick = count_nothing,
) -> Floats:
    """Loss of learning one sample at a time, at each of many learning rates.

    Parameters
    ----------
    weights : sequence of arrays, shape (m, m)
        Of the layers from the input on, f = W^L phi(W^{L-1} ...); no biases. Left as they are.
    x, y : arrays, shape (steps, m)
        Sample and target of each step.
    activation : str
        phi of the hidden layers.
    rates : array, shape (e,)
        Learning rates.
    tick : callable
        Called after each step.

    Returns
    -------
    array, shape (e, steps), float64
        ``1/(2 m) |f(x_t) - y_t|^2`` of each sample before the step on it; infinite from where a run
        exceeded 1e8 times its start or overflowed.

    Raises
    ------
    ValueError
        Shapes that do not fit, learning rates that are not positive.
    """
    m = weights[0].shape[0]
    if any(weight.shape != (m, m) for weight in weights):
        raise ValueError(f"weights: expected matrices of shape ({m}, {m})")
    for name, array in (("x", x), ("y", y)):
        if array.ndim != 2 or array.shape != (len(x), m):
            raise ValueError(f"{name}: expected shape (steps, {m}), got {array.shape}")
    etas = learning_rates(rates)
    phi, layers = ACTIVATIONS[activation], len(weights)
    loss = np.full((etas.size, len(x)), np.inf)
    w = [copies(weight, etas.size) for weight in weights]  # (e, o, i)
    alive, factor = np.arange(etas.size), (etas / m).astype(w[0].dtype)[:, None, None]
    # Updates go through a matrix or some that stay in the cache.
    part = max(1, _CACHED // (m * m))
    scratch = np.empty((min(part, etas.size), m, m), w[0].dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for step, (sample, target) in enumerate(zip(x, y, strict=True)):
            h = np.broadcast_to(sample[:, None], (alive.size, m, 1))
            inputs, slopes = [h], []
            for k in range(layers):
                u = w[k] @ inputs[-1]
                if k < layers - 1:
                    inputs.append(phi.value(u))
                    slopes.append(phi.slope(u, inputs[-1]))
            signal = u - target[:, None]
            now = np.einsum("emk,emk->e", signal, signal, dtype=np.float64) / (2 * m)
            start = loss[alive, 0] if step else now
            good = np.isfinite(now) & (now <= BLOWN_UP * start)
            loss[alive[good], step] = now[good]
            if not good.any():
                break
            if not good.all():
                alive, factor, signal = alive[good], factor[good], signal[good]
                for k in range(layers):  # one by one: both sets of deep networks fill the memory
                    w[k] = w[k][good]
                inputs, slopes = [h[good] for h in inputs], [slope[good] for slope in slopes]
            signal = factor * signal
            for k in range(layers - 1, -1, -1):
                change, rows = signal, np.swapaxes(inputs[k], 1, 2)
                if k:
                    signal = slopes[k - 1] * (np.swapaxes(w[k], 1, 2) @ signal)
                for e in range(0, alive.size, part):
                    some = scratch[: min(part, alive.size - e)]
                    np.multiply(change[e : e + part], rows[e : e + part], out=some)
                    w[k][e : e + part] -= some
            tick()
    return loss


def isometric_task(
    depth: int, width: int, *, steps: int, input_variance: float, seed: int, dtype: str = "float64"
) -> tuple[list[Floats], Floats, Floats]:
    """Orthogonal weights, and samples of an orthogonal linear teacher, for `online_map`.

    Parameters
    ----------
    depth, width : int
        Number of layers, units of each.
    steps : int
        Number of samples.
    input_variance : float
        ``|x|^2 / m`` of every sample.
    seed : int
        Of everything; weights, teacher and samples have random numbers of their own.
    dtype : str
        Of the result.

    Returns
    -------
    weights : list of `depth` arrays, shape (m, m)
    x, y : arrays, shape (steps, m)
    """
    model = MLP((width,) * (depth + 1), parameterization="orthogonal", sigma_w2=1.0, seed=seed)
    weights = [model.parameters[f"{k}.weight"].astype(dtype) for k in range(depth)]
    rng = np.random.default_rng((seed, depth, width, 1))
    x = rng.standard_normal((steps, width))
    x *= np.sqrt(input_variance * width) / np.linalg.norm(x, axis=1, keepdims=True)
    teacher = MLP((width, width), parameterization="orthogonal", sigma_w2=1.0, seed=seed + 10**6)
    y = x @ teacher.parameters["0.weight"].T
    return weights, x.astype(dtype), y.astype(dtype)
