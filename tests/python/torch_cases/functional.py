# SPDX-License-Identifier: Apache-2.0
"""Parameters in plain expressions: elementwise, matrix products, views, slices, derived weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from .base import N, Net, TorchCase, par
from .linear import mlp


def net(run, **shapes):
    """Factory of a module with parameters of these shapes, after the forward pass `run`."""
    return lambda: Net(run, **{name: par(*shape) for name, shape in shapes.items()})


def plain(function, **shapes):
    """Factory of a pair (function, params)."""
    return lambda: (function, {name: par(*shape) for name, shape in shapes.items()})


def two_layers(params, x):
    return torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def nested(params, x):
    for k in range(3):
        x = x + torch.sin(F.linear(x, params[f"layer{k}.w"], params["shared.b"]))
    return x


def called() -> tuple:
    model = mlp(5, 4, 3)
    return lambda params, x: functional_call(model, params, (x,)), dict(model.named_parameters())


def branching(m, x):
    parts = []
    for k, part in enumerate(x.split((2, 3), -1)):
        y = F.pad(part, (0, 3 - part.shape[-1]))
        while y.dim() < 3:
            y = y.unsqueeze(1)
        y = y @ m.w[k] if k % 2 else y * m.s[k] + m.w[k].sum(0)
        parts.append(y.squeeze(1))
    return torch.where(parts[0] > 0, parts[0], 0.1 * parts[1])


def hypernetwork(m, x):
    w = m.generator(m.code).view(3, 5)
    return F.linear(x, w, m.bias)


def fourier(m, x):
    spectrum = torch.fft.rfft(x) * torch.view_as_complex(m.filter)
    return torch.fft.irfft(spectrum, n=x.shape[-1])[:, :3]


def highway(m, x):
    gate = torch.sigmoid(x @ m.t + m.tb)
    return gate * torch.relu(x @ m.h) + (1 - gate) * x


def deep_equilibrium(m, x):
    z = torch.zeros_like(x)
    for _ in range(6):
        z = torch.tanh(z @ m.w.t() * 0.3 + x)
    return z @ m.v


CASES = [
    TorchCase("scale", net(lambda m, x: m.scale * x, scale=(5,)), (5,)),
    TorchCase(
        "scale-square", net(lambda m, x: m.scale * x + m.shift, scale=(N, N), shift=(N, 1)), (N, N)
    ),
    TorchCase(
        "scalar",
        net(lambda m, x: torch.tanh(x @ m.w) / (1 + m.temperature.exp()), w=(5, 3), temperature=()),
        (5,),
    ),
    TorchCase(
        "scalar-of-one-element", net(lambda m, x: x @ m.w + m.shift, w=(5, 3), shift=(1,)), (5,)
    ),
    TorchCase("bias-only", net(lambda m, x: torch.tanh(x + m.b) + m.c, b=(5,), c=(1, 5)), (5,)),
    TorchCase(
        "constant-output",
        net(lambda m, x: m.b.expand(len(x), 3), b=(3,)),
        (5,),
        notes="the input is never read",
    ),
    TorchCase(
        "subtraction-division",
        net(lambda m, x: (m.a - x) / (2 + m.b.square()) - m.a, a=(5,), b=(5,)),
        (5,),
    ),
    TorchCase("power", net(lambda m, x: (x.square() + 1) ** m.p, p=(5,)), (5,)),
    TorchCase("matmul", net(lambda m, x: torch.tanh(x @ m.w) @ m.v, w=(5, 4), v=(4, 3)), (5,)),
    TorchCase(
        "matmul-transposed",
        net(lambda m, x: (m.w @ x.t()).t(), w=(3, 5)),
        (5,),
        notes="samples on the right",
    ),
    TorchCase(
        "matmul-transposed-square", net(lambda m, x: torch.tanh(m.w @ x.t()).t(), w=(N, N)), (N,)
    ),
    TorchCase(
        "matmul-on-the-left-of-tokens",
        net(lambda m, x: (m.w @ x).tanh().mean(-1), w=(3, 5)),
        (5, 2),
    ),
    TorchCase(
        "matmul-vector", net(lambda m, x: torch.tanh(x) @ m.w, w=(5,)), (5,), notes="outputs (N,)"
    ),
    TorchCase("matmul-vector-on-tokens", net(lambda m, x: x @ m.w, w=(4,)), (3, 4)),
    TorchCase(
        "matmul-heads",
        net(lambda m, x: (x[:, None] @ m.w).tanh().sum(2).flatten(1), w=(2, 4, 3)),
        (5, 4),
    ),
    TorchCase(
        "einsum", net(lambda m, x: torch.einsum("nti,oi->no", x.tanh(), m.w), w=(3, 4)), (5, 4)
    ),
    TorchCase(
        "einsum-three", net(lambda m, x: torch.einsum("ni,ij,nj->n", x, m.w, x), w=(5, 5)), (5,)
    ),
    TorchCase(
        "einsum-of-parameters",
        net(lambda m, x: torch.einsum("ni,ir,ro->no", x, m.a, m.b), a=(5, 2), b=(2, 3)),
        (5,),
    ),
    TorchCase(
        "tensordot",
        net(lambda m, x: torch.tensordot(x, m.w, dims=([1, 2], [1, 0])), w=(4, 3, 2)),
        (3, 4),
    ),
    TorchCase(
        "addmm",
        net(lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0), b=(3,), w=(5, 3)),
        (5,),
    ),
    TorchCase("addmm-of-a-column", net(lambda m, x: torch.addmm(x[:, :1], x, m.w), w=(5, 3)), (5,)),
    TorchCase(
        "baddbmm",
        net(
            lambda m, x: torch.baddbmm(m.b, x, m.w.expand(len(x), -1, -1), beta=0.5).flatten(1),
            b=(1, 1, 3),
            w=(1, 4, 3),
        ),
        (2, 4),
    ),
    TorchCase(
        "bmm-expanded",
        net(lambda m, x: torch.bmm(x, m.w.expand(len(x), -1, -1)).tanh().sum(1), w=(4, 3)),
        (5, 4),
    ),
    TorchCase(
        "bmm-square",
        net(
            lambda m, x: torch.bmm(m.w, x.permute(1, 2, 0)).permute(2, 0, 1).flatten(1), w=(N, N, N)
        ),
        (N, N),
        notes="one matrix a token, samples in the middle",
    ),
    TorchCase(
        "outer-product", net(lambda m, x: (x[:, :, None] * m.w[None, None]).sum(1), w=(3,)), (5,)
    ),
    # views of a parameter
    TorchCase("transposed", net(lambda m, x: torch.tanh(x @ m.w.T) @ m.w, w=(4, 5)), (5,)),
    TorchCase(
        "sliced",
        net(lambda m, x: x[:, :3] @ m.w[:3] + (x @ m.w)[:, ::2].sum(1, keepdim=True), w=(5, 4)),
        (5,),
        notes="slices that overlap",
    ),
    TorchCase("sliced-rows-unused", net(lambda m, x: F.linear(x, m.w[1:3]), w=(6, 5)), (5,)),
    TorchCase("strided-slice", net(lambda m, x: x[:, ::2] @ m.w[::2, 1:], w=(5, 4)), (5,)),
    TorchCase(
        "viewed", net(lambda m, x: torch.tanh(x @ m.w.view(5, 4)) @ m.w.view(4, 5), w=(20,)), (5,)
    ),
    TorchCase(
        "flat-parameters",
        net(
            lambda m, x: (
                torch.tanh(x @ m.p[:20].view(5, 4) + m.p[20:24]) @ m.p[24:36].view(4, 3) + m.p[36:]
            ),
            p=(39,),
        ),
        (5,),
        notes="one vector for the whole model",
    ),
    TorchCase(
        "permuted",
        net(lambda m, x: torch.einsum("nab,abc->nc", x, m.w.permute(2, 0, 1)), w=(4, 3, 2)),
        (2, 4),
    ),
    TorchCase("chunked", net(lambda m, x: _gates(x, *m.w.chunk(2, 0)), w=(6, 5)), (5,)),
    TorchCase("unbound", net(lambda m, x: sum(torch.sin(x @ w) for w in m.w), w=(3, 5, 2)), (5,)),
    TorchCase("expanded", net(lambda m, x: x @ m.w.expand(5, 3), w=(5, 1)), (5,)),
    TorchCase(
        "diagonal",
        net(lambda m, x: x @ torch.diag(m.d) + x @ torch.triu(m.w), d=(5,), w=(5, 5)),
        (5,),
    ),
    TorchCase(
        "stacked",
        lambda: Net(
            lambda m, x: (x @ torch.stack([m.a, m.b])).tanh().sum(0), a=par(5, 3), b=par(5, 3)
        ),
        (5,),
        notes="samples are the second axis of the product",
    ),
    TorchCase(
        "concatenated",
        net(
            lambda m, x: F.linear(x, torch.cat([m.a, m.b]), torch.cat([m.c, m.c])),
            a=(2, 5),
            b=(4, 5),
            c=(3,),
        ),
        (5,),
    ),
    TorchCase(
        "cloned", net(lambda m, x: x @ m.w.clone() + m.b.contiguous(), w=(5, 3), b=(3,)), (5,)
    ),
    # derived weights
    TorchCase(
        "masked-weight",
        net(lambda m, x: F.linear(x, m.w * torch.ones_like(m.w).tril(), m.b), w=(3, 5), b=(3,)),
        (5,),
    ),
    TorchCase(
        "positive-weight",
        net(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.w.exp())), F.softplus(m.v)),
            w=(4, 5),
            v=(3, 4),
        ),
        (5,),
    ),
    TorchCase("symmetric-weight", net(lambda m, x: torch.tanh(x @ (m.w + m.w.T)), w=(5, 5)), (5,)),
    TorchCase(
        "normalised-weight",
        net(lambda m, x: F.normalize(x) @ F.normalize(m.w, dim=0), w=(5, 3)),
        (5,),
    ),
    TorchCase(
        "weight-used-plain-and-derived",
        net(lambda m, x: x @ m.w + torch.tanh(x @ m.w.square()), w=(5, 3)),
        (5,),
    ),
    TorchCase(
        "product-of-weights",
        net(lambda m, x: x @ (m.a @ m.b) * m.a.sum(), a=(5, 2), b=(2, 3)),
        (5,),
    ),
    TorchCase(
        "softmax-mixture-of-weights",
        net(
            lambda m, x: x @ (torch.softmax(m.mix, 0)[:, None, None] * m.w).sum(0),
            mix=(3,),
            w=(3, 5, 2),
        ),
        (5,),
    ),
    TorchCase(
        "hypernetwork",
        lambda: Net(hypernetwork, code=par(2), generator=nn.Linear(2, 15), bias=par(3)),
        (5,),
    ),
    TorchCase("fourier-filter", net(fourier, filter=(5, 2)), (8,)),
    TorchCase(
        "regularised-inverse",
        net(lambda m, x: x @ torch.linalg.inv(4 * torch.eye(4, dtype=m.w.dtype) + m.w), w=(4, 4)),
        (4,),
    ),
    # whole models
    TorchCase("highway", net(highway, t=(5, 5), tb=(5,), h=(5, 5)), (5,)),
    TorchCase("equilibrium", net(deep_equilibrium, w=(5, 5), v=(5, 3)), (5,)),
    TorchCase("control-flow", net(branching, w=(2, 3, 3), s=(2,)), (5,)),
    TorchCase(
        "layer-chosen-elementwise",
        net(lambda m, x: torch.where(x @ m.a > 0, x @ m.b, x @ m.a), a=(5, 3), b=(5, 3)),
        (5,),
    ),
    TorchCase("cumulative", net(lambda m, x: torch.cumsum(x * m.w, -1).tanh(), w=(4,)), (4,)),
    TorchCase("sorted", net(lambda m, x: torch.sort(x @ m.w, -1).values, w=(5, 3)), (5,)),
    TorchCase(
        "distances",
        net(lambda m, x: -torch.cdist(x, m.centres).square(), centres=(3, 5)),
        (5,),
        notes="radial basis functions",
    ),
    TorchCase(
        "parameter-list",
        lambda: Net(_listed, ws=nn.ParameterList([par(5, 4), par(4, 4), par(4, 3)])),
        (5,),
    ),
    TorchCase(
        "double-backward",
        net(lambda m, x: torch.tanh(x @ m.w).sum(1) + m.w.square().sum(), w=(5, 3)),
        (5,),
        notes="a term that is the same for every sample",
    ),
    TorchCase(
        "gradient-inside",
        lambda: Net(_gradient_inside, body=mlp(5, 4, 1)),
        (5,),
        notes="outputs are gradients by the input",
    ),
    # functions
    TorchCase("function", plain(two_layers, w1=(5, 4), b1=(4,), w2=(4, 3), b2=(3,)), (5,)),
    TorchCase(
        "function-dotted-names",
        plain(nested, **{f"layer{k}.w": (4, 4) for k in range(3)}, **{"shared.b": (4,)}),
        (4,),
    ),
    TorchCase("function-unused", plain(lambda p, x: x @ p["w"], b=(2,), w=(5, 3)), (5,)),
    TorchCase("function-of-a-module", called, (5,)),
]


def _gates(x, w, v):
    return torch.sigmoid(F.linear(x, w)) * torch.tanh(F.linear(x, v))


def _listed(m, x):
    for w in m.ws:
        x = torch.tanh(x @ w)
    return x


def _gradient_inside(m, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(m.body(x).sum(), x, create_graph=True)
    return gradient
