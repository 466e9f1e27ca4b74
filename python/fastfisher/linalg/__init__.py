# SPDX-License-Identifier: Apache-2.0
"""Certified eigenvalues, densities, traces and solves of symmetric matrices and operators."""

from __future__ import annotations

from fastfisher.linalg._cg import CgResult, cg
from fastfisher.linalg._eigsh import EigshResult, eigsh
from fastfisher.linalg._functions import (
    Density,
    Estimate,
    logdet,
    spectral_density,
    trace,
)

__all__ = [
    "CgResult",
    "Density",
    "EigshResult",
    "Estimate",
    "cg",
    "eigsh",
    "logdet",
    "spectral_density",
    "trace",
]
