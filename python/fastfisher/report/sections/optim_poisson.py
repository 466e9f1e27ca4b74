# SPDX-License-Identifier: Apache-2.0
"""Optimisers on a partial differential equation: NGD and SPRING beside Adam and L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.report._section import Context, SectionResult, Tick
from fastfisher.report._torch import Watch, best_of, seeded, torch, with_torch
from fastfisher.report.sections import _optim_poisson_page as page

__all__ = ["build"]

Floats = NDArray[np.float64]

# -laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, u = x (1 - x) y (1 - y) N(x, y).
WIDTH, POINTS, GRID, TARGET = 32, 400, 50, 1e-5
# NGD and SPRING solve the linear problem of a step; both need a bound on it far from the solution.
NGD: dict[str, Any] = {"adaptive": True, "relative_damping": 1e-3}
SPRING: dict[str, Any] = {
    "lr": 1.0,
    "relative_damping": 1e-6,
    "momentum": 0.5,
    "norm_constraint": 1.0,
}
LBFGS: dict[str, Any] = {
    "max_iter": 20,
    "history_size": 50,
    "line_search_fn": "strong_wolfe",
    "tolerance_grad": 0.0,
    "tolerance_change": 0.0,
}


@dataclass(frozen=True)
class Sizes:
    """What the three grids differ in: steps of each method, rates of Adam, networks."""

    natural: int
    adam: int
    lbfgs: int
    rates: tuple[float, ...]
    networks: int


QUICK = Sizes(45, 600, 25, (1e-2,), 1)
DEFAULT = Sizes(80, 5000, 250, (1e-3, 3e-3, 1e-2, 3e-2), 1)
FULL = Sizes(150, 20000, 1000, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 5)


@with_torch
def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    sizes = settings.pick(quick=QUICK, default=DEFAULT, full=FULL)
    seeds = range(settings.seed, settings.seed + sizes.networks)
    # Equal work for the clock of the progress: a step of NGD takes as long as some of Adam.
    methods = {
        "NGD": (sizes.natural, (0.0,), 20),
        "SPRING": (sizes.natural, (0.0,), 20),
        "Adam": (sizes.adam, sizes.rates, 1),
        "L-BFGS": (sizes.lbfgs, (0.0,), 25),
    }
    total = len(seeds) * sum(steps * len(grid) * w for steps, grid, w in methods.values())
    found: dict[str, dict[str, Any]] = {}
    with context.progress.task("Poisson equation", total) as tick:
        for method, (steps, grid, weight) in methods.items():
            runs = {}
            for rate in grid:
                points = []
                for seed in seeds:
                    name = f"{method} {rate:g} steps {steps} seed {seed}"
                    run = partial(_run, method, rate, steps, seed, partial(tick, weight))
                    points.append(context.point(name, run))
                runs[rate] = points
            found[method] = best_of(runs, "error")
    values = page.values(found, TARGET)
    return SectionResult(
        summary=page.summary(values, TARGET),
        facts=page.facts(values),
        blocks=page.blocks(found, values, TARGET),
        settings={
            "equation": "-laplace u = 2 pi^2 sin(pi x) sin(pi y), u = 0 on the edge",
            "ansatz": "x (1 - x) y (1 - y) N(x, y)",
            "widths": [2, WIDTH, WIDTH, 1],
            "activation": "tanh",
            "dtype": "float64",
            "points": POINTS,
            "error_grid": [GRID, GRID],
            "ngd": NGD,
            "spring": SPRING,
            "lbfgs": LBFGS,
            "adam_rates": list(sizes.rates),
            "adam_schedule": "cosine to zero over a run's steps",
            "steps": {method: steps for method, (steps, _, _) in methods.items()},
            "networks": sizes.networks,
            "torch_threads": 1,
            "seed": settings.seed,
        },
        values=values,
        headline=page.headline(values),
    )


# --- one run --------------------------------------------------------------------------------------


def _source(x: Any) -> Any:
    return 2 * math.pi**2 * torch().sin(math.pi * x).prod(-1)


def _edge(x: Any) -> Any:
    return (x * (1 - x)).prod(-1)


def _residual(f: Any, x: Any) -> Any:
    """Laplace u plus source at one point x (2,)."""
    return torch().func.hessian(lambda z: _edge(z) * f(z)[0])(x).trace() + _source(x)


def _batched(model: Any, x: Any) -> Any:
    """Do the same at all points (n, 2), for optimisers that need a loss."""
    t = torch()
    z = x.detach().requires_grad_()
    (slope,) = t.autograd.grad((_edge(z) * model(z)[:, 0]).sum(), z, create_graph=True)
    total = _source(x)
    for k in range(2):
        total = total + t.autograd.grad(slope[:, k].sum(), z, create_graph=True)[0][:, k]
    return total


def _run(method: str, rate: float, steps: int, seed: int, tick: Tick) -> Mapping[str, Floats]:
    """Train; give steps, seconds, relative L2 error and loss."""
    t = torch()
    nn = t.nn
    with seeded(seed):
        model = nn.Sequential(
            nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)
        ).double()
    x = t.rand(POINTS, 2, generator=t.Generator().manual_seed(seed), dtype=t.float64)
    axis = t.linspace(0, 1, GRID, dtype=t.float64)
    grid = t.cartesian_prod(axis, axis)
    truth = t.sin(math.pi * grid).prod(-1)

    def look() -> tuple[float, ...]:
        with t.no_grad():
            error = float((_edge(grid) * model(grid)[:, 0] - truth).norm() / truth.norm())
        return error, 0.5 * float(_batched(model, x).detach().square().mean())

    step = _stepper(method, rate, steps, model, x)
    watch = Watch(max(1, steps // 200), look)
    for k in range(1, steps + 1):
        with watch.step(k, last=k == steps):
            step()
        tick()
    return watch.columns("error", "loss")


def _stepper(method: str, rate: float, steps: int, model: Any, x: Any) -> Any:
    """One step of an optimiser, a function without arguments."""
    from fastfisher import optim

    if method in ("NGD", "SPRING"):
        own = optim.NGD(model, **NGD) if method == "NGD" else optim.SPRING(model, **SPRING)
        return lambda: own.step([(_residual, x)])
    t = torch()
    lbfgs = method == "L-BFGS"
    made = t.optim.LBFGS if lbfgs else t.optim.Adam
    optimizer = made(model.parameters(), **(LBFGS if lbfgs else {"lr": rate}))

    def loss() -> Any:
        optimizer.zero_grad()
        value = 0.5 * _batched(model, x).square().mean()
        value.backward()
        return value

    if lbfgs:
        return lambda: optimizer.step(loss)
    schedule = t.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def stepped() -> None:
        optimizer.step(loss)
        schedule.step()

    return stepped
