# SPDX-License-Identifier: Apache-2.0
"""Spectrum of the Fisher matrix of random networks beside theory: regression and softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import theory
from fastfisher.plot import plot_eigenvalue_histogram, plot_scaling
from fastfisher.report._random import (
    VARIANCES,
    dual,
    eigenvalues,
    network,
    probabilities,
    softmax_dual,
)
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

# Of the histograms: three layers, tanh, ten outputs.
WIDTHS, SAMPLES = (200, 200, 200, 10), 100
# Of the scaling with the width: three layers, one output.
SWEEP, SWEEP_SAMPLES = (50, 100, 200, 400, 800), 100
PHI = ("tanh", "relu", "linear")


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    seed, pick = context.settings.seed, context.settings.pick
    networks, repeats = pick(quick=(2, 1), default=(6, 3), full=(100, 20))
    sweep = pick(quick=SWEEP[:-1], default=SWEEP, full=(*SWEEP, 1600))
    order = theory.order_parameters(WIDTHS, activation="tanh", **VARIANCES["tanh"])
    regression = theory.fisher_spectrum(order, samples=SAMPLES)
    with context.progress.task("Fisher matrices of random networks", networks) as tick:
        plain, softmax, predicted = _spectra(order, networks, seed, tick)
    with context.progress.task("growth with the width", len(PHI) * len(sweep)) as tick:
        tops, lines = _sweep(context, sweep, repeats, tick)
    c = WIDTHS[-1]
    values: dict[str, Any] = {
        "regression": {
            "outliers": float(plain[:, :c].mean()),
            "outliers_predicted": regression.lambda_max,
            "trace": float(plain.sum(1).mean()),
            "trace_predicted": regression.trace,
            "bulk_mean": float(plain[:, c:].sum(1).mean() / regression.bulk_size),
            "bulk_mean_predicted": regression.bulk_mean,
        },
        "softmax": {
            "outliers": softmax[:, : c - 1].mean(0).tolist(),
            "outliers_predicted": np.mean([s.outliers for s in predicted], axis=0).tolist(),
            "trace": float(softmax.sum(1).mean()),
            "trace_predicted": float(np.mean([s.trace for s in predicted])),
            "lambda_max": float(softmax[:, 0].mean()),
            "upper_bound": float(np.mean([s.upper_bound for s in predicted])),
        },
        "lambda_max_by_width": {name: array.mean(1).tolist() for name, array in tops.items()},
        "lambda_max_by_width_predicted": {name: list(line) for name, line in lines.items()},
    }
    return SectionResult(
        summary=_summary(values),
        facts=_facts(values),
        blocks=_blocks(values, sweep, _pictures(plain, softmax, values, sweep, tops, lines)),
        settings={
            "widths": list(WIDTHS),
            "samples": SAMPLES,
            "activation": "tanh",
            "variances": VARIANCES,
            "networks": networks,
            "sweep": list(sweep),
            "sweep_samples": SWEEP_SAMPLES,
            "sweep_networks": repeats,
            "seed": seed,
        },
        values=values,
        headline=(
            f"random networks: outliers of F* {values['regression']['outliers']:.4g}, "
            f"theory {regression.lambda_max:.4g}"
        ),
    )


def _spectra(
    order: theory.OrderParameters, networks: int, seed: int, tick: Callable[[], None]
) -> tuple[Floats, Floats, list[theory.SoftmaxSpectrum]]:
    """Eigenvalues of F* for regression and softmax, one row a network, and theory of softmax."""
    plain, softmax, predicted = [], [], []
    for index in range(networks):
        jacobian = network("tanh", WIDTHS, SAMPLES, seed=seed + index)
        g = probabilities(jacobian.outputs)
        matrix = dual(jacobian)
        plain.append(eigenvalues(matrix))
        softmax.append(eigenvalues(softmax_dual(matrix, g)))
        predicted.append(theory.softmax_spectrum(order, g))
        tick()
    return np.array(plain), np.array(softmax), predicted


def _sweep(
    context: Context, sweep: tuple[int, ...], repeats: int, tick: Callable[[], None]
) -> tuple[dict[str, Floats], dict[str, list[float]]]:
    seeds = range(context.settings.seed, context.settings.seed + repeats)
    tops: dict[str, Floats] = {}
    lines: dict[str, list[float]] = {}
    for activation in PHI:
        rows, line = [], []
        for width in sweep:
            widths = (width, width, width, 1)
            order = theory.order_parameters(widths, activation=activation, **VARIANCES[activation])
            line.append(theory.fisher_spectrum(order, samples=SWEEP_SAMPLES).lambda_max)

            def compute(phi: str = activation, widths: tuple[int, ...] = widths) -> dict[str, Any]:
                networks = (network(phi, widths, SWEEP_SAMPLES, seed=seed) for seed in seeds)
                return {"tops": [eigenvalues(dual(jacobian))[0] for jacobian in networks]}

            rows.append(context.point(f"{activation} {width}", compute)["tops"])
            tick()
        tops[activation], lines[activation] = np.array(rows), line
    return tops, lines


def _pictures(
    plain: Floats,
    softmax: Floats,
    values: dict[str, Any],
    sweep: tuple[int, ...],
    tops: dict[str, Floats],
    lines: dict[str, list[float]],
) -> dict[str, Callable[[Axes], None]]:
    regression, classes = values["regression"], values["softmax"]

    def histogram(ax: Axes, spectra: Floats, marks: dict[str, float]) -> None:
        plot_eigenvalue_histogram(spectra.ravel(), theory=marks, networks=len(spectra), ax=ax)

    outliers = classes["outliers_predicted"]
    return {
        "regression": partial(
            histogram,
            spectra=plain,
            marks={
                "outliers": regression["outliers_predicted"],
                "mean of the bulk": regression["bulk_mean_predicted"],
            },
        ),
        "softmax": partial(
            histogram,
            spectra=softmax,
            marks={"first outlier": outliers[0], "last outlier": outliers[-1]},
        ),
        "width": lambda ax: _discard(plot_scaling(sweep, tops, theory=lines, ax=ax)),
    }


def _discard(_: object) -> None:
    """Drop the axes that plots return: a picture needs none."""


def _summary(values: dict[str, Any]) -> str:
    off = values["regression"]["outliers"] / values["regression"]["outliers_predicted"] - 1
    return (
        "Random networks have as many huge eigenvalues of the Fisher matrix as outputs, where "
        f"theory for infinite width says they are: here {100 * abs(off):.1f}&nbsp;% "
        f"{'above' if off > 0 else 'below'}. With softmax one outlier is lost and the others "
        "spread."
    )


def _facts(values: dict[str, Any]) -> tuple[Fact, ...]:
    regression, classes = values["regression"], values["softmax"]
    return (
        Fact(
            f"mean of the {WIDTHS[-1]} outliers",
            f"{regression['outliers']:.4g}",
            f"theory {regression['outliers_predicted']:.4g}",
        ),
        Fact(
            "trace of F",
            f"{regression['trace']:.4g}",
            f"theory {regression['trace_predicted']:.4g}",
        ),
        Fact(
            "softmax: &lambda;<sub>max</sub>",
            f"{classes['lambda_max']:.4g}",
            f"theory {classes['outliers_predicted'][0]:.4g}",
        ),
    )


def _blocks(
    values: dict[str, Any], sweep: tuple[int, ...], draw: dict[str, Callable[[Axes], None]]
) -> tuple[Text | Figure | Table, ...]:
    classes = values["softmax"]
    return (
        Text(
            "For wide random networks the dual Fisher matrix has two kinds of entries only, "
            "K<sub>1</sub> on the diagonal and K<sub>2</sub> elsewhere; both follow from depth, "
            "activation and variances. C outliers (N&minus;1)/N K<sub>2</sub> + K<sub>1</sub>/N "
            "rise above a bulk around (K<sub>1</sub>&minus;K<sub>2</sub>)/N. With softmax outputs "
            "each sample is weighted by Q = diag(g) &minus; gg<sup>T</sup>, which no class-wide "
            "shift can see: C&minus;1 outliers remain, one for each eigenvalue of the mean of Q."
        ),
        Figure(
            (
                Plot(
                    "regression",
                    "Histogram of eigenvalues for regression, with lines of theory.",
                    draw["regression"],
                    (5.6, 4.2),
                ),
                Plot(
                    "softmax",
                    "Histogram of eigenvalues for softmax outputs, with lines of theory.",
                    draw["softmax"],
                    (5.6, 4.2),
                ),
            ),
            f"Eigenvalues of F* for tanh networks of three layers of width {WIDTHS[0]} with "
            f"{WIDTHS[-1]} outputs on {SAMPLES} Gaussian samples: regression and softmax. Lines: "
            "theory.",
        ),
        Table(
            "Softmax: outliers, means over networks.",
            ("outlier", "networks", "theory, from their outputs"),
            tuple(
                (str(index + 1), f"{measured:.3f}", f"{predicted:.3f}")
                for index, (measured, predicted) in enumerate(
                    zip(classes["outliers"], classes["outliers_predicted"], strict=True)
                )
            ),
        ),
        Figure(
            (
                Plot(
                    "width",
                    "Largest eigenvalue against the width for three activations.",
                    draw["width"],
                ),
            ),
            "The largest eigenvalue grows in proportion to the width, so the critical learning "
            f"rate falls as 1/M. Three layers, one output, {SWEEP_SAMPLES} Gaussian samples; "
            f"widths {sweep[0]} to {sweep[-1]}. Marks: networks. Lines: theory.",
        ),
    )
