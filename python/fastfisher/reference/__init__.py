# SPDX-License-Identifier: Apache-2.0
"""The executable specification: every op in plain numpy float64."""

from __future__ import annotations

from fastfisher.reference.gram import gram
from fastfisher.reference.layers import Conv, Explicit, Separable, Shared, dense_jacobian
from fastfisher.reference.linalg import (
    drawn_rows,
    eigh_ends,
    lanczos_steps,
    largest,
    moments,
    panel_combine,
    panel_dots,
    panel_remove,
    sandwich,
    small_eigh,
    symm,
    symmetry,
)
from fastfisher.reference.matmul import bmm, matmul
from fastfisher.reference.products import jvp, vjp
from fastfisher.reference.psd import psd

__all__ = [
    "Conv",
    "Explicit",
    "Separable",
    "Shared",
    "bmm",
    "dense_jacobian",
    "drawn_rows",
    "eigh_ends",
    "gram",
    "jvp",
    "lanczos_steps",
    "largest",
    "matmul",
    "moments",
    "panel_combine",
    "panel_dots",
    "panel_remove",
    "psd",
    "sandwich",
    "small_eigh",
    "symm",
    "symmetry",
    "vjp",
]
