# SPDX-License-Identifier: Apache-2.0
"""A small network, batches and steps that the hard tests of KFAC and EKFAC share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

from fastfisher.optim import EKFAC, KFAC  # noqa: E402

F = nn.functional
BOTH = pytest.mark.parametrize("cls", [KFAC, EKFAC])


def network(seed: int = 0, dtype: Any = torch.float64) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(n: int = 8, seed: int = 1, dtype: Any = torch.float64) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 4, generator=generator).to(dtype),
        torch.randint(3, (n,), generator=generator),
    )


def flat(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def train(model: Any, optimizer: Any, x: Any, y: Any) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def means(optimizer: Any) -> list[Any]:
    """All running means."""
    states = optimizer.curvature.states.values()
    return [x.copy() for s in states for mean in (s.a, s.g, s.moments) for x in mean.arrays]


def same(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
