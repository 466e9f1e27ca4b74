# SPDX-License-Identifier: Apache-2.0
"""Reference of `gram`: per-sample Jacobians written out, then one product."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Factors = tuple[Array, Array, bool]


def dense_jacobian(layers: list[Factors]) -> Array:
    """Jacobian (n, c, p) of `layers` (a, g, bias), parameters [W row-major, b] layer by layer."""
    blocks = []
    for a, g, bias in layers:
        n, c, o = g.shape
        blocks.append(np.einsum("nco,ni->ncoi", g, a).reshape(n, c, o * a.shape[1]))
        if bias:
            blocks.append(g)
    return np.asarray(np.concatenate(blocks, axis=2), dtype=np.float64)


def gram(left: list[Factors], right: list[Factors] | None = None, outputs: str = "full") -> Array:
    """Gram of `left` with `right` (None: itself), outputs as those of ``fastfisher.gram``."""
    j = dense_jacobian(left)
    k = j if right is None else dense_jacobian(right)
    full: Array = np.tensordot(j, k, axes=(2, 2))
    if outputs == "full":
        return full
    diagonal: Array = np.einsum("ncmc->nmc", full)
    return diagonal if outputs == "diagonal" else np.asarray(diagonal.sum(axis=2))
