# SPDX-License-Identifier: Apache-2.0
"""Long curves of several methods: marks where measured, lines of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastfisher._numbers import integer
from fastfisher.plot._axes import (
    MARKERS,
    axes_or_new,
    expect_known,
    finite_array,
    frame,
    named_arrays,
    palette,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curves"]


def plot_curves(
    x: Any,
    measured: Mapping[str, Any],
    *,
    predicted: Mapping[str, Any] | None = None,
    xlabel: str = "step",
    label: str = "loss",
    scale: Literal["linear", "log"] = "linear",
    marks: int = 25,
    ax: Axes | None = None,
) -> Axes:
    """Draw marks for measured curves, at some of their points, and dashed lines for theory.

    Parameters
    ----------
    x : array, shape (n,)
        Places, for instance steps.
    measured : mapping of str to array, shape (n,)
        Curves by name; NaN where nothing was measured.
    predicted : mapping of str to array, shape (n,), optional
        Lines by name, in the colours of the marks.
    xlabel, label : str
        Labels of the axes, with units.
    scale : "linear" | "log"
        Of the vertical axis.
    marks : int
        Marks per curve at most, evenly spread.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong shapes, a line without marks, no marks.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_curves([0, 1], {"all": [1.0, 0.5]}, predicted={"all": [1.0, 0.4]})
    >>> len(ax.get_lines())
    3
    """
    places = finite_array(x, "x", 1)
    points, lines = named_arrays(measured, 1), named_arrays(predicted, 1)
    for name, curve in (*points.items(), *lines.items()):
        if curve.size != places.size:
            raise ValueError(f"{name}: expected {places.size} values, got {curve.size}")
    expect_known("predicted", lines, points)
    integer("marks", marks, least=1)
    ax = axes_or_new(ax)
    colours = palette()
    # Third the colour of the text: black on a light page, white on a dark one.
    text = ax.xaxis.label.get_color()
    cycle = (colours.main, colours.accent, text, colours.warm[0], colours.faint)
    for index, (name, curve) in enumerate(points.items()):
        colour = cycle[index % len(cycle)]
        known = np.flatnonzero(np.isfinite(curve))
        at = np.linspace(0, known.size - 1, min(marks, known.size)).round().astype(int)
        shown = known[np.unique(at)]
        if name in lines:
            ax.plot(places, lines[name], "--", color=colour, linewidth=1.3, zorder=1)
        ax.plot(
            places[shown],
            curve[shown],
            MARKERS[index % len(MARKERS)],
            linestyle="none" if name in lines else "-",
            linewidth=1.3,
            color=colour,
            markersize=4.5,
            label=name,
        )
    if lines:
        ax.plot([], [], "--", color=colours.faint, linewidth=1.3, label="theory")
    ax.set(yscale=scale, xlabel=xlabel, ylabel=label)
    return frame(ax)
