# SPDX-License-Identifier: Apache-2.0
"""The workloads of `peers`: torch models, their inputs, and the flops that no method can avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

CLASSES = 10


class Attention(nn.Module):
    """Self-attention in plain modules, for there are peers that know nothing else."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend among the tokens of each sample: (n, t, d) to the same."""
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, d))


class Encoder(nn.Module):
    """One transformer encoder block, normalised after each part, mean over tokens, linear head."""

    def __init__(self, width: int = 128, heads: int = 4, hidden: int = 512) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, t, d) to (n, C)."""
        x = self.norm1(x + self.attention(x))
        x = self.norm2(x + self.down(torch.relu(self.up(x))))
        return self.head(x.mean(1))


def mlp() -> nn.Module:
    """784-1024-1024-1024-10 with ReLU."""
    layers: list[nn.Module] = []
    for i, o in ((784, 1024), (1024, 1024), (1024, 1024)):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, CLASSES))


def cnn() -> nn.Module:
    """Three convolutions 3 x 3, mean over pixels, linear head."""
    layers: list[nn.Module] = []
    for i, o in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(128, CLASSES))


@dataclass(frozen=True)
class Layer:
    """`t` positions, `i` inputs, `o` outputs; separable: S4 applies (product and pooling)."""

    t: int
    i: int
    o: int
    separable: bool = False

    def gram(self, n: int, c: int, outputs: str, *, only_s1: bool) -> float:
        """Flops of the Gram and of what it forms once a sample; 2 a multiply-add."""
        trace = outputs == "trace"
        pairs, t, i, o = n * n / 2, self.t, self.i, self.o
        if t == 1:
            return 2 * pairs * (i + (c if trace else c * c) * o)
        methods = [(pairs * (c if trace else c * c) + n * t * c) * i * o]  # S1
        if not only_s1:
            methods.append(pairs * t * t * (i + (c if trace else c * c) * o))  # S3
            if self.separable:  # S4
                methods.append(pairs * o * (i if trace else i + c * c) + n * t * i * o)
        return 2 * min(methods)


@dataclass(frozen=True)
class Workload:
    """`products` counts the multiply-adds of attention's own products, a sample and pass."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    products: float = 0.0

    def build(self, n: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
        """Model and `n` samples, the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model, x = self.make(), torch.randn(n, *self.shape)
        return model.to(dtype), x.to(dtype)

    def floor(self, n: int, outputs: str, *, only_s1: bool = False) -> float:
        """Flops of forward, backward to every layer's outputs for C cotangents, forming, Gram."""
        c = CLASSES
        passes = [layer.t * layer.i * layer.o for layer in self.layers]
        forward = 2 * n * (sum(passes) + self.products)
        backward = 2 * n * c * (sum(passes[1:]) + 2 * self.products)
        gram = sum(layer.gram(n, c, outputs, only_s1=only_s1) for layer in self.layers)
        return forward + backward + gram


MLP = Workload(
    "MLP 784-1024x3-10",
    mlp,
    (784,),
    (Layer(1, 784, 1024), Layer(1, 1024, 1024), Layer(1, 1024, 1024), Layer(1, 1024, CLASSES)),
)
CNN = Workload(
    "CNN 3-32-64-128, 32x32, pool",
    cnn,
    (3, 32, 32),
    (
        Layer(1024, 27, 32),
        Layer(1024, 288, 64),
        Layer(1024, 576, 128, separable=True),
        Layer(1, 128, CLASSES),
    ),
)
TRANSFORMER = Workload(
    "transformer block, d=128, 64 tokens",
    Encoder,
    (64, 128),
    (
        Layer(64, 128, 384),
        Layer(64, 128, 128),
        Layer(64, 128, 512),
        Layer(64, 512, 128),
        Layer(1, 128, CLASSES),
    ),
    products=2 * 64 * 64 * 128,
)
CASES = [
    *((MLP, n, outputs) for n in (32, 256, 1024) for outputs in ("full", "trace")),
    *((CNN, n, outputs) for n in (64, 256) for outputs in ("full", "trace")),
    *((TRANSFORMER, n, outputs) for n in (32, 128) for outputs in ("full", "trace")),
]


def truth(workload: Workload, n: int, outputs: str) -> Any:
    """Gram in float64 of a Jacobian that plain backward passes give, sample by sample."""
    model, x = workload.build(n, torch.float64)
    parameters = list(model.parameters())
    rows = []
    for sample in x.split(1):
        for output in model(sample)[0]:
            gradients = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    j = torch.stack(rows)
    full = (j @ j.T).reshape(n, CLASSES, n, CLASSES)
    return full if outputs == "full" else torch.einsum("ncmc->nm", full)
