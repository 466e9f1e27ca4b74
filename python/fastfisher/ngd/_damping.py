# SPDX-License-Identifier: Apache-2.0
"""How much is added to the diagonal of each matrix that is inverted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(eq=False)
class Damping:
    """One number for all, or relative to the mean eigenvalue of each sample-space matrix.

    Attributes
    ----------
    used : dict of str to float
        What each matrix got, by its name.
    """

    absolute: float
    relative: float | None
    used: dict[str, float] = field(default_factory=dict)

    def of(self, name: str, trace: float, rows: int) -> float:
        """Damping of a matrix with that trace and size in sample space."""
        rho = self.absolute
        if self.relative is not None:
            rho = self.relative * trace / max(1, rows)
        self.used[name] = max(rho, self.used.get(name, 0.0))
        return rho


def damping_of(damping: float | None, relative: float | None) -> Damping:
    """Check both arguments, of which one at most is given."""
    if damping is not None and relative is not None:
        raise ValueError("relative_damping: expected None with a damping, got both")
    for name, value in (("damping", damping), ("relative_damping", relative)):
        if value is not None and not _good(value):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    return Damping(float(damping or 0.0), None if relative is None else float(relative))


def _good(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
