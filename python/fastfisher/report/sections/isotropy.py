# SPDX-License-Identifier: Apache-2.0
"""Structures of the Fisher matrix by the isotropic condition, down to blocks that break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import diagnostics
from fastfisher.models import MLP
from fastfisher.plot import plot_scaling
from fastfisher.report import _device
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

NAMES: dict[Any, str] = {
    "full": "exact",
    "layer": "layer-wise",
    "tridiagonal": "block tri-diagonal",
    "kfac": "K-FAC",
    "unit": "unit-wise",
    ("block", 3): "3 inputs of a unit",
    "diagonal": "diagonal",
}

# No biases: units with one are isotropic on average only. Few samples, many units.
WIDTHS, SAMPLES = (300, 300, 300, 1), 30
BLOCK_WIDTHS, BLOCK_SAMPLES, BLOCKS = (60, 120, 120, 1), 30, (1, 3, 7, 15, 30, 60)
PHI = {"relu": 2.0, "tanh": 3.0}
# Relative to the mean eigenvalue of each inverted matrix.
DAMPING = 1e-6


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    seed = context.settings.seed
    with context.progress.task("isotropic condition") as tick:
        mlp, x = _network(WIDTHS, SAMPLES, seed)
        found = diagnostics.isotropy(
            mlp, _device.moved(x), structures=tuple(NAMES), relative_damping=DAMPING, threshold=0.1
        )
        tick()
    with context.progress.task("sizes of blocks", len(PHI)) as tick:
        broken = {phi: _broken(phi, seed, tick) for phi in PHI}
    good = [row for row in found.rows if row.defect <= found.threshold]
    values: dict[str, Any] = {
        "table": [
            {
                "structure": NAMES[row.structure],
                "alpha": row.alpha,
                "predicted": row.predicted,
                "condition_number": row.condition_number,
                "defect": row.defect,
                "cost": row.cost,
                "conditions": row.conditions,
            }
            for row in found.rows
        ],
        "cheapest": NAMES[found.cheapest] if found.cheapest is not None else None,
        "threshold": found.threshold,
        "blocks": list(BLOCKS),
        "defect_of_blocks": {phi: one["defect"] for phi, one in broken.items()},
        "condition_of_blocks": {phi: one["condition"] for phi, one in broken.items()},
    }
    count, every = len(good), len(found.rows)
    return SectionResult(
        summary=(
            f"{count} of {every} structures move the outputs as the exact natural gradient does, "
            f"up to a factor &alpha;. Blocks of fewer inputs than the {BLOCK_SAMPLES} samples no "
            f"longer do: with one input the condition number of &Theta;<sub>G</sub> is "
            f"{broken['relu']['condition'][0]:.2g} (ReLU), with {BLOCK_SAMPLES} it is "
            f"{broken['relu']['condition'][BLOCKS.index(BLOCK_SAMPLES)]:.2g}."
        ),
        facts=(
            *(
                Fact(f"&alpha; of {NAMES[name]}", f"{row.alpha:.4g}", f"theory {row.predicted:.4g}")
                for name in ("layer", "kfac", "unit")
                for row in [found[name]]
                if row.predicted is not None
            ),
            Fact("least work", values["cheapest"] or "none", "of those that are isotropic"),
        ),
        blocks=_blocks(found, broken),
        settings={
            "widths": list(WIDTHS),
            "samples": SAMPLES,
            "block_widths": list(BLOCK_WIDTHS),
            "block_samples": BLOCK_SAMPLES,
            "activation": "relu",
            "parameterization": "ntk",
            "sigma_w2": PHI,
            "sigma_b2": 0.0,
            "relative_damping": DAMPING,
            "seed": seed,
        },
        values=values,
        headline=f"isotropic condition: met by {count} of {every} structures of the Fisher matrix",
    )


def _network(
    widths: tuple[int, ...], samples: int, seed: int, activation: Any = "relu"
) -> tuple[MLP, Floats]:
    x = np.random.default_rng((seed, 1)).standard_normal((samples, widths[0]))
    options: dict[str, Any] = {"activation": activation, "sigma_w2": PHI[activation]}
    return MLP(widths, parameterization="ntk", seed=seed, **options), x


def _broken(phi: str, seed: int, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Defects and condition numbers of blocks of some inputs of each unit."""
    mlp, x = _network(BLOCK_WIDTHS, BLOCK_SAMPLES, seed, phi)
    found = diagnostics.isotropy(
        mlp, _device.moved(x), structures=[("block", b) for b in BLOCKS], relative_damping=DAMPING
    )
    tick()
    return {
        "defect": [row.defect for row in found.rows],
        "condition": [row.condition_number for row in found.rows],
    }


def _blocks(
    found: diagnostics.Isotropy, broken: dict[str, dict[str, list[float]]]
) -> tuple[Text | Figure | Table, ...]:
    def draw(key: str, label: str) -> Callable[[Axes], None]:
        def picture(ax: Axes) -> None:
            curves = {phi: one[key] for phi, one in broken.items()}
            plot_scaling(BLOCKS, curves, xlabel="inputs in a block", label=label, ax=ax)
            colour = ax.yaxis.label.get_color()
            ax.axvline(BLOCK_SAMPLES, color=colour, linestyle=":", linewidth=1.2, zorder=0)
            ax.text(BLOCK_SAMPLES, 0.98, " N", transform=ax.get_xaxis_transform(), va="top")

        return picture

    return (
        Text(
            "An update with a matrix G in place of the Fisher matrix moves the outputs on the "
            "training set by &minus;&eta; &Theta;<sub>G</sub> (f &minus; y), &Theta;<sub>G</sub> = "
            "J (G + &rho;)<sup>&minus;1</sup> J<sup>T</sup> / N. Where &Theta;<sub>G</sub> is "
            "&alpha; times the identity, no direction is slower than another and the learning rate "
            "1 / &alpha; would fit the samples in one step, as with the exact Fisher matrix. The "
            "defect says how far it is from that, the predicted &alpha; comes from ranks alone. "
            "Training with each of them is in the section on Fig. 3."
        ),
        Table(
            f"Isotropic condition of a ReLU network ({', '.join(map(str, WIDTHS))}) on {SAMPLES} "
            "Gaussian samples. Cost: multiply-adds of the matrices made and inverted.",
            (
                "structure",
                "&alpha;",
                "predicted",
                "condition number",
                "defect",
                "cost",
                "conditions not met",
            ),
            tuple(
                (
                    NAMES[row.structure],
                    f"{row.alpha:.4g}",
                    "" if row.predicted is None else f"{row.predicted:.4g}",
                    f"{row.condition_number:.3g}",
                    f"{row.defect:.3f}",
                    f"{row.cost:.2g}",
                    row.note or "; ".join(k for k, holds in row.conditions.items() if not holds),
                )
                for row in found.rows
            ),
        ),
        Figure(
            (
                Plot(
                    "condition",
                    "Condition number against the number of inputs in a block, for ReLU and tanh.",
                    draw("condition", "condition number of $\\Theta_G$"),
                    (5.6, 4.2),
                ),
                Plot(
                    "blocks",
                    "Defect against the number of inputs in a block, for ReLU and tanh.",
                    draw("defect", "defect of $\\Theta_G$"),
                    (5.6, 4.2),
                ),
            ),
            "Over-coarse approximations: blocks of some of the inputs of a unit, network "
            f"({', '.join(map(str, BLOCK_WIDTHS))}), {BLOCK_SAMPLES} Gaussian samples (dotted). "
            "Isotropy is lost where a block has fewer inputs than there are samples; the slowest "
            "mode then shrinks by 1 &minus; 1/&kappa; a step at best.",
        ),
    )
