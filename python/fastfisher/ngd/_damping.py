# SPDX-License-Identifier: Apache-2.0
"""How much is added to the diagonal of each matrix that is inverted, and in which space."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SPACES = ("auto", "sample", "parameter")
SPLITS = ("plain", "pi")
LAST_FACTORS = ("identity", "mean")


@dataclass(eq=False)
class Damping:
    """One number for all, or relative to the mean eigenvalue of each sample-space matrix.

    Attributes
    ----------
    split : "plain" | "pi"
        For pairs of Kronecker factors.
    space : "auto" | "sample" | "parameter"
    used : dict of str to float
        What each matrix got, by its name.
    spaces : set of str
        Spaces of the matrices so far.
    last_factor : "identity" | "mean"
        For K-FAC: with "mean" the gradient factor of the last layer is divided by N.
    last : Layer or None
        That layer, see `watch`.
    """

    absolute: float
    relative: float | None
    split: str = "plain"
    space: str = "auto"
    used: dict[str, float] = field(default_factory=dict)
    spaces: set[str] = field(default_factory=set)
    last_factor: str = "identity"
    last: Any = None

    def watch(self, rows: Any) -> None:
        """Note which of the layers is the last one."""
        self.last = rows.layers[-1] if self.last_factor == "mean" and rows.layers else None

    def share(self, layer: Any) -> float:
        """Part of the gradient factor of a layer that counts."""
        return 1 / max(1, int(layer.samples)) if layer is self.last else 1.0

    def of(self, name: str, trace: float, rows: int) -> float:
        """Damping of a matrix with that trace and size in sample space."""
        rho = self.absolute
        if self.relative is not None:
            rho = self.relative * trace / max(1, rows)
        return self._noted(name, rho)

    def pair(
        self, name: str, traces: tuple[float, float], rows: tuple[int, int], sizes: tuple[int, int]
    ) -> tuple[float, float]:
        """Dampings of A and B, of those sizes in sample and in parameter space.

        With "pi" ``sqrt(rho) pi`` and ``sqrt(rho) / pi``, pi^2 the ratio of their mean eigenvalues
        in parameter space; a relative rho is a part of the product of those in sample space.
        """
        names = name + ", A", name + ", B"
        if self.split == "plain":
            return self.of(names[0], traces[0], rows[0]), self.of(names[1], traces[1], rows[1])
        rho = self.absolute
        if self.relative is not None:
            rho = self.relative * math.prod(_means(traces, rows))
        mean_a, mean_b = _means(traces, sizes)
        pi = math.sqrt(mean_a / mean_b) if mean_a > 0 and mean_b > 0 else 1.0
        return (
            self._noted(names[0], math.sqrt(rho) * pi),
            self._noted(names[1], math.sqrt(rho) / pi),
        )

    def in_samples(self, rows: int, parameters: int) -> bool:
        """Whether a matrix of that many rows and parameters is inverted in sample space."""
        chosen = rows <= parameters if self.space == "auto" else self.space == "sample"
        self.spaces.add("sample" if chosen else "parameter")
        return chosen

    def _noted(self, name: str, rho: float) -> float:
        self.used[name] = max(rho, self.used.get(name, 0.0))
        return rho


def _means(traces: tuple[float, float], sizes: tuple[int, int]) -> tuple[float, float]:
    return traces[0] / max(1, sizes[0]), traces[1] / max(1, sizes[1])


def damping_of(
    damping: float | None,
    relative: float | None,
    split: str = "plain",
    space: str = "auto",
    last_factor: str = "identity",
) -> Damping:
    """Check the arguments; of the dampings one at most is given."""
    if damping is not None and relative is not None:
        raise ValueError("relative_damping: expected None with a damping, got both")
    for name, value in (("damping", damping), ("relative_damping", relative)):
        if value is not None and not _good(value):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    for name, choice, allowed in (
        ("split", split, SPLITS), ("space", space, SPACES),
        ("last_factor", last_factor, LAST_FACTORS),
    ):  # fmt: skip
        if choice not in allowed:
            raise ValueError(f"{name}: expected one of {list(allowed)}, got {choice!r}")
    rho = None if relative is None else float(relative)
    return Damping(float(damping or 0.0), rho, split, space, last_factor=last_factor)


def _good(value: Any) -> bool:
    try:
        return bool(math.isfinite(value) and value >= 0)
    except (TypeError, ValueError, OverflowError):
        return False
