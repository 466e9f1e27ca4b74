# SPDX-License-Identifier: Apache-2.0
"""Backward passes for many cotangents at once against torch's engine, cotangent by cotangent."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastfisher.capture import graph as ag
from fastfisher.capture.backward import Backward, Unsupported, gradients, supported
from fastfisher.capture.backward_rules import Product, plain_product
from fastfisher.capture.capture import Capture
from fastfisher.capture.model import torch_model

COUNT = 3
Function = Callable[..., torch.Tensor]


def drawn(*shape: int, positive: bool = False) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64)
    return (x.abs() + 0.5 if positive else x).requires_grad_()


def check(y: torch.Tensor, product: Product = plain_product) -> list[torch.Tensor | None]:
    """Gradients for all edges of the graph at once, and for each of them alone."""
    graph = ag.Graph(y)
    edges = [(node, k) for node in graph.nodes for k in range(ag.output_count(node))]
    cotangents = torch.randn(COUNT, *y.shape, dtype=y.dtype)
    kept = cotangents.clone()
    assert supported(y, edges)
    found = gradients(y, edges, cotangents, product)
    alone = [gradients(y, [edge], cotangents, product)[0] for edge in edges]
    for c in range(COUNT):
        expected = ag.gradients([y], edges, [cotangents[c]])
        for edge, ours, single, theirs in zip(edges, found, alone, expected, strict=True):
            assert (ours is None) == (single is None) == (theirs is None), edge
            if theirs is not None:
                assert ours.shape == (COUNT, *ag.shape(edge))
                assert ours.dtype == theirs.dtype
                assert ours.is_contiguous()
                assert not ours.requires_grad
                scale = max(1.0, float(theirs.abs().max()) if theirs.numel() else 0.0)
                torch.testing.assert_close(ours[c], theirs, rtol=0, atol=1e-12 * scale)
                torch.testing.assert_close(single[c], theirs, rtol=0, atol=1e-12 * scale)
    assert torch.equal(cotangents, kept)
    changed = [g.clone() for g in found if g is not None]
    results = [g for g in found if g is not None]
    for k, g in enumerate(results):  # writing one changes no other
        g.fill_(k)
        changed[k].fill_(k)
        for other, before in zip(results, changed, strict=True):
            assert torch.equal(other, before)
    assert torch.equal(cotangents, kept)
    return found


SHAPES: dict[str, tuple[Function, list[tuple[int, ...]]]] = {
    "addmm": (lambda b, x, w: torch.addmm(b, x, w, alpha=2, beta=3), [(5,), (4, 3), (3, 5)]),
    "addmm matrix": (torch.addmm, [(4, 1), (4, 3), (3, 5)]),
    "addmm transposed": (lambda b, x, w: F.linear(x.t(), w, b), [(5,), (3, 4), (5, 3)]),
    "mm": (torch.mm, [(4, 3), (3, 5)]),
    "mm strided": (lambda x, w: x.t() @ w[:, ::2], [(3, 4), (3, 7)]),
    "mm empty": (torch.mm, [(0, 3), (3, 5)]),
    "mm of nothing": (torch.mm, [(4, 0), (0, 5)]),
    "bmm": (torch.bmm, [(2, 4, 3), (2, 3, 5)]),
    "bmm large": (lambda a, b: a @ b.mT, [(33, 26, 26), (33, 25, 26)]),
    "baddbmm": (
        lambda c, a, b: torch.baddbmm(c, a, b, alpha=2, beta=0.5),
        [(4, 1), (2, 4, 3), (2, 3, 5)],
    ),
    "view": (lambda x: x.view(-1), [(2, 3)]),
    "unsafe view": (lambda x: torch.ops.aten._unsafe_view(x, [3, 2]), [(2, 3)]),
    "reshape alias": (lambda x: torch.ops.aten._reshape_alias(x, [3, 2], [2, 1]), [(2, 3)]),
    "reshape copies": (lambda x: x.mT.reshape(-1), [(2, 3, 4)]),
    "t": (lambda x: x.t(), [(2, 3)]),
    "t of vector": (lambda x: x.t() * 2, [(3,)]),
    "transpose": (lambda x: x.transpose(-1, 0), [(2, 3, 4)]),
    "transpose scalar": (lambda x: x.transpose(0, -1), [()]),
    "permute": (lambda x: x.permute(-1, 0, 1), [(2, 3, 4)]),
    "squeeze": (lambda x: x.squeeze(), [(1, 3, 1)]),
    "squeeze dim": (lambda x: x.squeeze(-1), [(1, 3, 1)]),
    "squeeze nothing": (lambda x: x.squeeze(1), [(1, 3, 1)]),
    "squeeze dims": (lambda x: x.squeeze((0, -1)), [(1, 3, 1)]),
    "unsqueeze": (lambda x: x.unsqueeze(-1).unsqueeze(0).unsqueeze(-2), [(2, 3)]),
    "unbind": (lambda x: x.unbind(-2)[1] * 2, [(2, 3, 4)]),
    "unbind all": (lambda x: math.prod(x.unbind(0)), [(3, 4)]),
    "select": (lambda x: x.select(-1, -2), [(2, 3, 4)]),
    "select again": (lambda x: x[0] + 2 * x[1] * x[0], [(3, 4)]),
    "select and whole": (lambda x: (2 * x)[0] + 2 * x, [(3, 4)]),
    "slice": (lambda x: x[:, -3:-1], [(2, 5)]),
    "slice by step": (lambda x: x[..., 1::2], [(2, 5)]),
    "slice past the end": (lambda x: x[-9:2, 1:99], [(3, 5)]),
    "slices add up": (lambda x: x[1:] * x[:-1] + x[0], [(4, 5)]),
    "split": (lambda x: x.split(2, -1)[1] * 2, [(2, 5)]),
    "split last": (lambda x: x.split(2, -1)[2] * 2, [(2, 5)]),
    "split sizes": (lambda x: x.split([2, 1, 3], -2)[2] * 2, [(2, 6, 2)]),
    "chunk": (lambda x: math.prod(x.chunk(3, 1)), [(2, 6)]),
    "cat": (lambda x, z: torch.cat([x, z, x], -1), [(2, 3), (2, 1)]),
    "cat with data": (lambda x, z: torch.cat([x, torch.ones(2, 2), z], 1), [(2, 3), (2, 1)]),
    "cat of nothing": (lambda x, z: torch.cat([z, x, z], -2), [(2, 3), (0,)]),
    "stack": (lambda x, z: torch.stack([x, torch.ones(2, 3), z, x], -2), [(2, 3), (2, 3)]),
    "expand": (lambda x: x.expand(4, 2, -1, 5), [(2, 3, 1)]),
    "clone": (lambda x: x.clone(), [(2, 3)]),
    "alias": (torch.ops.aten.alias, [(2, 3)]),
    "add": (lambda x, z: torch.add(x, z, alpha=3), [(2, 1, 4), (3, 1)]),
    "add scalar": (lambda x: x + 1, [(2, 3)]),
    "sub": (lambda x, z: torch.sub(x, z, alpha=3), [(3, 1), (2, 1, 4)]),
    "mul": (lambda x, z: x * z, [(2, 1, 4), (3, 1)]),
    "mul scalar": (lambda x: 2.5 * x, [(2, 3)]),
    "mul scalar tensor": (lambda x, z: x * z, [(2, 3), ()]),
    "mul integers": (lambda x: x * torch.arange(3), [(2, 3)]),
    "mul itself": (lambda x: x * x, [(2, 3)]),
    "div": (lambda x, z: x / z, [(2, 1, 4), (3, 1)]),
    "div by scalar": (lambda x: x / 3, [(2, 3)]),
    "neg": (lambda x: -x, [(2, 3)]),
    "mean": (lambda x: x.mean(), [(2, 3)]),
    "mean scalar": (lambda x: x.mean(-1), [()]),
    "mean dim": (lambda x: x.mean(-2), [(2, 3, 4)]),
    "mean dims": (lambda x: x.mean((-1, 0), keepdim=True), [(2, 3, 4)]),
    "mean no dims": (lambda x: x.mean(()), [(2, 3, 4)]),
    "sum": (lambda x: x.sum(), [(2, 3)]),
    "sum dim": (lambda x: x.sum(-1, keepdim=True), [(2, 3, 4)]),
    "sum dims": (lambda x: x.sum((2, -3)), [(2, 3, 4)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (3, 4), w, b), [(2, 3, 4), (3, 4), (3, 4)]),
    "layer norm plain": (lambda x: F.layer_norm(x, (4,)), [(2, 3, 4)]),
    "layer norm of data": (
        lambda w, b: F.layer_norm(torch.ones(2, 4, dtype=torch.float64), (4,), w, b),
        [(4,), (4,)],
    ),
    "attention": (F.scaled_dot_product_attention, [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4)]),
    "attention causal": (
        lambda q, k, v: F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, is_causal=True, scale=0.3
        ),
        [(2, 3, 2, 4), (2, 2, 3, 4), (2, 2, 3, 4)],
    ),
    "attention masked": (
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, torch.linspace(0, 1, 15, dtype=torch.float64).view(3, 5)
        ),
        [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4)],
    ),
    "attention of one query": (
        lambda q: F.scaled_dot_product_attention(q, q, q).sum(),
        [(2, 2, 3, 4)],
    ),
}
ENTRYWISE: dict[str, Function] = {
    "relu": F.relu,
    "relu in place": lambda x: x.clone().relu_(),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 1.5),
    "selu": F.selu,
    "softplus": lambda x: F.softplus(x, beta=2, threshold=1),
    "square": lambda x: x**2,
    "power": lambda x: x**-1.5,
    "power 0": lambda x: x**0,
    "softmax": lambda x: x.softmax(-1),
    "softmax first": lambda x: x.softmax(0),
    "log softmax": lambda x: x.log_softmax(-2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rules(name: str) -> None:
    torch.manual_seed(0)
    function, shapes = SHAPES[name]
    inputs = [drawn(*shape, positive=name.startswith("div")) for shape in shapes]
    check(function(*inputs))


@pytest.mark.parametrize("name", ENTRYWISE)
def test_entrywise_rules(name: str) -> None:
    torch.manual_seed(0)
    function, positive = ENTRYWISE[name], name == "power"
    check(function(drawn(4, 5, positive=positive)))
    check(function(drawn(5, 4, positive=positive).t()))
    check(function(drawn(3, 4, 5, positive=positive)[:, ::2]).mean(0))


@pytest.mark.parametrize("name", ["gelu", "gelu tanh", "relu", "softmax", "silu"])
def test_single_precision(name: str) -> None:
    x = torch.randn(4, 37, requires_grad=True)
    y = ENTRYWISE[name](x)
    u = torch.randn(COUNT, 4, 37)
    (found,) = gradients(y, [ag.edges(y.grad_fn)[0]], u)
    for c in range(COUNT):
        torch.testing.assert_close(found[c], torch.autograd.grad(y, x, u[c], retain_graph=True)[0])


class Attention(nn.Module):
    """Encoder block by hand: heads of a packed projection, two residual paths."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.packed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, -1).transpose(1, 2)
            for part in self.packed(self.norms[0](x)).chunk(3, -1)
        )
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width / self.heads)).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norms[1](x))


def mlp() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(*layers), torch.randn(5, 6)


def by_hand() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(Attention(8, 2), Attention(8, 2)), torch.randn(3, 5, 8)


def encoder() -> tuple[nn.Module, torch.Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 4)), torch.randn(3, 5, 6)


@pytest.mark.parametrize("make", [mlp, by_hand, encoder])
def test_models(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = make()
    model.double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shapes = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.stride(-1) == 1
        shapes.append(a.shape)
        return plain_product(a, b)

    y = model(x.double())
    check(y)
    check(y.flatten(1)[:, :3], product)
    assert shapes
    assert all(p.grad is None and torch.equal(p, before[k]) for k, p in model.named_parameters())
    y.sum().backward()  # the graph is still there
    assert all(p.grad is not None for p in model.parameters())


def test_deep_chain() -> None:
    x = drawn(2)
    y = x
    for _ in range(3000):
        y = y + x
    (found,) = gradients(y, [ag.edges(y.grad_fn)[1]], torch.ones(1, 2, dtype=torch.float64))
    assert torch.equal(found, torch.full((1, 2), 3001.0, dtype=torch.float64))


def test_edges_y_does_not_depend_on() -> None:
    x, z = drawn(2, 3), drawn(2, 3)
    y, apart = x * 2, torch.sin(z)
    u = torch.randn(COUNT, 2, 3, dtype=torch.float64)
    edges = [(apart.grad_fn, 0), ag.edges(y.grad_fn)[0]]
    assert supported(y, edges)
    found = gradients(y, edges, u)
    assert found[0] is None
    assert torch.equal(found[1], 2 * u)
    assert gradients(y.detach(), edges, u) == [None, None]
    assert gradients(y, [], u) == []


def test_the_output_itself() -> None:
    x = drawn(4, 3)
    first, second = x.unbind(1)[:2]
    u = torch.randn(COUNT, 4, dtype=torch.float64)
    found = gradients(second, [(first.grad_fn, 0), (first.grad_fn, 1), (first.grad_fn, 1)], u)
    assert found[0] is None
    assert torch.equal(found[1], u)
    assert len({u.data_ptr(), found[1].data_ptr(), found[2].data_ptr()}) == 3
    leaf = torch.autograd.graph.get_gradient_edge(x)
    v = torch.randn(COUNT, 4, 3, dtype=torch.float64)
    assert torch.equal(gradients(x, [(leaf.node, 0)], v)[0], v)


def test_not_aliased_by_views_of_sums() -> None:
    x, z = drawn(2, 3), drawn(2, 3)
    a = x + z
    check((a + a.t().reshape(2, 3)) * a + a.sum())


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@pytest.mark.parametrize(
    "function",
    [
        lambda x: Custom.apply(x),
        lambda x: torch.fft.fft(x).real,
        torch.sin,
        lambda x: x.float() * 2,
        lambda x: (x.float() * x).sum(),
        lambda x: (x * 1j).abs(),
        lambda x: x.bfloat16(),
        lambda x: x.softmax(-1, dtype=torch.float32),
        lambda x: torch.cat([x.detach(), x, x.detach()]),
        lambda x: torch.div(x, x, rounding_mode="floor"),
        lambda x: torch.sparse.mm(torch.eye(2).double().to_sparse(), x),
        lambda x: x.to_sparse(),
    ],
)
def test_unsupported(function: Function) -> None:
    x = drawn(2, 3)
    y = function(x.clone())
    edges = [(ag.edges(x.clone().grad_fn)[0][0], 0)]
    assert not supported(y, edges)
    with pytest.raises(Unsupported):
        gradients(y, edges, torch.zeros(1, *y.shape, dtype=y.dtype))


def test_unknown_nodes_off_the_path_do_not_matter() -> None:
    x, z = drawn(2, 3), drawn(2, 3)
    y = x.clone() * torch.sin(z)
    edges = [(ag.edges(y.grad_fn)[0][0], 0)]
    u = torch.randn(COUNT, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(gradients(y, edges, u)[0], u * torch.sin(z.detach()))


def test_prepared_once() -> None:
    torch.manual_seed(0)
    x, w = drawn(4, 3), drawn(3, 2)
    y = torch.tanh(x * 2) @ w
    edges = [(node, 0) for node in ag.Graph(y).nodes]
    backward = Backward(y, edges)
    for count in (0, 1, 2, 5):
        u = torch.randn(count, 4, 2, dtype=torch.float64)
        for ours, theirs in zip(backward(u), gradients(y, edges, u), strict=True):
            assert torch.equal(ours, theirs)


def captured(model: nn.Module, x: torch.Tensor, *, verify: bool = True) -> Capture:
    return Capture(torch_model(model.double(), select=None, params=None), x, verify=verify)


def dense(capture: Capture, x: torch.Tensor) -> np.ndarray:
    return capture.jacobian(x).dense().numpy()


@pytest.mark.parametrize("make", [mlp, by_hand, encoder])
def test_captures_that_are_proven_take_this_way(make: Callable) -> None:
    model, x = make()
    x = x.double()
    proven, plain = captured(model, x), captured(model, x, verify=False)
    np.testing.assert_allclose(dense(proven, x), dense(plain, x), rtol=1e-10, atol=1e-12)
    assert proven.plan is not None
    assert proven.plan.batched
    assert plain.plan is not None
    assert not plain.plan.batched


class Hooked(nn.Module):
    """A gradient that the user changes on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        if h.requires_grad:
            h.register_hook(lambda g: 2 * g)
        return self.second(h)


def test_hooks_are_autograds() -> None:
    model, x = Hooked(), torch.randn(5, 6, dtype=torch.float64)
    capture = captured(model, x)
    found = dense(capture, x).reshape(5, 4, -1)
    assert capture.plan is not None
    assert not capture.plan.batched
    for n in range(5):
        for c in range(4):
            row = torch.autograd.grad(model(x)[n, c], list(model.parameters()))
            expected = torch.cat([g.flatten() for g in row]).numpy()
            np.testing.assert_allclose(found[n, c], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_threads_are_as_they_were(error: type[BaseException], monkeypatch: Any) -> None:
    def fails(self: Backward, cotangents: torch.Tensor) -> None:
        assert torch.get_num_threads() == 1
        raise error

    monkeypatch.setattr(Backward, "__call__", fails)
    model, x = mlp()
    x, before = x.double(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if error is RuntimeError:  # then autograd does it
            np.testing.assert_allclose(
                dense(captured(model, x), x), dense(captured(model, x, verify=False), x), atol=1e-12
            )
        else:
            with pytest.raises(error):
                dense(captured(model, x), x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
