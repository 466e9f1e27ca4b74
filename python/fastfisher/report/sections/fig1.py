# SPDX-License-Identifier: Apache-2.0
"""Fig. 1: learning rate x width without and with normalised outputs; lambda_max by width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher import theory
from fastfisher.models import MLP
from fastfisher.report import _device
from fastfisher.report._maps import descent_map, first_unstable, largest_good, teacher_task
from fastfisher.report._random import VARIANCES, dual
from fastfisher.report._section import Context, SectionResult
from fastfisher.report.sections import _fig1_page as page

__all__ = ["build"]

Floats = NDArray[np.float64]

# The settings of the published maps are not known to us in full: three layers of equal widths and
# as many samples as units are a recipe in their spirit. Few outputs: the outliers of F* lie apart
# from each other by the root of outputs over width, theory is about their mean. Layer normalisation
# divides by the deviation of the outputs of one sample, whose inverse has a heavy tail for a few.
PHI, OUTPUTS, MANY_OUTPUTS = "relu", 4, 10
KINDS: tuple[str | None, ...] = (None, "mean", "batch", "layer")
SCALING_PHI = ("relu", "tanh")
# Layer normalisation needs several outputs; all else has one.
# With hidden layers normalised the Jacobian has N^2 M numbers a layer: 2 GB at 800.
HIDDEN_LIMIT = 400
CURVES: Mapping[str, tuple[dict[str, Any], int]] = {
    page.NONE: ({}, 1),
    page.MEAN: ({"normalization": "mean"}, 1),
    page.BATCH: ({"normalization": "batch"}, 1),
    page.LAYER: ({"normalization": "layer"}, MANY_OUTPUTS),
    page.HIDDEN: ({"hidden_normalization": "batch"}, 1),
}


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    pick = context.settings.pick
    widths = pick(quick=(40, 80, 160), default=(50, 100, 200, 400), full=(50, 100, 200, 400, 800))
    rates = 10.0 ** np.arange(-3.5, 1.01, pick(quick=0.25, default=0.25, full=0.125))
    seeds, steps = pick(quick=2, default=2, full=3), pick(quick=40, default=60, full=100)
    maps = {
        kind: _map(context, kind, widths, rates=rates, seeds=seeds, steps=steps) for kind in KINDS
    }
    sweep = pick(quick=(50, 100, 200), default=(50, 100, 200, 400), full=(50, 100, 200, 400, 800))
    networks = pick(quick=2, default=3, full=20)
    # The estimate for samples takes a quadrature for each pair of them with tanh, none with ReLU.
    sweeps = {"relu": sweep, "tanh": sweep if context.settings.quick else sweep[:-1]}
    scaling = {phi: _scaling(context, phi, sweeps[phi], networks) for phi in SCALING_PHI}
    settings = {
        "activation_of_the_maps": PHI,
        "layers": 3,
        "widths_of_the_maps": list(widths),
        "outputs": f"{OUTPUTS}; {MANY_OUTPUTS} with layer normalisation",
        "samples": "as many as the width, Gaussian",
        "targets": "outputs of another random network of the same kind, normalised alike",
        "variances": {phi: VARIANCES[phi] for phi in SCALING_PHI},
        "learning_rates": [float(f"{rate:.4g}") for rate in rates],
        "steps": steps,
        "networks_of_the_maps": seeds,
        "widths_of_the_spectra": {phi: list(widths) for phi, widths in sweeps.items()},
        "networks_of_the_spectra": networks,
        "outputs_of_the_spectra": f"1; {MANY_OUTPUTS} with layer normalisation",
        "seed": context.settings.seed,
        "known_of_the_published_figure": (
            "axes, theory line and message; width, data and number of steps are this library's"
        ),
    }
    return page.result(maps=maps, scaling=scaling, settings=settings)


def _map(
    context: Context,
    kind: str | None,
    widths: tuple[int, ...],
    *,
    rates: Floats,
    seeds: int,
    steps: int,
) -> page.Map:
    """Loss over learning rate and width, with what theory and the spectrum say of the edge."""
    name = page.NAMES[kind]
    found: dict[str, list[Any]] = {key: [] for key in page.Map.KEYS}
    # The largest width takes most of the time: steps stand for multiply-adds.
    total = sum(seeds * rates.size * _work(m) for m in widths)
    with context.progress.task(f"training maps: {name}", total) as tick:
        for m in widths:
            points = []
            for seed in range(context.settings.seed, context.settings.seed + seeds):

                def compute(m: int = m, seed: int = seed) -> dict[str, Any]:
                    return _point(kind, m, rates, steps, seed)

                points.append(context.point(f"map {name} {m} seed {seed}", compute))
                tick(rates.size * _work(m))
            for key, value in _column(points, rates).items():
                found[key].append(value)
    return page.Map(name=name, widths=widths, rates=rates, **found)


def _work(width: int) -> int:
    return max(1, round((width / 32) ** 3))


def _point(kind: str | None, width: int, rates: Floats, steps: int, seed: int) -> dict[str, Any]:
    """Train one network at all learning rates; its lambda_max, and theory given its outputs."""
    widths = (width, width, width, MANY_OUTPUTS if kind == "layer" else OUTPUTS)
    model, x, y = teacher_task(
        widths, width, activation=PHI, normalization=kind, seed=seed, dtype="float32"
    )
    loss = descent_map(model, x, y, rates=rates, steps=steps)
    found = _device.largest(dual(model.jacobian(x)), tol=1e-4)
    line, bound = _predicted(kind, PHI, widths, x, model)
    return {
        "first": loss[:, 0],
        "last": loss[:, -1],
        "unstable": np.array(first_unstable(loss, rates)),
        "good": np.array(largest_good(loss, rates)),
        "lambda_max": found[0],
        "predicted": np.array(line),
        "bound": np.array(bound),
    }


def _column(points: list[dict[str, Any]], rates: Floats) -> dict[str, Any]:
    """Combine networks: geometric means, as befits learning rates and losses."""
    share = np.array([p["last"] / p["first"] for p in points])
    diverged = ~np.isfinite(share)
    with np.errstate(divide="ignore", over="ignore"):
        middle = np.exp(np.log(np.where(diverged, 1.0, share)).mean(axis=0))
    # A learning rate at which half of the networks or more are lost is grey.
    middle[diverged.mean(axis=0) >= 0.5] = np.inf
    return {
        "loss": middle,
        **{
            key: float(np.exp(np.mean([np.log(p[key]) for p in points])))
            for key in ("lambda_max", "predicted", "bound")
        },
        "unstable": float(np.median([p["unstable"] for p in points])),
        "good": float(np.median([p["good"] for p in points])),
    }


def _predicted(
    kind: str | None, phi: str, widths: tuple[int, ...], x: Floats, model: MLP
) -> tuple[float, float]:
    """Theory for lambda_max, and its lower bound (the same number where theory is exact).

    With outputs normalised over samples there is no closed form for the edge of the bulk: the
    estimate is that of the mean-field kernel of the actual samples; batch normalisation divides
    it by the variance of the outputs over samples. Layer normalisation is given the outputs.
    """
    n = len(x)
    order = theory.order_parameters(widths, activation=phi, **VARIANCES[phi])
    if kind is None:
        top = theory.fisher_spectrum(order, samples=n).lambda_max
        return top, top
    if kind == "layer":
        plain = MLP(
            widths,
            activation=cast(Any, phi),
            sigma_w2=model.sigma_w2,
            sigma_b2=model.sigma_b2,
            dtype=cast(Any, model.dtype),
        ).with_parameters(model.parameters)
        outputs = np.asarray(plain(x), np.float64)
        centred = outputs - outputs.mean(axis=1, keepdims=True)
        deviation = centred.std(axis=1)
        outliers = theory.layer_normalized_outliers(order, centred / deviation[:, None], deviation)
        bound = theory.normalized_spectrum(
            order, samples=n, normalization="layer", deviations=deviation
        )
        return float(outliers[0]), bound.lower_bound
    estimate = theory.mean_subtracted_lambda_max(x, widths, activation=phi, **VARIANCES[phi])
    if kind == "batch":
        return _batch_from_mean(phi, widths, n, estimate)
    bound = theory.normalized_spectrum(order, samples=n, normalization="mean")
    return estimate, bound.lower_bound


def _batch_from_mean(
    phi: str, widths: tuple[int, ...], samples: int, estimate: float
) -> tuple[float, float]:
    """Estimate and lower bound with batch normalisation, from the estimate for the mean alone."""
    order = theory.order_parameters(widths, activation=phi, **VARIANCES[phi])
    bound = theory.normalized_spectrum(order, samples=samples, normalization="batch")
    return estimate / float(order.q1[-1] - order.q2[-1]), bound.lower_bound


def _scaling(context: Context, phi: str, sweep: tuple[int, ...], networks: int) -> page.Scaling:
    """Measure lambda_max by width, for each way of normalising, beside theory."""
    seeds = range(context.settings.seed, context.settings.seed + networks)
    points = []
    total = sum(_work(m) for m in sweep) * len(CURVES) * networks
    with context.progress.task(f"largest eigenvalues by width: {phi}", total) as tick:
        for m in sweep:

            def compute(m: int = m) -> dict[str, Any]:
                return _tops(phi, m, seeds)

            points.append(context.point(f"largest eigenvalues {phi} {m}", compute))
            tick(_work(m) * len(CURVES) * networks)
    return page.Scaling(
        activation=phi,
        widths=sweep,
        measured={
            name: np.array([point["tops"][k] for point in points]) for k, name in enumerate(CURVES)
        },
        predicted={
            name: [float(point["lines"][k]) for point in points] for k, name in enumerate(CURVES)
        },
        bounds={
            name: [float(point["bounds"][k]) for point in points] for k, name in enumerate(CURVES)
        },
    )


def _tops(phi: str, width: int, seeds: range) -> dict[str, Any]:
    """lambda_max of the networks of each curve (curves, networks), theory and its lower bound."""
    tops: list[list[float]] = []
    lines: list[tuple[float, float]] = []
    for options, outputs in CURVES.values():
        if "hidden_normalization" in options and width > HIDDEN_LIMIT:
            tops.append([float("nan")] * len(seeds))
            lines.append((float("nan"), float("nan")))
            continue
        networks = [_top(phi, width, outputs, options, seed) for seed in seeds]
        tops.append([top for top, _, _ in networks])
        # Given the outputs theory differs from network to network. The estimates for samples
        # differ by some percent only, and a quadrature for each pair of samples is slow.
        kept = networks if options.get("normalization") == "layer" else networks[:1]
        if options.get("normalization") == "batch":
            lines.append(_batch_from_mean(phi, networks[0][2].widths, width, lines[-1][0]))
        else:
            each = [_line(phi, options, x, model) for _, x, model in kept]
            lines.append(
                (float(np.mean([a for a, _ in each])), float(np.mean([b for _, b in each])))
            )
    return {
        "tops": np.array(tops),
        "lines": np.array([line for line, _ in lines]),
        "bounds": np.array([bound for _, bound in lines]),
    }


def _top(
    phi: str, width: int, outputs: int, options: dict[str, Any], seed: int
) -> tuple[float, Floats, MLP]:
    """lambda_max of one network, its samples, and the network."""
    x = np.random.default_rng((seed, 1)).standard_normal((width, width))
    # Normalised hidden layers couple the samples: memory of order N^2 M.
    dtype = "float32" if "hidden_normalization" in options else "float64"
    x = x.astype(dtype)
    model = MLP(
        (width, width, width, outputs),
        activation=cast(Any, phi),
        seed=seed,
        dtype=cast(Any, dtype),
        **VARIANCES[phi],
        **options,
    )
    found = _device.largest(dual(model.jacobian(x)), tol=1e-5)
    return float(found[0]), x, model


def _line(phi: str, options: dict[str, Any], x: Floats, model: MLP) -> tuple[float, float]:
    """Theory for lambda_max, and its lower bound."""
    if "hidden_normalization" in options:
        order = theory.order_parameters(model.widths, activation=phi, **VARIANCES[phi], **options)
        if order.qh2[-1] == 0:  # an odd function has no outlier, and the bulk's edge no formula
            return float("nan"), float("nan")
        outlier = theory.hidden_normalized_spectrum(order, samples=len(x)).outlier
        return outlier, outlier
    return _predicted(options.get("normalization"), phi, model.widths, x, model)
