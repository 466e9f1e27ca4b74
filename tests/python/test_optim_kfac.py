# SPDX-License-Identifier: Apache-2.0
"""KFAC and EKFAC: one step by brute force for each layer and kind, means, intervals, decay."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

from fastfisher.optim import EKFAC, KFAC  # noqa: E402
from fastfisher.reference import fisher as fisher_reference  # noqa: E402
from fastfisher.reference import ngd as reference  # noqa: E402
from optim_kfac_cases import (  # noqa: E402
    MODELS,
    OPTIONS,
    RHO,
    F,
    N,
    assert_equal,
    build,
    flat,
    labels,
    likelihood_of,
    matrix,
    reals,
    stepped,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("name", MODELS)
def test_kfac_step_is_that_of_the_fisher_matrix(name: str, kind: str) -> None:
    for sharing in ("expand", "reduce"):
        if sharing == "reduce" and name.startswith("embedding"):
            continue  # positions of a table count by themselves
        for split in ("pi", "plain"):
            model, x = build(name)
            optimizer = KFAC(
                model, kind=kind, likelihood=likelihood_of(kind), split=split,
                weight_sharing=sharing, **OPTIONS,
            )  # fmt: skip
            assert set(optimizer.treated.values()) == {"factors"}
            fisher = matrix(model, x, kind, "kfac", weight_sharing=sharing)
            got, gradient = stepped(model, optimizer, x)
            assert_equal(got, fisher.solve(gradient, damping=RHO, split=split))


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("name", MODELS)
def test_ekfac_step_is_that_of_the_fisher_matrix(name: str, kind: str) -> None:
    model, x = build(name)
    optimizer = EKFAC(model, kind=kind, likelihood=likelihood_of(kind), **OPTIONS)
    fisher = matrix(model, x, kind, "ekfac")
    got, gradient = stepped(model, optimizer, x)
    assert_equal(got, fisher.solve(gradient, damping=RHO), 1e-8)


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_kfac_step_equals_brute_force(kind: str) -> None:
    """Factors by sums over samples, inverted as one Kronecker product."""
    model, x = build("mlp")
    first, last = model[0], model[2]
    optimizer = KFAC(model, kind=kind, likelihood=likelihood_of(kind), split="plain", **OPTIONS)
    h = torch.tanh(first(x))
    f = last(h)
    probabilities = f.softmax(1).detach().numpy()
    expected = []
    F.cross_entropy(f, labels()).backward()
    for module, a in ((first, x), (last, h)):
        wide = np.concatenate([a.detach().numpy(), np.ones((N, 1))], 1)
        b = np.zeros((len(module.weight),) * 2)
        for n in range(N):
            # d f / d pre-activation of sample n.
            slope = last.weight.detach().numpy() * (1 - h[n].detach().numpy() ** 2)
            slope = slope if module is first else np.eye(3)
            if kind == "exact":
                curvature = fisher_reference.hessian("categorical", f[n].detach().numpy())
            else:
                e = probabilities[n] - np.eye(3)[n % 3]
                curvature = np.outer(e, e)
            b += slope.T @ curvature @ slope / N
        v = np.concatenate([module.weight.grad.numpy(), module.bias.grad.numpy()[:, None]], 1)
        solved = reference.kfac_update(v, wide.T @ wide / N, b, RHO, RHO)
        expected += [solved[:, :-1].reshape(-1), solved[:, -1]]
    got, _ = stepped(model, optimizer, x)
    assert_equal(got, np.concatenate(expected))


def test_sampled_labels_tend_to_the_exact_factors() -> None:
    model, x = build("mlp")
    exact = matrix(model, x, "exact", "kfac").structure.blocks
    means = []
    for draws in (1, 4000):
        optimizer = KFAC(
            model, kind="mc", likelihood="categorical", draws=draws, lr=0.0, momentum=0.0
        )
        stepped(model, optimizer, x)
        states = list(optimizer.curvature.states.values())
        means.append(
            max(
                np.linalg.norm(s.g.arrays[0] - b.g) / np.linalg.norm(b.g)
                for s, b in zip(states, exact, strict=True)
            )
        )
    assert means[1] < 0.05 < means[0]
    # Another step draws other labels; the same seed the same ones.
    before = [s.g.arrays[0].copy() for s in states]
    stepped(model, optimizer, x)
    assert not np.array_equal(before[0], states[0].g.arrays[0])


def test_running_means_are_corrected_for_their_start() -> None:
    model, x = build("mlp")
    optimizer = KFAC(model, lr=0.0, momentum=0.0, ema_decay=0.8)
    estimates = []
    for k in range(3):
        estimates.append(matrix(model, x + k, "empirical", "kfac").structure.blocks)
        stepped(model, optimizer, x + k)
    weights = np.array([0.8**2, 0.8, 1.0])
    weights /= weights.sum()
    for layer, state in enumerate(optimizer.curvature.states.values()):
        for got, name in ((state.a, "a"), (state.g, "g")):
            expected = sum(
                w * getattr(e[layer], name) for w, e in zip(weights, estimates, strict=True)
            )
            assert_equal(got.arrays[0], expected, 1e-12)


def test_ekfac_moments_move_with_the_basis() -> None:
    """Without decay of the mean a new basis has the moments of its own samples only."""
    model, x = build("mlp")
    optimizer = EKFAC(model, ema_decay=0.0, **OPTIONS)
    stepped(model, optimizer, x)
    fisher = matrix(model, -2 * x, "empirical", "ekfac")
    got, gradient = stepped(model, optimizer, -2 * x)
    assert_equal(got, fisher.solve(gradient, damping=RHO), 1e-8)
    # With decay the old matrix keeps its trace in the new basis.
    optimizer = EKFAC(model, ema_decay=0.5, lr=0.0, momentum=0.0)
    stepped(model, optimizer, x)
    one = [s.moments.arrays[0].sum() for s in optimizer.curvature.states.values()]
    last = matrix(model, -2 * x, "empirical", "ekfac")
    stepped(model, optimizer, -2 * x)
    two = sum(s.moments.arrays[0].sum() for s in optimizer.curvature.states.values())
    assert two == pytest.approx((sum(one) + 2 * last.trace()) / 3)


def test_intervals() -> None:
    """Factors and inverses are made only when due, and used in between."""
    model, x = build("mlp")
    optimizer = KFAC(model, factor_every=2, inverse_every=3, **OPTIONS)
    factors, inverses = [], []
    for k in range(6):
        stepped(model, optimizer, x + k)
        state = next(iter(optimizer.curvature.states.values()))
        factors.append(state.a.arrays[0].copy())
        inverses.append(state.inverses[0][0].clone())
    assert [bool((a != b).any()) for a, b in itertools.pairwise(factors)] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert [bool((a != b).any()) for a, b in itertools.pairwise(inverses)] == [
        False, False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("cls", [KFAC, EKFAC])
def test_accumulated_gradients_are_those_of_one_batch(cls: Any, kind: str) -> None:
    for name in ("mlp", "convolutions", "embedding"):
        model, x = build(name)
        other = copy.deepcopy(model)
        options = {"kind": kind, "likelihood": likelihood_of(kind), **OPTIONS}
        whole, _ = stepped(model, cls(model, **options), x)
        optimizer = cls(other, **options)
        before = flat(other)
        for half in (slice(0, 2), slice(2, 4), slice(4, 6)):
            (F.cross_entropy(other(x[half]), labels()[half]) / 3).backward()
        optimizer.step()
        assert_equal(before - flat(other), whole, 1e-8)


@pytest.mark.parametrize("order", ["zero first", "zero between"])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_zero_grad_may_stand_anywhere(kind: str, order: str) -> None:
    model, x = build("mlp")
    optimizer = KFAC(model, kind=kind, likelihood=likelihood_of(kind), **OPTIONS)
    fisher = matrix(model, x, kind, "kfac")
    F.cross_entropy(model(x * 5), labels()).backward()  # gradients that are thrown away
    if order == "zero first":
        optimizer.zero_grad()
    loss = F.cross_entropy(model(x), labels())
    optimizer.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()
    before = flat(model)
    optimizer.step()
    assert_equal(before - flat(model), fisher.solve(gradient, damping=RHO, split="pi"))


def test_losses_that_are_sums() -> None:
    model, x = build("mlp")
    optimizer = KFAC(model, loss_reduction="sum", **OPTIONS)
    fisher = matrix(model, x, "empirical", "kfac", reduction="sum")
    F.cross_entropy(model(x), labels(), reduction="sum").backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()
    before = flat(model)
    optimizer.step()
    assert_equal(before - flat(model), fisher.solve(gradient, damping=RHO, split="pi"))


def test_tokens_as_samples() -> None:
    """Outputs (N, T, C) with two axes that count: the same as a batch of all tokens."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = reals(7, 4), torch.arange(N * 7) % 3
    for kind in ("empirical", "exact"):
        options = {"kind": kind, "likelihood": likelihood_of(kind), **OPTIONS}
        steps = []
        for shape, axes in (((N, 7, 4), 2), ((N * 7, 4), 1)):
            one = copy.deepcopy(model)
            optimizer = KFAC(one, batch_axes=axes, **options)
            before = flat(one)
            F.cross_entropy(one(x.reshape(shape)).reshape(-1, 3), y).backward()
            optimizer.step()
            steps.append(before - flat(one))
        assert_equal(*steps)


def test_momentum_and_weight_decay() -> None:
    model, x = build("mlp")
    for decoupled in (True, False):
        one = copy.deepcopy(model)
        optimizer = KFAC(
            one, lr=0.1, momentum=0.9, damping=RHO, weight_decay=0.3, decoupled=decoupled,
            ema_decay=0.0, kl_clip=None,
        )  # fmt: skip
        theta, buffer = flat(one), np.zeros(len(flat(one)))
        for _ in range(3):
            fisher = matrix(one, x, "empirical", "kfac")
            got, gradient = stepped(one, optimizer, x)
            if not decoupled:
                gradient = gradient + 0.3 * torch.from_numpy(theta)
            buffer = 0.9 * buffer + fisher.solve(gradient, damping=RHO, split="pi").numpy()
            new = theta * (1 - 0.1 * 0.3) if decoupled else theta
            new = new - 0.1 * buffer
            assert_equal(got, theta - new, 1e-8)
            theta = flat(one)


def test_norm_constraint() -> None:
    model, x = build("mlp")
    optimizer = KFAC(model, lr=0.5, momentum=0.0, damping=RHO, kl_clip=1e-3)
    fisher = matrix(model, x, "empirical", "kfac")
    got, gradient = stepped(model, optimizer, x)
    free = 0.5 * fisher.solve(gradient, damping=RHO, split="pi").numpy()
    assert_equal(got, free * np.sqrt(1e-3 / (0.5 * free @ gradient.numpy())))
    optimizer = KFAC(model, lr=0.5, momentum=0.0, damping=RHO, kl_clip=1e9)
    fisher = matrix(model, x, "empirical", "kfac")
    got, gradient = stepped(model, optimizer, x)
    assert_equal(got, 0.5 * fisher.solve(gradient, damping=RHO, split="pi"))


def test_other_parameters() -> None:
    """Norms and excluded layers get their gradient, or it over its mean square."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3)
    ).double()
    x = reals(4)
    for others in ("gradient", "diagonal"):
        one = copy.deepcopy(model)
        optimizer = KFAC(one, others=others, exclude=["3", "4.bias"], **OPTIONS)
        assert [optimizer.treated[k].partition(":")[0] for k in ("0.weight", "1.weight")] == [
            "factors", others,
        ]  # fmt: skip
        assert "excluded" in optimizer.treated["3.weight"]
        got, gradient = stepped(one, optimizer, x)
        gradient = gradient.numpy()
        plain = gradient / (N * gradient**2 + RHO) if others == "diagonal" else gradient
        sizes = np.cumsum([0, *(p.numel() for p in one.parameters())])
        for k, (name, _) in enumerate(one.named_parameters()):
            own = slice(sizes[k], sizes[k + 1])
            if optimizer.treated[name] != "factors":
                assert_equal(got[own], plain[own])
            else:
                assert np.abs(got[own] - plain[own]).max() > 1e-6


def test_damping_adapts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x, y = reals(4), reals(4)[:, :1].sin()
    optimizer = KFAC(
        model, lr=1.0, momentum=0.0, damping=10.0, adaptive=True, kind="exact",
        likelihood="gaussian",
    )  # fmt: skip
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - y).square().sum(1).mean()
        loss.backward()
        return loss

    seen = []
    for _ in range(10):
        optimizer.step(closure)
        seen.append(optimizer.damping)
    # With much damping the quadratic model is right: it shrinks, every fifth step.
    assert seen[3] == 10
    assert seen[4] == pytest.approx(10 * 0.95**5)
    assert seen[9] == pytest.approx(10 * 0.95**10)
    assert calls == 12
    for _ in range(4):
        optimizer.step()
    with pytest.raises(ValueError, match="closure: expected one"):
        optimizer.step()
    # Far too long steps raise the loss: it grows.
    optimizer = KFAC(model, lr=50.0, momentum=0.0, damping=1e-3, adaptive=True, kl_clip=None)
    for _ in range(5):
        optimizer.step(closure)
    assert optimizer.damping > 1e-3


def test_preconditioner_of_another_optimiser() -> None:
    model, x = build("mlp")
    other = copy.deepcopy(model)
    expected, _ = stepped(model, KFAC(model, **OPTIONS), x)
    kfac, sgd = KFAC(other, damping=RHO, kl_clip=None), torch.optim.SGD(other.parameters(), lr=1.0)
    before = flat(other)
    sgd.zero_grad()
    F.cross_entropy(other(x), labels()).backward()
    kfac.precondition()
    sgd.step()
    assert_equal(before - flat(other), expected)


def test_training_is_faster_than_by_gradients() -> None:
    """A badly scaled regression: K-FAC with exact factors needs few steps."""
    torch.manual_seed(0)
    z = torch.randn(200, 10).double()
    x, y = z * torch.logspace(-2, 0, 10).double(), torch.tanh(z @ torch.randn(10, 2).double() / 3)
    losses = {}
    for name in ("kfac", "ekfac", "adam"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 2)).double()
        if name == "adam":
            optimizer: Any = torch.optim.Adam(model.parameters(), lr=1e-2)
        else:
            kind = KFAC if name == "kfac" else EKFAC
            optimizer = kind(
                model, lr=0.3, momentum=0.9, damping=1e-3, kind="exact", likelihood="gaussian"
            )
        for _ in range(100):
            optimizer.zero_grad()
            loss = 0.5 * (model(x) - y).square().sum(1).mean()
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["kfac"] < 0.3 * losses["adam"]
    assert losses["ekfac"] < 0.3 * losses["adam"]
