# SPDX-License-Identifier: Apache-2.0
"""How many eigenvalues are larger than a value: whole spectra on one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import (
    MARKERS,
    STYLES,
    axes_or_new,
    label_short_axis,
    named_arrays,
    palette,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_survival"]


def plot_survival(
    spectra: Mapping[str, Any],
    *,
    theory: Mapping[str, float] | None = None,
    label: str = "eigenvalue λ of F*  (loss / parameter²)",
    ax: Axes | None = None,
) -> Axes:
    """Share of the eigenvalues that are at least as large as a value, both on log scales.

    Parameters
    ----------
    spectra : mapping of str to array, shape (n,)
        Eigenvalues by name, those of several networks together. What is below 1e-9 of the largest
        counts but is not drawn.
    theory : mapping of str to float, optional
        Predicted eigenvalues, as vertical lines: one with the name of a spectrum in its colour.
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
        Wrong rank.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> plot_survival({"N = 4": [1.0, 1.1, 0.9, 50.0]}, theory={"N = 4": 49.0}).get_yscale()
    'log'
    """
    given = named_arrays(spectra, 1, "spectra")
    sorted_ = {name: np.sort(values)[::-1] for name, values in given.items()}
    ax = axes_or_new(ax)
    colours = palette()
    lines = dict(theory or {})
    for index, (name, values) in enumerate(sorted_.items()):
        colour = colours.series[index % len(colours.series)]
        share = np.arange(1, values.size + 1) / max(values.size, 1)
        drawn = values > 1e-9 * values.max(initial=0.0)
        ax.step(values[drawn], share[drawn], where="pre", color=colour, linewidth=1.5)
        # Marks at equal distances on the scale of shares tell the curves apart without colours.
        marked = np.flatnonzero(drawn)
        if marked.size:
            marked = np.unique(np.geomspace(1, marked.size, 9).astype(int) - 1)
        ax.plot(
            values[marked],
            share[marked],
            MARKERS[index % len(MARKERS)],
            color=colour,
            markersize=5,
            label=name,
        )
        if name in lines:
            ax.axvline(lines.pop(name), color=colour, linestyle="--", linewidth=1.2, zorder=1)
    if theory and len(lines) < len(theory):
        ax.plot([], [], "--", color=colours.faint, linewidth=1.2, label="theory")
    for (name, value), style in zip(lines.items(), STYLES * 8, strict=False):
        ax.axvline(value, color=colours.faint, linestyle=style, linewidth=1.2, label=name)
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel="share of eigenvalues ≥ λ")
    label_short_axis(ax, "x")
    ax.grid(which="major", alpha=0.25)
    if sorted_ or lines:
        ax.legend(frameon=False)
    return ax
