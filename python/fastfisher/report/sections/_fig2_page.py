# SPDX-License-Identifier: Apache-2.0
"""What the section Fig. 2 shows: pictures, tables, words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_density, plot_learning_rate_map
from fastfisher.report._section import Fact, Figure, Plot, SectionResult, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Column", "Setting", "Spectrum", "averaged", "result"]

Floats = NDArray[np.float64]

# Learning rates from this multiple of the critical one on must be worse than the best below it.
FAR = 2.0


def averaged(steps: int) -> int:
    """How many of the last losses a colour stands for."""
    return min(50, steps)


@dataclass(frozen=True)
class Setting:
    """Network of one spectrum: its activation, depth and input variance |x|^2 / M."""

    activation: str
    depth: int
    variance: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Column:
    """Online learning at one depth; the loss is over that at the start."""

    depth: int
    loss: Floats
    lambda_max: float
    predicted: float

    def best(self, rates: Floats) -> float:
        """Best learning rate over the critical one of theory."""
        return float(rates[self.loss.argmin()] * self.predicted / 2)

    def beyond(self, rates: Floats) -> float | None:
        """Loss at the first learning rate from twice the critical one on, over the least loss.

        None if the grid has none.
        """
        far = np.flatnonzero(rates * self.predicted / 2 >= FAR)
        return float(self.loss[far[0]] / self.loss.min()) if far.size else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Spectrum:
    """Eigenvalues of H of some networks, beside theory."""

    setting: Setting
    values: Floats
    tops: Floats
    grid: Floats
    density: Floats
    lambda_max: Floats
    atom_mass: Floats

    @property
    def atom(self) -> float:
        """Share of the eigenvalues at the top of each network's own spectrum."""
        tops = np.repeat(self.tops, self.values.size // self.tops.size)
        return float((self.values > tops * (1 - 1e-6)).mean())


def result(
    *,
    columns: list[Column],
    rates: Floats,
    spectra: list[Spectrum],
    settings: dict[str, Any],
) -> SectionResult:
    """Describe the section."""
    best = [column.best(rates) for column in columns]
    slope = float(
        np.polyfit(
            np.log([column.depth for column in columns]),
            np.log([2 / column.lambda_max for column in columns]),
            1,
        )[0]
    )
    low, high = min(best), max(best)
    return SectionResult(
        summary=(
            "Although the input-output Jacobian of these networks is an isometry, the largest "
            "eigenvalue of the Fisher matrix of one sample grows linearly with the depth L: the "
            "learning rate of online learning is bounded by 2&nbsp;/&nbsp;&lambda;<sub>max</sub> "
            f"~ 1&nbsp;/&nbsp;L. At every depth from {columns[0].depth} to {columns[-1].depth} the "
            f"best one lies at {low:.1f} to {high:.1f} of that bound."
        ),
        facts=(
            Fact("best &eta; over theory's bound", f"{low:.2f} to {high:.2f}", "over all depths"),
            Fact("2 / &lambda;<sub>max</sub> falls as L to the power", f"{slope:.2f}", "theory -1"),
            Fact(
                f"share of eigenvalues at the top, L = {spectra[1].setting.depth}",
                f"{spectra[1].atom:.3f}",
                f"theory {float(spectra[1].atom_mass):.3f}",
            ),
        ),
        blocks=(
            Text(
                "Networks of square orthogonal layers learn one sample at a time, with the mean "
                "squared error of the outputs. One step on a sample multiplies its residual by "
                "1&nbsp;&minus;&nbsp;&eta;H, H = JJ<sup>T</sup>/M, hence the bound &eta; &lt; "
                "2&nbsp;/&nbsp;&lambda;<sub>max</sub>(H). Theory takes H from the depth, the "
                "activation and |x|<sup>2</sup>/M alone."
            ),
            _map_figure(columns, rates, settings),
            _map_table(columns, rates),
            _spectra_figure(spectra, settings),
            _spectra_table(spectra),
        ),
        settings=settings,
        values={
            "rates": rates.tolist(),
            "depths": [column.depth for column in columns],
            "loss": [column.loss.tolist() for column in columns],
            "lambda_max": [column.lambda_max for column in columns],
            "predicted": [column.predicted for column in columns],
            "best_over_critical": best,
            "loss_beyond_over_best": [column.beyond(rates) for column in columns],
            "slope": slope,
            "spectra": [
                {
                    "activation": one.setting.activation,
                    "depth": one.setting.depth,
                    "input_variance": one.setting.variance,
                    "lambda_max": float(one.tops.mean()),
                    "lambda_max_predicted": float(one.lambda_max),
                    "atom_mass": one.atom,
                    "atom_mass_predicted": float(one.atom_mass),
                    "mean": float(one.values.mean()),
                    "eigenvalues": one.values.tolist(),
                    "grid": one.grid.tolist(),
                    "density_predicted": one.density.tolist(),
                }
                for one in spectra
            ],
        },
        headline=(
            f"Fig. 2: online learning of {columns[0].depth} to {columns[-1].depth} layers is best "
            f"at {low:.1f} to {high:.1f} of the critical learning rate of theory"
        ),
    )


def _map_figure(columns: list[Column], rates: Floats, settings: dict[str, Any]) -> Figure:
    def draw(ax: Axes) -> None:
        plot_learning_rate_map(
            np.array([column.loss for column in columns]).T,
            x=[column.depth for column in columns],
            rates=rates,
            theory={"theory, $2/\\lambda_{max}$": [2 / column.predicted for column in columns]},
            measured={"measured $2/\\lambda_{max}$": [2 / column.lambda_max for column in columns]},
            floor=0.05,
            xlabel="depth L  (layers)",
            ax=ax,
        )

    return Figure(
        (
            Plot(
                "map",
                "Loss of online learning over learning rate and depth; the line of theory falls "
                "as the inverse of the depth along the edge of the map's good region.",
                draw,
                (7.0, 5.2),
            ),
        ),
        f"Loss of online learning, mean of the last {settings['averaged_over_the_last']} of "
        f"{settings['steps']} samples, over that of the untrained network. Hard-tanh, orthogonal "
        f"weights, &sigma;<sub>w</sub> = 1, no biases, width M = {settings['width']}, "
        f"|x|<sup>2</sup>/M = {settings['input_variance']}, targets of an orthogonal linear "
        f"teacher; mean of {settings['networks']} networks. Line: theory. Circles: "
        "2&nbsp;/&nbsp;&lambda;<sub>max</sub>(H) of the networks at the start.",
    )


def _map_table(columns: list[Column], rates: Floats) -> Table:
    rows = []
    for column in columns:
        theory, measured = 2 / column.predicted, 2 / column.lambda_max
        beyond = column.beyond(rates)
        worse = "diverged" if beyond is None or not np.isfinite(beyond) else f"{beyond:.3g}"
        rows.append(
            (
                str(column.depth),
                f"{theory:.4g}",
                f"{measured:.4g}",
                f"{measured / theory:.3f}",
                f"{column.best(rates):.2f}",
                "beyond the grid" if beyond is None else worse,
            )
        )
    return Table(
        "Critical learning rate by depth, the best learning rate over theory's, and the loss at "
        f"{FAR:g} times theory's over the least.",
        ("depth", "theory", "measured", "ratio", "best / theory", "loss beyond / least"),
        tuple(rows),
    )


def _spectra_figure(spectra: list[Spectrum], settings: dict[str, Any]) -> Figure:
    def draw(one: Spectrum) -> Callable[[Axes], None]:
        def picture(ax: Axes) -> None:
            plot_density(
                one.values,
                theory={"free probability": (one.grid, one.density)},
                marks={"$\\lambda_{max}$ of theory": float(one.lambda_max)},
                bins=70,
                ax=ax,
            )
            ax.set_title(f"{one.setting.activation}, L = {one.setting.depth}")

        return picture

    return Figure(
        tuple(
            Plot(
                f"spectrum-{one.setting.activation}-{one.setting.depth}",
                f"Histogram of the eigenvalues of H for {one.setting.activation} and "
                f"{one.setting.depth} layers with the density of theory on it.",
                draw(one),
                (5.4, 4.2),
            )
            for one in spectra
        ),
        f"Eigenvalues of H of {settings['networks_of_the_spectra']} orthogonal networks of width "
        f"{settings['width_of_the_spectra']} for one Gaussian sample each, |x|<sup>2</sup>/M = "
        f"{spectra[0].setting.variance:g}. Line: density of theory, smoothed by a Cauchy kernel of "
        f"{settings['smoothing_over_lambda_max']:g} of &lambda;<sub>max</sub>; atoms are peaks of "
        "that width. It knows activation, depth and |x|<sup>2</sup>/M only, not the networks.",
    )


def _spectra_table(spectra: list[Spectrum]) -> Table:
    rows = []
    for one in spectra:
        theory, measured = float(one.lambda_max), float(one.tops.mean())
        rows.append(
            (
                f"{one.setting.activation}, L = {one.setting.depth}",
                f"{theory:.4g}",
                f"{measured:.4g}",
                f"{measured / theory:.3f}",
                f"{float(one.atom_mass):.4f}",
                f"{one.atom:.4f}",
            )
        )
    return Table(
        "Top of the spectrum of H: largest eigenvalue, and the share of eigenvalues equal to it "
        "(of one network of M units at least 1 / M).",
        (
            "network",
            "&lambda;<sub>max</sub>, theory",
            "measured",
            "ratio",
            "share, theory",
            "measured",
        ),
        tuple(rows),
    )
