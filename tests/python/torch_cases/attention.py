# SPDX-License-Identifier: Apache-2.0
"""Attention from modules and by hand, transformer blocks, positions and class tokens."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .base import N, Net, TorchCase, frozen, par, tokens

X = (5, 4)


def self_attention(**options) -> nn.Module:
    """Batch-first attention of x to itself, mean over tokens, head."""
    return Net(
        lambda m, x: m.head(m.attention(x, x, x, need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(4, 2, batch_first=True, **options),
        head=nn.Linear(4, 3),
    )


def masked(m, x):
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    padding = x[:, :, 0] > 0.8
    padding[:, 0] = False
    y, _ = m.attention(x, x, x, attn_mask=mask, key_padding_mask=padding)
    return m.head(y[:, -1])


def encoder_layer(**options) -> nn.TransformerEncoderLayer:
    options = {"dropout": 0.0, "batch_first": True, **options}
    return nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, **options)


def pooled(body: nn.Module, width: int = 4) -> nn.Module:
    return Net(lambda m, x: m.head(m.body(x).mean(1)), body=body, head=nn.Linear(width, 3))


def sequence_first(body: nn.Module, width: int = 4) -> nn.Module:
    """Samples in front outside, tokens in front inside."""
    return Net(
        lambda m, x: m.head(m.body(x.transpose(0, 1)).mean(0)), body=body, head=nn.Linear(width, 3)
    )


def by_hand(m, x):
    n, t, d = x.shape
    q, k, v = m.qkv(x).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(d // 2), -1)
    return m.out((weights @ v).transpose(1, 2).reshape(n, t, d)).sum(1)


def by_einsum(m, x):
    q, k, v = (torch.einsum("ntd,hde->nhte", x, w) for w in (m.q, m.k, m.v))
    weights = torch.softmax(torch.einsum("nhte,nhse->nhts", q, k) * m.temperature, -1)
    return torch.einsum("nhts,nhse,hec->nc", weights, v, m.o)


def by_kernel(m, x):
    n, t, d = x.shape
    q, k, v = (w(x).view(n, t, 2, d // 2).transpose(1, 2) for w in (m.q, m.k, m.v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return m.o(y.transpose(1, 2).flatten(2))[:, -1]


def relative_positions(m, x):
    t = x.shape[1]
    index = torch.arange(t)[:, None] - torch.arange(t)[None] + t - 1
    logits = m.q(x) @ m.k(x).transpose(1, 2) + m.table[index]
    return m.head((torch.softmax(logits, -1) @ x).mean(1))


def slopes(m, x):
    t = x.shape[1]
    distance = (torch.arange(t)[:, None] - torch.arange(t)[None]).abs()
    heads = (m.q(x) @ x.transpose(1, 2))[:, None] - m.slope[:, None, None] * distance
    return m.head((torch.softmax(heads, -1) @ x[:, None]).mean((1, 2)))


def vision_transformer(m, x):
    patches = m.patch(x).flatten(2).transpose(1, 2)
    y = torch.cat([m.cls.expand(len(x), -1, -1), patches], 1) + m.position
    return m.head(m.norm(m.block(y))[:, 0])


def language_model(m, x):
    y = m.table(x) + m.position(torch.arange(x.shape[1]))
    mask = torch.full((x.shape[1],) * 2, -math.inf, dtype=y.dtype).triu(1)
    y = m.norm(m.block(y, src_mask=mask))
    return F.linear(y[:, -1], m.table.weight)


def windows(m, x):
    """Attention within windows of two tokens: windows folded into the batch."""
    n = len(x)
    w = x.reshape(n * 3, 2, 4)
    w = w + m.attention(w, w, w, need_weights=False)[0]
    return m.head(w.reshape(n, 6, 4).roll(1, 1)).mean(1)


def perceiver(m, x):
    latent = m.latent.expand(len(x), -1, -1)
    y, _ = m.attention(latent, x, x)
    return m.head((latent + y).flatten(1))


def gated_block(m, x):
    y = x + m.scale1 * m.attention(m.norm1(x), m.norm1(x), m.norm1(x), need_weights=False)[0]
    up, gate = m.up(m.norm2(y)).chunk(2, -1)
    return m.head((y + m.scale2 * m.down(F.silu(gate) * up)).mean(1))


CASES = [
    TorchCase("attention", self_attention, X),
    TorchCase("attention-eval", self_attention, X, evaluate=True),
    TorchCase("attention-no-bias", lambda: self_attention(bias=False), X),
    TorchCase("attention-square", self_attention, (N, N)),
    TorchCase("attention-bias-kv", lambda: self_attention(add_bias_kv=True, add_zero_attn=True), X),
    TorchCase(
        "attention-weights",
        lambda: Net(
            lambda m, x: m.a(x, x, x)[1].flatten(1), a=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        (3, 4),
    ),
    TorchCase(
        "attention-masked",
        lambda: Net(
            masked, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3)
        ),
        X,
    ),
    TorchCase(
        "attention-cross",
        lambda: Net(
            lambda m, x: m.a(x[:, :2], m.lift(x), x[..., :3])[0].flatten(1),
            a=nn.MultiheadAttention(4, 2, kdim=6, vdim=3, batch_first=True),
            lift=nn.Linear(4, 6),
        ),
        X,
        notes="projections of their own for query, key and value",
    ),
    TorchCase(
        "attention-cross-packed",
        lambda: Net(
            lambda m, x: m.a(x[:, :2], torch.tanh(x), torch.tanh(x))[0].flatten(1),
            a=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        X,
        notes="packed projection in two slices",
    ),
    TorchCase(
        "attention-three-inputs",
        lambda: Net(
            lambda m, x: m.a(x, torch.tanh(x), x.cos())[0].mean(1),
            a=nn.MultiheadAttention(4, 1, batch_first=True),
        ),
        X,
    ),
    TorchCase(
        "attention-sequence-first",
        lambda: sequence_first(Net(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2))),
        X,
    ),
    TorchCase(
        "attention-sequence-first-square",
        lambda: sequence_first(Net(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2))),
        (N, N),
    ),
    TorchCase(
        "attention-by-hand", lambda: Net(by_hand, qkv=nn.Linear(4, 12), out=nn.Linear(4, 4)), X
    ),
    TorchCase(
        "attention-by-einsum",
        lambda: Net(
            by_einsum,
            q=par(2, 4, 3),
            k=par(2, 4, 3),
            v=par(2, 4, 3),
            o=par(2, 3, 3),
            temperature=par(),
        ),
        X,
    ),
    TorchCase(
        "attention-by-kernel",
        lambda: Net(
            by_kernel, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 4), o=nn.Linear(4, 3)
        ),
        X,
    ),
    TorchCase(
        "attention-relative-positions",
        lambda: Net(
            relative_positions,
            q=nn.Linear(4, 4),
            k=nn.Linear(4, 4),
            table=par(9),
            head=nn.Linear(4, 3),
        ),
        X,
        notes="a table indexed by position, the same for every sample",
    ),
    TorchCase(
        "attention-slopes",
        lambda: Net(slopes, q=nn.Linear(4, 4), slope=par(3), head=nn.Linear(4, 3)),
        X,
    ),
    TorchCase(
        "attention-windows",
        lambda: Net(
            windows, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3)
        ),
        (6, 4),
    ),
    TorchCase(
        "perceiver",
        lambda: Net(
            perceiver,
            latent=par(1, 2, 4),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        X,
    ),
    TorchCase("transformer-layer", lambda: pooled(encoder_layer()), X),
    TorchCase(
        "transformer-layer-eval", lambda: pooled(encoder_layer(dropout=0.1)), X, evaluate=True
    ),
    TorchCase(
        "transformer-layer-norm-first",
        lambda: pooled(encoder_layer(norm_first=True, activation="gelu")),
        X,
    ),
    TorchCase(
        "transformer-layer-sequence-first",
        lambda: sequence_first(encoder_layer(batch_first=False)),
        X,
    ),
    TorchCase(
        "transformer-layer-sequence-first-square",
        lambda: sequence_first(encoder_layer(batch_first=False)),
        (N, N),
    ),
    TorchCase(
        "transformer-stack",
        lambda: pooled(
            nn.TransformerEncoder(
                encoder_layer(), 2, norm=nn.LayerNorm(4), enable_nested_tensor=False
            )
        ),
        X,
    ),
    TorchCase(
        "transformer-layer-shared",
        lambda: Net(lambda m, x: m.block(m.block(x)).mean(1), block=encoder_layer()),
        X,
    ),
    TorchCase(
        "transformer-decoder",
        lambda: Net(
            lambda m, x: m.layer(x[:, :2], torch.tanh(x)).flatten(1),
            layer=nn.TransformerDecoderLayer(
                4, 2, dim_feedforward=5, dropout=0.0, batch_first=True
            ),
        ),
        X,
    ),
    TorchCase(
        "transformer-gated",
        lambda: Net(
            gated_block,
            norm1=nn.RMSNorm(4),
            attention=nn.MultiheadAttention(4, 2, bias=False, batch_first=True),
            scale1=par(4),
            norm2=nn.RMSNorm(4),
            up=nn.Linear(4, 10, bias=False),
            down=nn.Linear(5, 4, bias=False),
            scale2=par(4),
            head=nn.Linear(4, 3),
        ),
        X,
    ),
    TorchCase(
        "transformer-frozen-base",
        lambda: Net(
            lambda m, x: m.head(m.body(x).mean(1) + m.bias),
            body=frozen(encoder_layer()),
            bias=par(4),
            head=nn.Linear(4, 3),
        ),
        X,
    ),
    TorchCase(
        "vision-transformer",
        lambda: Net(
            vision_transformer,
            patch=nn.Conv2d(1, 4, 2, stride=2),
            cls=par(1, 1, 4),
            position=par(1, 5, 4),
            block=encoder_layer(),
            norm=nn.LayerNorm(4),
            head=nn.Linear(4, 3),
        ),
        (1, 4, 4),
    ),
    TorchCase(
        "language-model-tied",
        lambda: Net(
            language_model,
            table=nn.Embedding(6, 4),
            position=nn.Embedding(5, 4),
            block=encoder_layer(),
            norm=nn.LayerNorm(4),
        ),
        tokens(6, 5),
    ),
    TorchCase(
        "positions",
        lambda: Net(
            lambda m, x: m.head(torch.tanh(x + m.position)).mean(1),
            position=par(5, 4),
            head=nn.Linear(4, 3),
        ),
        X,
    ),
    TorchCase(
        "positions-square",
        lambda: Net(
            lambda m, x: m.head(torch.tanh(x + m.position)).mean(1),
            position=par(N, N),
            head=nn.Linear(N, 3),
        ),
        (N, N),
        notes="(T, d) added to (N, T, d) with N = T = d",
    ),
    TorchCase(
        "class-token",
        lambda: Net(
            lambda m, x: m.head(torch.cat([m.cls.expand(len(x), 1, 4), x], 1).flatten(1)),
            cls=par(1, 1, 4),
            head=nn.Linear(24, 3),
        ),
        X,
    ),
    TorchCase(
        "class-token-repeated",
        lambda: Net(
            lambda m, x: m.head(torch.cat([m.cls.repeat(len(x), 1, 1), x], 1)).tanh().mean(1),
            cls=par(1, 2, 4),
            head=nn.Linear(4, 3),
        ),
        X,
    ),
]
