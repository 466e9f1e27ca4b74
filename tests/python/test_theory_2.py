# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 2 (normalisation). The identities, T2.1, are in test_theory_1.py."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import theory
from wide import dual, eigenvalues, gaussian, kind, network, networks, off


def normalized(widths, samples, *, seed, normalization, **options):
    """Jacobian with normalised outputs, and the plain outputs."""
    x = gaussian(samples, widths[0], 7000 + seed)
    mlp = ff.models.MLP(widths, seed=seed, normalization=normalization, **options)
    plain = ff.models.MLP(widths, seed=seed, **options)(x)
    return mlp.jacobian(x), plain


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_t2_2_mean_subtraction(activation):
    widths, n = (800, 800, 800, 2), 100
    order = theory.order_parameters(widths, **kind(activation))
    predicted = theory.normalized_spectrum(order, samples=n, normalization="mean")
    plain = theory.fisher_spectrum(order, samples=n).lambda_max
    traces = []
    for seed in range(4):
        options = kind(activation, normalization="mean")
        values = eigenvalues(dual(network(widths, n, seed=seed, **options)))
        traces.append(values.sum())
        assert predicted.lower_bound <= values[0] < 0.2 * plain

    assert off(traces, predicted.trace) < 0.05


def test_t2_3_largest_eigenvalue_with_samples_in_proportion_to_the_width():
    plain, centred, ratios = [], [], []
    for m in (100, 200, 400):
        widths, tops = (m, m, m, 1), []
        for seed in range(4):
            k = dual(network(widths, m, seed=seed, **kind("tanh")))
            projected = k - k.mean(0) - k.mean(1)[:, None] + k.mean()
            tops.append((eigenvalues(k)[0], eigenvalues(projected)[0]))
        plain.append(np.mean(tops, axis=0)[0])
        centred.append(np.mean(tops, axis=0)[1])
        order = theory.order_parameters(widths, **kind("tanh"))
        bound = theory.normalized_spectrum(order, samples=m, normalization="mean").lower_bound
        ratios.append(centred[-1] / bound)

    assert max(centred) / min(centred) < 1.4
    assert plain[2] / plain[0] > 3.3
    assert min(ratios) >= 1


@pytest.mark.parametrize(
    ("width", "samples", "low", "high"),
    [(800, 50, 1.0, 1.2), (400, 100, 1.2, 1.4), (200, 200, 1.4, 1.7)],
)
def test_estimate_from_the_samples(width, samples, low, high):
    """Measured / estimate is 1.13 at M / N = 16, 1.35 at 4 and 1.5 at 1."""
    widths, ratios = (width, width, width, 1), []
    for seed in range(4):
        options = kind("relu")
        jacobian = network(widths, samples, seed=seed, normalization="mean", **options)
        x = gaussian(samples, width, 7000 + seed)
        estimate = theory.mean_subtracted_lambda_max(x, widths, **options)
        ratios.append(eigenvalues(dual(jacobian))[0] / estimate)

    assert low <= np.mean(ratios) <= high


@pytest.mark.parametrize(
    ("test", "activation", "hidden", "seeds", "low", "high"),
    [
        pytest.param("T2.4", "relu", "batch", 12, 0.97, 1.05, id="t2_4-batch"),
        pytest.param("T2.9", "relu", "mean", 12, 0.97, 1.10, id="t2_9-mean"),
    ],
)
def test_t2_4_t2_9_outlier_survives_hidden_normalization(
    test, activation, hidden, seeds, low, high
):
    widths, n, options = (600, 600, 600, 1), 40, kind(activation, hidden_normalization=hidden)
    tops = [
        eigenvalues(dual(jacobian))[0]
        for jacobian in networks(widths, n, seeds=seeds, dtype="float32", **options)
    ]
    order = theory.order_parameters(widths, **options)

    outlier = theory.hidden_normalized_spectrum(order, samples=n).outlier
    assert low <= np.mean(tops) / outlier <= high


@pytest.mark.parametrize("hidden", ["mean", "batch"])
def test_t2_5_odd_activation_has_no_outlier_under_hidden_normalization(hidden):
    widths, n, options = (600, 600, 600, 1), 40, kind("tanh", hidden_normalization=hidden)
    traces = []
    for seed in range(3):
        values = eigenvalues(dual(network(widths, n, seed=seed, dtype="float32", **options)))
        plain = eigenvalues(dual(network(widths, n, seed=seed, **kind("tanh"))))
        assert values[0] < 3 * values[1]
        assert values[0] < 0.5 * plain[0]
        traces.append(values.sum())
    order = theory.order_parameters(widths, **options)

    assert off(traces, theory.hidden_normalized_spectrum(order, samples=n).trace) < 0.05


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_t2_6_layer_normalization(activation):
    widths, n, c = (400, 400, 400, 10), 60, 10
    order = theory.order_parameters(widths, **kind(activation))
    traces, tops = [], []
    for seed in range(4):
        jacobian, plain = normalized(
            widths, n, seed=seed, normalization="layer", **kind(activation)
        )
        s = plain.std(1)
        predicted = theory.normalized_spectrum(
            order, samples=n, normalization="layer", deviations=s
        )
        values = eigenvalues(dual(jacobian))
        assert values[0] >= 0.95 * predicted.lower_bound
        traces.append(values.sum() / predicted.trace)
        outliers = theory.layer_normalized_outliers(order, jacobian.outputs, s)
        tops.append(values[: c - 1].mean() / outliers.mean())

    assert abs(np.mean(traces) - 1) < 0.05
    assert abs(np.mean(tops) - 1) < 0.09


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_t2_8_batch_normalization(activation):
    widths, n = (400, 400, 400, 10), 100
    order = theory.order_parameters(widths, **kind(activation))
    ratios = []
    for seed in range(6):
        jacobian, plain = normalized(
            widths, n, seed=seed, normalization="batch", **kind(activation)
        )
        predicted = theory.normalized_spectrum(
            order, samples=n, normalization="batch", deviations=plain.std(0)
        )
        values = eigenvalues(dual(jacobian))
        ratios.append(values.sum() / predicted.trace)
        assert values[0] >= predicted.lower_bound

    assert abs(np.mean(ratios) - 1) < 0.06


def test_deviations_by_theory():
    """Without realised deviations: those of mean-field outputs."""
    order = theory.order_parameters((600, 600, 600, 10), **kind("tanh"))
    draws = [
        normalized((300, 300, 300, 10), 200, seed=seed, normalization=None, **kind("tanh"))[1]
        for seed in range(20)
    ]
    inverse = np.mean([1 / f.std(1) ** 2 for f in draws])
    layer = theory.normalized_spectrum(order, samples=100, normalization="layer")
    assert layer.trace == pytest.approx(8 * inverse * order.K1, rel=0.1)

    batch = theory.normalized_spectrum(order, samples=100, normalization="batch")
    variance = np.mean([f.var(0).mean() for f in draws])
    assert batch.trace == pytest.approx(10 * (order.K1 - order.K2) / variance, rel=0.1)


def test_bad_arguments():
    order = theory.order_parameters((8, 8, 3))
    spectrum = theory.normalized_spectrum
    with pytest.raises(ValueError, match="normalization"):
        spectrum(order, samples=4, normalization="group")
    with pytest.raises(ValueError, match="deviations: needed with three"):
        spectrum(order, samples=4, normalization="layer")
    with pytest.raises(ValueError, match=r"deviations: expected shape \(3,\)"):
        spectrum(order, samples=4, normalization="batch", deviations=np.ones(4))
    with pytest.raises(ValueError, match="deviations: expected numbers > 0"):
        spectrum(order, samples=4, normalization="batch", deviations=np.zeros(3))
    with pytest.raises(ValueError, match="deviations: normalization='mean'"):
        spectrum(order, samples=4, normalization="mean", deviations=np.ones(3))
    two = theory.order_parameters((8, 8, 2))
    with pytest.raises(ValueError, match="three outputs"):
        spectrum(two, samples=4, normalization="layer")
    with pytest.raises(ValueError, match="normalized: expected shape"):
        theory.layer_normalized_outliers(order, np.ones((4, 2)), np.ones(4))
    with pytest.raises(ValueError, match="order: expected hidden_normalization"):
        theory.hidden_normalized_spectrum(order, samples=4)
