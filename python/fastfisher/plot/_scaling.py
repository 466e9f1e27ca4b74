# SPDX-License-Identifier: Apache-2.0
"""A measured quantity against another, with lines of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastfisher.plot._axes import (
    MARKERS,
    STYLES,
    axes_or_new,
    finite_array,
    frame,
    label_short_axis,
    named_arrays,
    palette,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_scaling"]


def plot_scaling(
    x: Any,
    measured: Mapping[str, Any],
    *,
    theory: Mapping[str, Any] | None = None,
    bands: Mapping[str, Any] | None = None,
    xlabel: str = "width M",
    label: str = "largest eigenvalue of F*  (loss / parameter²)",
    xscale: Literal["log", "linear"] = "log",
    ax: Axes | None = None,
) -> Axes:
    """Draw marks for what was measured, lines and bands for theory, on log scales.

    Parameters
    ----------
    x : array, shape (n,)
        Widths, depths or numbers of samples.
    measured : mapping of str to array, shape (n,) or (n, networks)
        By name; of several networks the mean is drawn, with bars of one standard deviation.
    theory : mapping of str to array, shape (n,), optional
        Lines by name; one with the name of a measured quantity takes its colour.
    bands : mapping of str to array, shape (2, n), optional
        From where to where theory lets a quantity lie, by name: in the colour of that name's marks
        or line; one without either is named in the legend.
    xlabel, label : str
        Labels of the axes, with units.
    xscale : "log" | "linear"
        Scale of `x`; the other axis is logarithmic.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, or shapes that disagree.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> plot_scaling([100, 200], {"tanh": [26.0, 53.0]}, theory={"tanh": [25.4, 50.8]}).get_yscale()
    'log'
    """
    places = finite_array(x, "x", 1)
    lines = named_arrays(theory, 1, "theory")
    points = {name: np.asarray(value, dtype=np.float64) for name, value in measured.items()}
    areas = named_arrays(bands, 2, "bands")
    if xscale not in ("log", "linear"):
        raise ValueError(f"xscale: expected 'log' or 'linear', got {xscale!r}")
    for name, area in areas.items():
        if area.shape != (2, places.size):
            raise ValueError(
                f"{name}: expected bands of shape (2, {places.size}), got {area.shape}"
            )
    for name, array in (*points.items(), *lines.items()):
        if array.ndim not in (1, 2) or array.shape[0] != places.size:
            raise ValueError(f"{name}: expected {places.size} values, got shape {array.shape}")
    ax = axes_or_new(ax)
    colours = palette()
    cycle = colours.series
    names = list(dict.fromkeys((*points, *lines, *areas)))
    for index, name in enumerate(names):
        colour = cycle[index % len(cycle)]
        if name in areas:
            alone = None if name in points or name in lines else name
            shade: dict[str, Any] = {"color": colour, "alpha": 0.18, "linewidth": 0, "label": alone}
            ax.fill_between(places, areas[name][0], areas[name][1], **shade)
        if name in lines:
            style = STYLES[0 if name in points else 1 + index % 3]
            shown = None if name in points else name
            ax.plot(places, lines[name], style, color=colour, linewidth=1.3, label=shown)
        if name in points:
            values = points[name].reshape(places.size, -1)
            ax.errorbar(
                places,
                values.mean(1),
                yerr=values.std(1) if values.shape[1] > 1 else None,
                fmt=MARKERS[index % len(MARKERS)],
                color=colour,
                markersize=5,
                capsize=2,
                label=name,
            )
    ax.set(xscale=xscale, yscale="log", xlabel=xlabel, ylabel=label)
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.minorticks_off()
    label_short_axis(ax)
    return frame(ax)
