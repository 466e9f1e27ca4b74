# SPDX-License-Identifier: Apache-2.0
"""Fisher matrix of classification: outliers against width, and bounds of it during training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import theory
from fastfisher.report import _device
from fastfisher.report._compare import Comparison, compared
from fastfisher.report._random import VARIANCES, dual, network, probabilities, softmax_dual
from fastfisher.report._section import Context, Fact, SectionResult
from fastfisher.report.sections import _softmax_page as page
from fastfisher.report.sections._softmax_training import train

__all__ = ["build"]

Floats = NDArray[np.float64]

# Three layers of equal width: those of Karakida, Akaho and Amari (2021).
SAMPLES, OUTPUTS = 100, 10
PHI = ("tanh", "relu", "linear")
# Networks drawn from the mean-field ensemble for the predictions that need no forward pass.
DRAWN = 200


@dataclass(frozen=True)
class Sizes:
    """What the three grids differ in; the last width is that of the outliers."""

    widths: tuple[int, ...]
    networks: int
    trained: int
    steps: int


QUICK = Sizes((100, 250, 600), 2, 600, 100)
DEFAULT = Sizes((100, 200, 400, 1000), 6, 1000, 200)
FULL = Sizes((50, 100, 200, 400, 1000, 2000), 50, 2000, 400)


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    sizes = settings.pick(quick=QUICK, default=DEFAULT, full=FULL)
    total = len(PHI) * len(sizes.widths) * sizes.networks
    with context.progress.task("Fisher matrices of classification", total) as tick:
        found: dict[str, dict[str, Floats]] = {}
        for phi in PHI:
            points = []
            for width in sizes.widths:
                for index in range(sizes.networks):
                    seed = settings.seed + index
                    name = f"{phi} width {width} seed {seed}"
                    points.append(context.point(name, partial(_point, phi, width, seed)))
                    tick()
            shape = (len(sizes.widths), sizes.networks)
            found[phi] = {
                key: np.array([point[key] for point in points]).reshape(*shape, *value.shape)
                for key, value in points[0].items()
            }
    ensemble = {phi: _ensemble(phi, sizes.widths, settings.seed) for phi in PHI}
    with context.progress.task("training with cross-entropy", sizes.steps) as tick:
        training = train(sizes.trained, steps=sizes.steps, seed=settings.seed, tick=tick)
    rows = _rows(found)
    outliers = [row for row in rows if "outliers" in row.name]
    worst = max(outliers, key=lambda row: abs(np.log(row.ratio)))
    inside = int(training.inside().sum())
    values: dict[str, Any] = {
        "comparison": [row.plain() for row in rows],
        "widths": list(sizes.widths),
        "by_width": {
            phi: {
                key: {
                    "measured": one[key].mean(1).tolist(),
                    "theory": ensemble[phi][key][1].tolist(),
                    "from": ensemble[phi][key][0].tolist(),
                    "to": ensemble[phi][key][2].tolist(),
                }
                for key in page.SCALINGS
            }
            for phi, one in found.items()
        },
        "outliers": {
            phi: {
                "measured": one["outliers"][-1].mean(0).tolist(),
                "theory": one["outliers_predicted"][-1].mean(0).tolist(),
            }
            for phi, one in found.items()
        },
        "training": training.plain(),
        "training_steps_inside_bounds": inside,
    }
    return SectionResult(
        summary=(
            f"Classification leaves {OUTPUTS - 1} outliers of {OUTPUTS}, and they are no longer "
            f"equal: their mean is {_percent(worst)} theory at the worst of three activations. "
            f"During training the largest eigenvalue falls by a factor of "
            f"{training.top[0] / training.top[-1]:.3g} with the loss and stays between the bounds "
            f"of theory at {inside} of {training.steps.size} steps looked at, while that of "
            f"regression changes by {100 * training.drift():.1f}&nbsp;%."
        ),
        facts=(
            *(
                Fact(
                    f"{phi}: mean of the outliers",
                    f"{row.measured:.4g}",
                    f"theory {row.predicted:.4g}",
                )
                for phi, row in zip(PHI, outliers, strict=True)
            ),
            Fact(
                f"loss after {sizes.steps} steps",
                f"{training.loss[-1]:.3g}",
                f"theory {training.predicted_loss[training.steps[-1]]:.3g}",
            ),
        ),
        blocks=page.blocks(sizes.widths, found, ensemble, training, rows, sizes.networks),
        settings={
            "depth": 3,
            "widths": list(sizes.widths),
            "outputs": OUTPUTS,
            "samples": SAMPLES,
            "networks": sizes.networks,
            "variances": VARIANCES,
            "dtype": "float32",
            "ensemble_networks": DRAWN,
            "trained_width": sizes.trained,
            "trained_samples": training.samples,
            "trained_outputs": 2,
            "steps": sizes.steps,
            "learning_rate": training.rate,
            "seed": settings.seed,
        },
        values=values,
        headline=(
            f"classification: mean of {OUTPUTS - 1} outliers {worst.ratio:.3f} of theory at worst, "
            f"inside the bounds at {inside} of {training.steps.size} steps of training"
        ),
    )


def _point(phi: str, width: int, seed: int) -> dict[str, Any]:
    """Measure one network, and predict from its outputs."""
    widths = (width, width, width, OUTPUTS)
    order = theory.order_parameters(widths, activation=phi, **VARIANCES[phi])
    jacobian = network(phi, widths, SAMPLES, seed=seed, dtype="float32")
    g = probabilities(jacobian.outputs)
    matrix = softmax_dual(dual(jacobian), g)
    top = _device.largest(matrix, OUTPUTS - 1, tol=1e-8, seed=seed)
    spectrum = theory.softmax_spectrum(order, g)
    parameters = jacobian.shape[1]
    return {
        "mean": np.trace(matrix) / parameters,
        "second": np.square(matrix).sum() / parameters,
        "top": top[0],
        "outliers": top,
        "mean_predicted": spectrum.trace / parameters,
        "second_predicted": spectrum.sum_of_squares / parameters,
        "outliers_predicted": spectrum.outliers,
        "upper_predicted": spectrum.upper_bound,
    }


def _ensemble(phi: str, widths: tuple[int, ...], seed: int) -> dict[str, Floats]:
    """Predict without any network: 10 %, mean, 90 % of the ensemble, by width (3, widths)."""
    found: dict[str, list[Any]] = {key: [] for key in page.SCALINGS}
    for width in widths:
        sizes = (width, width, width, OUTPUTS)
        order = theory.order_parameters(sizes, activation=phi, **VARIANCES[phi])
        parameters = sum((i + 1) * o for i, o in pairwise(sizes))
        drawn = theory.softmax_ensemble(order, samples=SAMPLES, networks=DRAWN, seed=seed)
        spectra = [theory.softmax_spectrum(order, g) for g in drawn]
        for key, each in (
            ("mean", [one.trace / parameters for one in spectra]),
            ("second", [one.sum_of_squares / parameters for one in spectra]),
            ("top", [one.outliers[0] for one in spectra]),
        ):
            low, high = np.quantile(each, (0.1, 0.9))
            found[key].append((low, np.mean(each), high))
    return {key: np.array(each).T for key, each in found.items()}


def _rows(found: dict[str, dict[str, Floats]]) -> list[Comparison]:
    """Compare at the largest width, with predictions from the networks' own outputs."""
    rows = []
    for phi, one in found.items():
        last = {key: value[-1] for key, value in one.items()}
        for name, measured, predicted in (
            ("mean eigenvalue", last["mean"], last["mean_predicted"]),
            ("second moment", last["second"], last["second_predicted"]),
            ("mean of the outliers", last["outliers"].mean(1), last["outliers_predicted"].mean(1)),
            ("largest eigenvalue", last["top"], last["outliers_predicted"][:, 0]),
            ("largest eigenvalue over its upper bound", last["top"], last["upper_predicted"]),
        ):
            rows.append(compared(f"{phi}: {name}", measured, predicted))
    return rows


def _percent(row: Comparison) -> str:
    off = 100 * (row.ratio - 1)
    return f"{abs(off):.1f}&nbsp;% {'above' if off > 0 else 'below'}"
