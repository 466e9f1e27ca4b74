# SPDX-License-Identifier: Apache-2.0
"""Words, pictures and tables of the section on kernels with as many samples as units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_scaling, plot_survival
from fastfisher.report._compare import Comparison, comparison_table
from fastfisher.report._section import Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CENTRED", "LOWER", "PLAIN", "Results", "blocks"]

Floats = NDArray[np.float64]
PLAIN, CENTRED, LOWER = "as it is", "mean subtracted", "lower bound, mean subtracted"
UNIT = "(output² / parameter²)"
SIZE = (5.6, 4.2)


class Results(NamedTuple):
    """What the page shows: of N = M by activation and width, of growing N by its name."""

    widths: tuple[int, ...]
    networks: int
    found: dict[str, list[dict[str, Floats]]]
    lines: dict[str, dict[str, list[float]]]
    grown: str
    growth: dict[str, Floats]
    growth_lines: dict[str, float]
    growth_networks: int
    rows: Sequence[Comparison]


def blocks(results: Results) -> tuple[Text | Figure | Table, ...]:
    """Describe the section."""
    return (
        Text(
            "Gradient descent is slow in the directions of the tangent kernel's small eigenvalues "
            "and unstable in those of the largest. The largest belongs to the same change of the "
            "outputs at every sample and grows with the number of samples, (N&minus;1) "
            "k<sub>2</sub> + k<sub>1</sub>, while the others stay around "
            "k<sub>1</sub>&minus;k<sub>2</sub>. Subtracting the mean over the samples from the "
            "outputs, P &Theta; P with P = I &minus; 11<sup>T</sup>/N, projects it out. If the "
            "width grows with the samples the whole spectrum then converges."
        ),
        Figure(
            tuple(
                Plot(
                    f"largest-{phi}",
                    f"Largest eigenvalue of the kernel against N = M for {phi}, as it is and with "
                    "the mean subtracted.",
                    _largest(results, phi),
                    SIZE,
                )
                for phi in results.found
            ),
            "Largest eigenvalue of the tangent kernel against the number of samples, as many as "
            "units. Three layers, one output, Gaussian samples; variances of weights and biases "
            f"are our defaults. Mean of {results.networks} networks, bars of one standard "
            "deviation. Lines: (N&minus;1) k<sub>2</sub> + k<sub>1</sub>; the largest eigenvalue "
            "of P &Theta; P with the kernel of infinite width at the networks' samples, which "
            "finite width raises by about a half at N = M (the edge has no closed form); the "
            "lower bound k<sub>1</sub>&minus;k<sub>2</sub>.",
        ),
        Figure(
            (
                Plot(
                    "growth",
                    "Share of eigenvalues above a value for growing numbers of samples.",
                    _growth(results),
                    SIZE,
                ),
                Plot(
                    "converging",
                    "Share of eigenvalues above a value for N = M, mean subtracted.",
                    _converging(results),
                    SIZE,
                ),
            ),
            f"Whole spectra. Left: {results.grown}, more and more samples, "
            f"{results.growth_networks} networks: the largest eigenvalues grow, where theory says "
            f"(dashed). Right: tanh, one output, N = M, mean subtracted, {results.networks} "
            "networks: the spectrum converges.",
        ),
        comparison_table(
            "Eigenvalues of the kernel. Theory of the largest with the mean subtracted is the "
            "estimate from the samples at infinite width.",
            results.rows,
        ),
    )


def _largest(results: Results, phi: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        each, lines = results.found[phi], results.lines[phi]
        plot_scaling(
            results.widths,
            {k: np.array([one[k][:, 0] for one in each]) for k in (PLAIN, CENTRED)},
            theory={**lines, CENTRED: [float(np.nanmean(one["estimate"])) for one in each]},
            xlabel="samples N = width M",
            label=f"largest eigenvalue of Θ  {UNIT}",
            ax=ax,
        )
        ax.set_title(phi)

    return draw


def _growth(results: Results) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        spectra = {name: one.ravel() for name, one in results.growth.items()}
        label = f"eigenvalue λ of Θ  {UNIT}"
        plot_survival(spectra, theory=results.growth_lines, label=label, ax=ax)

    return draw


def _converging(results: Results) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        each = zip(results.widths, results.found["tanh"], strict=True)
        spectra = {f"N = M = {m}": one[CENTRED].ravel() for m, one in each}
        plot_survival(spectra, label=f"eigenvalue λ of PΘP  {UNIT}", ax=ax)

    return draw
