# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 1 (Fisher spectrum, critical learning rate), identities of section 2."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import theory
from fastfisher.reference.mlp import mlp_jacobian as reference_jacobian
from wide import dual, eigenvalues, kind, networks, off


def statistics(jacobians):
    """Trace, sum of squares and largest of the eigenvalues of F, means over networks."""
    rows = []
    for jacobian in jacobians:
        values = eigenvalues(dual(jacobian))
        rows.append((values.sum(), (values**2).sum(), values[0]))
    return np.mean(rows, axis=0)


@pytest.fixture(scope="module")
def at_800():
    """Statistics of networks of width 800, shared by two tests."""
    return {
        activation: statistics(networks((800, 800, 800, 1), 100, seeds=20, **kind(activation)))
        for activation in ("tanh", "relu", "linear", "erf")
    }


@pytest.mark.parametrize("activation", ["tanh", "relu", "linear", "erf"])
def test_t1_1_statistics_of_wide_networks(at_800, activation):
    trace, squares, top = at_800[activation]
    order = theory.order_parameters((800, 800, 800, 1), **kind(activation))
    form = theory.paper_form(order, samples=100)
    leading = order.alpha * order.width**2

    assert off(trace / leading, form.m) < 0.04
    assert off(top, form.lambda_max) < 0.07
    assert off(squares / leading, form.s) < (0.20 if activation == "linear" else 0.12)


@pytest.mark.parametrize("activation", ["tanh", "relu", "linear", "erf"])
def test_t1_2_largest_eigenvalue_grows_with_the_width(at_800, activation):
    top = statistics(networks((200, 200, 200, 1), 100, seeds=20, **kind(activation)))[2]
    order = theory.order_parameters((200, 200, 200, 1), **kind(activation))

    assert off(top, theory.fisher_spectrum(order, samples=100).lambda_max) < 0.15
    assert 3.5 <= at_800[activation][2] / top <= 4.2


def test_t1_3_as_many_outliers_as_outputs():
    widths, c = (400, 400, 400, 10), 10
    spectra = np.array(
        [eigenvalues(dual(j)) for j in networks(widths, 50, seeds=6, **kind("tanh"))]
    )
    predicted = theory.fisher_spectrum(theory.order_parameters(widths, **kind("tanh")), samples=50)

    assert predicted.multiplicity == c
    assert off(spectra[:, :c], predicted.lambda_max) < 0.06
    assert (spectra[:, c - 1] / spectra[:, c]).min() > 2


def test_t1_4_unequal_widths():
    widths, c, n = (300, 500, 200, 400, 3), 3, 40
    options = {"activation": "erf", "sigma_w2": 2.2, "sigma_b2": 0.4}
    rows = []
    for jacobian in networks(widths, n, seeds=20, **options):
        values, vectors = np.linalg.eigh(dual(jacobian))
        sums = vectors[:, -c:].reshape(n, c, c).sum(0)
        rows.append(
            (values.sum(), (values**2).sum(), values[-c:].mean(), (sums**2).sum() / (n * c))
        )
    trace, squares, top, overlap = np.mean(rows, axis=0)
    predicted = theory.fisher_spectrum(theory.order_parameters(widths, **options), samples=n)

    assert off(trace, predicted.trace) < 0.035
    assert off(squares, predicted.sum_of_squares) < 0.13
    assert off(top, predicted.lambda_max) < 0.06
    assert overlap > 0.98


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
    values = eigenvalues(dual(jacobian))

    np.testing.assert_allclose(fisher[: values.size], values, rtol=1e-10)
    assert np.abs(fisher[values.size :]).max() < 1e-10 * values[0]
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
    values, vectors = np.linalg.eigh(dual(jacobian))
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


def test_t1_8_ntk_parameterization():
    widths, options = (800, 800, 800, 1), kind("tanh", parameterization="ntk")
    trace, squares, top = statistics(networks(widths, 100, seeds=20, **options))
    order = theory.order_parameters(widths, **kind("tanh"))
    predicted = theory.ntk_spectrum(order, samples=100)

    # F = Theta / N: of the kernel N samples have the mean eigenvalue trace(Theta) / N
    assert off(trace, predicted.mean) < 0.04
    assert off(squares * 100, predicted.second_moment) < 0.08
    assert off(top * 100, predicted.lambda_max) < 0.06
    fisher = theory.fisher_spectrum(order, samples=100, parameterization="ntk")
    assert fisher.lambda_max == pytest.approx(predicted.lambda_max / 100)


def test_t1_9_layer_blocks():
    widths, n = (600, 600, 600, 1), 80
    tops = np.mean(
        [
            [eigenvalues(dual(block))[0] for block in jacobian.split().values()]
            for jacobian in networks(widths, n, seeds=20, **kind("relu"))
        ],
        axis=0,
    )
    order = theory.order_parameters(widths, biases=True, **kind("relu"))
    predicted = [block.lambda_max for block in theory.layer_spectra(order, samples=n)]

    assert off(tops[1], predicted[1]) < 0.12
    assert off(tops[2], predicted[2]) < 0.12
    assert tops[0] > predicted[0]  # no outlier: the edge of the bulk


@pytest.mark.parametrize(("fraction", "grows"), [(0.95, False), (1.05, True)])
def test_t1_10_momentum(fraction, grows):
    curvature = np.array([0.3, 1.0, 7.0])
    rate = fraction * theory.critical_learning_rate(7.0, momentum=0.9)
    w, velocity = np.ones(3), np.zeros(3)
    sizes = []
    for _ in range(1000):
        velocity = 0.9 * velocity - rate * curvature * w
        w = w + velocity
        sizes.append(np.abs(w).max())

    assert (max(sizes[-50:]) > 1e3) if grows else (max(sizes[-50:]) < 1e-3)


def test_bad_arguments():
    order = theory.order_parameters((8, 8, 1))
    with pytest.raises(ValueError, match="samples"):
        theory.fisher_spectrum(order, samples=0)
    with pytest.raises(ValueError, match="parameterization"):
        theory.fisher_spectrum(order, samples=2, parameterization="orthogonal")
    hidden = theory.order_parameters((8, 8, 1), hidden_normalization="mean")
    with pytest.raises(ValueError, match="order: expected hidden_normalization None"):
        theory.fisher_spectrum(hidden, samples=2)
    for wrong in ({"lambda_max": 0}, {"lambda_max": 1, "momentum": 1}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            theory.critical_learning_rate(**wrong)


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

    got = dual(jacobian)
    for expected in (
        differences @ differences.T / 7,
        identity @ dual(plain) @ identity.T,
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
