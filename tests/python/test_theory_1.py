# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 1 (Fisher spectrum, critical learning rate), identities of section 2."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.reference.mlp import mlp_jacobian as reference_jacobian


def dual_fisher(jacobian):
    """F* = J J^T / N, (NC) x (NC)."""
    rows = jacobian.shape[0]
    return jacobian.gram().reshape(rows, rows) / jacobian.samples


@pytest.mark.parametrize("parameterization", ["standard", "ntk", "orthogonal"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "linear", "erf"])
def test_t1_5_fisher_and_its_dual_share_their_spectrum(activation, parameterization):
    mlp = ff.models.MLP(
        (6, 12, 10, 2),
        activation=activation,
        sigma_w2=2.0,
        sigma_b2=0.3,
        parameterization=parameterization,
    )
    rng = np.random.default_rng(11)
    jacobian = ff.jacobian(mlp, rng.standard_normal((5, 6)))
    j, n = jacobian.dense(), jacobian.samples

    fisher = np.linalg.eigvalsh(j.T @ j / n)[::-1]
    dual = np.linalg.eigvalsh(dual_fisher(jacobian))[::-1]

    np.testing.assert_allclose(fisher[: dual.size], dual, rtol=1e-10)
    assert np.abs(fisher[dual.size :]).max() < 1e-10 * dual[0]
    v = rng.standard_normal(jacobian.shape[1])
    expected = j.T @ (j @ v) / n
    got = jacobian.T @ (jacobian @ v) / n
    assert np.linalg.norm(got - expected) < 1e-10 * np.linalg.norm(expected)


@pytest.mark.parametrize("fraction", [0.4, 0.8, 1.1, 1.3])
@pytest.mark.parametrize(
    ("activation", "sigma_w2", "sigma_b2"), [("tanh", 3.0, 0.64), ("relu", 2.0, 0.1)]
)
def test_t1_6_residual_along_the_top_eigenvector_grows_past_the_critical_rate(
    activation, sigma_w2, sigma_b2, fraction
):
    mlp = ff.models.MLP(
        (80, 80, 80, 2), activation=activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2, seed=4
    )
    x = np.random.default_rng(12).standard_normal((20, 80))
    jacobian = ff.jacobian(mlp, x)
    values, vectors = np.linalg.eigh(dual_fisher(jacobian))
    targets = jacobian.outputs.ravel() + 1e-3 * vectors[:, -1]
    rate = fraction * 2 / values[-1]

    residuals = []
    for _ in range(4):
        jacobian = ff.jacobian(mlp, x)
        error = jacobian.outputs.ravel() - targets
        residuals.append(np.linalg.norm(error))
        step = rate / jacobian.samples * (jacobian.T @ error)
        mlp = mlp.with_parameters(jacobian.flatten(mlp.parameters) - step)

    factors = np.array(residuals[1:]) / residuals[:-1]
    np.testing.assert_allclose(factors, abs(1 - 2 * fraction), rtol=0.01)


@pytest.mark.parametrize("activation", ["tanh", "relu", "erf"])
@pytest.mark.parametrize("normalization", ["mean", "batch", "layer"])
def test_t2_1_normalised_fisher_equals_finite_differences_and_projection(normalization, activation):
    options = {"activation": activation, "sigma_w2": 2.0, "sigma_b2": 0.3}
    mlp = ff.models.MLP((4, 6, 5, 3), normalization=normalization, **options)
    x = np.random.default_rng(13).standard_normal((7, 4))
    jacobian = ff.jacobian(mlp, x)

    plain = ff.jacobian(ff.models.MLP((4, 6, 5, 3), **options), x)
    differences = reference_jacobian(
        mlp.parameters, x, parameterization="standard", normalization=normalization, **options
    )
    identity = sample_space_map(normalization, plain.outputs)

    got = dual_fisher(jacobian)
    for expected in (
        differences @ differences.T / 7,
        identity @ dual_fisher(plain) @ identity.T,
    ):
        assert np.linalg.norm(got - expected) < 1e-6 * np.linalg.norm(expected)


def sample_space_map(normalization, f):
    """Derivative of the normalised outputs with respect to f (n, c), (nc) x (nc), from theory 2."""
    n, c = f.shape
    if normalization == "mean":
        return np.kron(np.eye(n) - 1 / n, np.eye(c))
    axis = 1 if normalization == "layer" else 0
    s = f.std(axis)
    z = (f - f.mean(axis, keepdims=True)) / f.std(axis, keepdims=True)
    result = np.zeros((n, c, n, c))
    if normalization == "batch":
        for k in range(c):
            result[:, k, :, k] = (np.eye(n) - 1 / n - np.outer(z[:, k], z[:, k]) / n) / s[k]
    else:
        for t in range(n):
            result[t, :, t, :] = (np.eye(c) - 1 / c - np.outer(z[t], z[t]) / c) / s[t]
    return result.reshape(n * c, n * c)
