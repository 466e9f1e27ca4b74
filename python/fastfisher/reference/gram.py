# SPDX-License-Identifier: Apache-2.0
"""Reference of `gram`: per-sample Jacobians written out, then one product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastfisher.reference.layers import Array, Layer, dense_jacobian


def gram(
    left: Sequence[Layer], right: Sequence[Layer] | None = None, outputs: str | int = "full"
) -> Array:
    """Gram of `left` with `right` (None: itself), outputs as those of ``fastfisher.gram``."""
    j = dense_jacobian(left)
    k = j if right is None else dense_jacobian(right)
    return outputs_of(np.tensordot(j, k, axes=(2, 2)), outputs)


def outputs_of(full: Array, outputs: str | int) -> Array:
    """Compute the form `outputs` of the Gram (n, c, m, d)."""
    if outputs == "full":
        return full
    if outputs == "sum":
        return np.asarray(full.sum(axis=(1, 3)))
    diagonal: Array = np.einsum("ncmc->nmc", full)
    if isinstance(outputs, str):
        return diagonal if outputs == "diagonal" else np.asarray(diagonal.sum(axis=2))
    return diagonal[..., outputs]
