# SPDX-License-Identifier: Apache-2.0
"""What a sample costs in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes a sample: its factors while they are kept, and what their capture needs besides."""

    factors: float
    graph: float
    fixed: float = 0.0
