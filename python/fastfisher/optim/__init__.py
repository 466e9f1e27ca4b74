# SPDX-License-Identifier: Apache-2.0
"""Optimisers and schedulers of torch that use the curvature; needs torch."""

from __future__ import annotations

from fastfisher.optim.critical_lr import CriticalLR

__all__ = ["CriticalLR"]
