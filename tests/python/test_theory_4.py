# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 4 (metric of the input and feature space)."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import theory
from wide import gaussian, kind

WIDTHS, C, N = (1000, 1000, 1000, 10), 10, 100
PHI = ["tanh", "relu", "linear"]


def metrics(activation, **options):
    for seed in range(10):
        mlp = ff.models.MLP(WIDTHS, seed=seed, dtype="float32", **kind(activation))
        x = gaussian(N, WIDTHS[0], 7000 + seed, "float32")
        yield mlp, x, ff.diagnostics.input_metric(mlp, x, **options)


@pytest.mark.parametrize("activation", PHI)
def test_t4_1_input_metric(activation):
    order = theory.order_parameters(WIDTHS, **kind(activation))
    predicted = theory.metric_spectrum(order, samples=N)
    found = list(metrics(activation))

    assert abs(np.mean([m.trace for *_, m in found]) / predicted.trace - 1) < 0.03
    top = np.mean([m.top(C)[0].mean() for *_, m in found])
    factor = theory.metric_finite_size_factor(order)
    assert abs(top / (predicted.lambda_max * factor) - 1) < 0.05


@pytest.mark.parametrize("activation", PHI)
def test_t4_2_feature_metric(activation):
    order = theory.order_parameters(WIDTHS, **kind(activation))
    predicted = theory.metric_spectrum(order, samples=N, space="features")
    found = list(metrics(activation, space="features"))

    top = np.mean([m.top(C)[0].mean() for *_, m in found])
    assert abs(top / predicted.lambda_max - 1) < 0.05
    assert found[0][2].shape == (3000, 3000)


@pytest.mark.parametrize("activation", PHI)
def test_t4_3_softmax_input_metric(activation):
    order = theory.order_parameters(WIDTHS, **kind(activation))
    measured, predicted = [], []
    for mlp, x, metric in metrics(activation, likelihood="categorical"):
        f = mlp(x).astype(np.float64)
        g = np.exp(f - f.max(1, keepdims=True))
        spectrum = theory.softmax_metric_spectrum(order, g / g.sum(1, keepdims=True))
        measured.append((metric.trace, metric.top(C - 1)[0].mean()))
        predicted.append((spectrum.trace, spectrum.outliers.mean()))
    trace, outliers = np.mean(measured, axis=0) / np.mean(predicted, axis=0) - 1

    assert abs(trace) < 0.04
    assert abs(outliers) < 0.06


def test_eigenvectors_of_the_outliers_are_mean_gradients():
    mlp = ff.models.MLP((400, 400, 400, 3), seed=1, **kind("relu"))
    metric = ff.diagnostics.input_metric(mlp, gaussian(100, 400, 2))
    mean = np.linalg.qr(metric.rows.reshape(100, 3, 400).mean(0).T)[0]

    assert ((metric.top(3)[1].T @ mean) ** 2).sum() / 3 > 0.98


def test_bulk_of_a_metric_that_is_smaller_than_its_dual():
    # 200 dimensions, 3 * 299 eigenvalues in the dual: the trace is shared by 197.
    widths, n = (200, 600, 600, 3), 300
    order = theory.order_parameters(widths, **kind("tanh"))
    predicted = theory.metric_spectrum(order, samples=n)
    mlp = ff.models.MLP(widths, seed=3, **kind("tanh"))
    values = np.asarray(ff.diagnostics.input_metric(mlp, gaussian(n, 200, 4)).eigenvalues())

    assert (predicted.bulk_size, predicted.zeros) == (197, 0)
    assert predicted.trace == pytest.approx(
        3 * predicted.lambda_max + predicted.bulk_size * predicted.bulk_mean
    )
    assert predicted.bulk_mean == pytest.approx(values[3:].mean(), rel=0.1)
    assert theory.metric_spectrum(order, samples=20).bulk_size == 57


def test_bad_arguments():
    order = theory.order_parameters((8, 8, 3))
    with pytest.raises(ValueError, match="space"):
        theory.metric_spectrum(order, samples=3, space="output")
    with pytest.raises(ValueError, match="samples"):
        theory.metric_spectrum(order, samples=0)
    hidden = theory.order_parameters((8, 8, 3), hidden_normalization="mean")
    with pytest.raises(ValueError, match="order: expected hidden_normalization None"):
        theory.metric_finite_size_factor(hidden)
