# SPDX-License-Identifier: Apache-2.0
"""matmul, the yardstick: our BLAS against the fastest of numpy and torch on the same product."""

from __future__ import annotations

from collections.abc import Iterator

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
