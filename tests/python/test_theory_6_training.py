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


def kernels(x: Any, z: Any, *, same: bool) -> tuple[list[Any], list[Any]]:
    """q^l and qt^l of ReLU with sigma_w2 = 2 and no biases, for all pairs of samples."""
    q = 2 * x @ z.T / x.shape[1]
    # The variance is the same in every layer.
    size = 2 * np.sqrt(np.outer((x**2).sum(1), (z**2).sum(1))) / x.shape[1]
    forward, slopes = [q], []
    for _ in range(DEPTH - 1):
        c = (q / size).clip(-1, 1)
        angle = np.pi - np.arccos(c)
        q, slope = size / np.pi * (np.sqrt(1 - c**2) + c * angle), angle / np.pi
        if same:  # closed forms lose half of their digits there
            np.fill_diagonal(q, np.diag(size))
            np.fill_diagonal(slope, 1.0)
        forward.append(q)
        slopes.append(slope)
    backward = [np.ones_like(q)]
    for slope in reversed(slopes):
        backward.append(backward[-1] * slope)
    return forward, backward[::-1]


def predictor(x: Any, z: Any, structure: str) -> tuple[float, Any]:
    """Alpha, and R in ``f_t(z) - f_0(z) = -(1 - (1 - alpha eta)^t) R e_0 / alpha``."""
    (a, b), (to_a, to_b) = kernels(x, x, same=True), kernels(z, x, same=False)
    layers = [p * q for p, q in zip(a, b, strict=True)]
    to_layers = [p * q for p, q in zip(to_a, to_b, strict=True)]
    alpha = ff.theory.isotropic_constant(
        structure, (INPUTS, *[10**6] * (DEPTH - 1), 1), samples=len(x)  # type: ignore[arg-type]
    )  # fmt: skip
    if structure == "full":
        return alpha, over(sum(to_layers), sum(layers))
    each = [over(p, q) for p, q in zip(to_layers, layers, strict=True)]
    if structure == "layer":
        return alpha, sum(each)
    if structure == "tridiagonal":
        c = ff.theory.tridiagonal_coefficients(DEPTH)
        return alpha, sum(k * r for k, r in zip(c, each, strict=True))
    total = over(to_a[-1], a[-1])
    for k in range(DEPTH - 1):
        total += len(x) * over(to_a[k], a[k]) * over(to_b[k], b[k])
    return alpha, total


def over(p: Any, q: Any) -> Any:
    """``P Q^-1``."""
    return np.linalg.solve(q, p.T).T


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
    alpha, _ = predictor(x, z, structure)
    for _ in range(STEPS):
        J = mlp.jacobian(x)
        step = ff.ngd.update(J, J.outputs - y, structure=structure, relative_damping=1e-9)
        mlp = mlp.with_parameters(J.flatten(mlp.parameters) - 0.5 / alpha * step.vector)
    left = 0.5**STEPS
    changes = {}
    for other in STRUCTURES:
        alpha, r = predictor(x, z, other)
        changes[other] = -(1 - left) / alpha * r @ e
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
