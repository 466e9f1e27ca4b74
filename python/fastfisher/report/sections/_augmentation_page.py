# SPDX-License-Identifier: Apache-2.0
"""Words, tables and pictures of the section on data augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_curves, plot_levels
from fastfisher.report._section import Fact, Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["blocks", "facts", "headline", "level_values", "summary"]

Floats = NDArray[np.float64]

LEVELS = ("largest", "between samples", "within copies")
NAMES = {"plain": "as they are", "augmented": "augmented"}
METHODS = ("none", "all", "self-paced")


def level_values(spectrum: Mapping[str, Floats]) -> dict[str, Any]:
    """Means over networks of each level, and the prediction."""
    found: dict[str, Any] = {}
    n = spectrum["plain"].shape[1]
    for name in NAMES:
        values, predicted = spectrum[name], spectrum[f"{name}_predicted"]
        parts = {LEVELS[0]: slice(0, 1), LEVELS[1]: slice(1, n), LEVELS[2]: slice(n, None)}
        for level, part in parts.items():
            if predicted[part].size:
                found[f"{name}: {level}"] = {
                    "measured": float(values[:, part].mean()),
                    "spread": float(values[:, part].mean(1).std()),
                    "predicted": float(predicted[part][0]),
                    "number": int(predicted[part].size),
                }
    return found


def _worst(values: dict[str, Any]) -> float:
    levels = values["levels"].values()
    return float(max(abs(one["measured"] / one["predicted"] - 1) for one in levels))


def _last(values: dict[str, Any], name: str) -> float:
    return float(values["training"][name][-1])


def _far(values: dict[str, Any]) -> float:
    """Largest relative distance of a test loss from the kernel's, over steps and methods."""
    pairs = (
        (values["training"][f"{m} loss"], values["training"][f"{m} loss predicted"])
        for m in METHODS
    )
    return float(max(np.nanmax(np.abs(np.array(a) / np.array(b) - 1)) for a, b in pairs))


def summary(values: dict[str, Any]) -> str:
    """Say what was found (markup)."""
    levels = values["levels"]
    top = [levels[f"{name}: largest"]["measured"] for name in NAMES]
    best = min(METHODS, key=lambda m: _last(values, f"{m} loss"))
    moved = 100 * (top[1] / top[0] - 1)
    return (
        f"Augmentation moves the largest eigenvalue of the Fisher matrix by {moved:+.0f}&nbsp;%, "
        "and so the critical learning rate hardly, but adds a level of small eigenvalues: slow "
        "directions, within the copies of each sample. On few digits the network follows its "
        f"kernel within {100 * _far(values):.0f}&nbsp;% of the test loss, and the lowest test loss "
        f"is that of {_method(best)}."
    )


def headline(values: dict[str, Any]) -> str:
    """Say the same in one line of plain text."""
    return (
        f"augmentation: three levels of eigenvalues within {100 * _worst(values):.0f} %, "
        f"self-paced training within {100 * _far(values):.0f} % of its kernel"
    )


def facts(values: dict[str, Any]) -> tuple[Fact, ...]:
    """Pick the headline figures."""
    level = values["levels"]
    ratio = level["augmented: largest"]["measured"] / level["plain: largest"]["measured"]
    small = (
        level["augmented: within copies"]["measured"] / level["plain: between samples"]["measured"]
    )
    return (
        Fact("largest eigenvalue, after / before", f"{ratio:.2f}", "sets the learning rate"),
        Fact("new level / smallest before", f"{small:.2f}", "slow directions"),
        Fact("levels: largest error", f"{100 * _worst(values):.1f} %", "theory of wide networks"),
        Fact(
            "test loss, self-paced / none",
            f"{_last(values, 'self-paced loss') / _last(values, 'none loss'):.2f}",
            f"all: {_last(values, 'all loss') / _last(values, 'none loss'):.2f}",
        ),
    )


def blocks(
    spectrum: Mapping[str, Floats],
    digits: Mapping[str, Floats],
    runs: Mapping[str, Floats],
    values: dict[str, Any],
) -> tuple[Text | Figure | Table, ...]:
    """Lay out the section from top to bottom."""
    steps = np.arange(len(runs["none loss"]))

    def draw_levels(ax: Axes) -> None:
        plot_levels(
            {shown: spectrum[name].mean(0) for name, shown in NAMES.items()},
            predicted={shown: spectrum[f"{name}_predicted"] for name, shown in NAMES.items()},
            ax=ax,
        )

    def draw_digits(ax: Axes) -> None:
        plot_levels(
            {shown: digits[name] for name, shown in NAMES.items()},
            predicted={shown: digits[f"{name}_predicted"] for name, shown in NAMES.items()},
            ax=ax,
        )

    def draw_loss(ax: Axes) -> None:
        plot_curves(
            steps,
            {method: runs[f"{method} loss"] for method in METHODS},
            predicted={method: runs[f"{method} loss predicted"] for method in METHODS},
            label="test loss  (output²)",
            ax=ax,
        )
        # The end decides; the start is far above.
        last = [runs[f"{method} loss{end}"][-1] for method in METHODS for end in ("", " predicted")]
        ax.set_ylim(0.95 * min(last), 1.8 * min(last))

    def draw_fraction(ax: Axes) -> None:
        n = runs["all count"][0]
        name = "self-paced"
        plot_curves(
            steps[:-1],
            {name: runs[f"{name} count"] / n},
            predicted={name: runs[f"{name} count predicted"] / n},
            label="fraction augmented",
            ax=ax,
        )

    small = (5.6, 4.2)
    return (
        Text(
            "A copies of each sample, alike but for noise, change the products of gradients in one "
            "place only: between the copies of a sample they are K<sub>w</sub>, nearly as large as "
            "K<sub>1</sub> of a sample with itself. The dual Fisher matrix F* then has three "
            "levels of eigenvalues in place of two."
        ),
        Figure(
            (
                Plot(
                    "levels", "Eigenvalues by rank, before and after, Gaussian.", draw_levels, small
                ),
                Plot(
                    "digits", "Eigenvalues by rank, before and after, digits.", draw_digits, small
                ),
            ),
            "Eigenvalues of F*, largest first, of samples as they are and with all their copies. "
            "Left: Gaussian samples with noise, mean over networks; lines: the three levels. "
            "Right: real digits, rotated and shifted a little, one network; lines: eigenvalues of "
            "the analytic tangent kernel of the very same images, which are not orthogonal as the "
            "three levels assume.",
        ),
        _levels_table(values),
        Text(
            "Self-paced augmentation looks at the loss of each sample first and augments only "
            "those above a threshold, so hard samples vary and learned ones stay. In the limit of "
            "wide networks it is gradient descent on the outputs with a constant kernel, each "
            "sample replaced by one of its copies where it was chosen. With a threshold of zero "
            "all samples are augmented in every step, with one of infinity none."
        ),
        Figure(
            (
                Plot("loss", "Test loss against steps, for three ways.", draw_loss, small),
                Plot("fraction", "Fraction augmented against steps.", draw_fraction, small),
            ),
            "Few digits, full-batch gradient descent at the learning rate 1 / &lambda;<sub>max"
            "</sub> of the samples as they are. Marks: the network, less its outputs at the start. "
            "Dashed: its analytic kernel with the same copies in the same steps. Threshold, copies "
            "and rate are choices of this report, not those of the paper. The losses at the start, "
            f"{runs['none loss'][0]:.2f}, lie above the left picture.",
        ),
        _training_table(values),
        _count_table(values),
    )


def _levels_table(values: dict[str, Any]) -> Table:
    return Table(
        "Levels of F* on Gaussian samples.",
        ("level", "eigenvalues", "predicted", "measured", "spread over networks", "error"),
        tuple(
            (
                name,
                f"{one['number']}",
                f"{one['predicted']:.4g}",
                f"{one['measured']:.4g}",
                f"{one['spread']:.2g}",
                f"{100 * (one['measured'] / one['predicted'] - 1):+.1f} %",
            )
            for name, one in values["levels"].items()
        ),
    )


def _training_table(values: dict[str, Any]) -> Table:
    rows = []
    for method in METHODS:
        loss, theory = (_last(values, f"{method} loss{end}") for end in ("", " predicted"))
        accuracy = [100 * _last(values, f"{method} accuracy{end}") for end in ("", " predicted")]
        rows.append(
            (
                _method(method),
                f"{theory:.4f}",
                f"{loss:.4f}",
                f"{100 * (loss / theory - 1):+.1f} %",
                f"{accuracy[1]:.1f} %",
                f"{accuracy[0]:.1f} %",
            )
        )
    return Table(
        f"After {len(values['training']['none loss']) - 1} steps, on images not trained on.",
        (
            "augmented",
            "test loss of the kernel",
            "of the network",
            "difference",
            "correct, kernel",
            "correct, network",
        ),
        tuple(rows),
    )


def _count_table(values: dict[str, Any]) -> Table:
    measured, predicted = (
        values["training"][f"self-paced count{end}"] for end in ("", " predicted")
    )
    steps = sorted({step for step in (0, 5, 10, 20, 50, 100, 200) if step < len(measured)})
    steps.append(len(measured) - 1)
    shown = sorted(set(steps))
    return Table(
        f"Samples augmented by self-paced augmentation, of {values['training']['all count'][0]}.",
        ("step", *(str(step) for step in shown)),
        (
            ("kernel", *(str(int(predicted[step])) for step in shown)),
            ("network", *(str(int(measured[step])) for step in shown)),
        ),
    )


def _method(name: str) -> str:
    return {"none": "no sample", "all": "every sample", "self-paced": "self-paced"}[name]
