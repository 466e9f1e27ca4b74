# SPDX-License-Identifier: Apache-2.0
"""Density of eigenvalues: histogram of what was measured, lines for theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot._axes import STYLES, axes_or_new, finite_array, frame, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_density"]


def plot_density(
    eigenvalues: Any,
    *,
    theory: Mapping[str, tuple[Any, Any]] | None = None,
    marks: Mapping[str, float] | None = None,
    bins: int = 80,
    name: str = "networks",
    label: str = "eigenvalue λ of H",
    log: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Histogram of eigenvalues, normalised to one, with densities of theory.

    Parameters
    ----------
    eigenvalues : array, shape (n,)
        Eigenvalues, of one network or of many.
    theory : mapping of str to pair of arrays, shape (m,), optional
        By name, where the density is known and how large it is there.
    marks : mapping of str to float, optional
        Eigenvalues predicted, by name: triangles on the horizontal axis.
    bins : int
        Number of bins.
    name : str
        What the histogram is called.
    label : str
        Label of the horizontal axis, with its unit.
    log : bool
        Whether the density has a log scale: one that shows bulk and atoms.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, shapes that disagree, fewer bins than one, eigenvalues that are not finite.
    MissingExtraError
        matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(0, 1, 5)
    >>> plot_density([0.1, 0.4, 0.9], theory={"uniform": (x, np.ones(5))}, bins=4).get_yscale()
    'log'
    """
    values = finite_array(eigenvalues, "eigenvalues", 1)
    if not np.isfinite(values).all():
        raise ValueError("eigenvalues: expected finite numbers")
    if bins < 1:
        raise ValueError(f"bins: expected an integer of at least 1, got {bins}")
    lines = {}
    for key, (where, density) in (theory or {}).items():
        lines[key] = finite_array(where, f"theory[{key!r}]", 1), finite_array(density, key, 1)
        if lines[key][0].shape != lines[key][1].shape:
            raise ValueError(f"theory[{key!r}]: expected two arrays of one length")
    ax = axes_or_new(ax)
    colours = palette()
    heights = np.zeros(0)
    if values.size:
        heights, edges = np.histogram(values, bins, density=True)
        ax.stairs(heights, edges, fill=True, color=colours.main, alpha=0.55, label=name)
    for (key, (where, density)), style in zip(lines.items(), STYLES * 8, strict=False):
        ax.plot(where, density, style, color=colours.accent, linewidth=1.6, label=key)
    ax.set(xlabel=label, ylabel="density  (1 / eigenvalue)")
    if log:
        ax.set_yscale("log")
        positive = heights[heights > 0]
        if positive.size:
            # Theory's tails fall without end; one eigenvalue in a bin is the least that is seen.
            peak = max([positive.max(), *(float(d.max(initial=0.0)) for _, d in lines.values())])
            ax.set_ylim(positive.min() / 3, 12 * peak)  # room for the legend
    for key, value in (marks or {}).items():
        ax.plot(
            value,
            0.0,
            "v",
            transform=ax.get_xaxis_transform(),
            color=colours.accent,
            markersize=8,
            clip_on=False,
            label=f"{key}: {value:.4g}",
            linestyle="none",
        )
    return frame(ax, loc="upper center", fontsize="small", ncols=2)
