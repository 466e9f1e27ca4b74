# SPDX-License-Identifier: Apache-2.0
"""Linear layers, what stands between them, and parameters that are shared, frozen or unused."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from .base import N, Net, TorchCase, frozen, par


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def tied_autoencoder() -> nn.Module:
    return Net(
        lambda m, x: F.linear(torch.tanh(m.encoder(x)), m.encoder.weight.t(), m.bias),
        encoder=nn.Linear(5, 4),
        bias=par(5),
    )


def tied_modules() -> nn.Module:
    net = Net(
        lambda m, x: m.head(torch.tanh(m.second(torch.tanh(m.first(x))))),
        first=nn.Linear(4, 4),
        second=nn.Linear(4, 4),
        head=nn.Linear(4, 3),
    )
    net.second.weight = net.first.weight
    return net


def transposed_tie() -> nn.Module:
    """Encoder and decoder own one parameter, the second through its transpose."""
    w = par(6, 5)
    return Net(lambda m, x: torch.relu(x @ m.a.t()) @ m.b, a=w, b=w)


def siamese(m, x):
    left, right = m.body(torch.cat([x, -0.5 * x], 0)).chunk(2, 0)
    return left * right


def moe(m, x):
    gates = torch.softmax(m.gate(x), -1)
    return sum(gates[:, k : k + 1] * m.experts[k](x) for k in range(3))


def routed(m, x):
    y = x.new_zeros(len(x), 3)
    for k, mask in enumerate((x[:, 0] > 0, x[:, 0] <= 0)):
        y = y.index_put((mask.nonzero()[:, 0],), m.experts[k](x[mask]))
    return y


def lora(base: nn.Linear, rank: int) -> nn.Module:
    return Net(
        lambda m, x: m.base(x) + 0.7 * m.up(m.down(x)),
        base=frozen(base),
        down=nn.Linear(base.in_features, rank, bias=False),
        up=nn.Linear(rank, base.out_features, bias=False),
    )


CASES = [
    TorchCase("linear", lambda: nn.Linear(5, 3), (5,)),
    TorchCase("linear-no-bias", lambda: nn.Linear(5, 3, bias=False), (5,)),
    TorchCase("mlp", lambda: mlp(5, 7, 6, 3), (5,)),
    TorchCase("mlp-no-bias", lambda: mlp(5, 7, 6, 3, bias=False), (5,)),
    TorchCase("mlp-square", lambda: mlp(N, N, N, N), (N,), notes="every axis as long as the batch"),
    TorchCase("mlp-deep", lambda: mlp(4, *[5] * 12, 2), (4,)),
    TorchCase(
        "residual",
        lambda: Net(
            lambda m, x: m.head(x + torch.relu(m.a(x)) + m.b(torch.tanh(m.a(x)))),
            a=nn.Linear(5, 5),
            b=nn.Linear(5, 5),
            head=nn.Linear(5, 3),
        ),
        (5,),
    ),
    TorchCase(
        "dense-connections",
        lambda: Net(
            lambda m, x: m.c(torch.cat([x, m.a(x), m.b(torch.cat([x, m.a(x)], -1))], -1)),
            a=nn.Linear(4, 3),
            b=nn.Linear(7, 2),
            c=nn.Linear(9, 3),
        ),
        (4,),
    ),
    TorchCase(
        "linear-on-tokens",
        lambda: Net(
            lambda m, x: m.head(torch.relu(m.body(x)).mean(1)),
            body=nn.Linear(4, 6),
            head=nn.Linear(6, 3),
        ),
        (5, 4),
    ),
    TorchCase(
        "linear-on-tokens-square",
        lambda: Net(
            lambda m, x: m.head(torch.relu(m.body(x)).flatten(1)),
            body=nn.Linear(N, N, bias=False),
            head=nn.Linear(N * N, N),
        ),
        (N, N),
    ),
    TorchCase("linear-on-tokens-all-outputs", lambda: mlp(4, 3, 2), (3, 4), notes="C = T * 2"),
    TorchCase("linear-on-four-axes", lambda: mlp(3, 4, 2), (2, 3, 3)),
    TorchCase("one-token", lambda: mlp(3, 4, 2), (1, 3)),
    TorchCase(
        "tokens-folded-sample-major",
        lambda: Net(
            lambda m, x: m.body(x.reshape(-1, 4)).reshape(-1, 5, 3).sum(1), body=mlp(4, 6, 3)
        ),
        (5, 4),
    ),
    TorchCase(
        "tokens-folded-token-major",
        lambda: Net(
            lambda m, x: m.body(x.transpose(0, 1).reshape(-1, 3)).reshape(N, -1, 3).sum(0),
            body=mlp(3, 6, 3),
        ),
        (N, 3),
        notes="rows (t, n) with as many tokens as samples",
    ),
    TorchCase("siamese", lambda: Net(siamese, body=mlp(5, 4, 3)), (5,), notes="rows (2, n)"),
    TorchCase(
        "mixer",
        lambda: Net(
            lambda m, x: m.channels(x + m.tokens(x.transpose(1, 2)).transpose(1, 2)).mean(1),
            tokens=mlp(N, 5, N),
            channels=mlp(3, 5, 3),
        ),
        (N, 3),
    ),
    TorchCase(
        "output-of-rank-one", lambda: Net(lambda m, x: m.body(x)[:, 0], body=mlp(5, 4, 1)), (5,)
    ),
    TorchCase(
        "output-squeezed", lambda: Net(lambda m, x: m.body(x).squeeze(-1), body=mlp(5, 1)), (5,)
    ),
    TorchCase(
        "output-of-rank-three", lambda: nn.Sequential(mlp(5, 6), nn.Unflatten(1, (2, 3))), (5,)
    ),
    TorchCase("one-output", lambda: mlp(5, 4, 1), (5,)),
    TorchCase(
        "bilinear",
        lambda: Net(lambda m, x: m.body(x[:, :3], torch.tanh(x[:, 3:])), body=nn.Bilinear(3, 2, 4)),
        (5,),
    ),
    TorchCase(
        "bilinear-on-tokens",
        lambda: Net(
            lambda m, x: m.body(x, x.flip(1)).sum(1), body=nn.Bilinear(3, 3, 2, bias=False)
        ),
        (4, 3),
    ),
    TorchCase(
        "prelu",
        lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3), nn.PReLU(3)),
        (5,),
    ),
    TorchCase(
        "prelu-on-images",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 2)),
        (2, 3, 3),
    ),
    TorchCase(
        "activations",
        lambda: nn.Sequential(
            nn.Linear(5, 4),
            nn.GELU(),
            nn.Linear(4, 4),
            nn.SiLU(),
            nn.Linear(4, 4),
            nn.ELU(),
            nn.Linear(4, 6),
            nn.GLU(),
            nn.Linear(3, 3),
            nn.LogSoftmax(-1),
        ),
        (5,),
    ),
    TorchCase(
        "in-place-relu",
        lambda: nn.Sequential(
            nn.Linear(5, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 3),
        ),
        (5,),
    ),
    TorchCase(
        "in-place-sum",
        lambda: Net(
            lambda m, x: m.b(m.a(x).add_(x).mul_(0.5).tanh_()), a=nn.Linear(5, 5), b=nn.Linear(5, 3)
        ),
        (5,),
    ),
    # shared, frozen, unused
    TorchCase(
        "module-used-twice",
        lambda: Net(
            lambda m, x: m.head(m.body(torch.tanh(m.body(x)))),
            body=nn.Linear(4, 4),
            head=nn.Linear(4, 3),
        ),
        (4,),
    ),
    TorchCase(
        "module-in-a-loop",
        lambda: Net(lambda m, x: _loop(m, x, 5), body=nn.Linear(4, 4), head=nn.Linear(4, 3)),
        (4,),
    ),
    TorchCase("tied-weights", tied_modules, (4,)),
    TorchCase("tied-autoencoder", tied_autoencoder, (5,)),
    TorchCase("tied-transpose", transposed_tie, (5,)),
    TorchCase(
        "frozen-first-layer",
        lambda: nn.Sequential(frozen(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)),
        (5,),
    ),
    TorchCase(
        "frozen-last-layer",
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), frozen(nn.Linear(6, 3))),
        (5,),
    ),
    TorchCase(
        "frozen-weight-free-bias",
        lambda: Net(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.w, m.b)), m.w, m.c),
            w=frozen_parameter(5, 5),
            b=par(5),
            c=frozen_parameter(5),
        ),
        (5,),
    ),
    TorchCase(
        "lora",
        lambda: nn.Sequential(lora(nn.Linear(5, 6), 2), nn.ReLU(), lora(nn.Linear(6, 3), 2)),
        (5,),
    ),
    TorchCase(
        "lora-merged",
        lambda: Net(
            lambda m, x: F.linear(
                torch.relu(F.linear(x, m.base.weight + m.up @ m.down, m.base.bias)), m.head.weight
            ),
            base=frozen(nn.Linear(5, 6)),
            up=par(6, 2),
            down=par(2, 5),
            head=nn.Linear(6, 3, bias=False),
        ),
        (5,),
    ),
    TorchCase(
        "no-parameters", lambda: nn.Sequential(nn.Tanh(), nn.Flatten()), (2, 2), notes="P = 0"
    ),
    TorchCase("all-frozen", lambda: frozen(mlp(5, 4, 3)), (5,), notes="P = 0"),
    TorchCase(
        "unused-parameters",
        lambda: Net(
            lambda m, x: m.body(x), before=par(2, 3), body=nn.Linear(5, 3), after=nn.Linear(2, 2)
        ),
        (5,),
        notes="zero blocks, in their places",
    ),
    TorchCase(
        "detached-branch",
        lambda: Net(
            lambda m, x: m.head(m.a(x) + m.b(x).detach()),
            a=nn.Linear(5, 4),
            b=nn.Linear(5, 4),
            head=nn.Linear(4, 2),
        ),
        (5,),
        notes="parameters of the detached branch: a zero block",
    ),
    TorchCase(
        "zero-gradient",
        lambda: Net(
            lambda m, x: m.body(x) + 0 * m.other(x), body=nn.Linear(5, 3), other=nn.Linear(5, 3)
        ),
        (5,),
    ),
    TorchCase(
        "mixture-of-experts",
        lambda: Net(
            moe, gate=nn.Linear(5, 3), experts=nn.ModuleList(mlp(5, 4, 2) for _ in range(3))
        ),
        (5,),
    ),
    TorchCase(
        "routed-experts",
        lambda: Net(routed, experts=nn.ModuleList(mlp(5, 4, 3) for _ in range(2))),
        (5,),
        kind="either",
        match="sample",
        notes="each expert sees only some rows of the batch",
    ),
    TorchCase(
        "dropout-in-evaluation",
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
        (5,),
        evaluate=True,
    ),
    TorchCase(
        "dropout-of-nothing",
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.0), nn.Linear(4, 3)),
        (5,),
    ),
    TorchCase(
        "dropout-never-called",
        lambda: Net(lambda m, x: m.body(x), body=nn.Linear(5, 3), drop=nn.Dropout(0.5)),
        (5,),
        notes="training with p > 0, but the forward pass does not use it",
    ),
]


def frozen_parameter(*shape: int) -> nn.Parameter:
    return par(*shape).requires_grad_(False)


def _loop(m, x, steps: int):
    for _ in range(steps):
        x = x + torch.tanh(m.body(x))
    return m.head(x)
