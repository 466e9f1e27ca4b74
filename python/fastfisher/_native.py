# SPDX-License-Identifier: Apache-2.0
"""The native waist: typed calls to ``_core`` with arrays checked and outputs allocated.

Knows neither layers nor approximations; whoever calls turns a report into an exception.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastfisher import _core
from fastfisher._arrays import Array, dtype_name, scratch, stream_of

GRAM_OUTPUTS = {"full": 0, "trace": 1, "diagonal": 2}
OK, NON_FINITE, OVERFLOW = 0, 1, 2

Factors = tuple[Array, Array, bool]
"""One layer as (a, g, bias)."""


class GramReport(NamedTuple):
    """What the native Gram found: `kind` is OK, NON_FINITE or OVERFLOW, the rest says where."""

    kind: int
    side: int
    layer: int
    argument: int
    position: int


def gram(
    left: list[Factors],
    right: list[Factors],
    out: Array,
    *,
    outputs: str,
    exact: bool,
    memory_limit: int,
    threads: int,
) -> GramReport:
    """Gram of `left` with `right` (empty: with itself) into `out`."""
    kind = GRAM_OUTPUTS[outputs]
    stream = stream_of(out)
    size = _core.gram_workspace(
        [(a.shape, g.shape) for a, g, _ in left],
        [(a.shape, g.shape) for a, g, _ in right],
        4 if dtype_name(out) == "float32" else 8,
        stream != 0,
        kind,
        exact,
        memory_limit,
        threads,
    )
    workspace = np.empty(size, np.uint8) if stream == 0 else scratch(size, out)
    return GramReport(
        *_core.gram(left, right, out, workspace, kind, exact, memory_limit, stream, threads)
    )


def matmul(a: Array, b: Array, out: Array, *, threads: int = 0) -> None:
    """Write the product of `a` (n, k) and `b` (k, m) to `out`, by the bundled BLAS."""
    _core.matmul(a, b, out, stream_of(out), threads)


def build_info() -> dict[str, Any]:
    """Version, compiler, BLAS, instruction set, threads and the state of each backend."""
    return _core.build_info()
