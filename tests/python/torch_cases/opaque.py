# SPDX-License-Identifier: Apache-2.0
"""Models behind something: checkpoints, compilers, autocast, custom functions, odd outputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .base import Net, TorchCase, par, tokens
from .linear import mlp


def scripted(calls: int):
    def wrap(model, x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of TorchScript
            model = torch.jit.script(model)
        for _ in range(calls):
            model(x)
        return model

    return wrap


def traced(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, x)


def compiled(backend: str):
    return lambda model, x: torch.compile(model, backend=backend)


class Cube(torch.autograd.Function):
    """y = w x^3 with a backward pass of its own, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return w * x**3

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return 3 * g * w * x**2, (g * x**3).sum(0)


class CubeWithRule(torch.autograd.Function):
    """The same, for torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return w * x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return 3 * g * w * x**2, (g * x**3).sum(0)


class StraightThrough(torch.autograd.Function):
    """Rounds, and lets the gradient pass: no parameters inside."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


@dataclass
class ModelOutput:
    logits: torch.Tensor
    hidden: torch.Tensor


def with_outputs(kind):
    return lambda: Net(
        lambda m, x: kind(m.head(torch.tanh(m.body(x))), m.body(x)),
        body=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )


def segments(m, x):
    x = checkpoint(m.a, x, use_reentrant=False)
    return checkpoint(m.b, x, use_reentrant=False)


def autocast_inside(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.body(x)


def custom(function):
    return lambda: Net(
        lambda m, x: m.head(function.apply(m.body(x), m.w)),
        body=nn.Linear(5, 4),
        w=par(4),
        head=nn.Linear(4, 3),
    )


def bfloat16_autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


SCRIPT = {"kind": "either", "match": "script|DifferentiableGraph|TorchScript"}
COMPILE = {"kind": "either", "match": "compile"}
SINGLE = ("float32",)

CASES = [
    TorchCase("checkpoint", lambda: Net(segments, a=mlp(5, 6, 4), b=mlp(4, 4, 3)), (5,)),
    TorchCase(
        "checkpoint-of-a-part",
        lambda: Net(
            lambda m, x: m.c(checkpoint(m.b, torch.tanh(m.a(x)), use_reentrant=False) + m.a(x)),
            a=nn.Linear(5, 4),
            b=mlp(4, 5, 4),
            c=nn.Linear(4, 3),
        ),
        (5,),
    ),
    TorchCase("compiled-eager", lambda: mlp(5, 4, 3), (5,), wrap=compiled("eager"), **COMPILE),
    TorchCase("compiled-aot", lambda: mlp(5, 4, 3), (5,), wrap=compiled("aot_eager"), **COMPILE),
    TorchCase("scripted", lambda: mlp(5, 4, 3), (5,), wrap=scripted(0), **SCRIPT),
    TorchCase(
        "scripted-called-three-times", lambda: mlp(5, 4, 3), (5,), wrap=scripted(3), **SCRIPT
    ),
    TorchCase(
        "scripted-conv",
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)),
        (2, 4, 4),
        wrap=scripted(3),
        **SCRIPT,
    ),
    TorchCase("traced", lambda: mlp(5, 4, 3), (5,), wrap=traced, **SCRIPT),
    TorchCase(
        "scripted-part",
        lambda: Net(
            lambda m, x: m.head(m.body(x)), body=_quiet_script(mlp(5, 4, 4)), head=nn.Linear(4, 3)
        ),
        (5,),
        **SCRIPT,
    ),
    TorchCase(
        "custom-function",
        custom(Cube),
        (5,),
        kind="either",
        match="Cube",
        notes="explicit, or an error that names it",
    ),
    TorchCase(
        "custom-function-with-rule", custom(CubeWithRule), (5,), kind="either", match="CubeWithRule"
    ),
    TorchCase(
        "straight-through",
        lambda: Net(
            lambda m, x: m.head(StraightThrough.apply(3 * m.body(x))),
            body=nn.Linear(5, 4),
            head=nn.Linear(4, 3),
        ),
        (5,),
        notes="layers on both sides are ordinary",
    ),
    TorchCase(
        "autocast",
        lambda: mlp(5, 6, 3),
        (5,),
        around=bfloat16_autocast,
        dtypes=SINGLE,
        rounding="bfloat16",
    ),
    TorchCase(
        "autocast-conv",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
        (2, 4, 4),
        around=bfloat16_autocast,
        dtypes=SINGLE,
        rounding="bfloat16",
    ),
    TorchCase(
        "autocast-inside",
        lambda: Net(autocast_inside, body=mlp(5, 6, 3)),
        (5,),
        dtypes=SINGLE,
        rounding="bfloat16",
    ),
    TorchCase(
        "autocast-attention",
        lambda: Net(
            lambda m, x: m.head(m.norm(m.a(x, x, x)[0]).mean(1)),
            a=nn.MultiheadAttention(4, 2, batch_first=True),
            norm=nn.LayerNorm(4),
            head=nn.Linear(4, 3),
        ),
        (5, 4),
        around=bfloat16_autocast,
        dtypes=SINGLE,
        rounding="bfloat16",
    ),
    TorchCase(
        "mixed-dtypes",
        lambda: Net(
            lambda m, x: m.head(m.body(x).double()),
            body=nn.Linear(5, 4),
            head=mlp(4, 5, 3).double(),
        ),
        (5,),
        kind="either",
        match="dtype",
        error=("CaptureError", "TypeError"),
        dtypes=SINGLE,
        notes="a float32 body under a float64 head",
    ),
    TorchCase(
        "dict-output",
        with_outputs(lambda y, h: {"logits": y, "hidden": h}),
        (5,),
        select=lambda out: out["logits"],
    ),
    TorchCase("object-output", with_outputs(ModelOutput), (5,), select=lambda out: out.logits),
    TorchCase(
        "tuple-output",
        with_outputs(lambda y, h: (y, h)),
        (5,),
        select=lambda out: out[1],
        notes="the head is not reached: a zero block",
    ),
    TorchCase("select-part-of-outputs", lambda: mlp(5, 4, 6), (5,), select=lambda y: y[:, ::2]),
    TorchCase(
        "select-of-token-model",
        lambda: Net(
            lambda m, x: m.head(m.table(x)), table=nn.Embedding(6, 4), head=nn.Linear(4, 3)
        ),
        tokens(6, 5),
        select=lambda y: torch.log_softmax(y[:, -1], -1),
    ),
    TorchCase(
        "in-place-on-the-input",
        lambda: Net(lambda m, x: m.body(x.mul_(0.5)), body=mlp(5, 4, 3)),
        (5,),
        kind="either",
        match="in.place|input",
        notes="the caller's x must not change, however often the forward pass runs",
    ),
]


def _quiet_script(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)
