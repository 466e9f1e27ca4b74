# SPDX-License-Identifier: Apache-2.0
"""The neural tangent kernel as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher._extras import require
from fastfisher.plot._axes import axes_or_new, finite_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_ntk_heatmap"]


def plot_ntk_heatmap(
    kernel: Any,
    *,
    classes: Any = None,
    class_names: Any = None,
    label: str = "kernel value",
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of a kernel matrix, with its classes marked when the samples are ordered by class.

    Parameters
    ----------
    kernel : array, shape (n, m)
        Kernel between samples, for instance ``ff.ntk(model, x, outputs="trace")``.
    classes : array of int, shape (n,), optional
        Class of each sample, in non-decreasing order; needs a square kernel.
    class_names : sequence of str, optional
        Name of class 0, 1, ...; the numbers by default.
    label : str
        Label of the colour bar, with its unit.
    colorbar : bool
        Whether to add a colour bar.
    ax : matplotlib axes, optional
        Where to draw.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        Wrong rank, classes of the wrong length or not in order.
    MissingExtraError
        matplotlib is not installed.

    Notes
    -----
    The colours span the 1 % to 99 % quantiles of the entries off the diagonal: a few large diagonal
    entries would otherwise hide the structure between samples. Entries beyond are drawn in the end
    colours, as the pointed ends of the colour bar say.

    Examples
    --------
    >>> import numpy as np
    >>> plot_ntk_heatmap(np.eye(4), classes=[0, 0, 1, 1]).get_xlabel()
    'sample, by class'
    """
    values = finite_array(kernel, "kernel", 2)
    ax = axes_or_new(ax)
    if values.size:  # matplotlib cannot scale an empty picture
        _draw(ax, values, label if colorbar else None)
    if classes is None:
        ax.set(xlabel="sample", ylabel="sample")
    else:
        _mark_classes(ax, np.asarray(classes), class_names, values.shape)
    return ax


def _draw(ax: Axes, values: Any, label: str | None) -> None:
    low, high = _colour_limits(values)
    image = ax.imshow(
        values, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", aspect="equal"
    )
    if label is not None:
        beyond = bool((values < low).any()), bool((values > high).any())
        ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
        ax.figure.colorbar(
            image, ax=ax, label=label, extend=ends.get(beyond, "neither"), shrink=0.85
        )


def _colour_limits(values: Any) -> tuple[float, float]:
    n, m = values.shape
    shown = values[~np.eye(n, dtype=bool)] if n == m and n > 1 else values
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        return 0.0, 1.0
    low, high = (float(q) for q in np.quantile(shown, (0.01, 0.99)))
    return (
        (low, high)
        if high > low
        else (float(values.min()), float(max(values.max(), values.min() + 1e-12)))
    )


def _mark_classes(ax: Axes, classes: Any, names: Any, shape: tuple[int, ...]) -> None:
    if shape[0] != shape[1] or classes.shape != (shape[0],):
        raise ValueError(
            f"classes: expected one class per sample of a square kernel, got shape {classes.shape} "
            f"for {shape}"
        )
    if (np.diff(classes) < 0).any():
        raise ValueError("classes: expected samples ordered by class, got classes that decrease")
    ticker = require("matplotlib.ticker", purpose="plotting")
    present, first = np.unique(classes, return_index=True)
    edges = np.append(first, classes.size) - 0.5
    labels = [str(c) if names is None else str(names[int(c)]) for c in present]
    for axis, line in ((ax.xaxis, ax.axvline), (ax.yaxis, ax.axhline)):
        for edge in edges[1:-1]:
            line(float(edge), color="white", linewidth=0.6, alpha=0.7)
        # Minor ticks carry the names in the middle of each block, major ones mark its edges.
        axis.set_major_locator(ticker.FixedLocator(edges))
        axis.set_major_formatter(ticker.NullFormatter())
        axis.set_minor_locator(ticker.FixedLocator((edges[:-1] + edges[1:]) / 2))
        axis.set_minor_formatter(ticker.FixedFormatter(labels))
        axis.set_tick_params(which="minor", length=0)
    ax.set(xlabel="sample, by class", ylabel="sample, by class")
