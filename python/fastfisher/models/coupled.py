# SPDX-License-Identifier: Apache-2.0
"""Exact Jacobian of a network whose hidden pre-activations are normalised over the batch.

Each output then depends on every sample: of layer l there are N gradients for each output,

    D^l[t, c, s, i] = d f_c(x_t) / d u^l_i(x_s)
    J[(t, c), W^l]  = sum_s D^l[t, c, s] (x) h^{l-1}_s

so a layer is one that is used at the N "positions" s (`fastfisher.Shared`), with inputs that all
samples have in common. From the gradient g for normalised pre-activations z to that for u, unit by
unit and over s,

    mean:   g -> g - mean g
    batch:  g -> (g - mean g - z mean(g z)) / sd

The last layer is an ordinary dense one. Memory N^2 C M for each hidden layer: N of 64 or so.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastfisher._arrays import Array, from_numpy, namespace
from fastfisher._layer import Layer

if TYPE_CHECKING:
    from fastfisher.models.mlp import MLP

HIDDEN_NORMALIZATIONS = (None, "mean", "batch")
HiddenNormalization = Literal["mean", "batch"]


def layers(
    model: MLP,
    inputs: list[Array],
    pre_activations: list[Array],
    deviations: list[Array | None],
    slopes: list[Array],
    delta: Array,
) -> tuple[Layer, ...]:
    """Factors of all layers; `delta` (n, c, c) is the gradient for the last pre-activations."""
    n, c = inputs[0].shape[0], delta.shape[1]
    _check_memory(model, n)
    xp = namespace(inputs[0])
    last = len(inputs) - 1
    result = [model._factors(last, inputs[last], xp.broadcast_to(delta, (n, *delta.shape[1:])))]
    if not last:
        return tuple(result)
    below = model._backward(last, delta) * slopes[-1][:, None, :]  # (n, c, o), of s = t alone
    identity = from_numpy(np.eye(n, dtype=model.dtype), below)
    coupling = (identity - 1 / max(n, 1))[:, :, None]  # (t, s, o)
    z = pre_activations[last - 1]
    deviation = deviations[last - 1]
    if deviation is not None:
        coupling = (coupling - z[:, None] * z[None] / max(n, 1)) / deviation[None]
    signal = below[:, :, None, :] * coupling[:, None]  # (t, c, s, o)
    for index in reversed(range(last)):
        a = xp.broadcast_to(inputs[index][None], (n, *inputs[index].shape))
        result.append(model._factors(index, a, signal))
        if index:
            rows = signal.reshape(n * c, n, signal.shape[-1])
            below = model._backward(index, rows).reshape(n, c, n, model.widths[index])
            signal = _centred(
                below * slopes[index - 1], pre_activations[index - 1], deviations[index - 1]
            )
    return tuple(reversed(result))


def _centred(g: Array, z: Array, deviation: Array | None) -> Array:
    """Gradient for pre-activations from the one `g` (t, c, s, o) for their normalised values z."""
    n = max(z.shape[0], 1)
    centred = g - g.sum(2)[:, :, None] / n
    if deviation is None:
        return centred
    return (centred - z * ((g * z).sum(2)[:, :, None] / n)) / deviation


def _check_memory(model: MLP, n: int) -> None:
    """Refuse what cannot fit, before work starts."""
    item = 8 if model.dtype == "float64" else 4
    hidden = model.widths[1:-1]
    needed = n * n * model.widths[-1] * (sum(hidden) + 2 * max(hidden, default=0)) * item
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # unknown here: let the allocation decide
        return
    if needed > total:
        raise MemoryError(
            f"x: hidden_normalization={model.hidden_normalization!r} couples all {n} samples and "
            f"needs about {needed / 2**30:.1f} GiB, this machine has {total / 2**30:.1f} GiB; "
            f"{math.isqrt(n * n * total // needed)} samples fit"
        )
