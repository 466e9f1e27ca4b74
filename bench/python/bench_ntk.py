# SPDX-License-Identifier: Apache-2.0
"""Kernels of torch models whose Jacobian does not fit: in bounded memory, streamed to a file.

Floor: forward pass, backward to every layer's outputs for the C cotangents, and the Gram, at the
matrix-product rate. The head-to-head comparison is in ``peers``.
"""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastfisher as ff

from . import harness

WIDTHS = (784, 1024, 1024, 1024, 10)
LIMIT = 512 << 20
WIDE = 4096
CHANNELS = (3, 64, 128, 256)


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield a record of a kernel (100, 60000) in a memmap, and of 64 samples of two large models.

    Those two have Jacobians of 51 GB (a wide layer) and of 1 GB (convolutions and pooling).
    """
    if harness.torch_or_none() is None:
        return
    yield _streamed(quick)
    yield from _small(quick)


def _streamed(quick: bool) -> dict[str, object]:
    torch = harness.torch_or_none()
    n, m = 100, 2000 if quick else 60000
    torch.manual_seed(0)
    layers = []
    for i, o in itertools.pairwise(WIDTHS):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    x, x2 = torch.randn(n, WIDTHS[0]), torch.randn(m, WIDTHS[0])
    error = _error(torch, model, x[:2], x2[:3])
    with tempfile.TemporaryDirectory() as folder:
        out = np.memmap(Path(folder) / "kernel.bin", np.float32, "w+", shape=(n, m))

        def stream() -> np.ndarray:
            ff.ntk(model, x, x2, outputs="trace", memory_limit=LIMIT, out=out)
            return out

        timing = harness.interleave(
            stream, _flops(n, m), harness.MatmulRate("float32"), None, 3 if quick else 1
        )
        extra = harness.extra_memory(stream)
    case = f"MLP, ({n}, {m}) trace to a file, limit 512 MiB"
    return _record(case, timing, error, extra)


def _small(quick: bool) -> Iterator[dict[str, object]]:
    from torch import nn

    from .peers_models import Layer, Workload

    def wide() -> nn.Module:
        parts = [nn.Linear(784, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(WIDE, 10))

    def pooled() -> nn.Module:
        parts: list[nn.Module] = []
        for i, o in itertools.pairwise(CHANNELS):
            parts += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*parts, *pool, nn.Linear(CHANNELS[-1], 10))

    dense = [Layer(1, 784, WIDE), Layer(1, WIDE, WIDE), Layer(1, WIDE, 10)]
    convolutions = [Layer(1024, 9 * i, o) for i, o in itertools.pairwise(CHANNELS[:-1])]
    convolutions.append(Layer(1024, 9 * CHANNELS[-2], CHANNELS[-1], separable=True))
    head = Layer(1, CHANNELS[-1], 10)
    n = 8 if quick else 64
    for workload in (
        Workload(f"MLP 784-{WIDE}x2-10", wide, (784,), tuple(dense)),
        Workload("CNN 3-64-128-256, pool", pooled, (3, 32, 32), (*convolutions, head)),
    ):
        model, x = workload.build(n)
        error = _error(harness.torch_or_none(), model, x[:2], x[2:4])
        call = functools.partial(ff.ntk, model, x, memory_limit=LIMIT)
        rate = harness.MatmulRate("float32")
        timing = harness.interleave(call, workload.floor(n, "full"), rate, None, 3)
        case = f"{workload.name}, N={n}, full, limit 512 MiB"
        yield _record(case, timing, error, harness.extra_memory(call))


def _record(
    case: str, timing: harness.Timing, error: float, extra: int | None
) -> dict[str, object]:
    return {
        "op": "ntk",
        "case": case,
        "seconds": timing.seconds,
        "floor_seconds": timing.floor_seconds,
        "ratio_to_floor": timing.ratio_to_floor,
        "rival": None,
        "rival_ratio": None,
        "error": error,
        "tolerance": 1e-5,
        "extra_bytes": extra,
    }


def _error(torch, model, x, x2) -> float:
    """Relative error on few samples against gradients of autograd in float64, one at a time."""
    exact = copy.deepcopy(model).double()
    parameters = list(exact.parameters())
    expected = torch.zeros(len(x), len(x2), dtype=torch.float64)
    for c in range(WIDTHS[-1]):
        left, right = (
            [torch.autograd.grad(exact(row[None].double())[0, c], parameters) for row in rows]
            for rows in (x, x2)
        )
        for n, first in enumerate(left):
            for m, second in enumerate(right):
                expected[n, m] += sum((a * b).sum() for a, b in zip(first, second, strict=True))
    got = ff.ntk(model, x, x2, outputs="trace").double()
    return float((got - expected).norm() / expected.norm())


def _flops(n: int, m: int) -> float:
    c, flops = WIDTHS[-1], 0.0
    for k, (i, o) in enumerate(itertools.pairwise(WIDTHS)):
        flops += 2.0 * (n + m) * i * o * (1 + (c if k else 0))
        flops += 2.0 * n * m * (i + c * o)
    return flops
