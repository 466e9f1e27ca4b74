# SPDX-License-Identifier: Apache-2.0
"""What normalising outputs, or hidden layers alone, does to the largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import theory
from fastfisher.plot import plot_scaling
from fastfisher.report._random import VARIANCES, dual, eigenvalues, network
from fastfisher.report._section import (
    Context,
    Fact,
    Figure,
    Plot,
    SectionResult,
    Table,
    Text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["build"]

Floats = NDArray[np.float64]

# Three layers, one output, as many samples as units.
SWEEP = (50, 100, 200, 400)
PHI = ("tanh", "relu")
# Hidden layers normalised: their Jacobian couples samples.
HIDDEN_WIDTHS, HIDDEN_SAMPLES = (400, 400, 400, 1), 30


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    seed = context.settings.seed
    sweep, repeats = context.settings.pick(
        quick=(SWEEP[:-1], 2), default=(SWEEP, 4), full=((*SWEEP, 800), 12)
    )
    with context.progress.task("normalised outputs", len(PHI) * len(sweep)) as tick:
        curves = {phi: _sweep(context, phi, sweep, repeats, tick) for phi in PHI}
    with context.progress.task("normalised hidden layers", 3) as tick:
        hidden = [_hidden(kind, repeats, seed, tick) for kind in (None, "mean", "batch")]
    values: dict[str, Any] = {
        "widths": list(sweep),
        "lambda_max": {
            phi: {name: curve.tolist() for name, curve in measured.items()}
            for phi, (measured, _) in curves.items()
        },
        "predicted": {
            phi: {name: list(line) for name, line in lines.items()}
            for phi, (_, lines) in curves.items()
        },
        "hidden": hidden,
    }
    gain = _gain(curves["relu"][0])
    return SectionResult(
        summary=(
            "Subtracting the batch's mean from the outputs removes the huge eigenvalues: at width "
            f"{sweep[-1]} the largest falls by a factor of {gain:.0f} (ReLU), and it no longer "
            "grows with the width when the samples keep pace. Normalising hidden layers alone "
            "leaves it."
        ),
        facts=_facts(curves, hidden),
        blocks=_blocks(sweep, curves, hidden),
        settings={
            "sweep": list(sweep),
            "samples": "as many as the width",
            "networks": repeats,
            "variances": {phi: VARIANCES[phi] for phi in PHI},
            "hidden_widths": list(HIDDEN_WIDTHS),
            "hidden_samples": HIDDEN_SAMPLES,
            "seed": seed,
        },
        values=values,
        headline=(
            f"mean subtraction at the outputs: largest eigenvalue of F* lower by a factor of "
            f"{gain:.0f} at width {sweep[-1]}"
        ),
    )


Curves = tuple[dict[str, Floats], dict[str, list[float]]]

# Names of the curves; a line of theory with the same name has the same colour.
AS_IT_IS = "as it is"
MEAN = "mean subtracted"
BATCH = "batch normalised"
LOWER = "mean subtracted: lower bound"


def _sweep(
    context: Context, phi: str, sweep: tuple[int, ...], repeats: int, tick: Callable[[], None]
) -> Curves:
    seeds = range(context.settings.seed, context.settings.seed + repeats)
    measured: dict[str, list[Floats]] = {AS_IT_IS: [], MEAN: [], BATCH: []}
    lines: dict[str, list[float]] = {AS_IT_IS: [], LOWER: []}
    for width in sweep:
        widths = (width, width, width, 1)
        order = theory.order_parameters(widths, activation=phi, **VARIANCES[phi])
        lines[AS_IT_IS].append(theory.fisher_spectrum(order, samples=width).lambda_max)
        bound = theory.normalized_spectrum(order, samples=width, normalization="mean")
        lines[LOWER].append(bound.lower_bound)
        for name, kind in ((AS_IT_IS, None), (MEAN, "mean"), (BATCH, "batch")):

            def compute(kind: Any = kind, widths: tuple[int, ...] = widths) -> dict[str, Any]:
                networks = (
                    network(phi, widths, widths[0], seed=seed, normalization=kind) for seed in seeds
                )
                return {"tops": [eigenvalues(dual(jacobian))[0] for jacobian in networks]}

            measured[name].append(context.point(f"{phi} {name} {width}", compute)["tops"])
        tick()
    return {name: np.array(rows) for name, rows in measured.items()}, lines


def _hidden(kind: Any, repeats: int, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Largest eigenvalue with hidden layers normalised, beside theory, for ReLU."""
    options = {"hidden_normalization": kind}
    tops = [
        eigenvalues(dual(network("relu", HIDDEN_WIDTHS, HIDDEN_SAMPLES, seed=s, **options)))[0]
        for s in range(seed, seed + repeats)
    ]
    order = theory.order_parameters(
        HIDDEN_WIDTHS, activation="relu", **VARIANCES["relu"], **options
    )
    predicted = (
        theory.fisher_spectrum(order, samples=HIDDEN_SAMPLES).lambda_max
        if kind is None
        else theory.hidden_normalized_spectrum(order, samples=HIDDEN_SAMPLES).outlier
    )
    tick()
    return {"kind": kind, "lambda_max": float(np.mean(tops)), "predicted": float(predicted)}


def _gain(measured: dict[str, Floats]) -> float:
    """Factor by which mean subtraction lowers the largest eigenvalue at the largest width."""
    return float(measured[AS_IT_IS][-1].mean() / measured[MEAN][-1].mean())


def _facts(curves: dict[str, Curves], hidden: list[dict[str, Any]]) -> tuple[Fact, ...]:
    return (
        *(
            Fact(
                f"{phi}: &lambda;<sub>max</sub> lower by",
                f"{_gain(measured):.0f} &times;",
                "with the mean of the outputs subtracted",
            )
            for phi, (measured, _) in curves.items()
        ),
        Fact(
            "hidden layers batch normalised",
            f"{hidden[2]['lambda_max']:.4g}",
            f"theory {hidden[2]['predicted']:.4g}; as it is {hidden[0]['lambda_max']:.4g}",
        ),
    )


def _blocks(
    sweep: tuple[int, ...], curves: dict[str, Curves], hidden: list[dict[str, Any]]
) -> tuple[Text | Figure | Table, ...]:
    def draw(phi: str) -> Callable[[Axes], None]:
        measured, lines = curves[phi]

        def picture(ax: Axes) -> None:
            plot_scaling(sweep, measured, theory=lines, ax=ax)
            low, high = ax.get_ylim()
            ax.set_ylim(low * (low / high) ** 0.5, high)  # the legend's room: lines are everywhere
            ax.set_title(phi)

        return picture

    return (
        Text(
            "The outliers' eigenvectors are the same change of the outputs for every sample. "
            "Subtracting the batch's mean from each output projects them out of the dual Fisher "
            "matrix and leaves the rest; dividing by the standard deviation rescales what is "
            "left. The critical learning rate 2 / &lambda;<sub>max</sub> then no longer depends on "
            "the width, if the number of samples grows with it."
        ),
        Figure(
            tuple(
                Plot(
                    phi,
                    f"Largest eigenvalue against the width for {phi}, with and without "
                    "normalisation of the outputs.",
                    draw(phi),
                    (5.6, 4.2),
                )
                for phi in PHI
            ),
            "Largest eigenvalue of F* for networks of three layers and one output, N = M Gaussian "
            "samples. Marks: networks. Lines: theory as it is, and the lower bound with the mean "
            "subtracted, (K<sub>1</sub>&minus;K<sub>2</sub>)/N.",
        ),
        Table(
            f"Normalising hidden layers only (ReLU, width {HIDDEN_WIDTHS[1]}, "
            f"{HIDDEN_SAMPLES} samples): the outlier stays.",
            ("hidden layers", "networks", "theory"),
            tuple(
                (
                    {None: AS_IT_IS, "mean": MEAN, "batch": BATCH}[row["kind"]],
                    f"{row['lambda_max']:.1f}",
                    f"{row['predicted']:.1f}",
                )
                for row in hidden
            ),
        ),
    )
