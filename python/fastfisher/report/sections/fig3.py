# SPDX-License-Identifier: Apache-2.0
"""Fig. 3: training with natural gradients, and the kernel that each of them regresses with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.report._compare import Comparison, compared
from fastfisher.report._section import Context, Fact, SectionResult
from fastfisher.report.binary import BinarySplit
from fastfisher.report.sections import _fig3_page as page
from fastfisher.report.sections import _fig3_runs as runs

__all__ = ["build"]

Floats = NDArray[np.float64]
Found = dict[str, Floats]

# Learning rate times alpha (of gradient descent: times the largest eigenvalue of Theta / N).
SCALE = 0.5


@dataclass(frozen=True)
class Sizes:
    """What the three grids differ in; `row` is the width of the exact one at 1 / alpha."""

    width: int
    networks: int
    steps: int
    row: int
    row_networks: int
    coarse_steps: int


QUICK = Sizes(512, 1, 4, 1024, 2, 8)
DEFAULT = Sizes(2048, 2, 5, 4096, 3, 12)
FULL = Sizes(4096, 8, 6, 4096, 16, 20)


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    sizes = settings.pick(quick=QUICK, default=DEFAULT, full=FULL)
    pairs = {
        "digits": runs.digits(settings.seed),
        "Gaussian": runs.gaussian_pair(settings.seed),
    }
    names = tuple(page.NAMES)
    total = len(pairs) * len(names) * sizes.networks
    found: dict[str, dict[str, Found]] = {}
    with context.progress.task("natural-gradient descent", total) as tick:
        for data, pair in pairs.items():
            found[data] = {
                name: _runs(
                    context, data, pair, name, sizes.width, sizes.networks, SCALE, sizes.steps, tick
                )
                for name in names
            }
    with context.progress.task("exact one at 1 / alpha", sizes.row_networks) as tick:
        digits = pairs["digits"]
        row = _runs(context, "digits", digits, "full", sizes.row, sizes.row_networks, 1.0, 2, tick)
    with context.progress.task("over-coarse blocks", len(page.BLOCKS)) as tick:
        coarse: dict[int, Found] = {}
        for block in page.BLOCKS:
            make = partial(runs.coarse, block, seed=settings.seed, steps=sizes.coarse_steps)
            coarse[block] = context.point(f"block {block}", make)
            tick()
    rows = _rows(found, row)
    left = {name: _left(one) for name, one in found["digits"].items()}
    slowest = max((name for name in names if name != runs.GRADIENT), key=lambda name: left[name])
    published = _row_values(row)
    values: dict[str, Any] = {
        "curves": {
            data: {
                page.NAMES[name]: {key: one[key].mean(0).tolist() for key in one}
                for name, one in each.items()
            }
            for data, each in found.items()
        },
        "exact_at_full_rate": published,
        "blocks": [
            {"block": block, **{key: value.tolist() for key, value in one.items()}}
            for block, one in coarse.items()
        ],
        "comparison": [one.plain() for one in rows],
    }
    test = published["test"]
    return SectionResult(
        summary=(
            f"On real digits {sizes.steps} steps at {SCALE:g} / &alpha; leave "
            f"{left['full']:.2g} of the training loss with the exact natural gradient, at most "
            f"{left[slowest]:.2g} ({page.NAMES[slowest]}) with an approximation, and "
            f"{left[runs.GRADIENT]:.2g} with gradient descent; infinite width says "
            f"{(1 - SCALE) ** (2 * sizes.steps):.2g} for all natural gradients. At the test images "
            "each method follows the regression of a kernel of its own."
        ),
        facts=(
            Fact(
                "exact, one step at 1 / &alpha;: training loss",
                f"{published['train'][1]:.2g}",
                f"from {published['train'][0]:.3g}; infinite width 0",
            ),
            Fact(
                "its test loss",
                f"{test[1]:.3g}",
                f"infinite width {published['test_predicted'][1]:.3g}",
            ),
            *(
                Fact(
                    f"{page.NAMES[name]}: test loss, digits",
                    f"{one['test'][:, -1].mean():.3g}",
                    f"infinite width {one['test_predicted'][:, -1].mean():.3g}",
                )
                for name, one in found["digits"].items()
                if name in ("layer", "kfac")
            ),
        ),
        blocks=page.blocks(
            page.Results(pairs, found, row, coarse, rows, sizes.width, sizes.row, SCALE)
        ),
        settings={
            "depth": runs.DEPTH,
            "activation": "relu",
            "parameterization": "ntk",
            "sigma_w2": runs.SIGMA_W2,
            "sigma_b2": 0.0,
            "width": sizes.width,
            "networks": sizes.networks,
            "steps": sizes.steps,
            "learning_rate_times_alpha": SCALE,
            "relative_damping": {
                page.NAMES[name]: runs.damping_of(name) for name in names if name != runs.GRADIENT
            },
            "data": {
                data: {
                    "title": pair.title,
                    "samples": len(pair.x),
                    "inputs": pair.x.shape[1],
                    "test_samples": len(pair.test_x),
                }
                for data, pair in pairs.items()
            },
            "exact_at_full_rate": {"width": sizes.row, "networks": sizes.row_networks},
            "block_widths": list(runs.BLOCK_WIDTHS),
            "block_samples": runs.BLOCK_SAMPLES,
            "block_targets_at": runs.NEAR,
            "seed": settings.seed,
        },
        values=values,
        headline=(
            f"natural gradient on digits 0 and 1: test loss after one exact step {test[1]:.3g}, "
            f"infinite width {published['test_predicted'][1]:.3g}"
        ),
    )


def _runs(
    context: Context,
    data: str,
    pair: BinarySplit,
    structure: str,
    width: int,
    networks: int,
    scale: float,
    steps: int,
    tick: Callable[[], None],
) -> Found:
    """Run several networks: one row each."""
    points = []
    for seed in range(context.settings.seed, context.settings.seed + networks):
        name = f"{data} {structure} width {width} scale {scale:g} steps {steps} seed {seed}"
        make = partial(runs.run, pair, structure, width, seed=seed, scale=scale, steps=steps)
        points.append(context.point(name, make))
        tick()
    return {key: np.array([point[key] for point in points]) for key in points[0]}


def _left(one: Found) -> float:
    """Share of the training loss that is left."""
    return float((one["train"][:, -1] / one["train"][:, 0]).mean())


def _rows(found: dict[str, dict[str, Found]], row: Found) -> list[Comparison]:
    rows = []
    for data, each in found.items():
        for name, one in each.items():
            title = f"{data}, {page.NAMES[name]}"
            rows.append(
                compared(
                    f"{title}: training loss", one["train"][:, -1], one["train_predicted"][:, -1]
                )
            )
            if name != "unit":
                rows.append(
                    compared(
                        f"{title}: test loss", one["test"][:, -1], one["test_predicted"][:, -1]
                    )
                )
    rows.append(
        compared(
            "digits, exact, one step of 1 / alpha: test loss",
            row["test"][:, 1],
            row["test_predicted"][:, 1],
        )
    )
    return rows


def _row_values(row: Found) -> dict[str, Any]:
    """Mean over networks of the exact one at 1 / alpha, spread of measured minus predicted."""
    off = row["test"] - row["test_predicted"]
    spread = off.std(0, ddof=1) if len(off) > 1 else np.full(off.shape[1], np.nan)
    return {
        **{
            key: row[key].mean(0).tolist()
            for key in ("train", "test", "train_predicted", "test_predicted", "test_sampling")
        },
        "test_minus_predicted": off.mean(0).tolist(),
        "test_minus_predicted_deviation": spread.tolist(),
        "published": page.PUBLISHED,
    }
