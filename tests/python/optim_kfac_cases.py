# SPDX-License-Identifier: Apache-2.0
"""Models, options and Fisher matrices that the tests of KFAC and EKFAC share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

import fastfisher as ff  # noqa: E402

N, RHO = 6, 0.05
F = nn.functional


class Reused(nn.Module):
    """One layer called twice, and a second module with the same weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.twin = nn.Linear(4, 4), nn.Linear(4, 4)
        self.twin.weight, self.twin.bias = self.inner.weight, self.inner.bias
        self.last = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.last(self.twin(torch.tanh(self.inner(torch.tanh(self.inner(x))))))


class Pooled(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.flatten(2).mean(2)


class Tokens(nn.Module):
    """The mean over positions."""

    def forward(self, x: Any) -> Any:
        return x.mean(1)


def reals(*shape: int) -> Any:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(3)).double()


def words(*shape: int) -> Any:
    return torch.randint(0, 7, (N, *shape), generator=torch.Generator().manual_seed(3))


MODELS: dict[str, tuple[Any, Any]] = {
    "mlp": (lambda: [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)], reals(4)),
    "no bias": (lambda: [nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)], reals(4)),
    "in place": (lambda: [nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)], reals(4)),
    "tokens": (
        lambda: [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Tokens()], reals(7, 4),
    ),
    "convolutions": (
        lambda: [
            nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 5, 2, dilation=2),
            Pooled(), nn.Linear(5, 3),
        ],
        reals(2, 8, 8),
    ),
    "groups": (
        lambda: [nn.Conv1d(4, 6, 3, groups=2), nn.Tanh(), Pooled(), nn.Linear(6, 3)], reals(4, 9),
    ),
    "padding": (
        lambda: [
            nn.Conv1d(2, 4, 4, padding="same"), nn.Tanh(),
            nn.Conv1d(4, 4, 3, padding=2, padding_mode="circular", bias=False), Pooled(),
            nn.Linear(4, 3),
        ],
        reals(2, 9),
    ),
    "embedding": (
        lambda: [nn.Embedding(7, 4), nn.Linear(4, 5), nn.Tanh(), Tokens(), nn.Linear(5, 3)],
        words(5),
    ),
    "embedding padded": (
        lambda: [nn.Embedding(7, 4, padding_idx=2), nn.Tanh(), Tokens(), nn.Linear(4, 3)],
        words(5),
    ),
    "reused": (lambda: [Reused()], reals(4)),
}  # fmt: skip


def build(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    modules, x = MODELS[name]
    return nn.Sequential(*modules()).double(), x


def labels() -> Any:
    return torch.arange(N) % 3


def flat(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def stepped(model: Any, optimizer: Any, x: Any, y: Any = None) -> Any:
    """Vector that a step takes off, and the gradient it got."""
    before = flat(model)
    optimizer.zero_grad()
    F.cross_entropy(model(x), labels() if y is None else y).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()
    optimizer.step()
    return before - flat(model), gradient


def assert_equal(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


OPTIONS: dict[str, Any] = {"lr": 1.0, "momentum": 0.0, "damping": RHO, "kl_clip": None}


def matrix(model: Any, x: Any, kind: str, structure: str, **options: Any) -> Any:
    """Fisher matrix by capture, which knows nothing of hooks."""
    y = labels() if kind == "empirical" else None
    return ff.fisher(
        model, x, y, likelihood="categorical", kind=kind, structure=structure, **options
    )


def likelihood_of(kind: str) -> Any:
    return None if kind == "empirical" else "categorical"
