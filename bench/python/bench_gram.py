# SPDX-License-Identifier: Apache-2.0
"""The dense Gram of the 784-1024-1024-1024-10 ReLU network: floor, best torch expression, memory.

Floor: the counted multiply-adds of the Gram, halved by symmetry, factors in hand, at the rate of a
2048^3 product. Rival: two products a layer and an in-place multiply-accumulate, in torch (numpy
where torch is not installed). Both write to memory that is there already, for the first touch of
fresh pages costs whatever the system makes of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

import fastfisher as ff

from . import harness

WIDTHS = (784, 1024, 1024, 1024, 10)


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record a case; `quick` takes a quarter of the samples."""
    yield small_calls()
    rate = harness.MatmulRate("float32")
    scale = 4 if quick else 1
    for outputs, n, c in (("full", 1024, 10), ("trace", 1024, 10), ("full", 4096, 1)):
        yield one_case(outputs, n // scale, c, rate, rounds=3 if quick else 5)


def one_case(
    outputs: str, n: int, c: int, rate: harness.MatmulRate, rounds: int
) -> dict[str, object]:
    """Check against float64, then time."""
    model = ff.models.MLP(
        (*WIDTHS[:-1], c), activation="relu", sigma_b2=0.1, seed=1, dtype="float32"
    )
    x = np.random.default_rng(0).standard_normal((n, WIDTHS[0])).astype("float32")
    jacobian = ff.jacobian(model, x)
    got = jacobian.gram(outputs=outputs)
    error = _error(jacobian, got, outputs)
    extra = harness.extra_memory(lambda: jacobian.gram(outputs=outputs))
    name, rival = _rival(jacobian, outputs)
    rival_error = _difference(rival(), got)
    flops = (
        float(n)
        * n
        * sum(
            layer.a.shape[1] + (c * c if outputs == "full" else c) * layer.g.shape[2]
            for layer in jacobian.layers
        )
    )  # 2 a multiply-add, halved by symmetry
    timing = harness.interleave(
        lambda: jacobian.gram(outputs=outputs, out=got), flops, rate, rival, rounds=rounds
    )
    return {
        "op": "gram",
        "case": f"MLP 784-1024x3-{c}, N={n}, {outputs}",
        "seconds": timing.seconds,
        "floor_seconds": timing.floor_seconds,
        "ratio_to_floor": timing.ratio_to_floor,
        "rival": name,
        "rival_ratio": timing.rival_ratio,
        "error": max(error, rival_error),
        "tolerance": 1e-5,
        "extra_bytes": extra,
    }


def _error(jacobian: ff.Jacobian, got: np.ndarray, outputs: str) -> float:
    """Error norm-wise over a few samples, against float64."""
    n = got.shape[0]
    pick = np.unique(np.linspace(0, n - 1, 7).astype(int))
    layers = [
        ff.Dense(layer.a[pick].astype(float), layer.g[pick].astype(float), bias=layer.bias)
        for layer in jacobian.layers
    ]
    dense = ff.Jacobian.from_factors(layers).dense()
    expected = (dense @ dense.T).reshape([len(pick), jacobian.n_outputs] * 2)
    part = got[pick][:, :, pick] if outputs == "full" else got[pick][:, pick]
    if outputs == "trace":
        expected = np.einsum("ncmc->nm", expected)
    return float(np.linalg.norm(part - expected) / np.linalg.norm(expected))


def _difference(x: np.ndarray, y: np.ndarray) -> float:
    x = np.asarray(x).reshape(y.shape)
    rows = slice(0, None, max(1, len(y) // 64))
    return float(np.linalg.norm(x[rows] - y[rows]) / np.linalg.norm(y[rows]))


def _rival(jacobian: ff.Jacobian, outputs: str):
    """Return the best public expression for the same Gram, and its name."""
    torch = harness.torch_or_none()
    factors = [(layer.a, layer.g, float(layer.bias)) for layer in jacobian.layers]
    n, c = jacobian.samples, jacobian.n_outputs
    flat = outputs == "trace" or c == 1
    if torch is None:
        rows = n if flat else n * c
        out, term = (np.empty((rows, rows), "float32") for _ in range(2))
        shape = (n, n) if flat else (n, c, n, c)

        def by_numpy() -> np.ndarray:
            for index, (a, g, bias) in enumerate(factors):
                p = a @ a.T
                p += bias
                q = g.reshape(rows, -1)
                np.matmul(q, q.T, out=term if index else out)
                product = (term if index else out).reshape(shape)
                product *= p if flat else p[:, None, :, None]
                if index:
                    np.add(out, term, out=out)
            return out

        return "numpy, two products a layer", by_numpy

    # Copies, since torch warns about arrays that are not writable.
    tensors = [(torch.tensor(a), torch.tensor(g), bias) for a, g, bias in factors]
    rows = n if flat else n * c
    out, term = torch.empty(rows, rows), torch.empty(rows, rows)
    shape = (n, n) if flat else (n, c, n, c)

    def by_torch():
        for index, (a, g, bias) in enumerate(tensors):
            p = (a @ a.T).add_(bias)
            q = g.reshape(rows, -1)
            if not flat:
                p = p[:, None, :, None]
            if index:
                torch.mm(q, q.T, out=term)
                out.view(shape).addcmul_(term.view(shape), p)
            else:
                torch.mm(q, q.T, out=out)
                out.view(shape).mul_(p)
        return out

    return "torch, two products a layer", by_torch


def small_calls() -> dict[str, object]:
    """Median of 1,000 calls on a tiny layer: the price of a call."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 32)).astype("float32")
    g = rng.standard_normal((8, 1, 32)).astype("float32")
    expected = (a.astype(float) @ a.T) * (g[:, 0].astype(float) @ g[:, 0].T)
    error = np.linalg.norm(ff.gram(a, g)[:, 0, :, 0] - expected) / np.linalg.norm(expected)
    seconds = [harness.seconds_of(lambda: ff.gram(a, g)) for _ in range(1000)]
    return {
        "op": "gram",
        "case": "1,000 small calls, N=8, I=O=32",
        "seconds": statistics.median(seconds),
        "floor_seconds": None,
        "ratio_to_floor": None,
        "rival": None,
        "rival_ratio": None,
        "error": float(error),
        "tolerance": 1e-6,
    }
