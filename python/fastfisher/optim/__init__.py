# SPDX-License-Identifier: Apache-2.0
"""Optimisers and schedulers of torch that use the curvature; needs torch."""

from __future__ import annotations

from fastfisher.optim.critical_lr import CriticalLR
from fastfisher.optim.ekfac import EKFAC
from fastfisher.optim.kfac import KFAC
from fastfisher.optim.ngd import NGD
from fastfisher.optim.spring import SPRING

__all__ = ["EKFAC", "KFAC", "NGD", "SPRING", "CriticalLR"]
