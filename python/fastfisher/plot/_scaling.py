# SPDX-License-Identifier: Apache-2.0
"""A measured quantity against another, with lines of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import axes_or_new, finite_array, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_scaling"]

_MARKERS = "osv^DP"
_STYLES = ("-", "--", ":", "-.")


def plot_scaling(
    x: Any,
    measured: Mapping[str, Any],
    *,
    theory: Mapping[str, Any] | None = None,
    xlabel: str = "width M",
    label: str = "largest eigenvalue of F*  (loss / parameter²)",
    ax: Axes | None = None,
) -> Axes:
    """Draw marks for what was measured and lines for theory, on log scales.

    Parameters
    ----------
    x : array, shape (n,)
        Widths, depths or numbers of samples.
    measured : mapping of str to array, shape (n,) or (n, networks)
        By name; of several networks the mean is drawn, with bars of one standard deviation.
    theory : mapping of str to array, shape (n,), optional
        Lines by name; one with the name of a measured quantity takes its colour.
    xlabel, label : str
        Labels of the axes, with units.
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
    lines = {name: finite_array(value, f"theory[{name!r}]", 1) for name, value in _items(theory)}
    points = {name: np.asarray(value, dtype=np.float64) for name, value in measured.items()}
    for name, array in (*points.items(), *lines.items()):
        if array.ndim not in (1, 2) or array.shape[0] != places.size:
            raise ValueError(f"{name}: expected {places.size} values, got shape {array.shape}")
    ax = axes_or_new(ax)
    colours = palette()
    cycle = (colours.main, colours.accent, colours.third, colours.warm[0], colours.faint)
    names = list(dict.fromkeys((*points, *lines)))
    for index, name in enumerate(names):
        colour = cycle[index % len(cycle)]
        if name in lines:
            style = _STYLES[0 if name in points else 1 + index % 3]
            shown = None if name in points else name
            ax.plot(places, lines[name], style, color=colour, linewidth=1.3, label=shown)
        if name in points:
            values = points[name].reshape(places.size, -1)
            ax.errorbar(
                places,
                values.mean(1),
                yerr=values.std(1) if values.shape[1] > 1 else None,
                fmt=_MARKERS[index % len(_MARKERS)],
                color=colour,
                markersize=5,
                capsize=2,
                label=name,
            )
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=label)
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.minorticks_off()
    ax.grid(which="major", alpha=0.25)
    ax.legend(frameon=False)
    return ax


def _items(value: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return [] if value is None else list(value.items())
