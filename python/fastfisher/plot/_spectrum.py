# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues by rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import axes_or_new, finite_array, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_spectrum"]


def plot_spectrum(
    eigenvalues: Any,
    *,
    outliers: int = 0,
    label: str = "eigenvalue of F*  (loss / parameter²)",
    annotate: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Eigenvalues against their rank, both on log scales, with the largest ones marked.

    Parameters
    ----------
    eigenvalues : array, shape (n,)
        Eigenvalues in any order. Those that are not positive cannot stand on a log scale; they are
        left out and counted in the legend.
    outliers : int
        How many of the largest eigenvalues to mark (the number of outputs C for a Fisher matrix).
    label : str
        Label of the vertical axis, with its unit.
    annotate : bool
        Whether to write the largest eigenvalue beside it.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, or `outliers` outside 0..n.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> plot_spectrum([1.0, 0.1, 10.0], outliers=1).get_xscale()
    'log'
    """
    values = np.sort(finite_array(eigenvalues, "eigenvalues", 1))[::-1]
    if not 0 <= outliers <= values.size:
        raise ValueError(
            f"outliers: expected 0 to {values.size}, the number of eigenvalues, got {outliers}"
        )
    ax = axes_or_new(ax)
    colours = palette()
    positive = values > 0
    rank = np.arange(1, values.size + 1)
    rest = positive & (rank > outliers)
    top = positive & (rank <= outliers)
    hidden = int(values.size - positive.sum())
    note = f", {hidden} not positive" if hidden else ""
    if top.any():
        ax.plot(
            rank[top],
            values[top],
            "D",
            color=colours.accent,
            markersize=6,
            label=f"the {outliers} largest",
        )
    if rest.any():
        ax.plot(
            rank[rest],
            values[rest],
            ".",
            color=colours.main,
            markersize=4,
            label=f"the other {values.size - outliers}{note}",
        )
    if annotate and positive.any():
        ax.annotate(
            f"$\\lambda_{{max}}$ = {values[0]:.4g}",
            (1, values[0]),
            xytext=(10, 8),
            textcoords="offset points",
            color=colours.accent if outliers else colours.main,
        )
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel=label)
    ax.margins(y=0.12)
    ax.grid(which="major", alpha=0.25)
    if rest.any() or top.any():
        ax.legend(loc="lower left", frameon=False)
    return ax
