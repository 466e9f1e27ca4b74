# SPDX-License-Identifier: Apache-2.0
"""Quantities along a run of training, within the bounds that theory sets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastfisher.plot._axes import (
    MARKERS,
    axes_or_new,
    expect_known,
    finite_array,
    frame,
    label_short_axis,
    named_arrays,
    palette,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bounds"]


def plot_bounds(
    steps: Any,
    measured: Mapping[str, Any],
    *,
    bounds: Mapping[str, Any] | None = None,
    predicted: Mapping[str, Any] | None = None,
    predicted_steps: Any = None,
    label: str = "largest eigenvalue  (loss / parameter²)",
    xscale: Literal["linear", "log"] = "linear",
    ax: Axes | None = None,
) -> Axes:
    """Draw marks for what was measured, lines for predictions, shades between bounds.

    Parameters
    ----------
    steps : array, shape (t,)
        Steps of training at which something was measured.
    measured : mapping of str to array, shape (t,)
        By name.
    bounds : mapping of str to array, shape (2, t), optional
        Lower and upper bound of a measured quantity, by its name.
    predicted : mapping of str to array, shape (s,), optional
        Lines, by the name of the measured quantity.
    predicted_steps : array, shape (s,), optional
        Steps of the lines; those of the marks by default.
    label : str
        Label of the vertical axis, with its unit.
    xscale : "linear" | "log"
        Scale of the steps; a logarithmic one has room for step 0.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, shapes that disagree, or bounds and lines of nothing measured.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> axes = plot_bounds([0, 1], {"top": [3.0, 2.0]}, bounds={"top": [[2.5, 1.8], [3.5, 2.1]]})
    >>> axes.get_yscale()
    'log'
    """
    at = finite_array(steps, "steps", 1)
    lines_at = (
        at if predicted_steps is None else finite_array(predicted_steps, "predicted_steps", 1)
    )
    points = named_arrays(measured, 1)
    areas, lines = named_arrays(bounds, 2, "bounds"), named_arrays(predicted, 1, "predicted")
    expect_known("bounds", areas, points)
    expect_known("predicted", lines, points)
    expected = (
        *((name, array, (at.size,)) for name, array in points.items()),
        *((f"bounds[{name!r}]", array, (2, at.size)) for name, array in areas.items()),
        *((f"predicted[{name!r}]", array, (lines_at.size,)) for name, array in lines.items()),
    )
    for name, array, shape in expected:
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if xscale not in ("linear", "log"):
        raise ValueError(f"xscale: expected 'linear' or 'log', got {xscale!r}")
    ax = axes_or_new(ax)
    colours = palette()
    for index, (name, values) in enumerate(points.items()):
        colour = colours.series[index % len(colours.series)]
        if name in areas:
            shade: dict[str, Any] = {"color": colour, "alpha": 0.2, "linewidth": 0}
            ax.fill_between(at, areas[name][0], areas[name][1], **shade)
        if name in lines:
            ax.plot(lines_at, lines[name], "-", color=colour, linewidth=1.3, zorder=1)
        ax.plot(at, values, MARKERS[index % len(MARKERS)], color=colour, markersize=5, label=name)
    if lines:
        ax.plot([], [], "-", color=colours.faint, linewidth=1.3, label="theory")
    if areas:
        shade = {"color": colours.faint, "alpha": 0.4, "linewidth": 0}
        ax.fill_between([], [], [], label="between the bounds", **shade)
    ax.set(yscale="log", xlabel="step", ylabel=label)
    if xscale == "log":
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=-0.1)
        last = max(at.max(initial=1), lines_at.max(initial=1))
        places = [0, *(10.0 ** np.arange(np.floor(np.log10(last)) + 1))]
        ax.set_xticks(places, [f"{place:g}" for place in places])
    label_short_axis(ax)
    return frame(ax)
