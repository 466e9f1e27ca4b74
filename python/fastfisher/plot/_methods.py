# SPDX-License-Identifier: Apache-2.0
"""One number a method, measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import axes_or_new, expect_known, label_short_axis, named_arrays, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_methods"]


def plot_methods(
    measured: Mapping[str, Any],
    *,
    predicted: Mapping[str, float] | None = None,
    label: str = "test loss",
    theory: str = "theory",
    ax: Axes | None = None,
) -> Axes:
    """Draw a column of marks for each method, and a bar across it where theory puts them.

    Parameters
    ----------
    measured : mapping of str to array, shape (networks,)
        One value a network, by method.
    predicted : mapping of str to float, optional
        By method.
    label : str
        Label of the vertical axis, with its unit.
    theory : str
        What the bars are called in the legend.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, or a prediction of nothing measured.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> plot_methods({"exact": [0.11, 0.10]}, predicted={"exact": 0.105}).get_yscale()
    'log'
    """
    points = named_arrays(measured, 1)
    bars = dict(predicted or {})
    expect_known("predicted", bars, points)
    ax = axes_or_new(ax)
    colours = palette()
    for index, values in enumerate(points.values()):
        shifts = np.linspace(-0.12, 0.12, values.size) if values.size > 1 else np.zeros(1)
        named = "networks" if index == 0 else None
        ax.plot(index + shifts, values, "o", color=colours.main, markersize=5, label=named)
    if bars:
        places = [index for index, name in enumerate(points) if name in bars]
        heights = [bars[name] for name in points if name in bars]
        ends = (np.array(places) - 0.3, np.array(places) + 0.3)
        ax.hlines(heights, *ends, color=colours.accent, linewidth=2, label=theory)
    ax.set(yscale="log", ylabel=label)
    ax.set_xticks(range(len(points)), list(points), rotation=30, ha="right", rotation_mode="anchor")
    label_short_axis(ax)
    ax.grid(which="major", axis="y", alpha=0.25)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax
