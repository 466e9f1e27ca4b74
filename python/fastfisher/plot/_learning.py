# SPDX-License-Identifier: Apache-2.0
"""Learning curves of optimisers, each over its own steps or seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastfisher._numbers import integer
from fastfisher.plot._axes import MARKERS, axes_or_new, finite_array, frame, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_learning_curves"]


def plot_learning_curves(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    target: float | None = None,
    target_label: str = "target",
    xlabel: str = "step",
    label: str = "loss",
    xscale: Literal["linear", "log"] = "linear",
    marks: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Draw a line for each method: the median over its runs, and a band from least to largest.

    Parameters
    ----------
    curves : mapping of str to pair of arrays
        Places (n,), for instance steps or seconds, and losses (n,) or, of several runs, (runs, n);
        n may differ from method to method. Places where a run has NaN or no loss above zero are
        left out.
    target : float, optional
        Loss at which a dashed line is drawn, above zero.
    target_label : str
        Its name.
    xlabel, label : str
        Labels of the axes, with units.
    xscale : "linear" | "log"
        Of the horizontal axis; places of zero and below are left out of a "log" one.
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
        No curves, wrong shapes, a target that is not above zero, no marks.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_learning_curves({"Adam": ([1, 2, 3], [1.0, 0.5, 0.2])}, target=0.3)
    >>> len(ax.get_lines())
    2
    """
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise ValueError(f"target: expected a finite number above 0, got {target!r}")
    integer("marks", marks, least=1)
    if xscale not in ("linear", "log"):
        raise ValueError(f"xscale: expected linear or log, got {xscale!r}")
    found = {name: _pair(name, *pair) for name, pair in curves.items()}
    ax = axes_or_new(ax)
    colours = palette().series
    for index, (name, (places, losses)) in enumerate(found.items()):
        colour = colours[index % len(colours)]
        fine = (losses > 0).all(0) & np.isfinite(losses).all(0)
        fine &= np.isfinite(places) & ((places > 0) | (xscale == "linear"))
        x, y = places[fine], losses[:, fine]
        if len(y) > 1:
            ax.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
        ax.plot(
            x, np.median(y, 0), "-" + MARKERS[index % len(MARKERS)], color=colour, linewidth=1.5,
            markersize=4.5, markevery=max(1, math.ceil(x.size / marks)), label=name,
        )  # fmt: skip
    if target is not None:
        ax.axhline(target, color=palette().faint, linestyle="--", linewidth=1.2, label=target_label)
    ax.set(yscale="log", xscale=xscale, xlabel=xlabel, ylabel=label)
    return frame(ax)


def _pair(name: str, x: Any, y: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    places = finite_array(x, f"{name}: places", 1)
    losses = np.atleast_2d(np.asarray(y, dtype=np.float64))
    if losses.ndim != 2 or losses.shape[1] != places.size or not losses.size:
        raise ValueError(
            f"{name}: expected losses of shape ({places.size},) or (runs, {places.size}), at least "
            f"one, got shape {np.shape(y)}"
        )
    return places, losses
