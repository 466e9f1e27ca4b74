# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 3 (softmax)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import theory
from wide import dual, eigenvalues, gaussian, kind, network, networks

PHI = ["tanh", "relu", "linear"]


def softmax(f):
    g = np.exp(f - f.max(1, keepdims=True))
    return g / g.sum(1, keepdims=True)


def roots(g):
    """Q(t)^{1/2} (N, C, C)."""
    q = g[:, :, None] * np.eye(g.shape[1]) - g[:, :, None] * g[:, None, :]
    w, v = np.linalg.eigh(q)
    return (v * np.sqrt(w.clip(0))[:, None, :]) @ v.swapaxes(1, 2)


def dual_softmax(jacobian, g):
    """F*_cross = (1/N) S J J^T S with S = blockdiag Q(t)^{1/2}."""
    n, c = g.shape
    s = roots(g)
    k = dual(jacobian).reshape(n, c, n * c)
    k = (s @ k).reshape(n * c, n, c)
    return (k[:, :, None, :] @ s)[:, :, 0].reshape(n * c, n * c)


def test_t3_1_dual_equals_the_explicit_fisher_matrix():
    jacobian = network((5, 7, 6, 3), 6, seed=0, **kind("tanh"))
    g = softmax(jacobian.outputs)
    j = jacobian.dense().reshape(6, 3, -1)
    q = roots(g) @ roots(g)
    fisher = np.einsum("tcp,tcd,tdq->pq", j, q, j) / 6

    got = eigenvalues(dual_softmax(jacobian, g))

    expected = eigenvalues(fisher)
    np.testing.assert_allclose(got, expected[: got.size], atol=1e-10 * expected[0])
    assert np.abs(expected[got.size :]).max() < 1e-10 * expected[0]


@pytest.mark.parametrize("activation", PHI)
def test_t3_2_spectrum_given_the_outputs(activation):
    widths, n, c = (1000, 1000, 1000, 10), 100, 10
    order = theory.order_parameters(widths, **kind(activation))
    measured, predicted = [], []
    for jacobian in networks(widths, n, seeds=6, dtype="float32", **kind(activation)):
        g = softmax(np.asarray(jacobian.outputs, np.float64))
        values = eigenvalues(dual_softmax(jacobian, g))
        spectrum = theory.softmax_spectrum(order, g)
        assert values[0] < spectrum.upper_bound * 1.02
        measured.append((values.sum(), values[: c - 1].mean()))
        predicted.append((spectrum.trace, spectrum.outliers.mean()))
    trace, outliers = np.mean(measured, axis=0) / np.mean(predicted, axis=0) - 1

    assert abs(trace) < 0.03
    assert abs(outliers) < 0.09


def test_t3_3_rank():
    jacobian = network((300, 300, 300, 5), 20, seed=1, **kind("tanh"))
    values = eigenvalues(dual_softmax(jacobian, softmax(jacobian.outputs)))

    assert (values > 1e-10 * values[0]).sum() == 20 * 4


@pytest.mark.parametrize("c", [3, 5])
def test_t3_3_one_outlier_less_than_outputs(c):
    widths, n = (1000, 1000, 1000, c), 200
    order = theory.order_parameters(widths, **kind("relu"))
    clear = 0
    for jacobian in networks(widths, n, seeds=6, dtype="float32", **kind("relu")):
        g = softmax(np.asarray(jacobian.outputs, np.float64))
        q = roots(g) @ roots(g)
        bulk = (order.K1 - order.K2) / n * np.linalg.eigvalsh(q)[:, -1].max()
        statistics = theory.softmax_statistics(g)
        if order.K2 * statistics.eigenvalues[-1] <= 3 * bulk:
            continue
        clear += 1
        values = eigenvalues(dual_softmax(jacobian, g))
        assert (values > 1.6 * bulk).sum() == c - 1
        ratio = values[c - 2] / theory.softmax_spectrum(order, g).outliers[-1]
        assert 0.85 <= ratio <= 1.15
    assert clear > 0


LOGGED = (0, 5, 20, 50, 100)


@cache
def trained():
    """Kernel at the start, labels, start, rate; losses of 100 steps, and matrices at some."""
    widths, n, options = (1000, 1000, 1000, 2), 50, kind("relu")
    x = gaussian(n, 1000, 8000, "float32")
    teacher = ff.models.MLP(widths, seed=99, dtype="float32", **options)(x)
    labels = np.eye(2)[(teacher - teacher.mean(0)).argmax(1)]
    mlp = ff.models.MLP(widths, seed=1, dtype="float32", **options)
    losses, logged, rate = [], [], None
    for step in range(101):
        jacobian = mlp.jacobian(x)
        g = softmax(np.asarray(jacobian.outputs, np.float64))
        if step in LOGGED:
            logged.append((g, eigenvalues(dual(jacobian))[0], dual_softmax(jacobian, g)))
        if rate is None:
            rate = 1 / eigenvalues(logged[0][2])[0]
            start = np.asarray(jacobian.outputs, np.float64)
            kernel = np.asarray(jacobian.gram(), np.float64)
        losses.append(-np.log((g * labels).sum(1)).mean())
        step_size = np.asarray(rate * (g - labels).ravel() / n, np.float32)
        update = jacobian.T @ step_size
        mlp = mlp.with_parameters(jacobian.flatten(mlp.parameters) - update)
    return widths, kernel, labels, start, rate, losses, logged


def test_t3_4_training_follows_the_tangent_kernel():
    _, kernel, labels, start, rate, losses, _ = trained()

    curve = ff.regression.cross_entropy_curve(kernel, labels, start, lr=rate, steps=100)

    np.testing.assert_allclose(losses, curve.losses, rtol=0.05)


def test_t3_5_bounds_hold_during_training():
    widths, _, _, _, _, losses, logged = trained()
    order = theory.order_parameters(widths, **kind("relu"))
    for g, _, matrix in logged:
        top = eigenvalues(matrix)[0]
        spectrum = theory.softmax_spectrum(order, g)
        assert 0.95 * spectrum.lower_bound <= top <= 1.05 * spectrum.upper_bound
    fisher = [top for _, top, _ in logged]

    assert losses[-1] < 0.1 * losses[0]
    assert max(fisher) / min(fisher) < 1.03


def test_t3_6_kernel_with_samples_in_proportion_to_the_width():
    plain, centred = [], []
    options = kind("tanh", parameterization="ntk")
    for m in (100, 200, 400):
        # 24 networks: of six alone the mean still scatters by 5 % at M = 100.
        kernels = [m * dual(j) for j in networks((m, m, m, 1), m, seeds=24, **options)]
        plain.append(np.mean([eigenvalues(k)[0] for k in kernels]))
        projected = [k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in kernels]
        centred.append(np.mean([eigenvalues(k)[0] for k in projected]))

    assert max(centred) / min(centred) < 1.15
    assert plain[2] / plain[0] > 3.3


def test_statistics_equal_their_definitions():
    g = softmax(2 * gaussian(7, 4, 3))
    q = g[:, :, None] * np.eye(4) - g[:, :, None] * g[:, None, :]
    got = theory.softmax_statistics(g)

    products = np.einsum("sij,tji->st", q, q) / 49
    assert got.beta1 == pytest.approx(np.trace(q, axis1=1, axis2=2).mean())
    assert got.beta3 == pytest.approx(np.trace(products))
    assert got.beta2 == pytest.approx(products.sum() - np.trace(products))
    w, v = np.linalg.eigh(q.mean(0))
    np.testing.assert_allclose(got.eigenvalues, w[:0:-1], rtol=1e-12)
    second = np.einsum("ik,ij,jk->k", v, (q @ q).mean(0), v)
    np.testing.assert_allclose(got.second, second[:0:-1], rtol=1e-10)


@pytest.mark.parametrize(("activation", "c", "bound"), [("tanh", 10, 0.04), ("relu", 5, 0.04)])
def test_ensemble_without_forward_pass(activation, c, bound):
    widths = (300, 300, 300, c)
    order = theory.order_parameters(widths, **kind(activation))
    drawn = theory.softmax_ensemble(order, samples=50, networks=400)
    real = [softmax(j.outputs) for j in networks(widths, 50, seeds=100, **kind(activation))]

    beta1 = [np.mean([theory.softmax_statistics(g).beta1 for g in gs]) for gs in (drawn, real)]
    assert beta1[1] == pytest.approx(beta1[0], rel=bound)


def test_mean_subtraction_removes_the_outliers():
    options = kind("relu")
    jacobian = network((400, 400, 400, 5), 60, seed=2, **options)
    centred = network((400, 400, 400, 5), 60, seed=2, normalization="mean", **options)
    g = softmax(jacobian.outputs)

    with_outliers = eigenvalues(dual_softmax(jacobian, g))[0]
    assert eigenvalues(dual_softmax(centred, g))[0] < 0.2 * with_outliers


@pytest.mark.parametrize(
    "g", [np.ones((4, 3)), np.ones(3) / 3, np.ones((4, 1)), np.empty((0, 3)), [[1.5, -0.5]]]
)
def test_bad_probabilities(g):
    with pytest.raises(ValueError, match="probabilities"):
        theory.softmax_statistics(g)
    order = theory.order_parameters((5, 5, 2))
    with pytest.raises(ValueError, match="probabilities: expected 2 outputs, got 4"):
        theory.softmax_spectrum(order, np.full((3, 4), 0.25))
