# SPDX-License-Identifier: Apache-2.0
"""Spectra of the tangent kernel with and without mean subtraction, samples as many as units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import theory
from fastfisher.report._compare import Comparison, compared
from fastfisher.report._random import VARIANCES, dual, eigenvalues, gaussian, network
from fastfisher.report._section import Context, Fact, SectionResult
from fastfisher.report.sections import _ntk_mean_page as page
from fastfisher.report.sections._ntk_mean_page import CENTRED, LOWER, PLAIN

__all__ = ["build"]

Floats = NDArray[np.float64]

# Of N = M: variances of weights and biases are the customary ones, of the growth with N alone those
# of Karakida, Akaho and Amari (2021).
PHI = ("tanh", "relu")
GROWTH_PHI, GROWTH_OUTPUTS = "relu", 2
GROWTH_VARIANCES: dict[str, Any] = {"sigma_w2": 2.0, "sigma_b2": 0.0}
# Networks at whose samples the kernel of infinite width is worked out: these hardly differ.
ESTIMATES = 3


@dataclass(frozen=True)
class Sizes:
    """What the three grids differ in."""

    widths: tuple[int, ...]
    networks: int
    growth: tuple[int, ...]
    growth_width: int
    growth_networks: int


# Of few narrow networks the largest eigenvalue after subtraction scatters by 5 % and more.
QUICK = Sizes((100, 200, 400), 12, (20, 100, 400), 500, 2)
DEFAULT = Sizes((100, 200, 400, 800), 24, (20, 100, 400), 1000, 10)
FULL = Sizes((100, 200, 400, 800, 1600), 100, (20, 100, 400), 1000, 400)


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    sizes = settings.pick(quick=QUICK, default=DEFAULT, full=FULL)
    found: dict[str, list[dict[str, Floats]]] = {phi: [] for phi in PHI}
    total = len(PHI) * len(sizes.widths) * sizes.networks
    with context.progress.task("kernels of N = M samples", total) as tick:
        for phi in PHI:
            for width in sizes.widths:
                points = []
                for seed in range(settings.seed, settings.seed + sizes.networks):
                    name = f"{phi} width {width} seed {seed}"
                    estimate = seed < settings.seed + ESTIMATES
                    make = partial(_point, phi, width, seed, estimate=estimate)
                    points.append(context.point(name, make))
                    tick()
                found[phi].append({k: np.array([p[k] for p in points]) for k in points[0]})
    growth: list[Floats] = []
    with context.progress.task(
        "growth with the samples", len(sizes.growth) * sizes.growth_networks
    ) as tick:
        for samples in sizes.growth:
            spectra = []
            for seed in range(settings.seed, settings.seed + sizes.growth_networks):
                name = f"samples {samples} seed {seed}"
                point = context.point(name, partial(_grown, sizes.growth_width, samples, seed))
                spectra.append(point["spectrum"])
                tick()
            growth.append(np.array(spectra))
    rows = _rows(sizes, found, growth)
    tops = {
        phi: {k: np.array([one[k][:, 0].mean() for one in each]) for k in (PLAIN, CENTRED)}
        for phi, each in found.items()
    }
    drift = {phi: float(one[CENTRED].max() / one[CENTRED].min()) for phi, one in tops.items()}
    rise = {phi: float(one[PLAIN][-1] / one[PLAIN][0]) for phi, one in tops.items()}
    values: dict[str, Any] = {
        "widths": list(sizes.widths),
        "lambda_max": {phi: {k: v.tolist() for k, v in one.items()} for phi, one in tops.items()},
        "estimate_from_samples": {
            phi: [float(np.nanmean(one["estimate"])) for one in each] for phi, each in found.items()
        },
        "predicted": {phi: _lines(phi, sizes.widths) for phi in PHI},
        "max_over_min_with_mean_subtracted": drift,
        "last_over_first_as_it_is": rise,
        "growth_samples": list(sizes.growth),
        "comparison": [row.plain() for row in rows],
    }
    first, last = sizes.widths[0], sizes.widths[-1]
    return SectionResult(
        summary=(
            f"From {first} to {last} samples, as many as units, the largest eigenvalue of the "
            f"tangent kernel grows by a factor of {rise['tanh']:.2f} (tanh); with the mean over "
            f"samples subtracted from the outputs it keeps within a factor of {drift['tanh']:.3f}, "
            "and the whole spectrum hardly changes."
        ),
        facts=tuple(
            Fact(
                f"{phi}: &lambda;<sub>max</sub> at N = {last}",
                f"{one[CENTRED][-1]:.4g}",
                f"with the mean subtracted; as it is {one[PLAIN][-1]:.4g}",
            )
            for phi, one in tops.items()
        ),
        blocks=page.blocks(
            page.Results(
                sizes.widths,
                sizes.networks,
                found,
                {phi: _lines(phi, sizes.widths) for phi in PHI},
                f"{GROWTH_PHI} networks of width {sizes.growth_width} with {GROWTH_OUTPUTS} "
                "outputs",
                dict(zip(_growth_lines(sizes), growth, strict=True)),
                _growth_lines(sizes),
                sizes.growth_networks,
                rows,
            )
        ),
        settings={
            "depth": 3,
            "widths": list(sizes.widths),
            "samples": "as many as the width",
            "outputs": 1,
            "networks": sizes.networks,
            "variances": {phi: VARIANCES[phi] for phi in PHI},
            "parameterization": "ntk",
            "growth_activation": GROWTH_PHI,
            "growth_variances": GROWTH_VARIANCES,
            "growth_width": sizes.growth_width,
            "growth_samples": list(sizes.growth),
            "growth_outputs": GROWTH_OUTPUTS,
            "growth_networks": sizes.growth_networks,
            "seed": settings.seed,
        },
        values=values,
        headline=(
            f"tangent kernel of N = M = {first} to {last}: largest eigenvalue grows "
            f"{rise['tanh']:.2f} times, with the mean subtracted max / min {drift['tanh']:.3f}"
        ),
    )


def _point(phi: str, width: int, seed: int, *, estimate: bool) -> dict[str, Any]:
    """Spectra of one network's kernel; what theory says of these very samples, or NaN."""
    widths = (width, width, width, 1)
    kernel = width * dual(network(phi, widths, width, seed=seed, parameterization="ntk"))
    top = float("nan")
    if estimate:
        x = gaussian(width, width, seed=seed)
        options: dict[str, Any] = {"activation": phi, **VARIANCES[phi]}
        limit = theory.mean_field_kernel(x, widths, parameterization="ntk", **options)
        top = float(eigenvalues(_centred(limit))[0])
    return {
        PLAIN: eigenvalues(kernel),
        CENTRED: eigenvalues(_centred(kernel)),
        "estimate": top,
    }


def _centred(kernel: Floats) -> Floats:
    """P K P with P = I - 1 1^T / N."""
    half: Floats = kernel - kernel.mean(0)
    half -= half.mean(1, keepdims=True)
    return half


def _grown(width: int, samples: int, seed: int) -> dict[str, Any]:
    widths = (width, width, width, GROWTH_OUTPUTS)
    options: dict[str, Any] = {"parameterization": "ntk", **GROWTH_VARIANCES}
    kernel = samples * dual(network(GROWTH_PHI, widths, samples, seed=seed, **options))
    return {"spectrum": eigenvalues(kernel)}


def _lines(phi: str, widths: Sequence[int]) -> dict[str, list[float]]:
    """Theory with N = M: largest eigenvalue, lower bound of it with the mean subtracted."""
    found: dict[str, list[float]] = {PLAIN: [], LOWER: []}
    for width in widths:
        order = theory.order_parameters((width, width, width, 1), activation=phi, **VARIANCES[phi])
        spectrum = theory.ntk_spectrum(order, samples=width)
        found[PLAIN].append(spectrum.lambda_max)
        # trace / rank of P K P
        found[LOWER].append(spectrum.bulk_mean)
    return found


def _rows(
    sizes: Sizes, found: dict[str, list[dict[str, Floats]]], growth: list[Floats]
) -> list[Comparison]:
    rows = []
    for phi, each in found.items():
        line = _lines(phi, sizes.widths)
        for width, one, top, bound in zip(
            sizes.widths, each, line[PLAIN], line[LOWER], strict=True
        ):
            title, centred = f"{phi}, N = M = {width}", one[CENTRED]
            estimate = float(np.nanmean(one["estimate"]))
            mean = centred.sum(1) / (width - 1)
            rows += [
                compared(f"{title}: largest", one[PLAIN][:, 0], top),
                compared(f"{title}: mean of the N-1, mean subtracted", mean, bound),
                compared(f"{title}: largest, mean subtracted", centred[:, 0], estimate),
            ]
    for (name, top), spectra in zip(_growth_lines(sizes).items(), growth, strict=True):
        title = f"{GROWTH_PHI}, M = {sizes.growth_width}, {name}"
        measured = spectra[:, :GROWTH_OUTPUTS].mean(1)
        rows.append(compared(f"{title}: mean of the {GROWTH_OUTPUTS} largest", measured, top))
    return rows


def _growth_lines(sizes: Sizes) -> dict[str, float]:
    """Largest eigenvalue of theory by number of samples."""
    widths = (*[sizes.growth_width] * 3, GROWTH_OUTPUTS)
    order = theory.order_parameters(widths, activation=GROWTH_PHI, **GROWTH_VARIANCES)
    return {f"N = {n}": theory.ntk_spectrum(order, samples=n).lambda_max for n in sizes.growth}
