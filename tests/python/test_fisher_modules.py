# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a torch model are a block of "layer" and "tridiagonal", by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402

import fastfisher as ff  # noqa: E402
import torch_oracle as oracle  # noqa: E402

N = 5


class Own(nn.Module):
    """Parameters of the model itself around those of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.inner = nn.Linear(3, 4)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.inner(self.gain * x) + self.shift) + self.shift


def plain(p: dict[str, Any], x: Any) -> Any:
    h = torch.tanh(x @ p["w"].T + p["b"])
    return h @ p["out.w"].T + p["out.b"]


def linear() -> tuple[Any, Any]:
    return nn.Linear(3, 2), torch.randn(N, 3)


def convolution() -> tuple[Any, Any]:
    return nn.Conv1d(2, 3, 3), torch.randn(N, 2, 5)


def without_bias() -> tuple[Any, Any]:
    return nn.Linear(3, 2, bias=False), torch.randn(N, 3)


def own() -> tuple[Any, Any]:
    return Own(), torch.randn(N, 3)


def chain() -> tuple[Any, Any]:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(N, 3)


def function() -> tuple[Any, Any]:
    shapes = {"w": (4, 3), "b": (4,), "out.w": (2, 4), "out.b": (2,)}
    return (plain, {name: torch.randn(shape) for name, shape in shapes.items()}), torch.randn(N, 3)


MODULES = {
    linear: [["weight", "bias"]],
    convolution: [["weight", "bias"]],
    without_bias: [["weight"]],
    own: [["gain", "shift"], ["inner.weight", "inner.bias"]],
    chain: [["0.weight", "0.bias"], ["2.weight", "2.bias"]],
    function: [["w"], ["b"], ["out.w", "out.b"]],
}
KEYS = {
    linear: [""], convolution: [""], without_bias: [""], own: ["", "inner"], chain: ["0", "2"],
    function: ["w", "b", "out"],
}  # fmt: skip


def made(make: Any) -> tuple[Any, Any, Any]:
    """Model, samples, and the Jacobian (N, C, P) by autograd, float64."""
    torch.manual_seed(0)
    model, x = make()
    x = x.double()
    if isinstance(model, tuple):
        given = {name: p.double() for name, p in model[1].items()}
        found = torch.func.jacrev(lambda p: model[0](p, x))(given)
        return (model[0], given), x, torch.cat([j.flatten(2) for j in found.values()], -1)
    model = model.double()
    return model, x, oracle.jacobian(model, x)


def columns(model: Any, groups: list[list[str]]) -> list[Any]:
    """Positions of each group of parameters in the vector."""
    named = model[1].items() if isinstance(model, tuple) else model.named_parameters()
    where, start = {}, 0
    for name, p in named:
        where[name] = np.arange(start, start + p.numel())
        start += p.numel()
    return [np.concatenate([where[name] for name in group]) for group in groups]


@pytest.mark.parametrize("structure", ["layer", "tridiagonal"])
@pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)
def test_blocks_are_those_of_the_modules(make: Any, structure: str) -> None:
    model, x, j = made(make)
    groups = columns(model, MODULES[make])
    rows = j.reshape(-1, j.shape[-1]).numpy()
    whole = rows.T @ rows / N
    expected = np.zeros_like(whole)
    for k, left in enumerate(groups):
        for m, right in enumerate(groups):
            if k == m or (structure == "tridiagonal" and abs(k - m) == 1):
                expected[np.ix_(left, right)] = whole[np.ix_(left, right)]
    F = ff.fisher(model, x, structure=structure)
    assert np.abs(F.dense().numpy() - expected).max() <= 1e-9 * np.abs(expected).max()
    v = torch.randn(len(whole), dtype=torch.float64)
    damped = expected + 0.1 * np.eye(len(whole))
    solved = np.linalg.solve(damped, v.numpy())
    assert np.abs(F.solve(v, damping=0.1).numpy() - solved).max() <= 1e-9 * np.abs(solved).max()


@pytest.mark.parametrize("limit", [None, "100KB"])
@pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)
def test_kernels_have_the_names_of_the_modules(make: Any, limit: Any) -> None:
    model, x, j = made(make)
    each = ff.ntk(model, x, layers="each", memory_limit=limit)
    assert list(each) == KEYS[make]
    if not isinstance(model, tuple):
        assert set(each) <= set(dict(model.named_modules()))
    for kernel, own in zip(each.values(), columns(model, MODULES[make]), strict=True):
        part = j[..., torch.from_numpy(own)]
        expected = torch.einsum("ncp,mdp->ncmd", part, part)
        assert (kernel - expected).abs().max() <= 1e-10 * expected.abs().max()
    J = ff.jacobian(model, x)
    assert list(J.split()) == KEYS[make]


@pytest.mark.parametrize("make", [linear, convolution, own], ids=lambda make: make.__name__)
def test_a_model_inside_of_another_has_the_same_blocks(make: Any) -> None:
    model, x, _ = made(make)
    inside = nn.Sequential(model)
    for structure in ("layer", "tridiagonal", "unit"):
        both = [ff.fisher(one, x, structure=structure).dense() for one in (model, inside)]
        assert torch.equal(*both)


def test_an_update_of_a_bare_layer() -> None:
    """Weight and bias in one block, which then is the whole matrix."""
    model, x, j = made(linear)
    rows = j.reshape(-1, j.shape[-1])
    e = torch.randn(N, 2, dtype=torch.float64)
    gradient = rows.T @ e.reshape(-1) / N
    damped = rows.T @ rows / N + 0.01 * torch.eye(rows.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(damped, gradient)
    step = ff.ngd.update(ff.jacobian(model, x), e, structure="layer", damping=0.01)
    assert (step.vector - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert list(step.damping) == [""]

    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = ff.optim.NGD(model, lr=1.0, damping=0.01, structure="layer")
    y = model(x).detach() - e
    optimizer.step(lambda: model(x) - y)
    moved = before - nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (moved - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_blocks_of_samples_that_differ_in_their_factors() -> None:
    """Jacobians that were made to fit keep the modules of the model."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
            self.other = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))

        def forward(self, x: Any) -> Any:
            y = x.new_zeros(len(x), 2)
            for weight, own in ((self.weight, x[:, 0] > 0), (self.other, x[:, 0] <= 0)):
                if own.any():
                    y = y.index_put((own,), x[own] @ weight.T)
            return y

    torch.manual_seed(0)
    model, x = Routed(), torch.randn(6, 3, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, -1, 1, -1, 2, 3])
    first, second = ff.jacobian(model, x), ff.jacobian(model, x[[0, 2, 4]])
    assert len(first.layers) != len(second.layers)
    for part in first.aligned(second):
        assert part.parameters is not None
        assert list(part.split()) == [""]
