# SPDX-License-Identifier: Apache-2.0
"""Models that `ff.ntk` and `ff.jacobian` must get right, and models that they must refuse."""

from __future__ import annotations

from . import attention, conv, functional, linear, norm, opaque, recurrent, refused
from .base import M, N, TorchCase

__all__ = ["BY_ID", "CASES", "REFUSED", "WORKS", "M", "N", "TorchCase"]

CASES = [
    case
    for family in (linear, conv, norm, recurrent, attention, functional, opaque, refused)
    for case in family.CASES
]
WORKS = [case for case in CASES if case.kind != "refused"]
REFUSED = [case for case in CASES if case.kind == "refused"]
BY_ID = {case.id: case for case in CASES}
