# SPDX-License-Identifier: Apache-2.0
"""What a capture costs in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes of a sample's factors while they are kept, and of a capture under way."""

    factors: float
    capture: float
