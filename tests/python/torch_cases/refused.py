# SPDX-License-Identifier: Apache-2.0
"""Models without an answer: samples that depend on each other, chance, hidden parameters.

`match` is searched in the message: the name of the module where there is one to blame.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .base import Net, TorchCase, par, tokens
from .linear import mlp


def refused(id, make, x, match, **options) -> TorchCase:
    return TorchCase(id, make, x, kind="refused", match=match, **options)


def between(part: nn.Module, name: str = "culprit", width: int = 4) -> nn.Module:
    """Linear, the part under `name`, linear: the name is ``body.<name>``."""
    body = nn.Sequential()
    body.add_module("first", nn.Linear(5, width))
    body.add_module(name, part)
    body.add_module("last", nn.Linear(width, 3))
    return Net(lambda m, x: m.body(x), body=body)


def frozen_norm() -> nn.Module:
    net = between(nn.BatchNorm1d(4))
    net.body.culprit.requires_grad_(False)
    return net


def reentrant(m, x):
    return m.head(checkpoint(m.body, x, use_reentrant=True))


def of_inference() -> nn.Module:
    with torch.inference_mode():
        return mlp(5, 4, 3)


def not_a_number() -> nn.Module:
    net = mlp(5, 4, 3)
    net[2].bias = nn.Parameter(torch.tensor([0.0, torch.nan, 1.0]))
    return net


def cross_attention_of_samples(m, x):
    return torch.softmax(m.q(x) @ x.t(), -1) @ m.v(x)


NAMED = r"body\.culprit"
IMAGES = (2, 3, 3)
CASES = [
    # samples that depend on each other
    refused("batch-norm-train", lambda: between(nn.BatchNorm1d(4)), (5,), NAMED),
    refused(
        "batch-norm-train-frozen",
        frozen_norm,
        (5,),
        NAMED,
        notes="frozen, yet it couples the samples",
    ),
    refused(
        "batch-norm-train-not-affine", lambda: between(nn.BatchNorm1d(4, affine=False)), (5,), NAMED
    ),
    refused(
        "batch-norm-without-statistics",
        lambda: between(nn.BatchNorm1d(4, track_running_stats=False)),
        (5,),
        NAMED,
        evaluate=True,
        notes="statistics of the batch in evaluation mode too",
    ),
    refused(
        "batch-norm2d-train",
        lambda: Net(
            lambda m, x: m.head(m.norm(m.conv(x)).flatten(1)),
            conv=nn.Conv2d(2, 3, 2),
            norm=nn.BatchNorm2d(3),
            head=nn.Linear(12, 2),
        ),
        IMAGES,
        "norm",
    ),
    refused(
        "batch-norm-train-last",
        lambda: Net(lambda m, x: m.norm(m.body(x)), body=nn.Linear(5, 3), norm=nn.BatchNorm1d(3)),
        (5,),
        "norm",
    ),
    refused(
        "batch-norm-of-a-function",
        lambda: Net(
            lambda m, x: F.batch_norm(m.body(x), None, None, m.w, m.b, training=True),
            body=nn.Linear(5, 3),
            w=par(3),
            b=par(3),
        ),
        (5,),
        "sample",
    ),
    refused(
        "mean-over-samples",
        lambda: Net(lambda m, x: m.body(x - x.mean(0)), body=mlp(5, 4, 3)),
        (5,),
        "sample",
        notes="no graph between the samples: only a second forward pass can tell",
    ),
    refused(
        "mean-over-hidden-samples",
        lambda: Net(lambda m, x: _centred(m.a(x)) @ m.w, a=nn.Linear(5, 4), w=par(4, 3)),
        (5,),
        "sample",
    ),
    refused(
        "softmax-over-samples",
        lambda: Net(lambda m, x: torch.softmax(m.body(x), 0), body=mlp(5, 4, 3)),
        (5,),
        "sample",
    ),
    refused(
        "attention-over-samples",
        lambda: Net(cross_attention_of_samples, q=nn.Linear(5, 5), v=nn.Linear(5, 3)),
        (5,),
        "sample",
    ),
    refused(
        "samples-reversed",
        lambda: Net(lambda m, x: m.body(x).flip(0), body=mlp(5, 4, 3)),
        (5,),
        "sample",
    ),
    refused(
        "samples-rolled",
        lambda: Net(lambda m, x: m.a(x) + m.b(x).roll(1, 0), a=nn.Linear(5, 3), b=nn.Linear(5, 3)),
        (5,),
        "sample",
    ),
    refused(
        "sequence-first-outside",
        lambda: nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, dropout=0.0),
        (3, 4),
        "sample",
        notes="x is read as (N, ...): attention runs over the axis taken for the samples",
    ),
    refused(
        "scaled-by-first-sample",
        lambda: Net(lambda m, x: m.body(x) * m.body(x)[:1].detach(), body=mlp(5, 4, 3)),
        (5,),
        "sample",
        notes="sample 0 enters the others through a detached value",
    ),
    # chance
    refused("dropout", lambda: between(nn.Dropout(0.5)), (5,), NAMED),
    refused("dropout-alpha", lambda: between(nn.AlphaDropout(0.3)), (5,), NAMED),
    refused(
        "dropout2d",
        lambda: Net(
            lambda m, x: m.head(m.drop(m.conv(x)).flatten(1)),
            conv=nn.Conv2d(2, 6, 2),
            drop=nn.Dropout2d(0.5),
            head=nn.Linear(24, 2),
        ),
        IMAGES,
        "drop",
    ),
    refused(
        "dropout-in-attention",
        lambda: Net(
            lambda m, x: m.attention(x, x, x)[0].mean(1),
            attention=nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True),
        ),
        (5, 4),
        "attention",
    ),
    refused(
        "dropout-in-lstm",
        lambda: Net(
            lambda m, x: m.layer(x)[0][:, -1],
            layer=nn.LSTM(3, 6, num_layers=2, dropout=0.5, batch_first=True),
        ),
        (5, 3),
        "layer",
    ),
    refused(
        "dropout-in-transformer",
        lambda: Net(
            lambda m, x: m.block(x).mean(1),
            block=nn.TransformerEncoderLayer(
                4, 2, dim_feedforward=5, dropout=0.3, batch_first=True
            ),
        ),
        (5, 4),
        "block",
    ),
    refused(
        "dropout-of-a-function",
        lambda: Net(
            lambda m, x: m.head(F.dropout(m.body(x), 0.5, training=True)),
            body=nn.Linear(5, 8),
            head=nn.Linear(8, 3),
        ),
        (5,),
        "stochastic|random",
    ),
    refused(
        "dropout-of-a-function-in-evaluation",
        lambda: Net(
            lambda m, x: m.head(F.dropout(m.body(x), 0.5)),
            body=nn.Linear(5, 8),
            head=nn.Linear(8, 3),
        ),
        (5,),
        "stochastic|random",
        evaluate=True,
        notes="every module is in evaluation mode",
    ),
    refused("randomised-relu", lambda: between(nn.RReLU(), width=16), (5,), NAMED),
    refused(
        "noise",
        lambda: Net(lambda m, x: m.body(x + 0.1 * torch.randn_like(x)), body=mlp(5, 4, 3)),
        (5,),
        "stochastic|random",
    ),
    # parameters that cannot be reached
    refused(
        "checkpoint-reentrant",
        lambda: Net(reentrant, body=mlp(5, 4), head=nn.Linear(4, 3)),
        (5,),
        "use_reentrant",
    ),
    refused("inference-parameters", of_inference, (5,), "inference", dtypes=("float32",)),
    refused(
        "lazy",
        lambda: nn.Sequential(nn.Linear(5, 4), nn.LazyLinear(3)),
        (5,),
        "(?i)lazy|initiali[sz]ed",
        dtypes=("float32",),
        notes="a forward pass would create the parameters",
    ),
    TorchCase(
        "no-grad-inside",
        lambda: Net(_no_grad_inside, body=nn.Linear(5, 4), head=nn.Linear(4, 3)),
        (5,),
        notes="the model says so itself: a zero block",
    ),
    # inputs and outputs
    refused(
        "dict-without-select",
        lambda: Net(lambda m, x: {"logits": m.body(x)}, body=mlp(5, 4, 3)),
        (5,),
        "select",
        error=("CaptureError", "TypeError"),
    ),
    refused(
        "loss-for-output",
        lambda: Net(lambda m, x: m.body(x).square().mean(), body=mlp(5, 4, 3)),
        (5,),
        r"output|shape|select",
        error=("CaptureError", "ValueError"),
    ),
    refused(
        "fewer-outputs-than-samples",
        lambda: Net(lambda m, x: m.body(x)[:-1], body=mlp(5, 4, 3)),
        (5,),
        r"output|shape|select",
        error=("CaptureError", "ValueError"),
    ),
    refused(
        "class-for-output",
        lambda: Net(lambda m, x: m.body(x).argmax(-1), body=mlp(5, 4, 3)),
        (5,),
        "dtype",
        error=("CaptureError", "TypeError"),
    ),
    refused(
        "complex-parameter",
        lambda: Net(
            lambda m, x: (x.to(m.w.dtype) @ m.w).abs(),
            w=nn.Parameter(torch.randn(5, 3, dtype=torch.complex64)),
        ),
        (5,),
        "complex|dtype",
        error=("CaptureError", "TypeError"),
        dtypes=("float32",),
    ),
    refused("not-a-number", not_a_number, (5,), r"2\.bias", error=("NonFiniteError",)),
    TorchCase(
        "sparse-embedding",
        lambda: nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2)),
        tokens(6, 3),
        kind="either",
        match="sparse",
    ),
]


def _centred(x):
    return torch.tanh(x - x.mean(0, keepdim=True))


def _no_grad_inside(m, x):
    with torch.no_grad():
        y = torch.tanh(m.body(x))
    return m.head(y)
