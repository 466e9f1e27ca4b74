# SPDX-License-Identifier: Apache-2.0
"""Sums over tensors that say whether these are finite, and how far they go along each other."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

# Sums of products below that may have lost terms that float32 has no room for.
_TINY = 1e-20


def finite(tensors: Iterable[torch.Tensor]) -> list[bool]:
    """Tell of each whether it is; a device is waited for once, or twice where one may not be."""
    listed = list(tensors)
    # A sum is finite only if all its terms are, and costs a third; large terms can overflow it.
    sums = [torch.isfinite(x.sum()) for x in listed]
    found: list[bool] = torch.stack(sums).tolist() if sums else []
    return [ok or bool(torch.isfinite(x).all()) for ok, x in zip(found, listed, strict=True)]


def dots(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """Give the inner product of each pair, at least in float32; a device is waited for once.

    Those that float32 may have no room for are summed in float64.
    """
    if not pairs:
        return []
    products = []
    for a, b in pairs:
        kind = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
        products.append(torch.dot(a.reshape(-1).to(kind), b.reshape(-1).to(kind)))
    read: list[float] = torch.stack([x.double() for x in products]).tolist()
    return [
        value if _TINY < abs(value) < math.inf else float((a.double() * b.double()).sum())
        for value, (a, b) in zip(read, pairs, strict=True)
    ]
