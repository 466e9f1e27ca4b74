# SPDX-License-Identifier: Apache-2.0
"""The Gram of shared weights, convolutions and batches: floor, formed Jacobians in torch, memory.

Floor: the counted multiply-adds of the best of S1, S3 and S4, halved by symmetry, with what is
formed once a sample, factors in hand, at the rate of a 2048^3 product. Pairs of positions count as
T^2 (i + C^2 o), which contracting one side first undercuts. Rival: per-sample gradients of a layer
formed in torch (numpy where torch is not installed), then one product with their transpose.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

import numpy as np

import fastfisher as ff

from . import harness

CHANNELS = ((3, 32), (32, 64), (64, 128))


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record a case; `quick` takes a quarter of the samples."""
    scale = 4 if quick else 1
    rate = harness.MatmulRate("float32")
    rounds = 3 if quick else 5
    for n in (32, 128):
        layers = [_shared(n // scale, 64, 128, 128, 10)]
        yield one_case(f"shared, T=64, I=O=128, C=10, N={n // scale}", layers, rate, rounds)
    n = 64 // scale
    for method in ("S1", "S4"):
        layers = [_conv(n, *pair, separable=False) for pair in CHANNELS]
        if method == "S4":
            layers[-1] = _conv(n, *CHANNELS[-1], separable=True)
        name = "" if method == "S1" else ", the last one separable"
        yield one_case(f"CNN 3-32-64-128 on 32x32{name}, C=10, N={n}", layers, rate, rounds)
    layers = [_shared(256 // scale, 4, 512, 512, 10)]
    yield one_case(f"shared, T=4, I=O=512, C=10, N={256 // scale}", layers, rate, rounds)
    for n in (16, 128):
        yield explicit(n, 2_000_000 // scale, rate, rounds)
    yield batch_of_networks(256 // scale)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape, dtype="float32")


def _shared(n: int, t: int, i: int, o: int, c: int) -> ff.Shared:
    return ff.Shared(_normal(n, t, i), _normal(n, c, t, o))


def _conv(n: int, i: int, o: int, *, separable: bool) -> ff.Conv:
    space = (32, 32)
    g = _normal(n, 10, o, *space) if not separable else None
    cotangents = g if g is not None else ff.Separable(_normal(n, o, *space), _normal(10, o))
    return ff.Conv(_normal(n, i, *space), cotangents, kernel=3, padding=1)


def floor_flops(layer: ff.Shared | ff.Conv) -> float:
    """Count 2 for a multiply-add of the cheapest of S1, S3 and S4."""
    n, c, t = layer.samples, layer.n_outputs, layer.positions
    i, o = layer.in_features, layer.out_features
    pairs = n * n / 2
    methods = [
        pairs * c * c * i * o + n * t * c * i * o,  # S1
        pairs * t * t * (i + c * c * o),  # S3
    ]
    if layer.w is not None:
        methods.append(pairs * o * (i + c * c) + n * t * i * o)  # S4
    return 2 * min(methods)


def one_case(
    case: str, layers: list[ff.Shared | ff.Conv], rate: harness.MatmulRate, rounds: int
) -> dict[str, object]:
    """Check against float64, then time."""
    jacobian = ff.Jacobian.from_factors(layers)
    got = jacobian.gram()
    error = _error(layers, got)
    extra = harness.extra_memory(lambda: jacobian.gram())
    name, rival = _rival(layers)
    rival_error = float(np.linalg.norm(np.asarray(rival()).ravel() - got.ravel()))
    rival_error /= float(np.linalg.norm(got))
    flops = sum(floor_flops(layer) for layer in layers)
    timing = harness.interleave(lambda: jacobian.gram(out=got), flops, rate, rival, rounds=rounds)
    return {
        "op": "gram",
        "case": case,
        "seconds": timing.seconds,
        "floor_seconds": timing.floor_seconds,
        "ratio_to_floor": timing.ratio_to_floor,
        "rival": name,
        "rival_ratio": timing.rival_ratio,
        "error": max(error, rival_error),
        "tolerance": 1e-5,
        "extra_bytes": extra,
    }


def explicit(n: int, p: int, rate: harness.MatmulRate, rounds: int) -> dict[str, object]:
    """Few gradients of many parameters, as they lie, against one product with their transpose.

    The floor counts multiply-adds: with few rows, reading them takes longer.
    """
    j = _normal(n, 1, p)
    jacobian = ff.Jacobian.from_factors([ff.Explicit(j)])
    torch = harness.torch_or_none()
    rows = j[:, 0] if torch is None else torch.from_numpy(j[:, 0])
    got, wide = jacobian.gram(), j[:3, 0].astype(float)
    expected = wide @ wide.T
    error = np.linalg.norm(got[:3, 0, :3, 0] - expected) / np.linalg.norm(expected)
    timing = harness.interleave(
        lambda: jacobian.gram(out=got), 1.0 * n * n * p, rate, lambda: rows @ rows.T, rounds
    )
    return {
        "op": "gram",
        "case": f"explicit, N={n}, P={p}",
        "seconds": timing.seconds,
        "floor_seconds": timing.floor_seconds,
        "ratio_to_floor": timing.ratio_to_floor,
        "rival": "numpy, J J^T" if torch is None else "torch, J J^T",
        "rival_ratio": timing.rival_ratio,
        "error": float(error),
        "tolerance": 1e-5,
    }


def _error(layers: list[ff.Shared | ff.Conv], got: np.ndarray) -> float:
    """Error norm-wise over a few samples, against float64."""
    pick = np.unique(np.linspace(0, len(got) - 1, 5).astype(int))
    dense = np.concatenate([_few(layer, pick).block() for layer in layers], -1)
    expected = np.tensordot(dense, dense, axes=(2, 2))
    part = got[pick][:, :, pick]
    return float(np.linalg.norm(part - expected) / np.linalg.norm(expected))


def _few(layer: ff.Shared | ff.Conv, pick: np.ndarray) -> ff.Shared | ff.Conv:
    a, g = layer.a[pick].astype(float), layer.g[pick].astype(float)
    cotangents = g if layer.w is None else ff.Separable(g, layer.w.astype(float))
    if isinstance(layer, ff.Conv):
        return ff.Conv(a, cotangents, kernel=layer.kernel, padding=layer.padding)
    return ff.Shared(a, cotangents)


def _rival(layers: list[ff.Shared | ff.Conv]) -> tuple[str, Callable[[], object]]:
    """Gradients of every sample formed, one layer at a time, then J J^T."""
    torch = harness.torch_or_none()
    if torch is None:

        def by_numpy() -> np.ndarray:
            total = 0
            for layer in layers:
                j = layer.block().reshape(layer.samples * layer.n_outputs, -1)
                total = total + j @ j.T
            return total

        return "numpy, formed Jacobians", by_numpy

    tensors = [
        (
            torch.from_numpy(x.a),
            torch.from_numpy(x.g),
            x.w if x.w is None else torch.from_numpy(x.w),
        )
        for x in layers
    ]

    def by_torch():
        total = None
        for layer, (a, g, w) in zip(layers, tensors, strict=True):
            n = a.shape[0]
            if isinstance(layer, ff.Conv):
                unfolded = torch.nn.functional.unfold(a, 3, padding=1).transpose(1, 2)
                g = g.flatten(-2)
            else:
                unfolded, g = a, g.transpose(-1, -2)
            if w is None:
                c = g.shape[1]
                j = torch.bmm(g.reshape(n, c * g.shape[2], -1), unfolded).reshape(n * c, -1)
            else:
                common = torch.bmm(g, unfolded)  # (n, o, i)
                j = (w[None, :, :, None] * common[:, None]).reshape(n * w.shape[0], -1)
            total = j @ j.T if total is None else total.addmm_(j, j.T)
        return total

    return "torch, formed Jacobians", by_torch


def batch_of_networks(networks: int) -> dict[str, object]:
    """Many small networks in one call against a Python loop over them."""
    n, width, depth = 16, 32, 3
    layers = [
        ff.Dense(_normal(networks, n, width), _normal(networks, n, 1, width), bias=True, batch=True)
        for _ in range(depth)
    ]
    jacobian = ff.Jacobian.from_factors(layers)
    singles = [
        ff.Jacobian.from_factors([ff.Dense(x.a[e], x.g[e], bias=True) for x in layers])
        for e in range(networks)
    ]

    def loop() -> np.ndarray:
        return np.stack([single.gram() for single in singles])

    got = jacobian.gram()
    error = float(np.abs(got - loop()).max())
    seconds, ratios = [], []
    for _ in range(20):
        seconds.append(harness.seconds_of(jacobian.gram))
        ratios.append(harness.seconds_of(loop) / seconds[-1])
    return {
        "op": "gram",
        "case": f"{networks} networks, N={n}, C=1, three layers of width {width}",
        "seconds": statistics.median(seconds),
        "floor_seconds": None,
        "ratio_to_floor": None,
        "rival": "a Python loop over gram",
        "rival_ratio": statistics.median(ratios),
        "error": error,
        "tolerance": 0.0,
    }
