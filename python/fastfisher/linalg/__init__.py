# SPDX-License-Identifier: Apache-2.0
"""Certified eigenvalues of symmetric matrices and operators."""

from __future__ import annotations

from fastfisher.linalg._eigsh import EigshResult, eigsh

__all__ = ["EigshResult", "eigsh"]
