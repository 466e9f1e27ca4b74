# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues by rank of several data sets, over the levels that theory predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import MARKERS, axes_or_new, expect_known, finite_array, frame, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_levels"]


def plot_levels(
    measured: Mapping[str, Any],
    *,
    predicted: Mapping[str, Any] | None = None,
    label: str = "eigenvalue of F*  (loss / parameter²)",
    marks: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """Draw eigenvalues against their rank on log scales, marks measured and lines predicted.

    Parameters
    ----------
    measured : mapping of str to array, shape (n,)
        Positive eigenvalues by name, in any order; sizes may differ.
    predicted : mapping of str to array, shape (n,), optional
        Eigenvalues of theory by name, as many, in the colours of the marks.
    label : str
        Label of the vertical axis, with its unit.
    marks : int
        Marks per name at most, evenly spread on the log scale.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong shapes, eigenvalues that are not positive, a line without marks.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_levels({"plain": [9.0, 1.1, 0.9]}, predicted={"plain": [8.5, 1.0, 1.0]})
    >>> ax.get_yscale()
    'log'
    """
    points = {name: _sorted(name, values) for name, values in measured.items()}
    lines = {name: _sorted(name, values) for name, values in (predicted or {}).items()}
    expect_known("predicted", lines, points)
    for name, line in lines.items():
        if line.size != points[name].size:
            raise ValueError(f"{name}: expected {points[name].size} values, got {line.size}")
    ax = axes_or_new(ax)
    colours = palette()
    # Third the colour of the text: black on a light page, white on a dark one.
    text = ax.xaxis.label.get_color()
    cycle = (colours.main, colours.accent, text, colours.warm[0], colours.faint)
    for index, (name, values) in enumerate(points.items()):
        colour = cycle[index % len(cycle)]
        rank = np.arange(1, values.size + 1)
        if name in lines:
            # Steps, so that no slanted line joins two levels.
            ax.plot(
                rank,
                lines[name],
                "-",
                drawstyle="steps-mid",
                color=colour,
                linewidth=1.2,
                zorder=1,
            )
        shown = np.unique(np.geomspace(1, values.size, min(marks, values.size)).round().astype(int))
        ax.plot(
            rank[shown - 1],
            values[shown - 1],
            MARKERS[index % len(MARKERS)],
            color=colour,
            markersize=4.5,
            label=name,
        )
    if lines:
        ax.plot([], [], "-", color=colours.faint, linewidth=1.2, label="theory")
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel=label)
    return frame(ax)


def _sorted(name: str, values: Any) -> Any:
    array = np.sort(finite_array(values, name, 1))[::-1]
    wrong = array[~(array > 0)]
    if wrong.size:
        raise ValueError(f"{name}: expected positive eigenvalues, got {wrong[0]:g}")
    return array
