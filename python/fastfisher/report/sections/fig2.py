# SPDX-License-Identifier: Apache-2.0
"""Fig. 2: learning rate x depth of online learning; spectrum of the conditional Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher import diagnostics, theory
from fastfisher.models import MLP
from fastfisher.report._online import isometric_task, online_map
from fastfisher.report._section import Context, SectionResult
from fastfisher.report.sections import _fig2_page as page

__all__ = ["build"]

Floats = NDArray[np.float64]

# The settings of the published map are not known to us: width, samples and teacher are a recipe.
PHI, VARIANCE = "hard-tanh", 0.1
# Of the spectra: slopes of hard-tanh are 0 or 1 (bulk and atom), those of tanh spread.
SPECTRA = (
    page.Setting("hard-tanh", 3, 0.5),
    page.Setting("hard-tanh", 10, 0.5),
    page.Setting("tanh", 5, 0.5),
)
# Width of the Cauchy kernel over lambda_max, and points of the theory's curve.
SMOOTHING, POINTS = 2e-3, 1200
UNTRAINED = 1e-12


@dataclass(frozen=True)
class Sizes:
    """Sizes of the map."""

    depths: tuple[int, ...]
    width: int
    steps: int
    seeds: int
    rates: Floats


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    pick = context.settings.pick
    sizes = Sizes(
        depths=pick(
            quick=(4, 8, 16, 32, 64),
            default=(4, 8, 16, 32, 64, 128),
            full=(4, 8, 16, 32, 64, 128, 256),
        ),
        width=pick(quick=32, default=64, full=256),
        steps=pick(quick=200, default=400, full=1000),
        seeds=2,
        rates=10.0 ** np.arange(-2.0, 1.26, pick(quick=0.125, default=0.125, full=0.125)),
    )
    columns = _columns(context, sizes)
    width, networks = pick(quick=300, default=600, full=1500), pick(quick=3, default=5, full=10)
    spectra = []
    with context.progress.task("spectra of one sample", len(SPECTRA)) as tick:
        for setting in SPECTRA:

            def compute(setting: page.Setting = setting) -> dict[str, Any]:
                return _spectrum(setting, width, networks, context.settings.seed)

            point = context.point(f"spectrum {setting}", compute)
            spectra.append(page.Spectrum(setting=setting, **cast(Any, point)))
            tick()
    settings = {
        "activation": PHI,
        "weights": "orthogonal, sigma_w = 1, no biases",
        "input_variance": VARIANCE,
        "width": sizes.width,
        "depths": list(sizes.depths),
        "learning_rates": [float(f"{rate:.4g}") for rate in sizes.rates],
        "steps": sizes.steps,
        "averaged_over_the_last": page.averaged(sizes.steps),
        "networks": sizes.seeds,
        "teacher": "orthogonal linear map of Gaussian samples of that variance",
        "width_of_the_spectra": width,
        "networks_of_the_spectra": networks,
        "smoothing_over_lambda_max": SMOOTHING,
        "seed": context.settings.seed,
        "known_of_the_published_figure": (
            "axes, theory line and message; width, activation, data and number of steps are this "
            "library's"
        ),
    }
    return page.result(columns=columns, rates=sizes.rates, spectra=spectra, settings=settings)


def _columns(context: Context, sizes: Sizes) -> list[page.Column]:
    """Train networks of each depth at all learning rates; their lambda_max beside theory."""
    columns = []
    total = sum(sizes.depths) * sizes.seeds * sizes.steps
    with context.progress.task("online learning by depth", total) as tick:
        for depth in sizes.depths:
            points = []
            for seed in range(context.settings.seed, context.settings.seed + sizes.seeds):

                def compute(depth: int = depth, seed: int = seed) -> dict[str, Any]:
                    return _point(depth, sizes, seed)

                points.append(context.point(f"online {depth} seed {seed}", compute))
                tick(depth * sizes.steps)
            law = theory.conditional_law(depth, activation=PHI, input_variance=VARIANCE)
            columns.append(
                page.Column(
                    depth=depth,
                    loss=np.mean([point["loss"] for point in points], axis=0),
                    lambda_max=float(np.mean([point["lambda_max"] for point in points])),
                    predicted=theory.conditional_lambda_max(law).lambda_max,
                )
            )
    return columns


def _point(depth: int, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Train one network at all learning rates; its lambda_max."""
    weights, x, y = isometric_task(
        depth,
        sizes.width,
        steps=sizes.steps,
        input_variance=VARIANCE,
        seed=seed,
        dtype="float32",  # the weights of all learning rates are read and written each step
    )
    # First, a learning rate of nothing: the loss of the untrained network on the same samples.
    rates = np.concatenate([[UNTRAINED], sizes.rates])
    loss = online_map(weights, x, y, activation=PHI, rates=rates)
    last = loss[:, -page.averaged(sizes.steps) :].mean(axis=1)
    found = _conditional(PHI, depth, np.asarray(x[0], np.float64), seed)
    return {
        "loss": last[1:] / last[0],
        "lambda_max": np.array(found.lambda_max()),
    }


def _conditional(phi: str, depth: int, x: Floats, seed: int) -> diagnostics.ConditionalFisher:
    """H of an orthogonal network whose biases are zero and do not learn."""
    model = MLP(
        (x.size,) * (depth + 1),
        activation=cast(Any, phi),
        parameterization="orthogonal",
        sigma_w2=1.0,
        seed=seed,
    )
    found = diagnostics.conditional_fisher(model, x)
    assert found.qh is not None
    # The model's biases count as parameters there: each adds 1 / M.
    return replace(found, qh=found.qh - 1 / x.size)


def _spectrum(setting: page.Setting, width: int, networks: int, seed: int) -> dict[str, Any]:
    """Eigenvalues of H of some networks, and theory from activation and variances alone."""
    values, tops = [], []
    for number in range(seed, seed + networks):
        x = np.random.default_rng((number, 1)).standard_normal(width)
        x *= np.sqrt(setting.variance * width) / np.linalg.norm(x)
        h = np.asarray(_conditional(setting.activation, setting.depth, x, number).eigenvalues())
        values.append(h)
        tops.append(h[0])
    law = theory.conditional_law(
        setting.depth, activation=setting.activation, input_variance=setting.variance
    )
    top = theory.conditional_lambda_max(law)
    grid = np.linspace(0.0, 1.1 * top.lambda_max, POINTS)
    eps = SMOOTHING * top.lambda_max
    return {
        "values": np.concatenate(values),
        "tops": np.array(tops),
        "grid": grid,
        "density": theory.conditional_density(law, grid, smoothing=eps),
        "lambda_max": np.array(top.lambda_max),
        "atom_mass": np.array(top.atom_mass),
    }
