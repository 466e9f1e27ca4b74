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
    if outputs == "sum":
        return np.asarray(j.sum(axis=1) @ k.sum(axis=1).T)
    if not isinstance(outputs, str):
        return np.asarray(j[:, outputs] @ k[:, outputs].T)
    full: Array = np.tensordot(j, k, axes=(2, 2))
    if outputs == "full":
        return full
    diagonal: Array = np.einsum("ncmc->nmc", full)
    return diagonal if outputs == "diagonal" else np.asarray(diagonal.sum(axis=2))
