# SPDX-License-Identifier: Apache-2.0
"""What every plot shares: new axes on request, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fastfisher._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


MARKERS = "osv^DPX"  # of curves, in turn
STYLES = ("-", "--", ":", "-.")


class Palette(NamedTuple):
    """Colours after Okabe and Ito; they differ in lightness too, for a grey printout.

    `series` tells curves apart that have no order, in pictures that also tell them by their marks.
    """

    main: str
    accent: str
    cool: tuple[str, ...]
    warm: tuple[str, ...]
    faint: str
    series: tuple[str, ...]


_ON_LIGHT = Palette(
    "#0072B2",
    "#C04F00",
    ("#2E9BDA", "#005F99", "#003A60"),
    ("#D98E00", "#B54700", "#7A2A00"),
    "#8a8a8a",
    ("#0072B2", "#C04F00", "#00805E", "#AF5A93", "#D98E00", "#2E9BDA", "#4A4A4A"),
)
_ON_DARK = Palette(
    "#56B4E9",
    "#F08A3C",
    ("#9AD4F5", "#56B4E9", "#2F8FCB"),
    ("#F5C04D", "#F08A3C", "#E0602A"),
    "#8f959d",
    ("#56B4E9", "#F08A3C", "#35C79C", "#DE9BC4", "#F5C04D", "#9AD4F5", "#C8CDD2"),
)


def palette() -> Palette:
    """Colours for the current matplotlib style: light text means a dark page."""
    matplotlib = require("matplotlib", purpose="plotting")
    colours: Any = require("matplotlib.colors", purpose="plotting")
    red, green, blue = colours.to_rgb(matplotlib.rcParams["text.color"])
    return _ON_DARK if 0.30 * red + 0.59 * green + 0.11 * blue > 0.5 else _ON_LIGHT


def axes_or_new(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new pyplot figure when it is None."""
    if ax is not None:
        return ax
    pyplot = require("matplotlib.pyplot", purpose="plotting")
    new: Axes = pyplot.subplots(layout="constrained")[1]
    return new


def finite_array(value: Any, name: str, rank: int) -> NDArray[np.float64]:
    """Turn `value` into a float64 array; ValueError naming it if its rank is not `rank`."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != rank:
        raise ValueError(f"{name}: expected {rank} axes, got shape {array.shape}")
    return array


def named_arrays(
    values: Mapping[str, Any] | None, rank: int, what: str | None = None
) -> dict[str, NDArray[np.float64]]:
    """Arrays by name; an error names `what` they are, where given, else the array itself."""
    return {
        name: finite_array(value, name if what is None else f"{what}[{name!r}]", rank)
        for name, value in (values or {}).items()
    }


def expect_known(what: str, names: Iterable[str], among: Collection[str]) -> None:
    """Require that lines, bars or bounds belong to something that is drawn."""
    for name in names:
        if name not in among:
            raise ValueError(f"{what}: expected names of {list(among)}, got {name!r}")


def frame(ax: Axes, **legend: Any) -> Axes:
    """Grid and legend as every plot has them."""
    ax.grid(which="major", alpha=0.25)
    ax.legend(frameon=False, **legend)
    return ax


def label_short_axis(ax: Axes, name: Literal["x", "y"] = "y") -> None:
    """Label an axis of less than two powers of ten by plain numbers, however short it is."""
    axis: Any = ax.yaxis if name == "y" else ax.xaxis
    low, high = axis.get_view_interval()
    if not 0 < low < high < 100 * low:
        return
    ticker: Any = require("matplotlib.ticker", purpose="plotting")
    short = high < 6 * low
    axis.set_major_locator(ticker.MaxNLocator(6) if short else ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
    if short:
        axis.set_minor_locator(ticker.NullLocator())
