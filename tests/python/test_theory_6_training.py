# SPDX-License-Identifier: Apache-2.0
"""Natural gradient of wide networks against analytic kernels: acceptance tests T6.6 and T6.7."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastfisher as ff

DEPTH, SAMPLES, INPUTS, STEPS = 3, 40, 50, 4
STRUCTURES = ("full", "layer", "tridiagonal", "kfac")
# Structure whose prediction differs most.
RIVAL = {"full": "layer", "layer": "full", "tridiagonal": "layer", "kfac": "full"}
TRAIN_TOLERANCE = {"full": 0.03, "layer": 0.04, "tridiagonal": 0.06, "kfac": 0.25}
CHANGE_TOLERANCE = {"full": 0.2, "layer": 0.2, "tridiagonal": 0.2, "kfac": 0.35}


def predictor(x: Any, z: Any, structure: Any) -> ff.regression.Dynamics:
    """Dynamics of ReLU networks without biases in the limit of large widths."""
    train, cross = (ff.kernels.layer_kernels(*pair, depth=DEPTH) for pair in ((x,), (z, x)))
    return ff.regression.natural_gradient(train, cross, structure=structure)


class Trained(NamedTuple):
    train: float
    test: float
    errors: dict[str, float]


@cache
def trained(structure: str, width: int) -> Trained:
    """Losses after some steps over their prediction; errors of the change at other samples."""
    rng = np.random.default_rng(1000)
    x, z = rng.standard_normal((SAMPLES, INPUTS)), rng.standard_normal((100, INPUTS))
    teacher = rng.standard_normal(INPUTS) / np.sqrt(INPUTS)
    y, at_z = np.tanh(x @ teacher)[:, None], np.tanh(z @ teacher)[:, None]
    widths = (INPUTS, *[width] * (DEPTH - 1), 1)
    mlp = ff.models.MLP(widths, sigma_w2=2.0, parameterization="ntk")
    e, f = mlp(x) - y, mlp(z)
    lr = 0.5 / predictor(x, z, structure).values[-1]
    for _ in range(STEPS):
        J = mlp.jacobian(x)
        step = ff.ngd.update(J, J.outputs - y, structure=structure, relative_damping=1e-9)
        mlp = mlp.with_parameters(J.flatten(mlp.parameters) - lr * step.vector)
    left = 0.5**STEPS
    changes = {}
    for other in STRUCTURES:
        found = predictor(x, z, other)
        curve = found.prediction_curve(e, lr=0.5 / found.values[-1], steps=STEPS)
        changes[other] = curve[-1]
    got, expected = mlp(z) - f, changes[structure]
    return Trained(
        np.square(mlp(x) - y).sum() / (left**2 * np.square(e).sum()),
        np.square(f + got - at_z).sum() / np.square(f + expected - at_z).sum(),
        {k: float(np.linalg.norm(got - v) / np.linalg.norm(v)) for k, v in changes.items()},
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_T6_6_training_follows_theory(structure: str) -> None:
    found = trained(structure, 4096)
    assert found.train == pytest.approx(1, abs=TRAIN_TOLERANCE[structure])
    assert found.test == pytest.approx(1, abs=0.03)
    assert found.errors[structure] < CHANGE_TOLERANCE[structure]
    assert found.errors[structure] < found.errors[RIVAL[structure]]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_T6_7_wider_networks_are_closer(structure: str) -> None:
    narrow, wide = (trained(structure, width).errors[structure] for width in (1024, 4096))
    assert wide < 0.7 * narrow
