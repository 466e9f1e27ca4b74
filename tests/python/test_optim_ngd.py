# SPDX-License-Identifier: Apache-2.0
"""NGD and SPRING: one step by brute force, ways to give residuals, bad input, resuming, theory."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastfisher as ff  # noqa: E402
from fastfisher.likelihoods import likelihood_of  # noqa: E402
from fastfisher.optim import NGD, SPRING  # noqa: E402
from fastfisher.reference import fisher as fisher_reference  # noqa: E402
from fastfisher.reference import ngd as reference  # noqa: E402
from test_theory_6_training import predictor  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

STRUCTURES = ("full", "layer", "tridiagonal", "unit", "kfac")
N, INPUTS, RHO = 6, 4, 0.1


def network(c: int = 2, *, width: int = 5, dtype: Any = torch.float64, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(INPUTS, width), torch.nn.Tanh(),
        torch.nn.Linear(width, width), torch.nn.Tanh(),
        torch.nn.Linear(width, c),
    ).to(dtype)  # fmt: skip


def samples(n: int = N, dtype: Any = torch.float64) -> Any:
    return torch.randn(n, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)


def labels(likelihood: str, n: int = N, c: int = 2) -> Any:
    rng = np.random.default_rng(2)
    if likelihood == "categorical":
        return torch.from_numpy(rng.integers(0, c, n))
    if likelihood == "bernoulli":
        return torch.from_numpy(rng.integers(0, 2, (n, c)).astype(float))
    return torch.from_numpy(rng.standard_normal((n, c)))


def flat(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def dense_jacobian(model: Any, x: Any) -> Any:
    """(N, C, P) by one backward pass an output."""
    f = model(x)
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(one, list(model.parameters()), retain_graph=True)
            ]
        )
        for one in f.reshape(-1)
    ]
    return torch.stack(rows).reshape(*f.shape, -1).numpy()


def layer_columns(model: Any) -> list[Any]:
    """Columns of each module, in the order of the parameters."""
    sizes = [sum(p.numel() for p in m.parameters()) for m in model if list(m.parameters())]
    ends = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


def unit_columns(model: Any) -> list[Any]:
    """Columns of each unit: a row of the weight and its bias."""
    found, start = [], 0
    for module in model:
        if not list(module.parameters()):
            continue
        o, i = module.weight.shape
        found += [
            np.concatenate([start + k * i + np.arange(i), [start + o * i + k]]) for k in range(o)
        ]
        start += o * i + o
    return found


def brute_matrix(model: Any, j: Any, f: Any, likelihood: str, structure: str) -> Any:
    """G (P, P), by definition."""
    n, _c, size = j.shape
    h = np.stack([fisher_reference.hessian(likelihood, one) for one in f])
    matrix = np.einsum("ncp,ncd,ndq->pq", j, h, j) / n
    blocks = {"layer": layer_columns(model), "tridiagonal": layer_columns(model)}
    if structure == "full":
        return matrix
    kept = np.zeros((size, size), bool)
    parts = unit_columns(model) if structure == "unit" else blocks[structure]
    near = 1 if structure == "tridiagonal" else 0
    for k, a in enumerate(parts):
        for b in parts[max(0, k - near) : k + near + 1]:
            kept[np.ix_(a, b)] = True
    return np.where(kept, matrix, 0)


def kfac_factors(model: Any, x: Any, likelihood: str) -> list[tuple[Any, Any]]:
    """A and B of each layer, with the bias as the last input, by sums over samples."""
    h, inputs = x, []
    for module in model:
        if isinstance(module, torch.nn.Linear):
            inputs.append(torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1).detach().numpy())
        h = module(h)
    f = h.detach().numpy()
    result = []
    j, columns = dense_jacobian(model, x), layer_columns(model)
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    for module, a, own in zip(linear, inputs, columns, strict=True):
        o = module.out_features
        g = j[:, :, own[-o:]]  # gradients in the bias are those of the pre-activations
        b = np.zeros((o, o))
        for one, at in zip(g, f, strict=True):
            b += one.T @ fisher_reference.hessian(likelihood, at) @ one / len(x)
        result.append((a.T @ a / len(x), b))
    return result


def brute_step(model: Any, x: Any, e: Any, likelihood: str, structure: str, rho: float) -> Any:
    j = dense_jacobian(model, x)
    if structure != "kfac":
        f = model(x).detach().numpy()
        return reference.update(j, e, brute_matrix(model, j, f, likelihood, structure), rho)
    gradient = reference.gradient(j, e)
    result = np.empty_like(gradient)
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    for module, (a, b), own in zip(
        linear, kfac_factors(model, x, likelihood), layer_columns(model), strict=True
    ):
        o, i = module.weight.shape
        v = np.concatenate([gradient[own[: o * i]].reshape(o, i), gradient[own[o * i :], None]], 1)
        solved = reference.kfac_update(v, a, b, rho, rho)
        result[own] = np.concatenate([solved[:, :-1].reshape(-1), solved[:, -1]])
    return result


def assert_equal(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    assert np.shape(got) == np.shape(expected)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def stepped(model: Any, optimizer: Any, *given: Any, **options: Any) -> Any:
    """Vector that a step takes off."""
    before = flat(model)
    optimizer.step(*given, **options)
    return before - flat(model)


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


@pytest.mark.parametrize("kind", [NGD, SPRING])
def test_resume_is_bit_for_bit(kind: Any) -> None:
    x, y = samples(), labels("gaussian")
    options: dict[str, Any] = {"adaptive": True} if kind is NGD else {"momentum": 0.7}
    model = network()
    optimizer = kind(model, damping=1e-3, **options)
    for _ in range(3):
        optimizer.step(x=x, y=y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=5)
    again = kind(other, damping=1e-3, **options)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for _ in range(3):
        optimizer.step(x=x, y=y)
        again.step(x=x, y=y)
    assert np.array_equal(flat(model), flat(other))
    with pytest.raises(ValueError, match="state_dict"):
        again.load_state_dict(torch.optim.SGD(other.parameters(), lr=1).state_dict())


def test_groups_and_schedulers() -> None:
    """A learning rate for each group; a scheduler changes it; parameters that are left out stay."""
    x, y = samples(), labels("gaussian")
    model = network()
    parts = list(model.parameters())
    groups = [{"params": parts[:2], "lr": 0.2}, {"params": parts[2:4]}]
    optimizer = NGD(model, groups, lr=1.0, damping=RHO)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    kept = [model[0], model[2]]
    j = dense_jacobian(model, x)[:, :, : -(5 * 2 + 2)]
    e = (model(x) - y).detach().numpy()
    expected = reference.update(j, e, np.einsum("ncp,ncq->pq", j, j) / N, RHO)
    first = sum(p.numel() for p in parts[:2])
    expected[:first] *= 0.2
    before = flat(torch.nn.ModuleList(kept))
    last = flat(model[4])
    optimizer.step(x=x, y=y)
    assert_equal(before - flat(torch.nn.ModuleList(kept)), expected)
    assert np.array_equal(flat(model[4]), last)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


def test_frozen_tied_and_unused_parameters() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(INPUTS, INPUTS)
            self.tied = torch.nn.Linear(INPUTS, INPUTS)
            self.tied.weight = self.first.weight
            self.unused = torch.nn.Linear(3, 3)
            self.frozen = torch.nn.Linear(INPUTS, 2)
            self.frozen.weight.requires_grad_(False)

        def forward(self, x: Any) -> Any:
            return self.frozen(torch.tanh(self.tied(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    model, x, y = Net().double(), samples(), labels("gaussian")
    kept = copy.deepcopy(model.state_dict())
    trained = [p for name, p in model.named_parameters()
               if p.requires_grad and "unused" not in name]  # fmt: skip
    f = model(x)
    rows = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, trained, retain_graph=True)])
        for one in f.reshape(-1)
    ]).reshape(N, 2, -1).numpy()  # fmt: skip
    e = (f - y).detach().numpy()
    expected = reference.update(rows, e, np.einsum("ncp,ncq->pq", rows, rows) / N, RHO)
    before = torch.cat([p.detach().reshape(-1) for p in trained]).numpy()
    NGD(model, lr=1.0, damping=RHO).step(x=x, y=y)
    after = torch.cat([p.detach().reshape(-1) for p in trained]).numpy()
    assert_equal(before - after, expected)
    for name in ("unused.weight", "unused.bias", "frozen.weight"):
        assert torch.equal(model.state_dict()[name], kept[name])
    # What is frozen later does not move either.
    model.first.bias.requires_grad_(False)
    bias = model.first.bias.clone()
    NGD(model, lr=1.0, damping=RHO).step(x=x, y=y)
    assert torch.equal(model.first.bias, bias)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_batches_of_other_sizes(n: int) -> None:
    """One optimiser, batches of several sizes: each step is that of a new optimiser."""
    model = network()
    optimizer = NGD(model, lr=1.0, damping=RHO)
    optimizer.step(x=samples(), y=labels("gaussian"))
    other = copy.deepcopy(model)
    x, y = samples(n), labels("gaussian", n)
    got = stepped(model, optimizer, x=x, y=y)
    assert_equal(got, stepped(other, NGD(other, lr=1.0, damping=RHO), x=x, y=y), 1e-12)


def test_non_finite_numbers_raise_or_skip() -> None:
    model, x, y = network(), samples(), labels("gaussian")
    bad = x.clone()
    bad[2, 1] = float("nan")
    before = flat(model)
    with pytest.raises(ff.errors.NonFiniteError, match=r"x: .*index \(2, 1\)"):
        NGD(model).step(x=bad, y=y)
    with pytest.raises(ff.errors.NonFiniteError, match="y: "):
        NGD(model).step(x=x, y=y * float("inf"))
    with pytest.raises(ff.errors.NonFiniteError, match="residuals"):
        NGD(model).step(lambda: model(bad)[:, 0])
    with pytest.raises(ff.errors.NonFiniteError, match="points"):
        NGD(model).step([(lambda f, z: f(z), bad)])
    optimizer = SPRING(model, on_nonfinite="skip")
    assert optimizer.step(x=bad, y=y) is None
    assert optimizer.skipped == 1
    assert np.array_equal(flat(model), before)
    assert float(optimizer.step(x=x, y=y)) > 0


def test_no_samples_move_nothing() -> None:
    model = network()
    before = flat(model)
    assert float(NGD(model).step(x=samples(0), y=labels("gaussian", 0))) == 0
    assert np.array_equal(flat(model), before)


def test_duplicate_samples_without_damping() -> None:
    model, x, y = network(), samples()[[0, 1, 1]], labels("gaussian", 3)
    with pytest.raises(ff.errors.NotPositiveDefiniteError, match="expected damping > 0"):
        NGD(model, damping=0.0).step(x=x, y=y)
    assert float(NGD(model).step(x=x, y=y)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": float("nan")}, "lr: "),
        ({"c": 2.0}, "c: expected a number between 0 and 2"),
        ({"damping": -1.0}, "damping: "),
        ({"damping": 1.0, "relative_damping": 1.0}, "relative_damping: expected None"),
        ({"structure": "ekfac"}, "structure: expected one of"),
        ({"likelihood": "poisson"}, "likelihood: expected one of"),
        ({"solve_dtype": "float16"}, "solve_dtype: expected one of"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: expected one of"),
        ({"centred": True, "structure": "kfac"}, "centred: expected structure"),
        ({"params": []}, "params: expected parameters"),
        ({"params": [torch.zeros(2)]}, "params: expected parameters of the model"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGD(network(), **options)


def test_mistakes_of_a_step() -> None:
    model, x, y = network(), samples(), labels("gaussian")
    optimizer = NGD(model)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        NGD(list(model.parameters()))  # type: ignore[arg-type]
    for given in ({}, {"closure": lambda: model(x), "x": x}):
        with pytest.raises(ValueError, match="closure: expected residuals or samples"):
            optimizer.step(**given)
    with pytest.raises(ValueError, match="y: expected None"):
        optimizer.step(lambda: model(x), y=y)
    with pytest.raises(ValueError, match="y: expected labels for this likelihood"):
        NGD(model, likelihood="categorical").step(x=x)
    with pytest.raises(ValueError, match="y: expected shape"):
        optimizer.step(x=x, y=y[:3])
    with pytest.raises(TypeError, match=r"residual: .* floating dtype"):
        optimizer.step(x=x, residual=y.long())
    with pytest.raises(ValueError, match=r"residuals: .* without a graph"):
        optimizer.step(lambda: model(x).detach())
    with pytest.raises(TypeError, match="residuals: expected a tensor, got float"):
        optimizer.step(lambda: 1.0)
    with pytest.raises(TypeError, match=r"closure: .* pairs \(function, points\)"):
        optimizer.step([x])  # type: ignore[list-item]
    with pytest.raises(ff.errors.CaptureError, match="stochastic"):
        NGD(torch.nn.Sequential(model, torch.nn.Dropout(0.5))).step(x=x, y=y)


def test_T6_6_training_follows_theory() -> None:
    """T6.6, reduced: the loss of a wide network falls by (1 - c)^2 a step, for every structure."""
    for structure, tolerance in (("full", 0.1), ("layer", 0.1), ("tridiagonal", 0.15)):
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Linear(50, 1024, bias=False), torch.nn.ReLU(),
            torch.nn.Linear(1024, 1024, bias=False), torch.nn.ReLU(),
            torch.nn.Linear(1024, 1, bias=False),
        ).double()  # fmt: skip
        for module in model[::2]:
            torch.nn.init.normal_(module.weight, std=(2 / module.in_features) ** 0.5)
        x = torch.randn(20, 50).double()
        y = torch.tanh(x @ torch.randn(50, 1).double() / 50**0.5)
        optimizer = NGD(model, c=0.5, structure=structure, relative_damping=1e-9)
        losses = [float(optimizer.step(x=x, y=y)) for _ in range(5)]
        assert losses[4] / losses[0] == pytest.approx(0.5**8, rel=4 * tolerance)
        assert losses[1] / losses[0] == pytest.approx(0.25, rel=tolerance)


class Wide(torch.nn.Module):
    """ReLU network of depth 3 in NTK parameterisation, sigma_w2 = 2, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (50, width, width, 1)
        generator = torch.Generator().manual_seed(4)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(i, o, bias=False, dtype=torch.float64)
            for i, o in itertools.pairwise(widths)
        )
        for layer in self.layers:
            torch.nn.init.normal_(layer.weight, generator=generator)

    def forward(self, x: Any) -> Any:
        for k, layer in enumerate(self.layers):
            x = layer((x if k == 0 else x.relu()) * (2 / layer.in_features) ** 0.5)
        return x


@pytest.mark.parametrize("structure", ["full", "layer"])
def test_T6_7_wider_networks_are_closer(structure: str) -> None:
    """Reduced: the change at other samples tends to kernel regression with the analytic kernel."""
    rng = np.random.default_rng(1000)
    x, z = rng.standard_normal((40, 50)), rng.standard_normal((100, 50))
    y = np.tanh(x @ rng.standard_normal(50) / 50**0.5)[:, None]
    found = predictor(x, z, structure)
    alpha = found.values[-1]
    errors = []
    for width in (256, 2048):
        model = Wide(width)
        inputs, others = torch.from_numpy(x), torch.from_numpy(z)
        with torch.no_grad():
            e, f = model(inputs).numpy() - y, model(others).numpy()
        optimizer = NGD(model, c=0.5, structure=structure, relative_damping=1e-9)
        for _ in range(4):
            optimizer.step(x=inputs, y=torch.from_numpy(y))
        assert optimizer.last["alpha"] == pytest.approx(alpha, rel=1e-9)
        expected = found.prediction_curve(e, lr=0.5 / alpha, steps=4)[-1]
        got = model(others).detach().numpy() - f
        errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    assert errors[1] < 0.7 * errors[0]
