# SPDX-License-Identifier: Apache-2.0
"""Gradient descent around the critical learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher._extras import require
from fastfisher.plot._axes import axes_or_new, finite_array, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_gd_curves"]

_MARKERS = "osv^DP"


def plot_gd_curves(
    curves: Any,
    *,
    ratios: Any,
    predicted: Any = None,
    label: str = "training loss",
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Curves of gradient descent at several learning rates, against what linear theory predicts.

    Parameters
    ----------
    curves : array, shape (k, t)
        One curve a learning rate, from step 0; NaN where a run was stopped.
    ratios : array, shape (k,)
        Learning rates over the critical one. Below 1 the colours are cool, above 1 warm.
    predicted : array, shape (k, t), optional
        Predictions, drawn as dashed lines.
    label : str
        Label of the vertical axis, with its unit.
    legend : bool
        Whether to add a legend.
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
    >>> plot_gd_curves([[1.0, 0.8], [1.0, 1.2]], ratios=[0.9, 1.1]).get_yscale()
    'log'
    """
    measured = finite_array(curves, "curves", 2)
    rates = finite_array(ratios, "ratios", 1)
    theory = None if predicted is None else finite_array(predicted, "predicted", 2)
    if rates.size != measured.shape[0]:
        raise ValueError(f"ratios: expected {measured.shape[0]}, one per curve, got {rates.size}")
    if theory is not None and theory.shape != measured.shape:
        raise ValueError(
            f"predicted: expected the shape of curves {measured.shape}, got {theory.shape}"
        )
    ax = axes_or_new(ax)
    steps = np.arange(measured.shape[1])
    for index, (rate, colour) in enumerate(zip(rates, _colours(rates), strict=True)):
        if theory is not None:
            ax.plot(steps, theory[index], "--", color=colour, linewidth=1.2, zorder=1)
        ax.plot(
            steps,
            measured[index],
            _MARKERS[index % len(_MARKERS)],
            linestyle="-" if theory is None else "none",
            color=colour,
            markersize=5,
            label=f"{rate:g} $\\eta_c$",
        )
    if theory is not None:
        ax.plot([], [], "--", color=palette().faint, linewidth=1.2, label="linear theory")
    ax.set(yscale="log", xlabel="gradient-descent step", ylabel=label)
    ax.xaxis.set_major_locator(
        require("matplotlib.ticker", purpose="plotting").MaxNLocator(integer=True)
    )
    ax.grid(which="major", alpha=0.25)
    if legend:
        ax.legend(frameon=False)
    return ax


def _colours(rates: Any) -> list[str]:
    """Cool below the critical rate, warm from it on, darker the further away."""
    colours = palette()
    below, above = sorted(rates[rates < 1], reverse=True), sorted(rates[rates >= 1])
    return [
        colours.cool[min(below.index(rate), 2)]
        if rate < 1
        else colours.warm[min(above.index(rate), 2)]
        for rate in rates
    ]
