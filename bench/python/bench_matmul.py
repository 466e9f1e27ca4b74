# SPDX-License-Identifier: Apache-2.0
"""matmul, the yardstick: our BLAS against the fastest of numpy and torch on the same product.

And bmm, rows that meet a weight or matrices of their own: the floor is the counted flops at
that rate, the rival torch's product (numpy's where torch is not installed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastfisher import _native

from . import harness


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record a dtype; the floor is the fastest library's own time."""
    for dtype in ("float32", "float64"):
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((300, 300)).astype(dtype) for _ in range(2))
        out = np.empty_like(a)
        _native.matmul(a, b, out)
        exact = a.astype(float) @ b.astype(float)
        error = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
        rate = harness.MatmulRate(dtype)
        flops = 2.0 * rate.size**3
        timing = harness.interleave(rate.calls["ours"], flops, rate, None, 3 if quick else 7)
        yield from bmms(dtype, rate, 3 if quick else 7)
        yield {
            "op": "matmul",
            "case": f"{rate.size}^3 {dtype}",
            "seconds": timing.seconds,
            "floor_seconds": timing.floor_seconds,
            "ratio_to_floor": timing.ratio_to_floor,
            "rival": None,
            "rival_ratio": None,
            "error": error,
            "tolerance": 20 * float(np.finfo(dtype).eps),
        }


def bmms(dtype: str, rate: harness.MatmulRate, rounds: int) -> Iterator[dict[str, object]]:
    """Yield records of the backward passes of linear layers and of attention."""
    rng = np.random.default_rng(0)
    for e, n, k, m in ((1, 2560, 128, 512), (1, 2560, 512, 128), (160, 64, 64, 32)):
        a, b = (rng.standard_normal(s).astype(dtype) for s in ((e, n, k), (e, k, m)))
        out = np.empty((e, n, m), dtype)
        _native.bmm(a, b, out)
        exact = a.astype(float) @ b.astype(float)
        error = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
        timing = harness.interleave(
            lambda a=a, b=b, out=out: _native.bmm(a, b, out),  # type: ignore[misc]
            2.0 * e * n * k * m,
            rate,
            rival_of(a, b),
            rounds,
        )
        yield {
            "op": "bmm",
            "case": f"{e} x {n}x{k} {k}x{m} {dtype}",
            "seconds": timing.seconds,
            "floor_seconds": timing.floor_seconds,
            "ratio_to_floor": timing.ratio_to_floor,
            "rival": "torch.matmul or numpy's",
            "rival_ratio": timing.rival_ratio,
            "error": error,
            "tolerance": 20 * float(np.finfo(dtype).eps),
        }


def rival_of(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """Torch's product, or numpy's where torch is not installed."""
    torch = harness.torch_or_none()
    if torch is None:
        return lambda: np.matmul(a, b)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: torch.matmul(ta, tb)
