# SPDX-License-Identifier: Apache-2.0
"""Input metric and conditional Fisher matrix against automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.diagnostics import conditional_fisher, input_metric

ACTIVATIONS = ["tanh", "relu", "erf", "linear", "hard-tanh"]


def samples(n, width, seed=1):
    return np.random.default_rng(seed).standard_normal((n, width))


def relative_error(got, expected):
    return np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected)


def torch_twin(mlp):
    """The same network as a torch module."""
    torch = pytest.importorskip("torch")
    phi = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[mlp.activation]
    modules = []
    for index, (i, o) in enumerate(zip(mlp.widths, mlp.widths[1:], strict=False)):
        linear = torch.nn.Linear(i, o, dtype=torch.float64)
        linear.weight.data = torch.tensor(mlp.parameters[f"{index}.weight"])
        linear.bias.data = torch.tensor(mlp.parameters[f"{index}.bias"])
        modules += [linear, phi()]
    return torch.nn.Sequential(*modules[:-1])


def differences(mlp, x, step=1e-6):
    """Gradients (n, c, m) of the outputs for the inputs."""
    columns = []
    for k in range(x.shape[1]):
        shift = step * np.eye(x.shape[1])[k]
        columns.append((mlp(x + shift) - mlp(x - shift)) / (2 * step))
    return np.stack(columns, -1)


def weighted(gradients, f, likelihood):
    """A (m, m) by its definition."""
    n, c = f.shape
    q = np.broadcast_to(np.eye(c), (n, c, c))
    if likelihood == "categorical":
        g = np.exp(f) / np.exp(f).sum(1, keepdims=True)
        q = g[:, :, None] * np.eye(c) - g[:, :, None] * g[:, None]
    return np.einsum("tci,tcd,tdj->ij", gradients, q, gradients) / n


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("normalization", [None, "layer"])
@pytest.mark.parametrize("parameterization", ["standard", "ntk", "orthogonal"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_input_metric_equals_its_definition(
    activation, parameterization, normalization, likelihood
):
    mlp = ff.models.MLP(
        (4, 7, 6, 3),
        activation=activation,
        sigma_b2=0.2,
        parameterization=parameterization,
        normalization=normalization,
    )
    x = samples(5, 4)

    metric = input_metric(mlp, x, likelihood=likelihood)

    expected = weighted(differences(mlp, x), mlp(x), likelihood)
    assert relative_error(metric.dense(), expected) < 1e-7
    assert metric.trace == pytest.approx(np.trace(expected))
    np.testing.assert_allclose(
        metric.eigenvalues(), np.linalg.eigvalsh(expected)[::-1], atol=1e-7 * metric.trace
    )
    v = samples(4, 2)
    assert relative_error(metric @ v, expected @ v) < 1e-6


@pytest.mark.parametrize(("n", "m"), [(2, 9), (9, 4)])
def test_top_eigenpairs(n, m):
    metric = input_metric(ff.models.MLP((m, 8, 2), activation="tanh"), samples(n, m))

    values, vectors = metric.top(min(3, m))

    a = metric.dense()
    np.testing.assert_allclose(a @ vectors, vectors * values, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(values.size), atol=1e-10)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a)[::-1][: values.size], atol=1e-12)
    with pytest.raises(ValueError, match="k: expected"):
        metric.top(min(2 * n, m) + 1)


def test_feature_metric_is_the_metric_of_each_activation():
    mlp = ff.models.MLP((4, 7, 6, 3), activation="tanh", sigma_b2=0.2)
    x = samples(5, 4)

    whole = input_metric(mlp, x, space="features").dense()

    assert whole.shape == (17, 17)
    assert relative_error(whole[:4, :4], input_metric(mlp, x).dense()) < 1e-13
    # from h^1 on it is the metric of the network without its first layer
    h = np.tanh(x @ mlp.parameters["0.weight"].T + mlp.parameters["0.bias"])
    upper = ff.models.MLP((7, 6, 3), activation="tanh").with_parameters(
        {
            f"{k - 1}.{what}": mlp.parameters[f"{k}.{what}"]
            for k in (1, 2)
            for what in ("weight", "bias")
        }
    )
    identity = ff.models.MLP((7, 7), activation="linear")
    assert identity.widths == (7, 7)
    phi_inputs = differences_from_activation(upper, h)
    assert relative_error(whole[4:11, 4:11], weighted(phi_inputs, mlp(x), "gaussian")) < 1e-7


def differences_from_activation(mlp, h):
    return differences(mlp, h)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_torch_models_give_the_same_metric(activation, likelihood):
    torch = pytest.importorskip("torch")
    mlp = ff.models.MLP((4, 7, 6, 3), activation=activation, sigma_b2=0.2)
    x = samples(5, 4)
    model, there = torch_twin(mlp), torch.from_numpy(x)

    got = input_metric(model, there, likelihood=likelihood)
    values, vectors = got.top(2)

    expected = input_metric(mlp, x, likelihood=likelihood)
    assert isinstance(values, torch.Tensor)
    assert isinstance(vectors, torch.Tensor)
    assert relative_error(got.dense(), expected.dense()) < 1e-13
    assert relative_error(values, expected.top(2)[0]) < 1e-13
    assert all(p.grad is None for p in model.parameters())
    assert not there.requires_grad
    on_torch = input_metric(mlp, there, likelihood=likelihood)
    assert relative_error(on_torch.dense(), expected.dense()) < 1e-13


def test_torch_images_and_models_without_dependence():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 3)
    )
    assert input_metric(model, torch.ones(5, 1, 4, 4)).shape == (16, 16)
    constant = (lambda p, x: p["b"].expand(len(x), 2), {"b": torch.zeros(2)})
    assert input_metric(constant, torch.ones(5, 3)).trace == 0


def test_coupled_and_random_models_are_refused():
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    norm = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(ff.errors.CaptureError, match=r"BatchNorm1d.*eval"):
        input_metric(norm, x)
    drop = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.Dropout(0.5))
    with pytest.raises(ff.errors.CaptureError, match=r"stochastic.*Dropout"):
        input_metric(drop, x)
    with pytest.raises(ff.errors.CaptureError, match="other samples"):
        input_metric((lambda p, x: x * x.mean(0), {}), x)
    input_metric(norm.eval(), x)


def test_bad_arguments_of_the_metric():
    mlp, x = ff.models.MLP((4, 3)), samples(5, 4)
    with pytest.raises(ValueError, match="likelihood"):
        input_metric(mlp, x, likelihood="poisson")
    with pytest.raises(ValueError, match="space"):
        input_metric(mlp, x, space="output")
    with pytest.raises(ValueError, match="select"):
        input_metric(mlp, x, select=len)
    for options in ({"normalization": "mean"}, {"hidden_normalization": "batch"}):
        coupled = ff.models.MLP((4, 5, 3), activation="tanh", **options)
        with pytest.raises(ValueError, match=f"model: {next(iter(options))}"):
            input_metric(coupled, x)
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(4, 2)
    with pytest.raises(ValueError, match="space: 'features'"):
        input_metric(linear, torch.ones(5, 4), space="features")
    with pytest.raises(TypeError, match="x: expected a torch tensor"):
        input_metric(linear, x)
    with pytest.raises(TypeError, match="dtype"):
        input_metric(linear, torch.ones(5, 4, dtype=torch.int64))


@pytest.mark.parametrize("parameterization", ["standard", "ntk", "orthogonal"])
@pytest.mark.parametrize("widths", [(5, 5, 5, 5), (4, 7, 6, 3), (4, 3)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conditional_fisher_equals_the_jacobian(activation, widths, parameterization):
    options = {"sigma_b2": 0.2, "parameterization": parameterization}
    mlp = ff.models.MLP(widths, activation=activation, **options)
    x = samples(1, widths[0])
    j = mlp.jacobian(x).dense()
    expected = j @ j.T / widths[-1]

    h = conditional_fisher(mlp, x[0])

    values = np.linalg.eigvalsh(expected)[::-1]
    assert relative_error(h.dense(), expected) < 1e-12
    assert relative_error(h @ np.eye(widths[-1]), expected) < 1e-12
    assert relative_error(h @ np.ones(widths[-1]), expected.sum(1)) < 1e-12
    assert h.lambda_max() == pytest.approx(values[0], rel=1e-12)
    np.testing.assert_allclose(h.eigenvalues(), values, atol=1e-12 * values[0])
    np.testing.assert_allclose(h.moments(), (values.mean(), (values**2).mean()), rtol=1e-12)


def test_conditional_fisher_of_torch_models():
    torch = pytest.importorskip("torch")
    mlp = ff.models.MLP((4, 7, 6, 3), activation="tanh", sigma_b2=0.2)
    x = samples(1, 4)

    h = conditional_fisher(torch_twin(mlp), torch.from_numpy(x))

    expected = conditional_fisher(mlp, x)
    assert isinstance(h.dense(), torch.Tensor)
    assert relative_error(h.dense(), expected.dense()) < 1e-13
    assert h.lambda_max() == pytest.approx(expected.lambda_max())
    with pytest.raises(ValueError, match="one sample"):
        conditional_fisher(torch_twin(mlp), torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="law"):
        h.law()


def test_bad_arguments_of_the_conditional_fisher():
    mlp = ff.models.MLP((4, 5, 3))
    with pytest.raises(ValueError, match=r"x: expected shape \(4,\) or \(1, 4\)"):
        conditional_fisher(mlp, samples(2, 4))
    with pytest.raises(ValueError, match="model: expected normalization None"):
        conditional_fisher(ff.models.MLP((4, 3), normalization="layer"), samples(1, 4))
    with pytest.raises(ValueError, match="law needs"):
        conditional_fisher(mlp, samples(1, 4)).law()
