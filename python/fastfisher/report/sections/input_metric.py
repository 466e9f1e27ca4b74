# SPDX-License-Identifier: Apache-2.0
"""Metric of the input and of the feature space: few directions in which noise matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import diagnostics, theory
from fastfisher._arrays import to_numpy
from fastfisher.models import MLP
from fastfisher.report import _device
from fastfisher.report._compare import Comparison, compared
from fastfisher.report._random import VARIANCES, gaussian, probabilities
from fastfisher.report._section import Context, Fact, SectionResult
from fastfisher.report.sections import _input_metric_page as page

__all__ = ["build"]

Floats = NDArray[np.float64]

SAMPLES, OUTPUTS = 100, 10
PHI = ("tanh", "relu", "linear")
# Of the histograms.
SHOWN_WIDTH, SHOWN_SAMPLES, SHOWN_PHI = 500, 1000, "tanh"


@dataclass(frozen=True)
class Sizes:
    """What the three grids differ in; the last width is that of the table."""

    widths: tuple[int, ...]
    networks: int
    shown: int


QUICK = Sizes((150, 300, 600), 2, 1)
DEFAULT = Sizes((100, 200, 400, 1000), 10, 5)
FULL = Sizes((100, 200, 400, 1000, 2000), 50, 50)


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    sizes = settings.pick(quick=QUICK, default=DEFAULT, full=FULL)
    with context.progress.task("spectra of the input metric", sizes.shown) as tick:
        shown = []
        for seed in range(settings.seed, settings.seed + sizes.shown):
            shown.append(context.point(f"shown seed {seed}", partial(_shown, seed)))
            tick()
    total = len(PHI) * len(sizes.widths) * sizes.networks
    found: dict[str, dict[str, Floats]] = {}
    with context.progress.task("input and feature metric", total) as tick:
        for phi in PHI:
            points = []
            for width in sizes.widths:
                for seed in range(settings.seed, settings.seed + sizes.networks):
                    name = f"{phi} width {width} seed {seed}"
                    points.append(context.point(name, partial(_point, phi, width, seed)))
                    tick()
            shape = (len(sizes.widths), sizes.networks)
            found[phi] = {
                key: np.array([point[key] for point in points]).reshape(*shape, *value.shape)
                for key, value in points[0].items()
            }
    rows = _rows(found, sizes.widths[-1])
    outliers = [row for row in rows if row.name.endswith("input, mean of the outliers")]
    worst = max(outliers, key=lambda row: abs(np.log(row.ratio)))
    growth = {
        key: float(found["tanh"][key][-1].mean() / found["tanh"][key][0].mean())
        for key in ("mean", "outliers")
    }
    lines = {phi: _lines(phi, sizes.widths) for phi in PHI}
    values: dict[str, Any] = {
        "comparison": [row.plain() for row in rows],
        "widths": list(sizes.widths),
        "by_width": {
            phi: {
                key: {"measured": one[key].mean(1).tolist(), "theory": list(lines[phi][key])}
                for key in ("mean", "outliers")
            }
            for phi, one in found.items()
        },
        "softmax_outliers": {
            phi: {
                "measured": one["softmax"][-1].mean(0).tolist(),
                "theory": one["softmax_predicted"][-1].mean(0).tolist(),
            }
            for phi, one in found.items()
        },
    }
    return SectionResult(
        summary=(
            f"Of the eigenvalues of the input metric {OUTPUTS}, one for each output, stay of order "
            f"one while the others fall as 1/M: from width {sizes.widths[0]} to {sizes.widths[-1]} "
            f"the mean eigenvalue changes by a factor of {growth['mean']:.2g}, the outliers by "
            f"{growth['outliers']:.2g} (tanh). At the largest width their mean is at worst "
            f"{100 * abs(worst.ratio - 1):.1f}&nbsp;% off theory."
        ),
        facts=tuple(
            Fact(
                f"{row.name.split(':')[0]}: outliers",
                f"{row.measured:.4g}",
                f"theory {row.predicted:.4g}",
            )
            for row in outliers
        ),
        blocks=page.blocks(
            page.Results(
                sizes.widths,
                sizes.networks,
                f"{SHOWN_PHI} networks of three layers of width {SHOWN_WIDTH} with {OUTPUTS} "
                f"outputs on {SHOWN_SAMPLES} Gaussian samples",
                found,
                lines,
                shown,
                _marks(shown),
                rows,
            )
        ),
        settings={
            "depth": 3,
            "widths": list(sizes.widths),
            "outputs": OUTPUTS,
            "samples": SAMPLES,
            "networks": sizes.networks,
            "histogram_width": SHOWN_WIDTH,
            "histogram_samples": SHOWN_SAMPLES,
            "histogram_activation": SHOWN_PHI,
            "histogram_networks": sizes.shown,
            "variances": VARIANCES,
            "dtype": "float32",
            "seed": settings.seed,
        },
        values=values,
        headline=(f"input metric: mean of {OUTPUTS} outliers {worst.ratio:.3f} of theory at worst"),
    )


def _network(phi: str, width: int, samples: int, seed: int) -> tuple[MLP, Any]:
    options: dict[str, Any] = {"activation": phi, **VARIANCES[phi]}
    mlp = MLP((width, width, width, OUTPUTS), seed=seed, dtype="float32", **options)
    return mlp, gaussian(samples, width, seed=seed).astype(np.float32)


def _shown(seed: int) -> dict[str, Any]:
    """All eigenvalues, for regression and classification, and theory of the latter."""
    mlp, x = _network(SHOWN_PHI, SHOWN_WIDTH, SHOWN_SAMPLES, seed)
    spectrum = theory.softmax_metric_spectrum(_order(SHOWN_PHI, SHOWN_WIDTH), probabilities(mlp(x)))
    there = _device.moved(x)
    softmax = diagnostics.input_metric(mlp, there, likelihood="categorical")
    return {
        "regression": to_numpy(diagnostics.input_metric(mlp, there).eigenvalues()),
        "softmax": to_numpy(softmax.eigenvalues()),
        "outliers": spectrum.outliers,
    }


def _point(phi: str, width: int, seed: int) -> dict[str, Any]:
    """Measure one network; predict from its outputs what depends on them."""
    mlp, x = _network(phi, width, SAMPLES, seed)
    order = _order(phi, width)
    there = _device.moved(x)
    plain = diagnostics.input_metric(mlp, there)
    features = diagnostics.input_metric(mlp, there, space="features")
    softmax = diagnostics.input_metric(mlp, there, likelihood="categorical")
    spectrum = theory.softmax_metric_spectrum(order, probabilities(mlp(x)))
    return {
        "mean": plain.trace / width,
        "outliers": to_numpy(plain.top(OUTPUTS)[0]).mean(),
        "features": to_numpy(features.top(OUTPUTS)[0]).mean(),
        "softmax_mean": softmax.trace / width,
        "softmax": to_numpy(softmax.top(OUTPUTS - 1)[0]),
        "softmax_mean_predicted": spectrum.trace / width,
        "softmax_predicted": spectrum.outliers,
    }


def _order(phi: str, width: int) -> theory.OrderParameters:
    widths = (width, width, width, OUTPUTS)
    return theory.order_parameters(widths, activation=phi, **VARIANCES[phi])


def _lines(phi: str, widths: Sequence[int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"mean": [], "outliers": [], "features": []}
    for width in widths:
        order = _order(phi, width)
        plain = theory.metric_spectrum(order, samples=SAMPLES)
        features = theory.metric_spectrum(order, samples=SAMPLES, space="features")
        found["mean"].append(plain.mean)
        found["outliers"].append(plain.lambda_max * theory.metric_finite_size_factor(order))
        found["features"].append(features.lambda_max)
    return found


def _rows(found: dict[str, dict[str, Floats]], width: int) -> list[Comparison]:
    rows = []
    for phi, one in found.items():
        line = {key: value[0] for key, value in _lines(phi, [width]).items()}
        last = {key: value[-1] for key, value in one.items()}
        softmax = "input with softmax"
        for name, measured, predicted in (
            ("input, mean eigenvalue", last["mean"], line["mean"]),
            ("input, mean of the outliers", last["outliers"], line["outliers"]),
            ("features, mean of the outliers", last["features"], line["features"]),
            (
                f"{softmax}, mean eigenvalue",
                last["softmax_mean"],
                last["softmax_mean_predicted"],
            ),
            (
                f"{softmax}, mean of the outliers",
                last["softmax"].mean(1),
                last["softmax_predicted"].mean(1),
            ),
        ):
            rows.append(compared(f"{phi}: {name}", measured, predicted))
    return rows


def _marks(shown: Sequence[dict[str, NDArray[Any]]]) -> dict[str, dict[str, float]]:
    """Predict the marks of the histograms."""
    order = _order(SHOWN_PHI, SHOWN_WIDTH)
    spectrum = theory.metric_spectrum(order, samples=SHOWN_SAMPLES)
    outliers = np.mean([one["outliers"] for one in shown], axis=0)
    return {
        "regression": {
            "outliers": spectrum.lambda_max * theory.metric_finite_size_factor(order),
            "mean of the bulk": spectrum.bulk_mean,
        },
        "softmax": {"first outlier": outliers[0], "last outlier": outliers[-1]},
    }
