# SPDX-License-Identifier: Apache-2.0
"""Activation functions and their slopes, for any array library.

A slope takes the pre-activation u and the activation h = phi(u), whichever is cheaper.
The erf here is the plain error function erf(u).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastfisher._arrays import Array, erf, namespace


@dataclass(frozen=True, slots=True)
class Activation:
    """``value(u)`` = phi(u) and ``slope(u, h)`` = phi'(u)."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]


ACTIVATIONS = {
    "tanh": Activation(lambda u: namespace(u).tanh(u), lambda u, h: 1 - h * h),
    "relu": Activation(lambda u: namespace(u).clip(u, 0, None), lambda u, h: u > 0),
    "erf": Activation(erf, lambda u, h: (2 / math.sqrt(math.pi)) * namespace(u).exp(-u * u)),
    "linear": Activation(lambda u: u, lambda u, h: namespace(u).ones_like(u)),
    "hard-tanh": Activation(
        lambda u: namespace(u).clip(u, -1, 1), lambda u, h: namespace(u).abs(u) < 1
    ),
}
