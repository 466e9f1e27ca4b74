# SPDX-License-Identifier: Apache-2.0
"""sandwich, what inverse Kronecker factors do to the gradients of 784-1024-1024-1024-10.

Floor: 2 o r (o + r) flops a layer at the rate of a 2048^3 product. Rival: two products a layer
with weight and bias as they lie, in torch (numpy where torch is not installed).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from fastfisher import _native, reference

from . import harness

WIDTHS = (784, 1024, 1024, 1024, 10)


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record a case; `quick` takes a quarter of the widths."""
    widths = [max(10, w // 4) for w in WIDTHS] if quick else WIDTHS
    rate = harness.MatmulRate("float32")
    for bias in (True, False):
        items = list(_items(tuple(widths), bias=bias))
        _native.sandwich(items)
        error = max(_error(item) for item in items)
        name, rival = _rival(items)
        flops = sum(2.0 * len(x.left) * len(x.right) * (len(x.left) + len(x.right)) for x in items)
        timing = harness.interleave(
            lambda items=items: _native.sandwich(items), flops, rate, rival, 3 if quick else 7
        )
        yield {
            "op": "sandwich",
            "case": "x".join(map(str, widths)) + (", biases" if bias else ""),
            "seconds": timing.seconds,
            "floor_seconds": timing.floor_seconds,
            "ratio_to_floor": timing.ratio_to_floor,
            "rival": name,
            "rival_ratio": timing.rival_ratio,
            "error": error,
            "tolerance": 1e-5,
        }


def _items(widths: tuple[int, ...], *, bias: bool) -> Iterator[_native.SandwichItem]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype="float32")

    for i, o in itertools.pairwise(widths):
        w, b = draw(o, i), draw(o if bias else 0)
        yield _native.SandwichItem(
            draw(o, o), w, b, draw(i + bias, i + bias), np.empty_like(w), np.empty_like(b)
        )


def _error(item: _native.SandwichItem) -> float:
    """Error norm-wise against float64."""
    bias = item.b if item.b.size else None
    out, out_b = reference.sandwich(item.left, item.w, bias, item.right)
    error = np.linalg.norm(item.out - out) / np.linalg.norm(out)
    if bias is not None:
        error = max(error, np.linalg.norm(item.out_b - out_b) / np.linalg.norm(out_b))
    return float(error)


def _rival(items: list[_native.SandwichItem]) -> tuple[str, Callable[[], object]]:
    torch = harness.torch_or_none()
    lists = [[x if torch is None else torch.from_numpy(x) for x in item] for item in items]

    def call() -> None:
        for left, w, b, right, *_ in lists:
            i, inner = w.shape[1], left @ w
            if len(b):
                of_b = left @ b
                inner @ right[:i, :i] + of_b[:, None] * right[-1, :-1]
                inner @ right[:i, -1] + of_b * right[-1, -1]
            else:
                inner @ right

    return "numpy" if torch is None else "torch", call
