# SPDX-License-Identifier: Apache-2.0
"""Kernels of torch models that do not fit: streamed to a file, in bounded memory.

Floor: forward pass, backward to every layer's outputs for the C cotangents, and the cross Gram, at
the matrix-product rate. The head-to-head comparison is in ``peers``.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastfisher as ff

from . import harness

WIDTHS = (784, 1024, 1024, 1024, 10)
LIMIT = 512 << 20


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record: a kernel (100, 60000) of ten outputs' trace, into a memmap."""
    torch = harness.torch_or_none()
    if torch is None:
        return
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
    yield {
        "op": "ntk",
        "case": f"MLP, ({n}, {m}) trace to a file, limit 512 MiB",
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
