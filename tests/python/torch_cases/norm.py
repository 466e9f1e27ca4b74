# SPDX-License-Identifier: Apache-2.0
"""Normalisations, reparametrised weights and embeddings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from .base import N, Net, TorchCase, par, tokens


def on_images(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


def on_vectors(norm: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), norm, nn.Tanh(), nn.Linear(width, 3))


def spectral() -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(5, 4))
    for _ in range(5):
        layer(torch.randn(2, 5))  # power iterations happen in training mode
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3))


IMAGE = (2, 4, 4)
CASES = [
    TorchCase("batch-norm-eval", lambda: on_vectors(nn.BatchNorm1d(6)), (5,), evaluate=True),
    TorchCase(
        "batch-norm-eval-square", lambda: on_vectors(nn.BatchNorm1d(N), N), (5,), evaluate=True
    ),
    TorchCase("batch-norm2d-eval", lambda: on_images(nn.BatchNorm2d(4)), IMAGE, evaluate=True),
    TorchCase(
        "batch-norm3d-eval",
        lambda: nn.Sequential(nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(16, 2)),
        (2, 2, 2, 2),
        evaluate=True,
    ),
    TorchCase(
        "batch-norm2d-not-affine",
        lambda: on_images(nn.BatchNorm2d(4, affine=False)),
        IMAGE,
        evaluate=True,
    ),
    TorchCase(
        "batch-norm-first",
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)),
        (5,),
        evaluate=True,
    ),
    TorchCase("layer-norm", lambda: on_vectors(nn.LayerNorm(6)), (5,)),
    TorchCase("layer-norm-square", lambda: on_vectors(nn.LayerNorm(N), N), (5,)),
    TorchCase("layer-norm-no-bias", lambda: on_vectors(nn.LayerNorm(6, bias=False)), (5,)),
    TorchCase(
        "layer-norm-two-axes",
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 3)),
        (3, 4),
    ),
    TorchCase(
        "layer-norm-on-tokens",
        lambda: Net(
            lambda m, x: m.head(m.norm(x)).mean(1), norm=nn.LayerNorm(4), head=nn.Linear(4, 3)
        ),
        (5, 4),
    ),
    TorchCase("layer-norm-last", lambda: nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)), (5,)),
    TorchCase("rms-norm", lambda: on_vectors(nn.RMSNorm(6)), (5,)),
    TorchCase(
        "rms-norm-on-tokens",
        lambda: Net(
            lambda m, x: m.head(m.norm(x)).sum(1),
            norm=nn.RMSNorm(N, eps=1e-5),
            head=nn.Linear(N, 3),
        ),
        (N, N),
    ),
    TorchCase(
        "rms-norm-by-hand",
        lambda: Net(
            lambda m, x: m.head(m.w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)),
            w=par(5),
            head=nn.Linear(5, 3),
        ),
        (5,),
    ),
    TorchCase("group-norm", lambda: on_images(nn.GroupNorm(2, 4)), IMAGE),
    TorchCase("group-norm-on-vectors", lambda: on_vectors(nn.GroupNorm(3, 6)), (5,)),
    TorchCase(
        "instance-norm1d",
        lambda: Net(
            lambda m, x: m.head(m.norm(x).flatten(1)),
            norm=nn.InstanceNorm1d(3, affine=True),
            head=nn.Linear(15, 2),
        ),
        (3, 5),
    ),
    TorchCase("instance-norm2d", lambda: on_images(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    TorchCase("instance-norm2d-not-affine", lambda: on_images(nn.InstanceNorm2d(4)), IMAGE),
    TorchCase(
        "instance-norm2d-tracking-eval",
        lambda: on_images(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        IMAGE,
        evaluate=True,
    ),
    TorchCase(
        "instance-norm2d-tracking",
        lambda: on_images(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        IMAGE,
        notes="independent samples, but a forward pass moves the buffers: they must be put back",
    ),
    TorchCase("local-response-norm", lambda: on_images(nn.LocalResponseNorm(2)), IMAGE),
    TorchCase(
        "norm-used-twice",
        lambda: Net(
            lambda m, x: m.norm(m.body(m.norm(x)) + x), norm=nn.LayerNorm(5), body=nn.Linear(5, 5)
        ),
        (5,),
    ),
    TorchCase(
        "norm-only-free",
        lambda: Net(
            lambda m, x: m.head(m.norm(m.body(x))),
            body=nn.Linear(5, 6).requires_grad_(False),
            norm=nn.LayerNorm(6),
            head=nn.Linear(6, 3).requires_grad_(False),
        ),
        (5,),
    ),
    # reparametrised weights
    TorchCase(
        "weight-norm",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)
        ),
        (5,),
    ),
    TorchCase(
        "weight-norm-conv",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(2, 3, 2)), nn.Flatten(), nn.Linear(27, 2)
        ),
        IMAGE,
    ),
    TorchCase("spectral-norm-eval", spectral, (5,), evaluate=True),
    TorchCase(
        "orthogonal",
        lambda: nn.Sequential(
            parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)
        ),
        (4,),
    ),
    # embeddings
    TorchCase(
        "embedding",
        lambda: Net(
            lambda m, x: m.head(m.table(x)).tanh().mean(1),
            table=nn.Embedding(7, 4),
            head=nn.Linear(4, 3),
        ),
        tokens(7, 5),
    ),
    TorchCase(
        "embedding-square",
        lambda: Net(
            lambda m, x: m.head(m.table(x)).tanh().sum(1),
            table=nn.Embedding(N, N),
            head=nn.Linear(N, N),
        ),
        tokens(N, N),
    ),
    TorchCase("embedding-alone", lambda: nn.Embedding(6, 3), tokens(6), notes="one index a sample"),
    TorchCase("embedding-of-tokens-alone", lambda: nn.Embedding(6, 2), tokens(6, 3)),
    TorchCase(
        "embedding-padding",
        lambda: Net(
            lambda m, x: m.head(m.table(x).tanh().sum(1)),
            table=nn.Embedding(5, 4, padding_idx=2),
            head=nn.Linear(4, 3),
        ),
        tokens(5, 6),
        notes="the row of the padding has no gradient",
    ),
    TorchCase(
        "embedding-scaled",
        lambda: Net(
            lambda m, x: m.table(x).mean(1), table=nn.Embedding(4, 3, scale_grad_by_freq=True)
        ),
        tokens(4, 6),
        kind="either",
        match="scale_grad_by_freq|table",
        notes="torch's backward is not the gradient, and couples the samples",
    ),
    TorchCase(
        "embedding-renormalised",
        lambda: Net(
            lambda m, x: m.head(m.table(x)).mean(1),
            table=nn.Embedding(4, 3, max_norm=0.5),
            head=nn.Linear(3, 2),
        ),
        tokens(4, 6),
        kind="either",
        match="max_norm|table",
        notes="the forward pass writes into the weight: it must be put back",
    ),
    TorchCase(
        "embedding-bag-sum",
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="sum"), nn.Linear(4, 3)),
        tokens(7, 5),
    ),
    TorchCase(
        "embedding-bag-mean",
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 3)),
        tokens(7, 5),
    ),
    TorchCase(
        "embedding-bag-max",
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="max"), nn.Linear(4, 3)),
        tokens(7, 5),
    ),
    TorchCase(
        "embedding-bag-padding",
        lambda: nn.Sequential(nn.EmbeddingBag(5, 4, mode="mean", padding_idx=1), nn.Linear(4, 3)),
        tokens(5, 6),
    ),
    TorchCase(
        "matrix-and-embedding",
        lambda: Net(
            lambda m, x: m.body(m.table(x)).tanh().mean(1) @ m.table.weight.t(),
            table=nn.Embedding(6, 4),
            body=nn.Linear(4, 4),
        ),
        tokens(6, 5),
        notes="one parameter as a table and as a matrix",
    ),
    TorchCase(
        "indexed-parameter",
        lambda: Net(lambda m, x: torch.tanh(m.w[x]).sum(1) @ m.v, w=par(6, 4), v=par(4, 3)),
        tokens(6, 5),
    ),
    TorchCase(
        "one-hot-embedding",
        lambda: Net(
            lambda m, x: (nn.functional.one_hot(x, 6).to(m.w.dtype) @ m.w).tanh().sum(1),
            w=par(6, 3),
        ),
        tokens(6, 4),
    ),
]
