# SPDX-License-Identifier: Apache-2.0
"""Loss over learning rate and size of the network, with lines of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher._extras import require
from fastfisher.plot._axes import MARKERS, STYLES, axes_or_new, finite_array, named_arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["plot_learning_rate_map"]

_LINE = "#FF5A36"  # vermilion: apart from every colour of viridis, in lightness or in hue
_DIVERGED = "#9a9a9a"


def plot_learning_rate_map(
    loss: Any,
    *,
    x: Any,
    rates: Any,
    theory: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    floor: float = 1e-4,
    xlabel: str = "width M",
    ylabel: str = "learning rate η  (parameter² / loss)",
    label: str = "loss after training / loss at the start",
    ax: Axes | None = None,
) -> Axes:
    """Colour map of the loss after training, on log scales.

    Parameters
    ----------
    loss : array, shape (e, n)
        One row a learning rate, one column a size; over the loss at the start. Cells that are not
        finite are drawn grey and called diverged.
    x : array, shape (n,)
        Sizes in ascending order: widths or depths.
    rates : array, shape (e,)
        Learning rates in ascending order.
    theory : mapping of str to array, shape (n,), optional
        Learning rates predicted for each size, by name: lines, drawn on to the edges of the map.
    measured : mapping of str to array, shape (n,), optional
        Learning rates measured for each size, by name: marks.
    floor : float
        Losses below are drawn in the colour of this one. Those above 1 all have the last colour.
    xlabel, ylabel, label : str
        Labels of the axes and of the colour bar, with units.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, shapes that disagree, sizes or rates that are not positive and ascending.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_learning_rate_map([[0.5, 0.1], [0.01, float("inf")]], x=[100, 200],
    ...                             rates=[0.01, 0.1], theory={"theory": [0.08, 0.04]})
    >>> ax.get_xscale(), ax.get_yscale()
    ('log', 'log')
    """
    places, etas = _ascending("x", x), _ascending("rates", rates)
    values = np.asarray(loss, dtype=np.float64)
    if values.shape != (etas.size, places.size):
        raise ValueError(
            f"loss: expected shape ({etas.size}, {places.size}), got {tuple(values.shape)}"
        )
    lines, marks = (
        _by_name("theory", theory, places.size),
        _by_name("measured", measured, places.size),
    )
    if not 0 < floor < 1:
        raise ValueError(f"floor: expected a number in (0, 1), got {floor}")
    ax = axes_or_new(ax)
    columns, rows = _edges(places), _edges(etas)
    _cells(ax, values, columns, rows, floor, label)
    effects = require("matplotlib.patheffects", purpose="plotting")
    halo = [effects.withStroke(linewidth=3.2, foreground="white")]
    for (name, line), style in zip(lines.items(), STYLES * 8, strict=False):
        along, across = _extended(places, line, columns)
        ax.plot(
            along,
            across,
            style,
            color=_LINE,
            linewidth=1.8,
            path_effects=halo,
            label=name,
            zorder=3,
        )
    for (name, mark), shape in zip(marks.items(), MARKERS * 8, strict=False):
        ax.plot(
            places,
            mark,
            shape,
            linestyle="none",
            markerfacecolor="white",
            markeredgecolor="black",
            markersize=6,
            label=name,
            zorder=4,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(columns[0], columns[-1]),
        ylim=(rows[0], rows[-1]),
        xlabel=xlabel,
        ylabel=ylabel,
    )
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.xaxis.minorticks_off()
    if lines or marks:
        # On top of the map there is no free corner.
        ax.legend(
            frameon=False,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=2 if len(lines) + len(marks) > 1 else 1,
            fontsize="small",
            handlelength=1.8,
            columnspacing=1.2,
        )
    return ax


def _cells(ax: Axes, values: Any, columns: Any, rows: Any, floor: float, label: str) -> None:
    matplotlib = require("matplotlib", purpose="plotting")
    colours: Any = require("matplotlib.colors", purpose="plotting")
    colour_map = matplotlib.colormaps["viridis"].with_extremes(bad=_DIVERGED)
    shown = np.where(np.isfinite(values), values.clip(1e-300), np.nan)
    mesh = ax.pcolormesh(
        columns,
        rows,
        np.ma.masked_invalid(shown),
        cmap=colour_map,
        norm=colours.LogNorm(floor, 1.0),
        rasterized=True,
    )
    finite = shown[np.isfinite(shown)]
    ends = bool((finite < floor).any()), bool((finite > 1).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    bar = ax.figure.colorbar(mesh, ax=ax, extend=extend.get(ends, "neither"), shrink=0.92)
    bar.set_label(label + ("\n(grey: diverged)" if not np.isfinite(values).all() else ""))
    bar.outline.set_visible(False)


def _ascending(name: str, value: Any) -> NDArray[np.float64]:
    array = finite_array(value, name, 1)
    if (
        array.size == 0
        or not np.isfinite(array).all()
        or array[0] <= 0
        or (np.diff(array) <= 0).any()
    ):
        raise ValueError(f"{name}: expected numbers > 0 in ascending order")
    return array


def _by_name(what: str, given: Mapping[str, Any] | None, size: int) -> dict[str, Any]:
    found = named_arrays(given, 1, what)
    for name, array in found.items():
        if array.size != size:
            raise ValueError(f"{what}[{name!r}]: expected {size} values, got {array.size}")
    return found


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of cells around `centres`, half-way on a log scale."""
    logs = np.log(centres)
    inner = (logs[1:] + logs[:-1]) / 2
    first, last = (logs[1] - logs[0], logs[-1] - logs[-2]) if logs.size > 1 else (0.7, 0.7)
    edges: NDArray[np.float64] = np.exp(
        np.concatenate(([logs[0] - first / 2], inner, [logs[-1] + last / 2]))
    )
    return edges


def _extended(places: Any, line: Any, edges: Any) -> tuple[Any, Any]:
    """Go on straight, on log scales, to the edges of the map."""
    if places.size < 2 or not (np.isfinite(line).all() and (line > 0).all()):
        return places, line
    s, t = np.log(places), np.log(line)
    ends = []
    for edge, a, b in ((edges[0], 0, 1), (edges[-1], -1, -2)):
        slope = (t[b] - t[a]) / (s[b] - s[a])
        ends.append(np.exp(t[a] + slope * (np.log(edge) - s[a])))
    return np.r_[edges[0], places, edges[-1]], np.r_[ends[0], line, ends[1]]
