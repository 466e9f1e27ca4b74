# SPDX-License-Identifier: Apache-2.0
"""Training curves of several methods, with lines of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher._extras import require
from fastfisher.plot._axes import (
    MARKERS,
    axes_or_new,
    expect_known,
    frame,
    label_short_axis,
    named_arrays,
    palette,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_training_curves"]


def plot_training_curves(
    measured: Mapping[str, Any],
    *,
    predicted: Mapping[str, Any] | None = None,
    label: str = "training loss",
    ax: Axes | None = None,
) -> Axes:
    """Draw marks for what was measured at each step and dashed lines for theory.

    Marks are open and of several sizes: methods that agree are seen through each other. Lines that
    coincide are drawn once, in grey.

    Parameters
    ----------
    measured : mapping of str to array, shape (t,)
        Curves by method, from step 0; NaN where a run was stopped.
    predicted : mapping of str to array, shape (t,), optional
        Lines by method, in the colours of the marks.
    label : str
        Label of the vertical axis, with its unit.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, or a line without marks.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> plot_training_curves({"exact": [1.0, 0.3]}, predicted={"exact": [1.0, 0.25]}).get_yscale()
    'log'
    """
    curves, lines = named_arrays(measured, 1), named_arrays(predicted, 1)
    expect_known("predicted", lines, curves)
    ax = axes_or_new(ax)
    colours = palette()
    for index, (name, curve) in enumerate(curves.items()):
        colour = colours.series[index % len(colours.series)]
        if name in lines:
            shared = [other for other in lines if _coincide(lines[name], lines[other])]
            if shared[0] == name:
                shade = colour if len(shared) == 1 else colours.faint
                steps = np.arange(lines[name].size)
                ax.plot(steps, lines[name], "--", color=shade, linewidth=1.2, zorder=1)
        ax.plot(
            np.arange(curve.size),
            curve,
            MARKERS[index % len(MARKERS)],
            linestyle="none" if name in lines else "-",
            color=colour,
            markerfacecolor="none",
            markeredgewidth=1.3,
            markersize=max(11.0 - 1.4 * index, 4.0),
            label=name,
        )
    if lines:
        ax.plot([], [], "--", color=colours.faint, linewidth=1.2, label="theory")
    ax.set(yscale="log", xlabel="step", ylabel=label)
    ax.xaxis.set_major_locator(
        require("matplotlib.ticker", purpose="plotting").MaxNLocator(integer=True)
    )
    label_short_axis(ax)
    outside = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    return frame(ax, **(outside if len(curves) > 4 else {}))  # no room inside


def _coincide(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-3, atol=0.0))
