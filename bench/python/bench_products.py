# SPDX-License-Identifier: Apache-2.0
"""J v and J^T u from factors: a network of dense layers, a shared weight and a convolution.

Floor: the counted multiply-adds at the rate of a 2048^3 product of the same run. Beside it two
ratios that excuse what the floor does not: to the roofline, the longer of that floor and of the
bytes that must be moved (factors, v and result once) at the rate at which as many threads read the
largest g of the case; and to the same multiply-adds at the rate of a product of the largest layer's
own shape. None of them allows for both at once: arithmetic and reading must overlap to reach 1.
Rival: the same two products a layer in torch
(numpy where torch is not installed); for the convolution it unfolds with torch's own unfold.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import fastfisher as ff
from fastfisher import _native

from . import harness

WIDTHS = (784, 1024, 1024, 1024, 10)


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record a case, op and number of columns; `quick` takes a quarter of the samples."""
    rate = harness.MatmulRate("float32")
    scale = 4 if quick else 1
    for case, jacobian in cases(scale):
        for columns in (1, 8):
            for op in ("jvp", "vjp"):
                yield one_case(op, case, jacobian, columns, rate, rounds=3 if quick else 5)
    yield from small_calls()


def cases(scale: int) -> Iterator[tuple[str, ff.Jacobian]]:
    """Names and Jacobians."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype="float32")

    n = 1024 // scale
    model = ff.models.MLP(WIDTHS, activation="relu", sigma_b2=0.1, seed=1, dtype="float32")
    yield f"MLP 784-1024x3-10, N={n}", ff.jacobian(model, draw(n, WIDTHS[0]))
    n = 128 // scale
    layer = ff.Shared(draw(n, 64, 128), draw(n, 10, 64, 128), bias=True)
    yield f"shared T=64 128->128 C=10, N={n}", ff.Jacobian.from_factors([layer])
    n = 64 // scale
    conv = ff.Conv(draw(n, 64, 32, 32), draw(n, 10, 128, 32, 32), kernel=3, padding=1, bias=True)
    yield f"conv 3x3 64->128 on 32x32 C=10, N={n}", ff.Jacobian.from_factors([conv])


class ReadRate:
    """Bytes a second at which all threads read an array: the faster of numpy and torch."""

    def __init__(self, data: np.ndarray) -> None:
        self.size = data.nbytes
        flat = data.flatten()
        threads = len(os.sched_getaffinity(0))
        pool, parts = ThreadPoolExecutor(threads), np.array_split(flat, threads)
        self.calls: list[Callable[[], object]] = [lambda: list(pool.map(np.dot, parts, parts))]
        torch = harness.torch_or_none()
        if torch is not None:
            self.calls.append(torch.from_numpy(flat).sum)

    def measure(self) -> float:
        """Rate now."""
        return self.size / min(harness.settled_seconds_of(call) for call in self.calls)


class ShapeRate:
    """Flops a second of the product a W of the layer with the most work, by our BLAS."""

    def __init__(self, jacobian: ff.Jacobian, columns: int) -> None:
        layer = max(
            jacobian.layers,
            key=lambda x: getattr(x, "positions", 1) * x.in_features * x.out_features,
        )
        rows = min(layer.samples * getattr(layer, "positions", 1), 1 << 15)
        a = np.ones((rows, layer.in_features), np.float32)
        w = np.ones((layer.in_features, layer.out_features * columns), np.float32)
        out = np.empty((rows, layer.out_features * columns), np.float32)
        self.flops = 2.0 * a.size * w.shape[1]
        self.call = lambda: _native.matmul(a, w, out)
        self.call()

    def measure(self) -> float:
        """Rate now."""
        return self.flops / harness.settled_seconds_of(self.call)


def flops_and_bytes(jacobian: ff.Jacobian, columns: int) -> tuple[float, float]:
    """Twice the multiply-adds, and the bytes of factors, vector and result."""
    flops, size = 0.0, 4.0 * sum(jacobian.shape) * columns
    for layer in jacobian.layers:
        rows = float(layer.samples * getattr(layer, "positions", 1) * layer.out_features)
        flops += 2 * rows * (layer.in_features + layer.n_outputs) * columns
        size += sum(array.nbytes for array in layer.arrays.values())
    return flops, size


def one_case(
    op: str,
    case: str,
    jacobian: ff.Jacobian,
    columns: int,
    rate: harness.MatmulRate,
    rounds: int,
) -> dict[str, object]:
    """Check against the rival in float64 for a few samples, then time."""
    rng = np.random.default_rng(1)
    rows, parameters = jacobian.shape
    v = rng.standard_normal((parameters if op == "jvp" else rows, columns), dtype="float32")

    def call() -> np.ndarray:
        return jacobian @ v if op == "jvp" else jacobian.T @ v

    rival = RIVALS[op](jacobian, v)
    got, expected = call(), np.asarray(rival())
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    flops, size = flops_and_bytes(jacobian, columns)
    read = ReadRate(max((layer.arrays["g"] for layer in jacobian.layers), key=lambda g: g.nbytes))
    shape = ShapeRate(jacobian, columns)
    seconds, floors, roofs, shapes, rivals = [], [], [], [], []
    for _ in range(rounds):
        before = rate.measure()
        seconds.append(harness.settled_seconds_of(call))
        reading = size / read.measure()
        floors.append(flops / harness.between(before, rate.measure()))
        roofs.append(seconds[-1] / max(floors[-1], reading))
        shapes.append(seconds[-1] / flops * shape.measure())
        rivals.append(harness.settled_seconds_of(rival) / seconds[-1])
    return {
        "op": op,
        "case": f"{case}, k={columns}",
        "seconds": statistics.median(seconds),
        "floor_seconds": statistics.median(floors),
        "ratio_to_floor": statistics.median(s / f for s, f in zip(seconds, floors, strict=True)),
        "ratio_to_roofline": statistics.median(roofs),
        "ratio_to_shape": statistics.median(shapes),
        "rival": "torch, two products a layer" if harness.torch_or_none() else "numpy",
        "rival_ratio": statistics.median(rivals),
        "error": float(error),
        "tolerance": 1e-5,
    }


def _patches(layer: ff.Conv) -> np.ndarray:
    """Unfolded input (n, i, s), by torch where it is installed."""
    torch = harness.torch_or_none()
    if torch is None:
        return layer.patches()[:, 0].swapaxes(1, 2)
    unfold = torch.nn.functional.unfold
    return unfold(torch.from_numpy(layer.a), layer.kernel, padding=layer.padding)


def _views(jacobian: ff.Jacobian) -> list[tuple[object, object, bool]]:
    """Each layer as (a, g, whether it is a convolution), in torch where it is installed."""
    torch = harness.torch_or_none()

    def convert(x: np.ndarray) -> object:
        return x if torch is None else torch.tensor(x)

    return [(convert(layer.a), convert(layer.g), layer) for layer in jacobian.layers]


def _jvp_rival(jacobian: ff.Jacobian, v: np.ndarray) -> Callable[[], object]:
    views, columns = _views(jacobian), v.shape[1]
    torch = harness.torch_or_none()
    v = v if torch is None else torch.from_numpy(v)
    n, c = jacobian.samples, jacobian.n_outputs

    def call():
        total, start = 0, 0
        for a, g, layer in views:
            o, i = layer.out_features, layer.in_features
            weight = v[start : start + o * i].reshape(o, i, columns)
            bias = v[start + o * i : start + o * (i + 1)]
            start += o * (i + 1)
            if isinstance(layer, ff.Conv):
                z = weight.swapaxes(1, 2).reshape(o * columns, i) @ _patches(layer)
                z = z.reshape(n, o, columns, -1) + bias[:, :, None]
                z = z.swapaxes(2, 3).reshape(n, -1, columns)
            else:
                z = a.reshape(-1, i) @ weight.swapaxes(0, 1).reshape(i, o * columns)
                z = (z.reshape(-1, o, columns) + bias).reshape(n, -1, columns)
            total = total + g.reshape(n, c, -1) @ z
        return total.reshape(n * c, columns)

    return call


def _vjp_rival(jacobian: ff.Jacobian, u: np.ndarray) -> Callable[[], object]:
    views, columns = _views(jacobian), u.shape[1]
    torch = harness.torch_or_none()
    n, c = jacobian.samples, jacobian.n_outputs
    u = (u if torch is None else torch.from_numpy(u)).reshape(n, c, columns)
    join = np.concatenate if torch is None else torch.cat

    def call():
        parts = []
        for a, g, layer in views:
            o, i = layer.out_features, layer.in_features
            h = g.reshape(n, c, -1).swapaxes(1, 2) @ u
            if isinstance(layer, ff.Conv):
                h = h.reshape(n, o, -1, columns).swapaxes(2, 3).reshape(n, o * columns, -1)
                weight = (h @ _patches(layer).swapaxes(1, 2)).sum(0)
                weight = weight.reshape(o, columns, i).swapaxes(1, 2)
                bias = h.reshape(n, o, columns, -1).sum((0, 3))
            else:
                h = h.reshape(-1, o * columns)
                weight = (a.reshape(-1, i).T @ h).reshape(i, o, columns).swapaxes(0, 1)
                bias = h.sum(0).reshape(o, columns)
            parts += [weight.reshape(o * i, columns), bias]
        return join(parts, 0)

    return call


RIVALS = {"jvp": _jvp_rival, "vjp": _vjp_rival}


def small_calls() -> Iterator[dict[str, object]]:
    """Median of 1,000 calls on a tiny layer: the price of a call."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 32), dtype="float32")
    g = rng.standard_normal((8, 1, 32), dtype="float32")
    jacobian = ff.Jacobian.from_factors([ff.Dense(a, g)])
    matrix = jacobian.dense().astype(float)
    for op, side in (("jvp", jacobian), ("vjp", jacobian.T)):
        v = rng.standard_normal(side.shape[1], dtype="float32")
        expected = (matrix if op == "jvp" else matrix.T) @ v
        error = np.linalg.norm(side @ v - expected) / np.linalg.norm(expected)
        seconds = [harness.seconds_of(lambda: side @ v) for _ in range(1000)]  # noqa: B023
        yield {
            "op": op,
            "case": "1,000 small calls, N=8, I=O=32",
            "seconds": statistics.median(seconds),
            "floor_seconds": None,
            "ratio_to_floor": None,
            "rival": None,
            "rival_ratio": None,
            "error": float(error),
            "tolerance": 1e-6,
        }
