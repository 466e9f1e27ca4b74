# SPDX-License-Identifier: Apache-2.0
"""Learning-rate bounds, scores of a kernel, and both along training."""

from __future__ import annotations

from typing import Any

"""Input metric and conditional Fisher matrix against automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff


def network(widths: tuple[int, ...] = (5, 40, 30, 2), n: int = 12) -> tuple[ff.models.MLP, Any]:
    x = np.random.default_rng(0).standard_normal((n, widths[0]))
    return ff.models.MLP(widths, activation="tanh", sigma_b2=0.1), x


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_lr_bound(likelihood: str, momentum: float) -> None:
    mlp, x = network()
    top = np.linalg.eigvalsh(ff.fisher(mlp, x, likelihood=likelihood).dense())[-1]
    bound = ff.diagnostics.lr_bound(mlp, x, likelihood=likelihood, momentum=momentum)
    assert np.isclose(bound.lr, 2 * (1 + momentum) / top, rtol=1e-10)
    assert bound.certified
    assert bound.residual_norm < 1e-12
    assert bound.safe_lr <= bound.lr
    F = ff.fisher(mlp, x, likelihood=likelihood)
    assert ff.diagnostics.lr_bound(F, momentum=momentum).lr == pytest.approx(bound.lr)
    J = mlp.jacobian(x)
    same = ff.diagnostics.lr_bound(J, likelihood=likelihood, momentum=momentum)
    assert same.lr == pytest.approx(bound.lr)
    assert np.allclose(F @ bound.vector, top * bound.vector, atol=1e-10)


def test_gradient_descent_turns_at_the_bound() -> None:
    mlp, x = network((5, 200, 1))
    bound = ff.diagnostics.lr_bound(mlp, x)
    f, J = mlp(x), mlp.jacobian(x)
    mode = J @ bound.vector
    y = f - 1e-4 * (mode / np.linalg.norm(mode))[:, None]
    for factor in (0.9, 1.1):
        vector = J.flatten(mlp.parameters) - factor * bound.lr * (J.T @ (f - y)[:, 0]) / len(x)
        after = np.linalg.norm(mlp.with_parameters(vector)(x) - y) / np.linalg.norm(f - y)
        assert np.isclose(after, abs(1 - 2 * factor), rtol=1e-2)


def test_lr_bound_refuses() -> None:
    mlp, x = network()
    with pytest.raises(ValueError, match="momentum"):
        ff.diagnostics.lr_bound(mlp, x, momentum=1.0)
    zero = ff.Jacobian.from_factors([ff.Dense(np.zeros((3, 2)), np.zeros((3, 1, 4)))])
    with pytest.raises(ff.errors.NumericalError, match="zero"):
        ff.diagnostics.lr_bound(zero)


def test_scores() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal(6)
    one = ff.diagnostics.scores(np.outer(y, y), y=y)
    assert one.alignment == pytest.approx(1)
    assert one.effective_rank == pytest.approx(1)
    assert one.condition_number == np.inf
    identity = ff.diagnostics.scores(np.eye(6))
    assert identity.effective_rank == pytest.approx(6)
    assert identity.entropy_rank == pytest.approx(6)
    assert identity.condition_number == 1
    assert identity.alignment is None
    mlp, x = network(n=7)
    labels = rng.integers(0, 2, 7)
    kernel = ff.ntk(mlp, x)
    got = ff.diagnostics.scores(mlp, x, labels)
    flat, target = kernel.reshape(14, 14), np.eye(2)[labels].reshape(14)
    expected = target @ flat @ target / np.linalg.norm(flat) / (target @ target)
    assert got.alignment == pytest.approx(expected)
    assert got.condition_number == pytest.approx(np.linalg.cond(flat))
    middle = np.kron(np.eye(7) - 1 / 7, np.eye(2))
    flat, target = middle @ flat @ middle, middle @ target
    expected = target @ flat @ target / np.linalg.norm(flat) / (target @ target)
    assert got.centred_alignment == pytest.approx(expected)
    assert ff.diagnostics.scores(mlp.jacobian(x), y=np.eye(2)[labels]).alignment == got.alignment
    assert ff.diagnostics.scores(np.zeros((3, 3)), y=np.ones(3)).alignment == 0
    assert ff.diagnostics.scores(np.zeros((0, 0))).trace == 0
    with pytest.raises(ValueError, match=r"y: expected shape \(7, 2\)"):
        ff.diagnostics.scores(mlp, x, np.ones((7, 3)))
    with pytest.raises(ff.errors.NonFiniteError, match="model: expected finite"):
        ff.diagnostics.scores(np.full((2, 2), np.nan))


def test_tracking_and_the_schedule() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    x = torch.randn(30, 6)
    y = x[:, :1].sin()
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    tracker = ff.diagnostics.track(model, x)
    schedule = ff.optim.CriticalLR(optimizer, tracker, fraction=0.5, every=5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert len(tracker.history) == 7
    assert losses[-1] < 0.2 * losses[0]
    fresh = ff.diagnostics.lr_bound(model, x)
    assert tracker().lr == pytest.approx(fresh.lr, rel=1e-4)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="fraction"):
        ff.optim.CriticalLR(optimizer, tracker, fraction=2.0)
    with pytest.raises(ValueError, match="every"):
        ff.optim.CriticalLR(optimizer, tracker, every=0)
    with pytest.raises(AttributeError, match="nothing"):
        ff.nothing  # noqa: B018
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
