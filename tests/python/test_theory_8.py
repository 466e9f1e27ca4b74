# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 8 (analytic kernels, ensembles and posteriors of wide networks)."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import kernels, regression
from wide import kind

# phi, L: NNGP(x,x), NNGP(x,x'), NTK(x,x), NTK(x,x') of x = (1, 0), x' = (.6, .8)
TABLE = [
    ("relu", 2, 1.2, 0.8737884362, 2.3, 1.3774819776),
    ("relu", 3, 1.3, 1.0255571289, 3.6, 2.0719239152),
    ("erf", 2, 1.0651674791, 0.6765439949, 2.2705806141, 1.2960178561),
    ("erf", 3, 1.0530283286, 0.6691211124, 3.5739335256, 1.8382768175),
]


def gram(layer, n):
    return ff.Jacobian.from_factors([layer]).gram().reshape(n, n)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_t8_1_scalar_references(row):
    activation, depth, *expected = row
    x, y = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]])
    options = {"depth": depth, "activation": activation, "sigma_w2": 2.0, "sigma_b2": 0.1}

    got = [f(x, z, **options) for f in (kernels.nngp, kernels.ntk) for z in (None, y)]

    np.testing.assert_allclose(np.ravel(got), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", ["relu", "erf", "linear", "tanh"])
def test_t8_2_layer_kernels(activation, depth):
    widths, options = (20, *[2000] * (depth - 1), 1), kind(activation)
    x = np.random.default_rng(3).standard_normal((12, 20))
    x *= np.linspace(0.5, 1.5, 12)[:, None]
    mean = np.zeros((depth, 12, 12))
    for seed in range(30):
        mlp = ff.models.MLP(widths, seed=seed, parameterization="ntk", **options)
        found = ff.ntk(mlp, x, layers="each")
        mean += np.array([k.reshape(12, 12) for k in found.values()]) / 30

    expected = kernels.ntk(x, depth=depth, layers="each", **options)

    for measured, theory in zip(mean, expected, strict=True):
        assert np.linalg.norm(measured - theory) < 0.03 * np.linalg.norm(theory)


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_t8_3_ensembles_of_linearised_networks(depth):
    n, m, networks = 10, 5, 1500
    rng = np.random.default_rng(17)
    x, z = rng.standard_normal((n, 8)), rng.standard_normal((m, 8))
    y = np.sin(x @ np.ones(8))
    options = {"activation": "erf", "sigma_w2": 2.0, "sigma_b2": 0.1}
    pairs = ((x,), (z, x), (z,))
    train, cross, prior = (kernels.layer_kernels(*p, depth=depth, **options) for p in pairs)
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    layers = regression.natural_gradient(train, cross, structure="layer")
    lr = 0.5 * descent.critical_learning_rate
    times = {
        "gd 20": (descent, {"lr": lr, "steps": 20}),
        "gd inf": (descent, {"time": np.inf}),
        "layer inf": (layers, {"time": np.inf}),
    }
    nngp = {"kernel": train.nngp, "cross": cross.nngp, "prior": prior.nngp}
    draws = {name: [] for name in times}
    both = np.vstack([x, z])
    for seed in range(networks):
        mlp = ff.models.MLP(
            (8, *[600] * (depth - 1), 1), seed=seed, parameterization="ntk", **options
        )
        jacobian = mlp.jacobian(both)
        f = jacobian.outputs[:, 0]
        each = np.array([gram(layer, n + m) for layer in jacobian.layers])
        theta = each.sum(0)
        values, vectors = np.linalg.eigh(theta[:n, :n])
        learned = {
            "gd 20": (1 - (1 - lr * values / n) ** 20) / values,
            "gd inf": 1 / values,
        }
        for name, factors in learned.items():
            response = theta[n:, :n] @ (vectors * factors) @ vectors.T
            draws[name].append(f[n:] - response @ (f[:n] - y))
        response = sum(k[n:, :n] @ np.linalg.inv(k[:n, :n]) for k in each) / depth
        draws["layer inf"].append(f[n:] - response @ (f[:n] - y))

    for name, (dynamics, time) in times.items():
        law = regression.ensemble(dynamics, y, **nngp, **time)
        sample = np.array(draws[name])
        error = sample.std(0) / np.sqrt(networks)
        assert (np.abs(sample.mean(0) - law.mean) < 4 * error).all(), name
        apart = np.linalg.norm(np.cov(sample.T) - law.covariance)
        assert apart < 0.12 * np.linalg.norm(law.covariance), name


def test_t8_4_limits_of_training():
    rng = np.random.default_rng(5)
    x, z = rng.standard_normal((12, 6)), rng.standard_normal((7, 6))
    y = rng.standard_normal(12)
    options = {"depth": 3, "activation": "erf", "sigma_w2": 2.0, "sigma_b2": 0.1}
    train, cross, prior = (kernels.layer_kernels(*p, **options) for p in ((x,), (z, x), (z,)))
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    eta = 0.5 * 12 / np.linalg.eigvalsh(train.ntk)[-1]

    late = descent.response(lr=eta, steps=1e6)
    start = regression.ensemble(
        descent, y, kernel=train.nngp, cross=cross.nngp, prior=prior.nngp, time=1e-10
    )

    expected = cross.ntk @ np.linalg.inv(train.ntk)
    np.testing.assert_allclose(late, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(descent.response(time=np.inf), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(start.covariance, prior.nngp, rtol=0, atol=1e-8)
    np.testing.assert_allclose(start.mean, 0, atol=1e-8)


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_t8_5_posterior_is_bayesian_regression_on_random_features(depth):
    rng = np.random.default_rng(11)
    x, z = rng.standard_normal((10, 6)), rng.standard_normal((5, 6))
    y, noise, width = np.sin(x.sum(1)), 0.1, 4000
    options = {"activation": "erf", "sigma_w2": 2.0, "sigma_b2": 0.1}
    nngp = [kernels.nngp(*p, depth=depth, **options) for p in ((x,), (z, x), (z,))]
    both, means, covariances = np.vstack([x, z]), [], []
    for seed in range(40):
        mlp = ff.models.MLP(
            (6, *[width] * (depth - 1), 1), seed=seed, parameterization="ntk", **options
        )
        # The last layer's Jacobian is its features, scaled by the prior deviations.
        k = gram(mlp.jacobian(both).layers[-1], 15)
        inverse = np.linalg.inv(k[:10, :10] + noise * np.eye(10))
        means.append(k[10:, :10] @ inverse @ y)
        covariances.append(k[10:, 10:] - k[10:, :10] @ inverse @ k[:10, 10:])

    law = regression.posterior(*nngp, y, noise=noise)

    for measured, theory in ((means, law.mean), (covariances, law.covariance)):
        apart = np.linalg.norm(np.mean(measured, 0) - theory)
        assert apart < 0.03 * np.linalg.norm(theory)
