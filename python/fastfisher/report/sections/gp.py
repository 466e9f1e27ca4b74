# SPDX-License-Identifier: Apache-2.0
"""Gaussian processes of wide networks on a toy problem: predictions and their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher import kernels, regression
from fastfisher.models import MLP
from fastfisher.plot import plot_posterior
from fastfisher.regression import Posterior
from fastfisher.report import _device
from fastfisher.report._ensemble import Ensemble
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

DEPTH = 3
KIND: dict[str, Any] = {"activation": "erf", "sigma_w2": 3.0, "sigma_b2": 0.3}
SAMPLES = np.array([-2.0, -1.3, -0.9, 0.3, 1.0, 1.6])
PLACES = np.linspace(-2.8, 2.8, 57)
GROUP = 4  # networks trained at once, and kept together: more leave the cache
LAWS = {
    "nngp": "NNGP: last layer trained",
    "early": "NTK ensemble, early",
    "late": "NTK ensemble, late",
    "ntk": "NTK as a prior",
}


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    width = settings.pick(quick=256, default=512, full=1024)
    networks = settings.pick(quick=40, default=100, full=1000)
    early, late = 10, settings.pick(quick=200, default=500, full=2000)
    x, z = SAMPLES[:, None], PLACES[:, None]
    y = np.sin(1.8 * SAMPLES)
    lr, theory = _theory(x, z, y, early, late)
    groups = [range(k, min(k + GROUP, networks)) for k in range(0, networks, GROUP)]
    found: dict[str, list[Floats]] = {name: [] for name in LAWS}
    with context.progress.task("ensemble of networks", networks) as tick:
        for group in groups:
            seeds = [settings.seed * 10_000 + k for k in group]
            train = partial(_networks, seeds, width, x, z, y, lr, early, late)
            point = context.point(f"width {width} networks {group} steps {late}", train)
            for name in LAWS:
                found[name].append(point[name])
            tick(len(group))
    outputs = {name: np.concatenate(parts) for name, parts in found.items()}
    values: dict[str, Any] = {name: _compared(outputs[name], theory[name]) for name in LAWS}
    values["places"] = PLACES.tolist()
    worst = max(values[name]["covariance_error"] for name in LAWS)
    times = {"early": early, "late": late}
    return SectionResult(
        summary=(
            "The outputs of a wide network with random parameters are a Gaussian process, and so "
            "they remain under training: the mean over networks and the spread around it follow "
            "from two kernels. Here the standard deviation of "
            f"{networks} networks is within {100 * _worst_spread(values):.0f}&nbsp;% of theory, on "
            "average over the inputs, for each of four laws."
        ),
        facts=(
            *(
                Fact(
                    name,
                    f"{values[key]['spread_ratio']:.2f}",
                    "std of networks / theory, mean over inputs",
                )
                for key, name in LAWS.items()
            ),
        ),
        blocks=_blocks(theory, outputs, y, values, times, networks),
        settings={
            "widths": [1, width, width, 1],
            "parameterization": "ntk",
            **KIND,
            "networks": networks,
            "training_inputs": SAMPLES.tolist(),
            "training_targets": y.tolist(),
            "learning_rate": lr,
            "steps_early": early,
            "steps_late": late,
            "seed": settings.seed,
        },
        values=values,
        headline=(
            f"Gaussian processes: covariance of {networks} networks within {100 * worst:.0f} % "
            "of theory"
        ),
    )


def _theory(
    x: Floats, z: Floats, y: Floats, early: int, late: int
) -> tuple[float, dict[str, Posterior]]:
    """Learning rate, and the four laws at the places z."""
    train, cross, prior = (
        kernels.layer_kernels(*pair, depth=DEPTH, **KIND) for pair in ((x,), (z, x), (z,))
    )
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    lr = 1 / float(np.max(descent.values))
    nngp: dict[str, Any] = {"kernel": train.nngp, "cross": cross.nngp, "prior": prior.nngp}
    return lr, {
        "nngp": regression.posterior(train.nngp, cross.nngp, prior.nngp, y),
        "early": regression.ensemble(descent, y, lr=lr, steps=early, **nngp),
        "late": regression.ensemble(descent, y, lr=lr, steps=late, **nngp),
        "ntk": regression.posterior(train.ntk, cross.ntk, prior.ntk, y),
    }


def _networks(
    seeds: list[int],
    width: int,
    x: Floats,
    z: Floats,
    y: Floats,
    lr: float,
    early: int,
    late: int,
) -> Mapping[str, Floats]:
    """Compute outputs (k, m) of networks at the places z, for each law."""
    widths, n = (1, width, width, 1), len(x)
    points = np.vstack([x, z])
    nets = Ensemble(seeds, widths, **KIND)
    f, phi = nets(points)[..., 0], nets.features(points)
    # The last layer alone, trained to the end: least squares from where it starts.
    gram = phi @ phi[:, :n].swapaxes(1, 2)
    found = {"nngp": _interpolated(f, gram, y)}
    draws = [_tangent_draw(widths, seed, points) for seed in seeds]
    found["ntk"] = np.array([_interpolated(g[None], k[None], y)[0] for g, k in draws])
    for step in range(1, late + 1):
        nets.step(x, y[:, None], lr)
        if step in (early, late):
            found["early" if step == early else "late"] = nets(z)[..., 0]
    return found


def _interpolated(f: Floats, kernel: Floats, y: Floats) -> Floats:
    """Move f (k, n + m) by kernels (k, n + m, n) so that it meets y at the first n points."""
    n = len(y)
    residual = y - f[:, :n]
    weights = np.linalg.solve(kernel[:, :n], residual[..., None])
    moved: Floats = f[:, n:] + (kernel[:, n:] @ weights)[..., 0]
    return moved


def _tangent_draw(widths: tuple[int, ...], seed: int, points: Floats) -> tuple[Floats, Floats]:
    """Draw a function with the network's own tangent kernel as covariance; and that kernel."""
    mlp = MLP(widths, parameterization="ntk", seed=seed, **cast(Any, KIND))
    jacobian = mlp.jacobian(points)
    theta = _device.gram(jacobian).reshape(len(points), -1)
    direction = np.random.default_rng((seed, 5)).standard_normal(jacobian.shape[1])
    return np.asarray(jacobian @ direction), theta[:, : len(SAMPLES)]


def _compared(outputs: Floats, law: Posterior) -> dict[str, Any]:
    k = len(outputs)
    mean, std = outputs.mean(0), outputs.std(0, ddof=1)
    covariance, size = np.cov(outputs, rowvar=False), float(np.linalg.norm(law.covariance))
    trace = float(np.trace(law.covariance))
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "mean_predicted": law.mean.tolist(),
        "std_predicted": law.std.tolist(),
        "mean_error": float(np.sqrt(np.square(mean - law.mean).mean())),
        # What independent draws of the law itself would show.
        "mean_error_expected": float(np.sqrt(trace / len(mean) / k)),
        "spread_ratio": float(std.mean() / law.std.mean()),
        "covariance_error": float(np.linalg.norm(covariance - law.covariance)) / size,
        "covariance_error_expected": float(np.sqrt((1 + (trace / size) ** 2) / (k - 1))),
    }


def _worst_spread(values: dict[str, Any]) -> float:
    return float(max(abs(values[name]["spread_ratio"] - 1) for name in LAWS))


def _blocks(
    theory: dict[str, Posterior],
    outputs: dict[str, Floats],
    y: Floats,
    values: dict[str, Any],
    times: dict[str, int],
    networks: int,
) -> tuple[Text | Figure | Table, ...]:
    lowest = min(float((law.mean - 2 * law.std).min()) for law in theory.values())
    highest = max(float((law.mean + 2 * law.std).max()) for law in theory.values())

    def draw(name: str, measured: str) -> Callable[[Axes], None]:
        def drawn(ax: Axes) -> None:
            law = theory[name]
            plot_posterior(
                PLACES,
                law.mean,
                law.std,
                measured=outputs[name],
                data=(SAMPLES, y),
                measured_name=measured,
                xlabel="input x",
                label="output f(x)",
                ax=ax,
            )
            # One scale for all four, with room for the legend.
            ax.set_ylim(lowest - 0.6, highest + 2.0)
            ax.legend(frameon=False, loc="upper center", fontsize="small")

        return drawn

    def plot(name: str, what: str, measured: str = "networks") -> Plot:
        alt = f"Band of theory and bars of networks against the input: {what}."
        return Plot(name, alt, draw(name, measured), (5.6, 4.2))

    return (
        Text(
            "Two kernels decide. The NNGP kernel K is the covariance of the outputs at random "
            "parameters; the tangent kernel &Theta; says how training moves them. If only the last "
            "layer learns, an ensemble of networks has the law of Bayesian inference with the "
            "prior K. If all layers learn by gradient descent for t steps, "
            "f = f<sub>0</sub> &minus; R<sub>t</sub> (f<sub>0</sub> &minus; y), R<sub>t</sub> = "
            "&Theta;<sub>*</sub> &Theta;<sup>&minus;1</sup> "
            "[I &minus; (I &minus; &eta;&Theta;/N)<sup>t</sup>], from a start of covariance K. "
            "&Theta; as the covariance of a prior is a third law, not that "
            "of an ensemble."
        ),
        Figure(
            (
                plot("nngp", "last layer trained"),
                plot("ntk", "tangent kernel as a prior", "own kernels"),
            ),
            "Left: only the last layer trained, to the end, and the NNGP posterior. Right: the "
            "tangent kernel as a prior; each bar from one random function for each network, drawn "
            "with the network's own tangent kernel. Bands and bars: mean and two standard "
            "deviations.",
        ),
        Figure(
            (
                plot("early", f"all layers trained for {times['early']} steps"),
                plot("late", f"all layers trained for {times['late']} steps"),
            ),
            f"All layers trained by gradient descent, left {times['early']} steps, right "
            f"{times['late']}, at the learning rate 1 / &lambda;<sub>max</sub> of &Theta; / N. "
            "Directions of small eigenvalues take far longer than this: where the band is wide at "
            "a training sample, it has not been learned yet.",
        ),
        Table(
            f"Laws of {networks} networks against theory, over {len(PLACES)} inputs. In brackets "
            "what as many draws of the predicted law itself would show on average.",
            ("law", "mean: r.m.s. error", "std, networks / theory", "covariance: relative error"),
            tuple(
                (
                    name + (f" ({times[key]} steps)" if key in times else ""),
                    f"{values[key]['mean_error']:.3f} ({values[key]['mean_error_expected']:.3f})",
                    f"{values[key]['spread_ratio']:.3f}",
                    f"{100 * values[key]['covariance_error']:.0f} % "
                    f"({100 * values[key]['covariance_error_expected']:.0f} %)",
                )
                for key, name in LAWS.items()
            ),
        ),
    )
