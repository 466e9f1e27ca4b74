# SPDX-License-Identifier: Apache-2.0
"""Models whose Jacobians come in closed form."""

from __future__ import annotations

from fastfisher.models.mlp import MLP

__all__ = ["MLP"]
