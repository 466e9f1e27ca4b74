# SPDX-License-Identifier: Apache-2.0
"""Measured beside predicted: as a table of the page and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.report._section import Table

__all__ = ["Comparison", "compared", "comparison_table"]


class Comparison(NamedTuple):
    """One quantity: its name (plain text), mean and spread over networks, prediction."""

    name: str
    measured: float
    deviation: float
    networks: int
    predicted: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted

    def plain(self) -> dict[str, Any]:
        """Return it for results.json."""
        return {**self._asdict(), "ratio": self.ratio}


def compared(name: str, measured: ArrayLike, predicted: ArrayLike) -> Comparison:
    """Compare a quantity of several networks with the mean of its predictions.

    Parameters
    ----------
    name : str
        Plain text.
    measured : array, shape (networks,)
        One value a network.
    predicted : float or array, shape (networks,)
        One value for all of them, or one each (made from their own outputs).
    """
    values = np.asarray(measured, dtype=np.float64).reshape(-1)
    spread = float(values.std(ddof=1)) if values.size > 1 else float("nan")
    return Comparison(
        name,
        float(values.mean()),
        spread,
        values.size,
        float(np.asarray(predicted, np.float64).mean()),
    )


def comparison_table(caption: str, rows: Sequence[Comparison]) -> Table:
    """Lay comparisons out as a table (`caption` is markup)."""
    return Table(
        caption,
        ("quantity", "networks", "standard deviation", "theory", "networks / theory"),
        tuple(
            (
                row.name,
                f"{row.measured:.4g}",
                f"{row.deviation:.2g}" if np.isfinite(row.deviation) else "",
                f"{row.predicted:.4g}",
                f"{row.ratio:.3f}",
            )
            for row in rows
        ),
    )
