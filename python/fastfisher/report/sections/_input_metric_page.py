# SPDX-License-Identifier: Apache-2.0
"""Words, pictures and tables of the section on the input metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_eigenvalue_histogram, plot_scaling
from fastfisher.report._compare import Comparison, comparison_table
from fastfisher.report._section import Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Results", "blocks"]

Floats = NDArray[np.float64]
UNIT = "(loss / input²)"
SIZE = (5.6, 4.2)


class Results(NamedTuple):
    """What the page shows: by activation, and the networks of the histograms."""

    widths: tuple[int, ...]
    networks: int
    shown_as: str
    found: dict[str, dict[str, Floats]]
    lines: dict[str, dict[str, list[float]]]
    shown: Sequence[dict[str, NDArray[Any]]]
    marks: dict[str, dict[str, float]]
    rows: Sequence[Comparison]


def blocks(results: Results) -> tuple[Text | Figure | Table, ...]:
    """Describe the section."""
    outliers = next(iter(results.found.values()))["softmax"].shape[-1]
    shown = len(results.shown)
    return (
        Text(
            "The metric of the input space, A = (1/N) &Sigma;<sub>t,k</sub> "
            "&nabla;<sub>x</sub>f<sub>k</sub> &nabla;<sub>x</sub>f<sub>k</sub><sup>T</sup>, says "
            "how far noise of the input moves the outputs: by &epsilon;<sup>2</sup> "
            "v<sup>T</sup>Av for noise &epsilon;v. The gradients of one output at different "
            "samples share a direction, which makes C outliers of order one; in all other "
            "directions noise matters by 1/M. They exist for odd activations without biases too. "
            "With softmax one is lost and the others spread, as for the Fisher matrix."
        ),
        Figure(
            tuple(
                Plot(
                    kind,
                    f"Histogram of the input metric's eigenvalues, {words}, with lines of theory.",
                    _histogram(results, kind),
                    SIZE,
                )
                for kind, words in (("regression", "regression"), ("softmax", "classification"))
            ),
            f"Eigenvalues of the input metric of {results.shown_as}, {shown} "
            f"network{'s' if shown > 1 else ''}: regression and classification. Lines: theory.",
        ),
        Figure(
            (
                Plot(
                    "mean",
                    "Mean eigenvalue of the input metric against the width.",
                    _scaling(results, "mean", f"mean eigenvalue of A  {UNIT}"),
                    SIZE,
                ),
                Plot(
                    "outliers",
                    "Mean of the input metric's outliers against the width.",
                    _scaling(results, "outliers", f"mean outlier of A  {UNIT}"),
                    SIZE,
                ),
                Plot(
                    "softmax-outliers",
                    "Outliers of the input metric with softmax by rank, with lines of theory.",
                    _ranks(results),
                    SIZE,
                ),
            ),
            f"Three layers of equal width M, {outliers + 1} outputs, 100 Gaussian samples; "
            "variances of weights and biases are our defaults. Mean of "
            f"{results.networks} networks, bars of one standard deviation. Left: the mean "
            f"eigenvalue falls as 1/M. Middle: the {outliers + 1} outliers do not; lines: "
            "(N&minus;1)/N T<sub>2</sub> + T<sub>1</sub>/N, times a factor 1 + O(C/M) for finite "
            f"width (a heuristic, good for C/M up to 1/30). Right: the {outliers} outliers of "
            f"classification at width {results.widths[-1]}; lines: theory from the networks' "
            "outputs, at infinite width.",
        ),
        comparison_table(
            f"At width {results.widths[-1]}: means over {results.networks} networks.",
            results.rows,
        ),
    )


def _histogram(results: Results, kind: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_eigenvalue_histogram(
            np.concatenate([one[kind] for one in results.shown]),
            theory=results.marks[kind],
            networks=len(results.shown),
            label=f"eigenvalue of A  {UNIT}",
            ax=ax,
        )

    return draw


def _scaling(results: Results, key: str, label: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        measured = {phi: one[key] for phi, one in results.found.items()}
        predicted = {phi: one[key] for phi, one in results.lines.items()}
        plot_scaling(results.widths, measured, theory=predicted, label=label, ax=ax)

    return draw


def _ranks(results: Results) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        found = results.found
        plot_scaling(
            np.arange(1, next(iter(found.values()))["softmax"].shape[-1] + 1),
            {phi: one["softmax"][-1].T for phi, one in found.items()},
            theory={phi: one["softmax_predicted"][-1].mean(0) for phi, one in found.items()},
            xlabel="rank of the outlier",
            label=f"outlier of A  {UNIT}",
            xscale="linear",
            ax=ax,
        )

    return draw
