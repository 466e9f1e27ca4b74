# SPDX-License-Identifier: Apache-2.0
"""Networks whose outputs go through one backward pass together."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import fastfisher as ff  # noqa: E402 - after the skip
import torch_oracle as oracle  # noqa: E402
from fastfisher.capture import graph as ag  # noqa: E402
from torch_cases.base import Net  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.usefixtures("one_thread")

ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish]
ACTIVATIONS += [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.ReLU6]


@pytest.fixture
def passes(monkeypatch):
    """Number of outputs of each backward pass of captures to come, 0 for one alone."""
    found: list[int] = []
    gradients = ag.gradients

    def counted(outputs: Any, of: Any, cotangents: Any, **how: Any) -> Any:
        result = gradients(outputs, of, cotangents, **how)
        found.append(len(cotangents[0]) if how.get("batched") else 0)
        return result

    monkeypatch.setattr(ag, "gradients", counted)
    return found


def check(model: Any, x: Any, **options: Any) -> None:
    expected = oracle.gram(oracle.jacobian(model, x))
    got = ff.ntk(model, x, **options).detach()
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def mlp(outputs: int, activation: Any = nn.Tanh) -> Any:
    torch.manual_seed(0)
    layers = nn.Linear(3, 7), activation(), nn.Linear(7, 6, bias=False), activation()
    return nn.Sequential(*layers, nn.Linear(6, outputs)).double()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_activations(activation, passes):
    check(mlp(5, activation), torch.randn(6, 3).double())
    assert 5 in passes


@pytest.mark.parametrize("outputs", [1, 3, 4, 30])
@pytest.mark.parametrize("limit", [None, "3MB"])
def test_numbers_of_outputs(outputs, limit, passes):
    check(mlp(outputs), torch.randn(150, 3).double(), memory_limit=limit)
    assert (outputs in passes) == (outputs > 3)


def test_residual_and_scale(passes):
    torch.manual_seed(1)

    def run(m: Any, x: Any) -> Any:
        h = torch.relu(m.inner(x))
        return m.head(h + 0.5 * m.gain * torch.tanh(m.inner(h)) - x)

    parts = {"inner": nn.Linear(4, 4), "head": nn.Linear(4, 6), "gain": torch.randn(4)}
    check(Net(run, **parts).double(), torch.randn(5, 4).double())
    assert 6 in passes


def test_tokens_and_convolutions_go_one_by_one(passes):
    tokens = Net(
        lambda m, x: m.head(torch.relu(m.body(x)).mean(1)),
        **{"body": nn.Linear(4, 5), "head": nn.Linear(5, 6)},
    ).double()
    check(tokens, torch.randn(5, 3, 4).double())
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6)).double()
    check(conv, torch.randn(5, 2, 4, 4).double())
    assert not any(passes)


def test_hook_that_wants_one_gradient(passes):
    seen: list[float] = []

    def run(m: Any, x: Any) -> Any:
        h = torch.tanh(m.body(x))
        h.register_hook(lambda grad: seen.append(float(grad.sum())))
        return m.head(h)

    model = Net(run, body=nn.Linear(3, 5), head=nn.Linear(5, 6)).double()
    check(model, torch.randn(4, 3).double())
    assert not any(passes)
    assert len(seen) >= 6
