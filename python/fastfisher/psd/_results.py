# SPDX-License-Identifier: Apache-2.0
"""What is known about one matrix, and the sentences that say why it failed."""

from __future__ import annotations

from dataclasses import dataclass

from fastfisher._arrays import Array

__all__ = ["EighResult", "PsdResult"]


@dataclass(frozen=True)
class PsdResult:
    """Result for one matrix."""

    value: Array
    """The factor, inverse, root or solution; NaN throughout if `status` is ``"failed"``."""
    status: str
    """``"ok"``: nothing was added beyond what was asked; ``"damped"``; ``"failed"``."""
    damping: float
    """What was added to the diagonal, absolute."""
    condition: float
    """Estimate of the condition number with that damping: in the infinity norm for inverses, from
    the eigenvalues for eigh and roots, a lower bound from the pivots for factors and solutions."""
    reason: str
    """Why it was damped or failed; else empty."""


@dataclass(frozen=True)
class EighResult:
    """Eigenvalues and eigenvectors of one matrix; the other fields as in `PsdResult`."""

    values: Array
    """Eigenvalues (n,), ascending, the damping included."""
    vectors: Array
    """Eigenvectors (n, n), as columns."""
    status: str
    damping: float
    condition: float
    reason: str
