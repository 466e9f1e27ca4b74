# SPDX-License-Identifier: Apache-2.0
"""MLP with hidden pre-activations normalised over the batch: its Jacobian couples samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.reference.mlp import mlp as reference_mlp
from fastfisher.reference.mlp import mlp_jacobian as reference_jacobian

VARIANCES = {"sigma_w2": 1.7, "sigma_b2": 0.3}
KINDS = [
    {
        "activation": activation,
        "parameterization": parameterization,
        "hidden_normalization": hidden,
        "normalization": normalization,
    }
    for activation, parameterization, hidden, normalization in itertools.product(
        ["tanh", "relu"], ["standard", "ntk"], ["mean", "batch"], [None, "mean", "batch", "layer"]
    )
]


def samples(n, width, dtype=np.float64):
    return np.random.default_rng(1).standard_normal((n, width)).astype(dtype)


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("widths", [(3, 6, 3), (3, 6, 5, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_outputs_and_jacobian_equal_finite_differences(kind, widths):
    mlp = ff.models.MLP(widths, **kind, **VARIANCES)
    x = samples(7, 3)

    jacobian = mlp.jacobian(x)

    options = {**kind, **VARIANCES}
    assert relative_error(mlp(x), reference_mlp(mlp.parameters, x, **options)) < 1e-13
    expected = reference_jacobian(mlp.parameters, x, **options)
    assert relative_error(jacobian.dense(), expected) < 1e-7
    gram = expected @ expected.T
    assert relative_error(jacobian.gram().reshape(gram.shape), gram) < 1e-7
    v = np.random.default_rng(2).standard_normal(jacobian.shape[1])
    assert relative_error(jacobian @ v, expected @ v) < 1e-7


@pytest.mark.parametrize("hidden", ["mean", "batch"])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_other_libraries_give_the_same_numbers(library, hidden):
    if library == "torch":
        convert = pytest.importorskip("torch").from_numpy
    else:
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        convert = jax.numpy.from_dlpack
    mlp = ff.models.MLP((3, 8, 7, 3), activation="relu", hidden_normalization=hidden)
    x = samples(6, 3)

    got = mlp.jacobian(convert(x)).gram()

    assert relative_error(np.asarray(got), mlp.jacobian(x).gram()) < 1e-14


@pytest.mark.parametrize("hidden", ["mean", "batch"])
@pytest.mark.parametrize("n", [0, 1])
def test_no_sample_and_one(n, hidden):
    mlp = ff.models.MLP((3, 5, 4, 2), hidden_normalization=hidden)
    if n == 1 and hidden == "batch":
        with pytest.raises(ValueError, match=r"hidden_normalization='batch'.*units of layer 0"):
            mlp(samples(1, 3))
        return
    jacobian = mlp.jacobian(samples(n, 3))
    assert jacobian.dense().shape == jacobian.shape
    # One sample is its own mean: only the last layer's biases and, through phi(0) = 0, nothing else
    assert (jacobian.dense() != 0).sum() == 2 * n


def test_one_layer_has_no_hidden_one():
    x = samples(5, 3)
    plain = ff.models.MLP((3, 2)).jacobian(x).dense()
    hidden = ff.models.MLP((3, 2), hidden_normalization="batch").jacobian(x).dense()
    np.testing.assert_array_equal(plain, hidden)


def test_too_many_samples_are_refused_before_work():
    mlp = ff.models.MLP((2, 4096, 4096, 10), hidden_normalization="mean", dtype="float32")
    with pytest.raises(MemoryError, match=r"x: hidden_normalization='mean' .*samples fit"):
        mlp.jacobian(samples(2000, 2, np.float32))


def test_bad_name():
    with pytest.raises(ValueError, match="hidden_normalization"):
        ff.models.MLP((3, 2), hidden_normalization="layer")


@pytest.mark.parametrize("hidden", ["mean", "batch"])
def test_fisher_of_classification(hidden):
    mlp = ff.models.MLP((3, 6, 5, 3), activation="tanh", hidden_normalization=hidden)
    x = samples(7, 3)
    j = mlp.jacobian(x).dense().reshape(7, 3, -1)
    g = np.exp(mlp(x))
    g /= g.sum(1, keepdims=True)
    q = g[:, :, None] * np.eye(3) - g[:, :, None] * g[:, None]

    fisher = ff.fisher(mlp, x, likelihood="categorical")

    assert relative_error(fisher.dense(), np.einsum("tcp,tcd,tdq->pq", j, q, j) / 7) < 1e-12
    mean = ff.fisher(mlp, x, np.arange(7) % 3, likelihood="categorical", kind="empirical")
    rows = np.einsum("tcp,tc->tp", j, g - np.eye(3)[np.arange(7) % 3])
    assert relative_error(mean.dense(), rows.T @ rows / 7) < 1e-12
