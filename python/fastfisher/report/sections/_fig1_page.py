# SPDX-License-Identifier: Apache-2.0
"""What the section Fig. 1 shows: pictures, tables, words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_learning_rate_map, plot_scaling
from fastfisher.report._section import Fact, Figure, Plot, SectionResult, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Map", "Scaling", "result"]

Floats = NDArray[np.float64]

NONE = "no normalisation"
MEAN = "mean subtracted"
BATCH = "batch normalised"
LAYER = "layer normalised"
HIDDEN = "hidden layers only (batch)"
NAMES: dict[str | None, str] = {None: NONE, "mean": MEAN, "batch": BATCH, "layer": LAYER}


@dataclass(frozen=True, eq=False, kw_only=True)
class Map:
    """One colour map: columns are widths."""

    KEYS: ClassVar = ("loss", "lambda_max", "predicted", "bound", "unstable", "good")

    name: str
    widths: tuple[int, ...]
    rates: Floats
    loss: list[Floats]
    lambda_max: list[float]
    predicted: list[float]
    bound: list[float]
    unstable: list[float]
    good: list[float]

    def values(self) -> dict[str, Any]:
        """Plain numbers for results.json; a loss that diverged is null there."""
        return {
            "widths": list(self.widths),
            "loss": [column.tolist() for column in self.loss],
            **{key: getattr(self, key) for key in self.KEYS[1:]},
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaling:
    """lambda_max by width for one activation; arrays (widths, networks)."""

    activation: str
    widths: tuple[int, ...]
    measured: dict[str, Floats]
    predicted: dict[str, list[float]]
    bounds: dict[str, list[float]]

    def values(self) -> dict[str, Any]:
        """Plain numbers for results.json."""
        return {
            "widths": list(self.widths),
            "lambda_max": {name: array.tolist() for name, array in self.measured.items()},
            "predicted": self.predicted,
            "lower_bound": self.bounds,
        }


def result(
    *, maps: dict[str | None, Map], scaling: dict[str, Scaling], settings: dict[str, Any]
) -> SectionResult:
    """Describe the section."""
    plain, centred = maps[None], maps["mean"]
    gain = centred.unstable[-1] / plain.unstable[-1]
    width = plain.widths[-1]
    slopes = {key: _slope(one.widths, one.lambda_max) for key, one in maps.items()}
    least = {key: float(one.loss[-1].min()) for key, one in maps.items()}
    return SectionResult(
        summary=(
            "Without normalisation the largest stable learning rate falls as the inverse of the "
            "width, on the line of theory. Subtracting the batch's mean from the outputs makes it "
            f"nearly independent of the width: at width {width} the first unstable learning rate "
            f"is {gain:.0f} times larger. Normalising each sample over its outputs, or only the "
            "hidden layers of ReLU networks, does not remove the growth of the largest eigenvalue."
        ),
        facts=(
            Fact(
                "first unstable &eta;, mean subtracted / plain",
                f"{gain:.0f} times",
                f"at width {width}",
            ),
            Fact(
                "least loss at any &eta;, mean subtracted",
                f"{least['mean']:.1g}",
                f"of its start; plain {least[None]:.1g}",
            ),
            *(
                Fact(
                    f"&lambda;<sub>max</sub> grows as M to the power ({NAMES[kind]})",
                    f"{slopes[kind]:.2f}",
                    "theory 1" if kind in (None, "layer") else "theory 0",
                )
                for kind in (None, "mean")
            ),
        ),
        blocks=(
            Text(
                "Each cell of a map is one network trained by full-batch gradient descent from the "
                "same start. Theory says where the descent is stable near its start, &eta; &lt; "
                "2&nbsp;/&nbsp;&lambda;<sub>max</sub>: the lower edge of the transition. Somewhat "
                "above it a wide network may blow up first and recover where the curvature is "
                "smaller, hence the soft edge. Normalised losses are bounded and need not diverge."
            ),
            _maps_figure(maps, settings),
            _maps_table(maps),
            _scaling_figure(scaling, settings),
            _scaling_table(scaling),
        ),
        settings=settings,
        values={
            "rates": plain.rates.tolist(),
            "maps": {one.name: one.values() for one in maps.values()},
            "scaling": {phi: one.values() for phi, one in scaling.items()},
            "gain": gain,
            "least_loss": {NAMES[kind]: value for kind, value in least.items()},
            "slopes": {NAMES[kind]: slope for kind, slope in slopes.items()},
        },
        headline=(
            f"Fig. 1: subtracting the mean of the outputs allows learning rates {gain:.0f} times "
            f"larger at width {width}"
        ),
    )


def _slope(widths: tuple[int, ...], tops: list[float]) -> float:
    kept = np.isfinite(tops)
    return float(np.polyfit(np.log(widths)[kept], np.log(tops)[kept], 1)[0])


def _draw_map(one: Map) -> Callable[[Axes], None]:
    exact = one.name == NONE
    name = {
        NONE: "theory, $2/\\lambda_{max}$",
        MEAN: "theory for these samples",
        BATCH: "theory for these samples",
        LAYER: "theory for these outputs",
    }[one.name]

    def draw(ax: Axes) -> None:
        lines = {name: 2 / np.array(one.predicted)}
        if not exact:
            lines["theory, upper bound"] = 2 / np.array(one.bound)
        plot_learning_rate_map(
            np.array(one.loss).T,
            x=one.widths,
            rates=one.rates,
            theory=lines,
            measured={"measured $2/\\lambda_{max}$": 2 / np.array(one.lambda_max)},
            xlabel="width M = number of samples N",
            ax=ax,
        )
        ax.set_title(one.name, pad=24 if exact else 40)

    return draw


def _maps_figure(maps: dict[str | None, Map], settings: dict[str, Any]) -> Figure:
    variances = settings["variances"][settings["activation_of_the_maps"]]
    return Figure(
        tuple(
            Plot(
                f"map-{kind or 'none'}",
                f"Loss after training over learning rate and width, {one.name}; lines of theory "
                "and measured critical learning rates.",
                _draw_map(one),
                (5.4, 4.8),
            )
            for kind, one in maps.items()
        ),
        f"Loss after {settings['steps']} steps of gradient descent over its start: "
        f"three layers, {settings['activation_of_the_maps'].replace('relu', 'ReLU')}, "
        f"&sigma;<sub>w</sub><sup>2</sup> = {variances['sigma_w2']:g}, "
        f"&sigma;<sub>b</sub><sup>2</sup> = {variances['sigma_b2']:g}, outputs C = "
        f"{settings['outputs']}, as many Gaussian samples as units, targets from another "
        f"random network of the same kind; {settings['networks_of_the_maps']} networks a cell, "
        "geometric mean. Lines: theory. Circles: 2&nbsp;/&nbsp;&lambda;<sub>max</sub> of the "
        "networks. With outputs "
        "normalised over samples there is no closed form: drawn are the estimate from the "
        "mean-field kernel of the samples and the rate that no network can exceed in theory.",
    )


def _maps_table(maps: dict[str | None, Map]) -> Table:
    rows = []
    for one in maps.values():
        for index, width in enumerate(one.widths):
            theory, measured = 2 / one.predicted[index], 2 / one.lambda_max[index]
            rows.append(
                (
                    one.name,
                    str(width),
                    f"{theory:.3g}",
                    f"{measured:.3g}",
                    f"{measured / theory:.2f}",
                    _number(one.unstable[index]),
                    _number(one.unstable[index] / theory),
                )
            )
    return Table(
        "Critical learning rates of the maps. Unstable is the first learning rate of the grid at "
        "which one of the first five losses exceeds the start.",
        (
            "outputs",
            "width",
            "theory",
            "measured 2&nbsp;/&nbsp;&lambda;<sub>max</sub>",
            "ratio",
            "unstable from",
            "over theory",
        ),
        tuple(rows),
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "none"


def _scaling_figure(scaling: dict[str, Scaling], settings: dict[str, Any]) -> Figure:
    def draw(one: Scaling) -> Callable[[Axes], None]:
        def picture(ax: Axes) -> None:
            plot_scaling(
                one.widths,
                one.measured,
                theory=one.predicted,
                xlabel="width M = number of samples N",
                ax=ax,
            )
            low, high = ax.get_ylim()
            ax.set_ylim(low, high * 12)  # room for the legend
            ax.legend(frameon=False, loc="upper left", fontsize="small", ncols=2)
            ax.set_title({"relu": "ReLU"}.get(one.activation, one.activation))

        return picture

    return Figure(
        tuple(
            Plot(
                f"scaling-{phi}",
                f"Largest eigenvalue against the width for {phi} and five ways of normalising, "
                "marks beside lines of theory.",
                draw(one),
                (5.6, 4.6),
            )
            for phi, one in scaling.items()
        ),
        "Largest eigenvalue of F* of networks of three layers with as many Gaussian samples as "
        f"units. Marks: mean and standard deviation of {settings['networks_of_the_spectra']} "
        f"networks; outputs: {settings['outputs_of_the_spectra']}. Lines: theory; of the "
        "mean-subtracted and batch-normalised ones the estimate from the mean-field kernel of the "
        "samples, which finite networks exceed by some 50&nbsp;% at M = N. Hidden layers "
        "normalised: the line is the outlier of the last layer, which odd functions (tanh) do not "
        "have.",
    )


def _scaling_table(scaling: dict[str, Scaling]) -> Table:
    rows = []
    for phi, one in scaling.items():
        for name, tops in one.measured.items():
            theory, measured = one.predicted[name][-1], float(tops[-1].mean())
            slope = _slope(one.widths, [float(row.mean()) for row in tops])
            rows.append(
                (
                    f"{phi}: {name}",
                    _number(theory),
                    f"{measured:.4g}",
                    _number(measured / theory),
                    _number(one.bounds[name][-1]),
                    f"{slope:.2f}",
                )
            )
    widths = ", ".join(f"{phi} {one.widths[-1]}" for phi, one in scaling.items())
    return Table(
        f"Largest eigenvalue at the largest width ({widths}), and the power of the width that it "
        "grows with.",
        ("network", "theory", "measured", "ratio", "lower bound", "measured power"),
        tuple(rows),
    )
