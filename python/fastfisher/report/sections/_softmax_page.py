# SPDX-License-Identifier: Apache-2.0
"""Words, pictures and tables of the section on classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_bounds, plot_scaling
from fastfisher.report._compare import Comparison, comparison_table
from fastfisher.report._section import Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastfisher.report.sections._softmax_training import Training

__all__ = ["SCALINGS", "blocks"]

Floats = NDArray[np.float64]
SIZE = (5.6, 4.2)

# What is drawn against the width: label of the axis, words for those who cannot see it.
SCALINGS = {
    "mean": ("mean eigenvalue  (loss / parameter²)", "Mean eigenvalue against the width."),
    "second": (
        "mean squared eigenvalue  (loss² / parameter⁴)",
        "Mean of the squared eigenvalues against the width.",
    ),
    "top": (
        "largest eigenvalue  (loss / parameter²)",
        "Largest eigenvalue against the width.",
    ),
}


def blocks(
    widths: Sequence[int],
    found: dict[str, dict[str, Floats]],
    ensemble: dict[str, dict[str, Floats]],
    training: Training,
    rows: Sequence[Comparison],
    networks: int,
) -> tuple[Text | Figure | Table, ...]:
    """Describe the section."""
    outputs = next(iter(found.values()))["outliers"].shape[-1] + 1
    return (
        Text(
            "For a classifier the Fisher matrix weighs each sample by Q = diag(g) &minus; "
            "gg<sup>T</sup> of its softmax outputs g: F = (1/N) &Sigma; J(t)<sup>T</sup> Q(t) "
            "J(t). Since Q is blind to equal shifts of all outputs, one outlier is lost; the "
            "others are K<sub>2</sub> w<sub>i</sub> + (K<sub>1</sub>&minus;K<sub>2</sub>)/N "
            "v<sub>i</sub><sup>T</sup>E[Q<sup>2</sup>]v<sub>i</sub>/w<sub>i</sub> with the "
            "eigenpairs of the mean of Q. The outputs of a wide network are Gaussian, with a part "
            "that all samples share, so that the prediction needs no network; that part differs "
            "from network to network at any width."
        ),
        Figure(
            tuple(
                Plot(key, alt, _scaling(key, widths, found, ensemble, label), SIZE)
                for key, (label, alt) in SCALINGS.items()
            ),
            "Eigenvalues of the Fisher matrix of classification against the width M, over all "
            f"parameters: mean (falls as 1/M), second moment (constant), largest (grows as M). "
            f"Three layers of equal width, {outputs} outputs, 100 Gaussian samples; variances of "
            "weights and biases are our defaults. Marks: "
            f"mean of {networks} networks, bars of one standard deviation. Lines: theory without "
            "any network, the mean of its ensemble; shades: from 10&nbsp;% to 90&nbsp;% of it.",
        ),
        Figure(
            (
                Plot(
                    "outliers",
                    "Outliers by rank for three activations, with lines of theory.",
                    _outliers(found),
                    SIZE,
                ),
                Plot(
                    "training-loss",
                    "Cross-entropy against steps of training, with a line of theory.",
                    _loss(training),
                    SIZE,
                ),
                Plot(
                    "training-sharpness",
                    "Largest eigenvalue against steps of training, between bounds.",
                    _sharpness(training),
                    SIZE,
                ),
            ),
            f"Left: the {outputs - 1} outliers at width {widths[-1]}, mean of {networks} networks; "
            "lines: theory from their outputs. Middle and right: gradient descent on the "
            "cross-entropy of two classes, labelled by another network; "
            f"{training.samples} samples, ReLU, &eta; = {training.rate:.3g}, half the critical "
            "rate of the first step. Loss: marks network, line f &larr; f &minus; (&eta;/N) "
            "&Theta; (softmax(f) &minus; y) with the kernel of infinite width. Sharpness: marks "
            "network, shade between the bounds K<sub>2</sub>w<sub>1</sub> and "
            "(&beta;<sub>2</sub>K<sub>2</sub><sup>2</sup> + "
            "&beta;<sub>3</sub>K<sub>1</sub><sup>2</sup>)<sup>1/2</sup> from its outputs at that "
            "step, lines theory along the recursion.",
        ),
        comparison_table(
            f"At width {widths[-1]}: means over {networks} networks, and theory from their "
            "outputs.",
            rows,
        ),
    )


def _scaling(
    key: str,
    widths: Sequence[int],
    found: dict[str, dict[str, Floats]],
    ensemble: dict[str, dict[str, Floats]],
    label: str,
) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_scaling(
            widths,
            {phi: one[key] for phi, one in found.items()},
            theory={phi: one[key][1] for phi, one in ensemble.items()},
            bands={phi: one[key][[0, 2]] for phi, one in ensemble.items()},
            label=label,
            ax=ax,
        )

    return draw


def _outliers(found: dict[str, dict[str, Floats]]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        count = next(iter(found.values()))["outliers"].shape[-1]
        plot_scaling(
            np.arange(1, count + 1),
            {phi: one["outliers"][-1].T for phi, one in found.items()},
            theory={phi: one["outliers_predicted"][-1].mean(0) for phi, one in found.items()},
            xlabel="rank of the outlier",
            label="outlier of F*  (loss / parameter²)",
            xscale="linear",
            ax=ax,
        )

    return draw


def _loss(training: Training) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_bounds(
            training.steps,
            {"network": training.loss},
            predicted={"network": training.predicted_loss},
            predicted_steps=np.arange(training.predicted_loss.size),
            label="cross-entropy  (nat)",
            xscale="log",
            ax=ax,
        )

    return draw


def _sharpness(training: Training) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        every = training.predicted_top.size
        plot_bounds(
            training.steps,
            {"regression": training.regression, "classification": training.top},
            bounds={"classification": training.bounds},
            predicted={
                "regression": np.full(every, training.predicted_regression),
                "classification": training.predicted_top,
            },
            predicted_steps=np.arange(every),
            xscale="log",
            ax=ax,
        )

    return draw
