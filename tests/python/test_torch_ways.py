# SPDX-License-Identifier: Apache-2.0
"""Samples that the probe did not foresee: other slices, routes, gates, dead units at first."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip
from torch.nn import functional as F  # noqa: E402

import fastfisher as ff  # noqa: E402
import torch_oracle as oracle  # noqa: E402
from torch_cases.base import Net  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def check(model: Any, x: Any, x2: Any = None, **options: Any) -> None:
    model.double()
    expected = oracle.gram(
        oracle.jacobian(model, x), None if x2 is None else oracle.jacobian(model, x2)
    )
    got = ff.ntk(model, x, x2, **options)
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def split_signs(n: int, *shape: int) -> torch.Tensor:
    """Samples whose first entry is negative in the first three quarters, positive in the rest."""
    x = torch.randn(n, *shape, dtype=torch.float64)
    first = x.reshape(n, -1)[:, 0].abs()
    x.reshape(n, -1)[:, 0] = torch.where(torch.arange(n) < 3 * n // 4, -first, first)
    return x


def gated(scale: float) -> nn.Module:
    def run(m, x):
        h = torch.relu(m.conv(x)).mean((2, 3))
        gate = scale * (x[:, 0, 0, :1] > 0).to(h.dtype)
        return m.head(h + gate * torch.tanh(m.mix(h)))

    return Net(run, conv=nn.Conv2d(2, 5, 3), mix=nn.Linear(5, 5), head=nn.Linear(5, 3))


@pytest.mark.parametrize("limit", ["400KB", "1MB"])
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_units_that_mix_in_late_samples_only(scale: float, limit: str) -> None:
    check(gated(scale), split_signs(120, 2, 5, 5), memory_limit=limit)


def test_branches_of_small_scale_mix_units() -> None:
    model = gated(1e-5)
    x = split_signs(8, 2, 5, 5).abs()
    check(model, x)
    _, info = ff.ntk(model, x, return_info=True)
    assert info.parameters["conv.weight"] == "Conv"


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("limit", [None, "100KB"])
def test_units_that_are_dead_at_first(limit: Any, verify: bool) -> None:
    def run(m, x):
        t = x.transpose(0, 1).reshape(-1, 4)  # samples are the fast axis
        return m.head(torch.relu(m.body(t)).reshape(3, -1, 5).mean(0))

    model = Net(run, body=nn.Linear(4, 5), head=nn.Linear(5, 2))
    with torch.no_grad():
        model.body.bias.fill_(-0.1)
    x = torch.randn(150, 3, 4, dtype=torch.float64)
    x[:80] = 0
    check(model, x, memory_limit=limit, verify=verify)


@pytest.mark.parametrize("select", [False, True])
def test_slices_of_a_weight_follow_the_samples(select: bool) -> None:
    def run(m, x):
        k = 2 * int(x[0, 0] > 0)
        return torch.tanh(x) @ (m.w[k] if select else m.w.flatten(0, 1)[k : k + 4])

    x = torch.randn(9, 4, dtype=torch.float64).abs()
    check(Net(run, w=torch.randn(3, 4, 3)), x, -x)


@pytest.mark.parametrize("limit", [None, "250KB"])
def test_lengths_of_the_two_sets_differ(limit: Any) -> None:
    def run(m, x):
        h = torch.tanh(m.body(x) + m.places[6 - x.shape[1] :])
        return m.head(h.mean(1))

    model = Net(run, body=nn.Linear(4, 5), head=nn.Linear(5, 2), places=torch.randn(6, 5))
    x, x2 = torch.randn(30, 5, 4).double(), torch.randn(20, 3, 4).double()
    check(model, x, x2, memory_limit=limit)


def routed(m, x):
    """Tokens to one of two experts."""
    t = x.reshape(-1, 4)
    y = t.new_zeros(len(t), 3)
    for k in range(2):
        (rows,) = torch.nonzero((t[:, 0] > 0) == bool(k), as_tuple=True)
        y = y.index_put((rows,), m.experts[k](t[rows]))
    return m.head(torch.tanh(y.reshape(len(x), -1)))


def experts() -> nn.Module:
    both = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    return Net(routed, experts=both, head=nn.Linear(6, 2)).double()


@pytest.mark.parametrize("limit", [None, "100KB"])
@pytest.mark.parametrize("order", ["tokens", "samples", "random"])
def test_routes_change_between_blocks(order: str, limit: Any) -> None:
    x = torch.randn(80, 2, 4, dtype=torch.float64)
    first = x[..., 0].abs()
    if order == "tokens":
        first[40:, 1] *= -1
    elif order == "samples":
        first[40::2] *= -1
    else:
        first = x[..., 0]
    x[..., 0] = first
    check(experts(), x, memory_limit=limit)


def test_info_knows_all_ways() -> None:
    def run(m, x):
        return m.head(torch.tanh(m.experts[int(x[0, 0] > 0)](x)))

    model = Net(
        run, experts=nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), head=nn.Linear(3, 2)
    )
    x = torch.randn(5, 4).abs()
    _, info = ff.ntk(model, x, -x, return_info=True)
    assert set(info.parameters.values()) == {"Dense"}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("limit", [None, "150KB"])
def test_rows_that_are_picked_by_the_data(limit: Any, verify: bool) -> None:
    """As many rows as samples in all, but some samples have two and some none."""

    def run(m, x):
        mask = x[..., 0] > 0
        y = x.new_zeros(*x.shape[:2], 5)
        y[mask] = torch.tanh(m.body(x[mask]))
        return m.head(y.sum(1))

    x = torch.randn(120, 2, 4, dtype=torch.float64)
    x[..., 0] = torch.tensor([1.0, -1.0])
    x[61::4, :, 0] = 1
    x[62::4, :, 0] = -1
    check(
        Net(run, body=nn.Linear(4, 5), head=nn.Linear(5, 2)), x, memory_limit=limit, verify=verify
    )


def packed_or_not(m, x):
    """One product with two weights, or with one of them alone."""
    if x[0, 0] > 0:
        return F.linear(x, torch.cat([m.q.weight, m.k.weight]))
    return m.k(x) @ m.z


def sliced(m, x):
    k = int(x[0, 0] > 0)
    return torch.tanh(x) @ m.w[k : k + 4]


def apart(m, x):
    return m.q(x) if x[0, 0] > 0 else m.k(x)


@pytest.mark.parametrize("limit", [None, "40KB"])
@pytest.mark.parametrize("run", [packed_or_not, sliced, apart])
def test_ways_that_share_a_part_of_their_parameters(run: Any, limit: Any) -> None:
    q, k = nn.Linear(4, 3, bias=False), nn.Linear(4, 2 if run is packed_or_not else 3, bias=False)
    model = Net(run, q=q, k=k, z=torch.randn(2, 5), w=torch.randn(5, 3)).double()
    x = torch.randn(40, 4, dtype=torch.float64).abs()
    check(model, x, -x, memory_limit=limit)
    kernel = ff.jacobian(model, x).gram(ff.jacobian(model, -x))
    expected = oracle.gram(oracle.jacobian(model, x), oracle.jacobian(model, -x))
    assert (kernel - expected).norm() <= 1e-10 * expected.norm()


def test_jacobians_of_other_parameters_do_not_meet() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"other: expected the parameters .*0\.weight"):
        ff.jacobian(model, x, params="0").gram(ff.jacobian(model, x, params="2"))


def by_module(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    j = oracle.jacobian(model, x)
    columns: dict[str, list[torch.Tensor]] = {}
    start = 0
    for name, p in model.named_parameters():
        part = j[..., start : start + p.numel()]
        columns.setdefault(name.rpartition(".")[0], []).append(part)
        start += p.numel()
    return {name: oracle.gram(torch.cat(parts, -1)) for name, parts in columns.items()}


def packed() -> nn.Module:
    def run(m, x):
        both = [torch.cat([getattr(m.q, k), getattr(m.k, k)]) for k in ("weight", "bias")]
        return F.linear(x.flatten(1), *both)

    return Net(run, q=nn.Linear(8, 3), k=nn.Linear(8, 2)).double()


def unused() -> nn.Module:
    return Net(lambda m, x: m.b(x.flatten(1)), a=nn.Linear(2, 2), b=nn.Linear(8, 2)).double()


@pytest.mark.parametrize("limit", [None, "100KB"])
@pytest.mark.parametrize("make", [packed, unused, experts])
def test_each_module_has_the_kernel_of_its_own_parameters(make: Any, limit: Any) -> None:
    model = make()
    x = split_signs(60, 2, 4)
    x[:, 1, 0] = x[:, 0, 0]
    got = ff.ntk(model, x, layers="each", memory_limit=limit)
    expected = by_module(model, x)
    assert list(got) == list(expected)
    for name, kernel in expected.items():
        assert (got[name] - kernel).norm() <= 1e-10 * max(kernel.norm(), 1.0)


@pytest.mark.parametrize("conv", [False, True])
def test_a_weight_in_two_shapes(conv: bool) -> None:
    def run(m, x):
        if conv:
            parts = [F.conv1d(x, m.w), F.conv1d(x[:, :2], m.w.view(6, 2, 4))]
        else:
            parts = [F.linear(x, m.w[..., 0]), F.linear(x[..., :2], m.w[..., 0].view(8, 2))]
        return torch.cat([part.mean(-1) for part in parts], 1)

    x = torch.randn(5, 4, 9) if conv else torch.randn(5, 3, 4)
    check(Net(run, w=torch.randn(4, 4, 3)), x.double())


def test_errors_name_the_sample() -> None:
    model = Net(lambda m, x: torch.where(x[:, :1] > 90, torch.nan, m.body(x)), body=nn.Linear(3, 2))
    x = torch.randn(300, 3)
    x[217, 0] = 100
    for limit in (None, "20KB"):
        with pytest.raises(ff.errors.NonFiniteError, match="sample 217"):
            ff.ntk(model, x, memory_limit=limit)


class RarelyDropped(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if torch.rand(1) < 0.2 else x.square())


def test_rare_random_events_are_found() -> None:
    torch.manual_seed(0)
    with pytest.raises(ff.errors.CaptureError, match="stochastic"):
        ff.ntk(RarelyDropped(3, 2), torch.randn(4, 3))


@pytest.mark.parametrize("verify", [True, False])
def test_division_that_rounds(verify: bool) -> None:
    def run(m, x):
        return m.body(x) + torch.div(m.w, x, rounding_mode="floor")

    check(
        Net(run, body=nn.Linear(3, 3), w=torch.randn(3)), torch.randn(4, 3).double(), verify=verify
    )


class Flagged(nn.Linear):
    def forward(self, x: torch.Tensor, flag: int) -> torch.Tensor:
        return super().forward(x) * flag


def test_batches_that_differ_beside_their_tensors_are_errors() -> None:
    model, x = Flagged(3, 2), torch.randn(4, 3)
    assert ff.ntk(model, [{"x": x, "flag": 2}, {"x": x, "flag": 2}]).shape == (8, 2, 8, 2)
    with pytest.raises(ValueError, match="'flag'"):
        ff.ntk(model, [{"x": x, "flag": 1}, {"x": x, "flag": 2}])
    with pytest.raises(ValueError, match="keys"):
        ff.ntk(model, [{"x": x, "flag": 1}, {"x": x}])


class Caches(nn.Module):
    """Makes, fills and replaces buffers when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.register_buffer("cache", None)
        self.register_buffer("count", torch.zeros(6)[2:])
        self.register_buffer("wide", torch.zeros(1).expand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.ones(3)
        self.count = self.count + 1
        self._buffers["wide"][:1].add_(1)
        self.register_buffer("late", torch.ones(1), persistent=False)
        return self.body(x * self.cache)


def test_buffers_are_put_back() -> None:
    model = Caches()
    before = dict(model._buffers)
    ff.ntk(model, torch.randn(4, 3))
    assert list(model._buffers) == list(before)
    assert all(model._buffers[name] is value for name, value in before.items())
    assert not model.count.any()
    assert not model.wide.any()
    assert not model._non_persistent_buffers_set


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("outputs", [0, 3])
@pytest.mark.parametrize("inputs", [0, 2])
def test_parameters_without_entries(inputs: int, outputs: int) -> None:
    model, x = nn.Linear(inputs, outputs).double(), torch.randn(4, inputs).double()
    kernel, info = ff.ntk(model, x, return_info=True)
    bias = torch.eye(outputs, dtype=torch.float64).expand(4, 4, outputs, outputs)
    expected = (1 + x @ x.T)[:, None, :, None] * bias.transpose(1, 2)
    torch.testing.assert_close(kernel, expected)
    assert set(info.parameters) == {"weight", "bias"}


def test_parameters_that_are_no_names_are_errors() -> None:
    for params in (3, [1]):
        with pytest.raises(TypeError, match="params"):
            ff.ntk(nn.Linear(2, 2), torch.randn(3, 2), params=params)


def test_gradients_that_autograd_shares_are_factors_of_their_own():
    """Both summands have one gradient, which is one number, expanded."""

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

        def forward(self, x):
            return (self.left(x) + self.right(x)).sum(1, keepdim=True)

    model, x = Sum().double(), torch.randn(5, 4, dtype=torch.float64)
    J = ff.jacobian(model, x)
    one, two = (layer.g for layer in J.layers)
    assert one.is_contiguous()
    assert one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr()
    row = torch.cat([x[:, None].expand(5, 3, 4).flatten(1), torch.ones(5, 3)], 1)
    torch.testing.assert_close(J.dense().reshape(5, -1), torch.cat([row, row], 1))
