# SPDX-License-Identifier: Apache-2.0
"""Spectra of the tangent kernel with and without mean subtraction, samples as many as units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import theory
from fastfisher.plot import plot_scaling, plot_survival
from fastfisher.report._compare import Comparison, compared, comparison_table
from fastfisher.report._random import VARIANCES, dual, eigenvalues, gaussian, network
from fastfisher.report._section import Context, Fact, Figure, Plot, SectionResult, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["build"]

Floats = NDArray[np.float64]

# Of N = M: variances of weights and biases are the customary ones, of the growth with N alone those
# of Karakida, Akaho and Amari (2021).
PHI = ("tanh", "relu")
GROWTH_PHI, GROWTH_VARIANCES, GROWTH_OUTPUTS = "relu", {"sigma_w2": 2.0, "sigma_b2": 0.0}, 2
PLAIN, CENTRED = "as it is", "mean subtracted"
UNIT = "(output² / parameter²)"
SIZE = (5.6, 4.2)


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
                    points.append(context.point(name, partial(_point, phi, width, seed)))
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
            phi: [float(one["estimate"].mean()) for one in each] for phi, each in found.items()
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
        blocks=_blocks(sizes, found, growth, rows),
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
            f"tangent kernel of N = M = {first} to {last}: largest eigenvalue grows {rise['tanh']:.2f} times, "
            f"with the mean subtracted max / min {drift['tanh']:.3f}"
        ),
    )


def _point(phi: str, width: int, seed: int) -> dict[str, Any]:
    """Spectra of one network's kernel, and of what theory says of these very samples."""
    widths = (width, width, width, 1)
    kernel = width * dual(network(phi, widths, width, seed=seed, parameterization="ntk"))
    limit = theory.mean_field_kernel(
        gaussian(width, width, seed=seed),
        widths,
        activation=phi,
        parameterization="ntk",
        **VARIANCES[phi],
    )
    return {
        PLAIN: eigenvalues(kernel),
        CENTRED: eigenvalues(_centred(kernel)),
        "estimate": eigenvalues(_centred(limit))[0],
    }


def _centred(kernel: Floats) -> Floats:
    """P K P with P = I - 1 1^T / N."""
    half = kernel - kernel.mean(0)
    return half - half.mean(1, keepdims=True)


def _grown(width: int, samples: int, seed: int) -> dict[str, Any]:
    widths = (width, width, width, GROWTH_OUTPUTS)
    options = {"parameterization": "ntk", **GROWTH_VARIANCES}
    return {
        "spectrum": eigenvalues(
            samples * dual(network(GROWTH_PHI, widths, samples, seed=seed, **options))
        )
    }


def _lines(phi: str, widths: Sequence[int]) -> dict[str, list[float]]:
    """Theory with N = M: largest eigenvalue, lower bound of it with the mean subtracted."""
    found: dict[str, list[float]] = {PLAIN: [], "lower bound": []}
    for width in widths:
        order = theory.order_parameters((width, width, width, 1), activation=phi, **VARIANCES[phi])
        spectrum = theory.ntk_spectrum(order, samples=width)
        found[PLAIN].append(spectrum.lambda_max)
        # trace / rank of P K P
        found["lower bound"].append(spectrum.bulk_mean)
    return found


def _rows(
    sizes: Sizes, found: dict[str, list[dict[str, Floats]]], growth: list[Floats]
) -> list[Comparison]:
    rows = []
    for phi, each in found.items():
        line = _lines(phi, sizes.widths)
        for width, one, top, bound in zip(
            sizes.widths, each, line[PLAIN], line["lower bound"], strict=True
        ):
            rows.append(compared(f"{phi}, N = M = {width}: largest", one[PLAIN][:, 0], top))
            mean = one[CENTRED].sum(1) / (width - 1)
            rows.append(
                compared(f"{phi}, N = M = {width}: mean of the N-1, mean subtracted", mean, bound)
            )
            rows.append(
                compared(
                    f"{phi}, N = M = {width}: largest, mean subtracted",
                    one[CENTRED][:, 0],
                    one["estimate"],
                )
            )
    for samples, spectra, (_, top) in zip(sizes.growth, growth, _growth_lines(sizes), strict=True):
        measured = spectra[:, :GROWTH_OUTPUTS].mean(1)
        rows.append(
            compared(
                f"{GROWTH_PHI}, M = {sizes.growth_width}, N = {samples}: mean of the {GROWTH_OUTPUTS} largest",
                measured,
                top,
            )
        )
    return rows


def _growth_lines(sizes: Sizes) -> list[tuple[str, float]]:
    widths = (*[sizes.growth_width] * 3, GROWTH_OUTPUTS)
    order = theory.order_parameters(widths, activation=GROWTH_PHI, **GROWTH_VARIANCES)
    return [(f"N = {n}", theory.ntk_spectrum(order, samples=n).lambda_max) for n in sizes.growth]


def _blocks(
    sizes: Sizes,
    found: dict[str, list[dict[str, Floats]]],
    growth: list[Floats],
    rows: Sequence[Comparison],
) -> tuple[Text | Figure | Table, ...]:
    return (
        Text(
            "Training by gradient descent is slow in the directions of the tangent kernel's small "
            "eigenvalues and unstable in those of the largest. The largest belongs to the same "
            "change of the outputs at every sample and grows with the number of samples, (N&minus;1) "
            "k<sub>2</sub> + k<sub>1</sub>, while the others stay around "
            "k<sub>1</sub>&minus;k<sub>2</sub>. Subtracting the mean over the samples from the "
            "outputs, P &Theta; P with P = I &minus; 11<sup>T</sup>/N, projects it out. If the "
            "width grows with the samples the whole spectrum then converges."
        ),
        Figure(
            tuple(
                Plot(
                    f"largest-{phi}",
                    f"Largest eigenvalue of the kernel against N = M for {phi}, as it is and with the mean subtracted.",
                    _tops(sizes, phi, found[phi]),
                    SIZE,
                )
                for phi in PHI
            ),
            "Largest eigenvalue of the tangent kernel against the number of samples, as many as "
            f"units. Three layers, one output, Gaussian samples; mean of {sizes.networks} networks, "
            "bars of one standard deviation. Lines: (N&minus;1) k<sub>2</sub> + k<sub>1</sub>; the "
            "largest eigenvalue of P &Theta; P with the kernel of infinite width at the networks' "
            "samples, an estimate that finite width raises; the lower bound "
            "k<sub>1</sub>&minus;k<sub>2</sub>.",
        ),
        Figure(
            (
                Plot(
                    "growth",
                    "Share of eigenvalues above a value for growing numbers of samples at fixed width.",
                    _growth(sizes, growth),
                    SIZE,
                ),
                Plot(
                    "converging",
                    "Share of eigenvalues above a value for N = M, mean subtracted.",
                    _converging(sizes, found["tanh"]),
                    SIZE,
                ),
            ),
            f"Whole spectra. Left: {GROWTH_PHI} networks of width {sizes.growth_width} with "
            f"{GROWTH_OUTPUTS} outputs, more and more samples, {sizes.growth_networks} networks: the "
            "largest eigenvalues grow, where theory says (dashed). Right: tanh, one output, N = M, "
            f"mean subtracted, {sizes.networks} networks: the spectrum converges.",
        ),
        comparison_table(
            "Eigenvalues of the kernel. Theory of the largest with the mean subtracted is the "
            "estimate from the samples at infinite width.",
            rows,
        ),
    )


def _tops(sizes: Sizes, phi: str, each: list[dict[str, Floats]]) -> Callable[[Axes], None]:
    line = _lines(phi, sizes.widths)

    def draw(ax: Axes) -> None:
        plot_scaling(
            sizes.widths,
            {k: np.array([one[k][:, 0] for one in each]) for k in (PLAIN, CENTRED)},
            theory={
                PLAIN: line[PLAIN],
                CENTRED: [float(one["estimate"].mean()) for one in each],
                "lower bound": line["lower bound"],
            },
            xlabel="samples N = width M",
            label=f"largest eigenvalue of Θ  {UNIT}",
            ax=ax,
        )
        ax.set_title(phi)

    return draw


def _growth(sizes: Sizes, growth: list[Floats]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        lines = _growth_lines(sizes)
        spectra = {name: one.ravel() for (name, _), one in zip(lines, growth, strict=True)}
        plot_survival(spectra, theory=dict(lines), label=f"eigenvalue λ of Θ  {UNIT}", ax=ax)

    return draw


def _converging(sizes: Sizes, each: list[dict[str, Floats]]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        spectra = {
            f"N = M = {m}": one[CENTRED].ravel() for m, one in zip(sizes.widths, each, strict=True)
        }
        plot_survival(spectra, label=f"eigenvalue λ of PΘP  {UNIT}", ax=ax)

    return draw
