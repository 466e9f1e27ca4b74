# SPDX-License-Identifier: Apache-2.0
"""NGD and SPRING: one step by brute force, ways to give residuals, learning rates, solves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastfisher.likelihoods import likelihood_of  # noqa: E402
from fastfisher.optim import NGD, SPRING  # noqa: E402
from fastfisher.reference import ngd as reference  # noqa: E402
from optim_ngd_cases import (  # noqa: E402
    INPUTS,
    RHO,
    STRUCTURES,
    N,
    assert_equal,
    brute_matrix,
    brute_step,
    dense_jacobian,
    flat,
    labels,
    network,
    samples,
    stepped,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("n", [N, 60], ids=["samples fewer", "parameters fewer"])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "bernoulli"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_step_equals_brute_force(structure: str, likelihood: str, n: int) -> None:
    model, x, y = network(), samples(n), labels(likelihood, n)
    f = model(x).detach().numpy()
    e = likelihood_of(likelihood).gradient(f, y.numpy())
    expected = 0.5 * brute_step(model, x, e, likelihood, structure, RHO)
    optimizer = NGD(model, lr=0.5, likelihood=likelihood, structure=structure, damping=RHO)
    assert_equal(stepped(model, optimizer, x=x, y=y), expected)
    assert optimizer.last["damping"] == pytest.approx(RHO)


def test_ways_to_give_residuals_agree() -> None:
    """A model on samples, a closure, a list from it, and functions of single samples."""
    x, y = samples(), labels("gaussian")
    expected = brute_step(network(), x, network()(x).detach().numpy() - y.numpy(), "gaussian",
                          "full", RHO)  # fmt: skip
    model = network()
    ways = [
        lambda o: {"x": x, "y": y},
        lambda o: {"closure": lambda: model(x) - y},
        lambda o: {"closure": lambda: [model(x[:3]) - y[:3], model(x[3:]) - y[3:]]},
        lambda o: {"closure": [(lambda f, z: f(z[:INPUTS]) - z[INPUTS:], torch.cat([x, y], 1))]},
        lambda o: {"x": x, "residual": (model(x) - y).detach()},
    ]
    factors = [1, 1, 1, 1, 1]
    for way, factor in zip(ways, factors, strict=True):
        model.load_state_dict(network().state_dict())
        optimizer = NGD(model, lr=1.0, damping=RHO)
        given = way(optimizer)
        if isinstance(given.get("closure"), type(lambda: 0)) and isinstance(
            given["closure"](), list
        ):
            # Half the mean of each part, added up: twice the loss of halves of the samples.
            again = brute_step(network(), x, network()(x).detach().numpy() - y.numpy(), "gaussian",
                               "full", RHO / 2)  # fmt: skip
            assert_equal(stepped(model, optimizer, **given), again)
            continue
        assert_equal(stepped(model, optimizer, **given), factor * expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func
@pytest.mark.parametrize("structure", ["full", "layer", "tridiagonal"])
def test_physics_residuals(structure: str) -> None:
    """Derivatives of the network in its inputs, from a closure and from a function."""

    def second(f: Any, z: Any) -> Any:
        return torch.func.hessian(lambda t: f(t)[0])(z).trace() + z.sum()

    def closure() -> Any:
        z = samples().requires_grad_()
        u = model(z)
        (slope,) = torch.autograd.grad(u.sum(), z, create_graph=True)
        total: Any = z.sum(1)
        for k in range(INPUTS):
            total = total + torch.autograd.grad(slope[:, k].sum(), z, create_graph=True)[0][:, k]
        return total

    model = network(1)
    r = closure()
    rows = torch.stack([
        torch.cat([
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(
                model.parameters(),
                torch.autograd.grad(one, list(model.parameters()), retain_graph=True,
                                    allow_unused=True),
                strict=True,
            )
        ])
        for one in r
    ]).numpy()[:, None]  # fmt: skip
    e = r.detach().numpy()[:, None]
    matrix = brute_matrix(model, rows, e, "gaussian", structure)
    expected = reference.update(rows, e, matrix, RHO)
    for given in (closure, [(second, samples())]):
        model.load_state_dict(network(1).state_dict())
        optimizer = NGD(model, lr=1.0, structure=structure, damping=RHO)
        assert_equal(stepped(model, optimizer, given), expected)
        # Half the mean of the squares.
        assert optimizer.last["loss"] == pytest.approx(0.5 * np.square(e).mean())
    for other in ("unit", "kfac"):
        with pytest.raises(ValueError, match=r"structure: .* needs the factors of a model"):
            NGD(model, lr=1.0, structure=other).step(closure)


@pytest.mark.parametrize("structure", ["full", "layer", "tridiagonal", "kfac", "unit"])
def test_default_learning_rate_is_newtons(structure: str) -> None:
    """c / alpha: a step of c leaves (1 - c) of the residual, to first order."""
    torch.manual_seed(0)
    widths = [12, 800, 800, 1]
    layers: list[Any] = []
    for i, o in itertools.pairwise(widths):
        layers += [torch.nn.Linear(i, o, bias=False), torch.nn.ReLU()]
        torch.nn.init.normal_(layers[-2].weight, std=(2 / i) ** 0.5)
    model = torch.nn.Sequential(*layers[:-1]).double()
    x, y = torch.randn(8, 12).double(), 1e-3 * torch.randn(8, 1).double()
    y += model(x).detach()
    optimizer = NGD(model, c=0.5, structure=structure, relative_damping=1e-9)
    optimizer.step(x=x, y=y)
    depth = {"full": 1, "layer": 3, "tridiagonal": 1, "kfac": 17}
    if structure in depth:
        assert optimizer.last["alpha"] == depth[structure]
    else:
        assert optimizer.last["alpha"] == pytest.approx(801, rel=0.1)  # half of the units
    left = (model(x) - y).detach().norm() / optimizer.last["loss"] ** 0.5 / 4
    assert float(left) == pytest.approx(0.5, rel=0.05)


def test_default_learning_rate_is_refused_without_theory() -> None:
    model = network()
    for structure, why in (
        ("kfac", "inputs for"), ("unit", "inputs for"), ("layer", "parameters for"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"lr: expected a number.*{why}"):
            NGD(model, structure=structure).step(x=samples(40), y=labels("gaussian", 40))
    with pytest.raises(ValueError, match=r"lr: expected a number.*not Gaussian"):
        NGD(model, structure="kfac", likelihood="categorical").step(
            x=samples(2), y=labels("categorical", 2)
        )


def test_centred_is_stochastic_reconfiguration() -> None:
    model, x = network(1), samples()
    energies = labels("gaussian", N, 1)
    j = dense_jacobian(model, x)
    j = j - j.mean(0)
    e = energies.numpy() - energies.numpy().mean(0)
    expected = reference.update(j, e, np.einsum("ncp,ncq->pq", j, j) / N, RHO)
    for limit in (None, 3 << 20):
        model.load_state_dict(network(1).state_dict())
        optimizer = NGD(model, lr=1.0, damping=RHO, centred=True, memory_limit=limit)
        assert_equal(stepped(model, optimizer, x=x, residual=energies), expected)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_blocks_of_samples_give_the_same_step(likelihood: str) -> None:
    x, y = samples(400), labels(likelihood, 400)
    model = network(width=60)
    optimizer = NGD(model, lr=1.0, damping=RHO, likelihood=likelihood)
    whole = stepped(model, optimizer, x=x, y=y)
    model.load_state_dict(network(width=60).state_dict())
    optimizer = NGD(model, lr=1.0, damping=RHO, likelihood=likelihood, memory_limit="2MB")
    assert_equal(stepped(model, optimizer, x=x, y=y), whole)
    with pytest.raises(MemoryError, match="memory_limit"):
        NGD(model, lr=1.0, structure="layer", likelihood=likelihood, memory_limit="2MB").step(
            x=x, y=y
        )


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_solve_in_float64_of_a_float32_gram(likelihood: str) -> None:
    """Tiny damping: the float64 solve is that of the Gram matrix as it stands."""
    x, y = samples(dtype=torch.float32), labels(likelihood)
    errors = {}
    model = network()
    f = model(samples(dtype=torch.float64)).detach().numpy()
    truth = brute_step(
        network(), samples().float().double(), likelihood_of(likelihood).gradient(f, y.numpy()),
        likelihood, "full", 1e-3,
    )  # fmt: skip
    for dtype in ("float64", "float32"):
        model = network(dtype=torch.float32)
        optimizer = NGD(model, lr=1.0, damping=1e-3, likelihood=likelihood, solve_dtype=dtype)
        got = stepped(model, optimizer, x=x, y=y.float() if likelihood == "gaussian" else y)
        errors[dtype] = np.abs(got - truth).max() / np.abs(truth).max()
    assert errors["float64"] < 1e-3
    assert errors["float32"] < 1e-2


def test_probabilities_that_underflow() -> None:
    """A label of probability zero has no root: the system is solved without one."""
    model = torch.nn.Linear(INPUTS, 2).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.0, 2000.0]))
    x, y = samples(), torch.zeros(N, dtype=torch.int64)
    optimizer = NGD(model, lr=1.0, damping=RHO, likelihood="categorical")
    got = stepped(model, optimizer, x=x, y=y)
    gradient = dense_jacobian(model, x).reshape(N * 2, -1).T @ np.tile([-1.0, 1.0], N) / N
    assert np.abs(got - gradient / RHO).max() <= 1e-9 * np.abs(gradient / RHO).max() + 1e-12


def test_levenberg_marquardt_never_raises_the_loss() -> None:
    model, x = network(1, width=12), samples(30)
    y = (3 * x[:, :1]).sin() * 4
    optimizer = NGD(model, adaptive=True, damping=1e-8)
    losses, factors = [], []
    for _ in range(15):
        losses.append(float(optimizer.step(x=x, y=y)))
        factors.append(optimizer.damping_factor)
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.05 * losses[0]
    assert max(factors) > 1  # some step was taken back
    for given in (lambda: model(x) - y, [(lambda f, z: f(z), x)]):
        before = float(optimizer.step(given))  # type: ignore[arg-type]
        assert float(optimizer.step(given)) <= before  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adaptive"):
        optimizer.step(x=x, residual=y)


def test_spring_is_the_damped_least_squares_solution() -> None:
    model, mu = network(), 0.8
    optimizer = SPRING(model, lr=0.3, damping=RHO, momentum=mu)
    phi = np.zeros(len(flat(model)))
    for k in range(3):
        x, y = samples() + k, labels("gaussian")
        j, f = dense_jacobian(model, x), model(x).detach().numpy()
        rows, e = j.reshape(2 * N, -1), (f - y.numpy()).reshape(-1)
        # argmin |J phi - e|^2 / N + rho |phi - mu phi_last|^2 by its normal equations.
        matrix = rows.T @ rows / N + RHO * np.eye(rows.shape[1])
        phi = np.linalg.solve(matrix, rows.T @ e / N + RHO * mu * phi)
        assert_equal(stepped(model, optimizer, x=x, y=y), 0.3 * phi)
    assert_equal(torch.cat([optimizer.state[p]["phi"].reshape(-1) for p in model.parameters()])
                 .numpy(), phi)  # fmt: skip


def test_spring_without_momentum_is_ngd_and_norms_are_bounded() -> None:
    x, y = samples(), labels("categorical")
    steps = []
    for kind, options in ((NGD, {}), (SPRING, {"momentum": 0.0})):
        model = network()
        optimizer = kind(model, lr=1.0, damping=RHO, likelihood="categorical", **options)
        steps.append(stepped(model, optimizer, x=x, y=y))
    assert np.array_equal(*steps)
    optimizer = SPRING(network(), lr=1.0, norm_constraint=1e-4)
    assert np.linalg.norm(
        stepped(optimizer.model, optimizer, x=x, y=labels("gaussian"))
    ) == pytest.approx(1e-2)
