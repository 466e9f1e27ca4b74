# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 5 (Fisher matrix of one sample, dynamical isometry)."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import theory


def conditional(depth, width, *, seed, input_variance, **options):
    """H of a random network of constant width, for a Gaussian sample of the given mean square."""
    rng = np.random.default_rng(9000 + seed)
    x = rng.standard_normal(width)
    x *= math.sqrt(input_variance * width) / np.linalg.norm(x)
    options = {"sigma_w2": 1.0, "parameterization": "orthogonal", **options}
    mlp = ff.models.MLP((width,) * (depth + 1), seed=seed, **options)
    return ff.diagnostics.conditional_fisher(mlp, x), mlp, x


@pytest.mark.parametrize("activation", ["tanh", "relu", "hard-tanh", "erf", "linear"])
@pytest.mark.parametrize("parameterization", ["orthogonal", "standard"])
def test_t5_1_recursion_equals_the_jacobian(parameterization, activation):
    options = {"activation": activation, "parameterization": parameterization, "sigma_b2": 0.1}
    h, mlp, x = conditional(4, 20, seed=3, input_variance=0.7, **options)
    j = mlp.jacobian(x[None]).dense()
    expected = j @ j.T / 20

    assert np.linalg.norm(h.dense() - expected) < 1e-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("weights", ["orthogonal", "gaussian"])
@pytest.mark.parametrize(("activation", "depth"), [("hard-tanh", 10), ("tanh", 8)])
def test_t5_2_moments(activation, depth, weights):
    parameterization = "orthogonal" if weights == "orthogonal" else "standard"
    measured = [
        conditional(
            depth,
            600,
            seed=seed,
            input_variance=0.5,
            activation=activation,
            parameterization=parameterization,
        )[0].moments()
        for seed in range(4)
    ]
    law = theory.conditional_law(depth, activation=activation, input_variance=0.5)
    m1, m2 = np.mean(measured, axis=0) / theory.conditional_moments(law, weights=weights) - 1

    assert abs(m1) < 0.04
    assert abs(m2) < 0.08


def smoothed_cdf(values, grid, eps):
    """Empirical CDF convolved with the Cauchy kernel of width eps."""
    return 0.5 + np.arctan((grid[:, None] - values) / eps).mean(1) / np.pi


def cdf_error(law, values, eps):
    """Largest difference between the two smoothed CDFs, both from one point on."""
    top = values[0]
    # an atom at each end, as wide as eps
    peaks = [place + eps * np.linspace(-40, 40, 401) for place in (values[0], values[-1])]
    grid = np.unique(np.concatenate([np.linspace(-0.05 * top, 1.05 * top, 2001), *peaks]))
    density = theory.conditional_density(law, grid, smoothing=eps)
    steps = (density[1:] + density[:-1]) / 2 * np.diff(grid)
    ours = np.concatenate([[0.0], np.cumsum(steps)])
    theirs = smoothed_cdf(values, grid, eps)
    return np.abs(ours - (theirs - theirs[0])).max()


def test_t5_3_hard_tanh_spectrum():
    depth, width = 10, 800
    h, _, _ = conditional(depth, width, seed=0, input_variance=0.5, activation="hard-tanh")
    law, values = h.law(), np.asarray(h.eigenvalues())
    top = theory.conditional_lambda_max(law)

    assert top.lambda_max == top.lambda_top
    assert abs(values[0] / top.lambda_max - 1) < 1e-10
    atom = (values > top.lambda_top * (1 - 1e-9)).mean()
    assert abs(atom - top.atom_mass) < 2 / width
    assert 0 < top.atom_mass < 1
    for eps in (1e-3, 2e-4):
        assert cdf_error(law, values, eps * top.lambda_top) < 0.005


def test_t5_4_edge_of_relu():
    tops = []
    for seed in range(4):
        h, _, _ = conditional(
            4, 800, seed=seed, input_variance=1.0, activation="relu", sigma_w2=2.0
        )
        predicted = theory.conditional_lambda_max(h.law())
        assert predicted.atom_mass == 0
        assert h.lambda_max() < predicted.lambda_top
        tops.append(h.lambda_max() / predicted.lambda_max)

    assert abs(np.mean(tops) - 1) < 0.015


@pytest.mark.parametrize(("activation", "depth"), [("tanh", 3), ("tanh", 5), ("erf", 4)])
def test_density_of_smooth_activations(activation, depth):
    h, _, _ = conditional(depth, 700, seed=1, input_variance=1.0, activation=activation)
    values = np.asarray(h.eigenvalues())

    assert cdf_error(h.law(), values, 2e-3 * values[0]) < 0.005
    edge = theory.conditional_lambda_max(h.law()).lambda_max
    assert abs(values[0] / edge - 1) < 0.02


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.7), (0.3, 0.4), (0.9, 0.95)])
def test_two_projections_have_the_edges_of_the_jacobi_ensemble(a, b):
    # qh = (1, 0, 0): H = p2 p1 p2 up to zeros
    law = theory.ConditionalLaw(
        [1.0, 0.0, 0.0], 1.0, ([0.0, 1.0], [0.0, 1.0]), ([1 - a, a], [1 - b, b])
    )
    edge = a + b - 2 * a * b + math.sqrt(4 * a * b * (1 - a) * (1 - b))
    top = theory.conditional_lambda_max(law)

    assert top.atom_mass == pytest.approx(max(0, a + b - 1))
    assert top.lambda_max == (1 if a + b > 1 else pytest.approx(edge, rel=1e-6))
    x = np.linspace(0.02, 0.98, 97)
    low = 2 * (a + b - 2 * a * b) - edge
    expected = np.sqrt(((edge - x) * (x - low)).clip(0)) / (2 * np.pi * x * (1 - x))
    inside = (x > low + 0.02) & (x < edge - 0.02)
    got = theory.conditional_density(law, x, smoothing=1e-7)
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-4)


def test_t5_5_deep_networks_near_isometry():
    depth, width, decay, q = 50, 256, 1.0, 0.1
    # The biases hold qh at its fixed point; each is a parameter too, 1 / M in H.
    options = {"sigma_w2": 1 - decay / depth, "sigma_b2": q * decay / depth}
    tops = [
        conditional(depth, width, seed=seed, input_variance=q, activation="hard-tanh", **options)[
            0
        ].lambda_max()
        for seed in range(4)
    ]
    limit = theory.isometric_lambda_max(depth, qh=q + 1 / width, decay=decay)

    assert abs(np.mean(tops) / limit - 1) < 0.05


def test_t5_5_depth_limit_of_the_sum():
    depth, decay = 800, 1.0
    law = theory.ConditionalLaw(
        np.ones(depth), 1 - decay / depth, ([1.0],) * (depth - 1), ([1.0],) * (depth - 1)
    )

    limit = theory.isometric_lambda_max(depth, qh=1.0, decay=decay)
    assert theory.conditional_lambda_max(law).lambda_max == pytest.approx(limit, rel=1e-3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="depth"):
        theory.conditional_law(0)
    with pytest.raises(ValueError, match="activation"):
        theory.conditional_law(3, activation="gelu")
    with pytest.raises(ValueError, match="input_variance"):
        theory.conditional_law(3, input_variance=0)
    with pytest.raises(ValueError, match="qh"):
        theory.ConditionalLaw([-1.0], 1.0, (), ())
    with pytest.raises(ValueError, match="atoms: expected laws of 1"):
        theory.ConditionalLaw([1.0, 1.0], 1.0, (), ())
    with pytest.raises(ValueError, match="weights: expected probabilities"):
        theory.ConditionalLaw([1.0, 1.0], 1.0, ([1.0],), ([0.5],))
    law = theory.conditional_law(3)
    with pytest.raises(ValueError, match="smoothing"):
        theory.conditional_density(law, [1.0], smoothing=0)
    with pytest.raises(ValueError, match="weights"):
        theory.conditional_moments(law, weights="uniform")
    with pytest.raises(ValueError, match="width"):
        theory.online_learning_rate(1.0, loss="sum")
    with pytest.raises(ValueError, match="lambda_max"):
        theory.online_learning_rate(0.0)
