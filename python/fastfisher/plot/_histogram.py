# SPDX-License-Identifier: Apache-2.0
"""Histogram of eigenvalues, with what theory says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import axes_or_new, finite_array, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_eigenvalue_histogram"]

_STYLES = ("-", "--", ":", "-.")


def plot_eigenvalue_histogram(
    eigenvalues: Any,
    *,
    theory: Mapping[str, float] | None = None,
    networks: int = 1,
    bins: int = 60,
    label: str = "eigenvalue of F*  (loss / parameter²)",
    ax: Axes | None = None,
) -> Axes:
    """Histogram on log scales, with a vertical line for each prediction.

    Parameters
    ----------
    eigenvalues : array, shape (n,)
        Eigenvalues of one network or of many. What is below 1e-6 of the largest is left out: on a
        log scale the zeros of rounding would fill the picture.
    theory : mapping of str to float, optional
        Predictions by name.
    networks : int
        Number of networks that the counts are divided by.
    bins : int
        Number of bins, of equal width on the log scale.
    label : str
        Label of the horizontal axis, with its unit.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, numbers below one.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> plot_eigenvalue_histogram([1.0, 1.1, 50.0], theory={"outlier": 49.0}).get_xscale()
    'log'
    """
    values = finite_array(eigenvalues, "eigenvalues", 1)
    for name, number in (("networks", networks), ("bins", bins)):
        if number < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {number}")
    ax = axes_or_new(ax)
    colours = palette()
    kept = values[values > 1e-6 * values.max(initial=0.0)]
    if kept.size:
        edges = np.geomspace(kept.min() * 0.99, kept.max() * 1.01, bins + 1).tolist()
        weights = np.full(kept.size, 1 / networks)
        ax.hist(kept, edges, weights=weights, color=colours.main, alpha=0.75)
    for (name, value), style in zip((theory or {}).items(), _STYLES * 8, strict=False):
        ax.axvline(value, color=colours.accent, linestyle=style, label=f"{name}: {value:.3g}")
    count = "eigenvalues" if networks == 1 else "eigenvalues per network"
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel=f"number of {count}")
    ax.grid(which="major", alpha=0.25)
    if theory:
        ax.set_ylim(top=5 * ax.get_ylim()[1])  # room for the legend
        ax.legend(frameon=False, loc="upper left")
    return ax
