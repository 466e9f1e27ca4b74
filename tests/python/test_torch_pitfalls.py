# SPDX-License-Identifier: Apache-2.0
"""Models whose capture could go wrong unseen: shared entries, other generators, mixed precision."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip
from torch.nn import functional as F  # noqa: E402

import fastfisher as ff  # noqa: E402
import torch_oracle as oracle  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def kernels(function: Any, w: Any, x: Any, x2: Any, verify: bool) -> tuple[Any, Any]:
    def jacobian(z: Any) -> Any:
        return torch.func.jacrev(lambda v: function(v, z))(w).flatten(2)

    expected = torch.einsum("ncp,mdp->ncmd", jacobian(x), jacobian(x2))
    return ff.ntk((lambda p, z: function(p["w"], z), {"w": w}), x, x2, verify=verify), expected


BIASES = {
    "row": lambda w, x: F.linear(x, w, w[0]).tanh(),
    "diagonal": lambda w, x: F.linear(x, w, w.diagonal()).tanh(),
    "apart": lambda w, x: F.linear(x, w[:, :5], w[:, 0]).tanh() + F.linear(x.sin(), w, w[1]),
    "convolution": lambda w, x: F.conv1d(x[:, None], w[:, None, :3], w[:, 2]).sum(2).tanh(),
    "packed": lambda w, x: F.linear(x[:, :4], w[:, :4], w[:, 4]).tanh() + F.linear(x, w),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("first", ["zeros", "random"])
@pytest.mark.parametrize("name", BIASES)
def test_biases_that_are_entries_of_the_weight(name: str, first: str, verify: bool) -> None:
    """Samples without a gradient for the weight prove nothing: what meets is found by itself."""
    w, x2 = torch.randn(5, 5).double(), torch.randn(6, 5).double()
    x = torch.zeros(4, 5).double() if first == "zeros" else torch.randn(4, 5).double()
    got, expected = kernels(BIASES[name], w, x, x2, verify)
    assert (got - expected).norm() <= 1e-12 * expected.norm()


class Dropping(nn.Module):
    """Layers that are left out at random, by one generator or another."""

    def __init__(self, draw: Any, rate: float) -> None:
        super().__init__()
        self.draw, self.rate = draw, rate
        self.layers, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            if float(self.draw()) >= self.rate:
                x = x + layer(x).tanh()
        return self.head(x)


GENERATORS = {
    "python": random.random,
    "numpy": np.random.uniform,
    "torch": lambda: torch.rand(()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_models_that_draw_are_refused_and_leave_the_generators(name: str) -> None:
    model, x = Dropping(GENERATORS[name], 0.2), torch.randn(9, 8)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - what the model draws from
    before = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(ff.errors.CaptureError, match="stochastic forward"):
        ff.ntk(model, x)
    after = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    model.rate = 0.0  # draws without effect
    assert ff.ntk(model, x).shape == (9, 3, 9, 3)
    assert before[0] == random.getstate()


@pytest.mark.parametrize("source", ["torch", "numpy", "counter"])
def test_noise_that_no_global_generator_shows_is_named_so(source: str) -> None:
    private, other = torch.Generator().manual_seed(0), np.random.default_rng(0)

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.steps = nn.Linear(8, 3), 0

        def forward(self, x: Any) -> Any:
            self.steps += 1
            noise = {
                "torch": lambda: torch.randn(x.shape, generator=private),
                "numpy": lambda: torch.from_numpy(other.standard_normal(x.shape)).float(),
                "counter": lambda: self.steps * torch.ones_like(x),
            }[source]()
            return self.body(x + noise)

    with pytest.raises(ff.errors.CaptureError, match="stochastic forward: two runs on the same"):
        ff.ntk(Noisy(), torch.randn(9, 8))


class Narrow(nn.Module):
    """Outputs of more digits than what they are computed in."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Any) -> Any:
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(x).float()
        if self.how == "scaled":
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(x) * self.gain
        h = self.body(x).float()
        return self.gain * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).double()


@pytest.mark.parametrize("how", ["autocast", "scaled", "single"])
def test_mixed_precision_inside_is_proved_to_its_digits(how: str) -> None:
    model, x = Narrow(how), torch.randn(13, 16)
    if how == "single":
        model, x = model.double(), x.double()
    got = ff.ntk(model, x)
    exact = ff.ntk(model, x, verify=False)
    assert (got - exact).norm() <= 1e-6 * exact.norm()
    if how == "single":
        expected = oracle.gram(oracle.jacobian(model, x))
        assert (got - expected).norm() <= 1e-6 * expected.norm()


def test_mixed_precision_does_not_hide_coupled_samples() -> None:
    class Coupled(Narrow):
        def forward(self, x: Any) -> Any:
            y = super().forward(x)
            return y * y.mean(0, keepdim=True)

    with pytest.raises(ff.errors.CaptureError, match="depend on other samples"):
        ff.ntk(Coupled("autocast"), torch.randn(13, 16))


class Squeezed(nn.Module):
    def __init__(self, outputs: int, power: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, outputs)
        self.power = nn.Parameter(torch.tensor(2.0)) if power else None

    def forward(self, x: Any) -> Any:
        y = self.head(self.body(x).squeeze())
        return (y if self.power is None else y.abs() ** self.power).squeeze()


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("power", [False, True], ids=["", "explicit"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("limit", [None, "150KB"])
def test_outputs_without_axes_of_length_one(n: int, power: bool, outputs: int, limit: Any) -> None:
    """A last piece of one sample, or a run for one, has no axis of samples then."""
    model, x = Squeezed(outputs, power).double(), torch.randn(n, 3, 5, 5).double()
    rows = []
    for one in x:
        y = model(torch.stack([one, one]))[0].reshape(-1)
        for c in y:
            gradients = torch.autograd.grad(c, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    j = torch.stack(rows)
    got = ff.ntk(model, x, memory_limit=limit)
    assert (got.reshape(n * outputs, -1) - j @ j.T).norm() <= 1e-10 * (j @ j.T).norm()


def test_arguments_that_are_no_models_or_do_not_fit() -> None:
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for call in (ff.ntk, ff.jacobian, ff.fisher):
        for wrong in (x, optimizer):
            with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, a pair"):
                call(wrong, model)
    with pytest.raises(TypeError, match=r"x2: expected dtype torch\.float32 as x, got dtype"):
        ff.ntk(model, x, x.double())


@pytest.mark.parametrize("limit", [100, 1000, 2500, 6000, 8000])
def test_figures_of_memory_that_are_named_suffice(limit: int) -> None:
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(13, 5)
    for _ in range(4):
        try:
            ff.ntk(model, x, memory_limit=limit)
            return
        except MemoryError as error:
            pattern = r"memory_limit: (\d+) bytes, expected (?:at least|about) (\d+)"
            found = re.match(pattern, str(error))
            assert found is not None
            assert int(found[1]) == limit
            assert limit < int(found[2]) < 20_000
            limit = int(found[2])
    pytest.fail("three figures did not suffice")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05])
def test_tokens_that_see_each_other_in_mixed_precision(share: float) -> None:
    """Of tokens only the sums of gradients show it, to few digits."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.e2, self.o = nn.Embedding(7, 8), nn.Embedding(7, 8), nn.Linear(8, 3)

        def forward(self, i: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                other = torch.tanh(self.e2(i))
                mixed = share * other.roll(1, 0) if share else 0.05 * other
                return self.o(torch.tanh(self.e(i)) + mixed).float()

    model, x = Tokens(), torch.randint(7, (9,))
    if not share:
        assert ff.ntk(model, x).shape == (9, 3, 9, 3)
        return
    with pytest.raises(ff.errors.CaptureError, match="samples"):
        ff.ntk(model, x)
