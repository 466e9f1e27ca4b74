# SPDX-License-Identifier: Apache-2.0
"""Predictions with their spread: the band of theory, marks for an ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import axes_or_new, finite_array, frame, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_posterior"]


def plot_posterior(
    x: Any,
    mean: Any,
    deviation: Any,
    *,
    measured: Any | None = None,
    data: tuple[Any, Any] | None = None,
    marks: int = 25,
    xlabel: str = "input",
    label: str = "output",
    name: str = "theory",
    measured_name: str = "networks",
    ax: Axes | None = None,
) -> Axes:
    """Draw a mean and the band of two standard deviations around it.

    Parameters
    ----------
    x : array, shape (n,)
        Places, in increasing order.
    mean, deviation : array, shape (n,)
        Mean and standard deviation predicted.
    measured : array, shape (k, n), optional
        Outputs of k networks: their mean and two standard deviations are drawn as bars, at some of
        the places.
    data : pair of arrays, shape (m,), optional
        Inputs and targets of the training samples.
    marks : int
        Bars at most.
    xlabel, label, name, measured_name : str
        Labels of the axes and names in the legend.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong shapes, a negative deviation, fewer than two networks.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_posterior([0, 1], [0.0, 1.0], [0.1, 0.1], data=([0.5], [0.4]))
    >>> len(ax.get_lines())
    2
    """
    places, centre, spread = (
        finite_array(value, key, 1)
        for key, value in (("x", x), ("mean", mean), ("deviation", deviation))
    )
    for key, value in (("mean", centre), ("deviation", spread)):
        if value.size != places.size:
            raise ValueError(f"{key}: expected {places.size} values, got {value.size}")
    if spread.size and spread.min() < 0:
        raise ValueError(f"deviation: expected numbers >= 0, got {spread.min():g}")
    ax = axes_or_new(ax)
    colours = palette()
    low, high = centre - 2 * spread, centre + 2 * spread
    ax.fill_between(places, low, high, alpha=0.22, color=colours.main, linewidth=0)
    ax.plot(places, centre, "-", color=colours.main, linewidth=1.5, label=f"{name}, mean ± 2 std")
    if measured is not None:
        runs = finite_array(measured, "measured", 2)
        if runs.shape[0] < 2 or runs.shape[1] != places.size:
            raise ValueError(
                f"measured: expected shape (k, {places.size}) with k >= 2, got {runs.shape}"
            )
        shown = np.linspace(0, places.size - 1, min(marks, places.size)).round().astype(int)
        ax.errorbar(
            places[shown],
            runs.mean(0)[shown],
            yerr=2 * runs.std(0, ddof=1)[shown],
            fmt="o",
            color=colours.accent,
            markersize=3.5,
            linewidth=1.0,
            capsize=1.5,
            label=f"{measured_name}, mean ± 2 std",
        )
    if data is not None:
        inputs, targets = (finite_array(value, "data", 1) for value in data)
        ax.plot(
            inputs,
            targets,
            "D",
            color=colours.cool[2],
            markeredgecolor="white",
            markersize=7,
            zorder=5,
            label="training samples",
        )
    ax.set(xlabel=xlabel, ylabel=label)
    return frame(ax)
