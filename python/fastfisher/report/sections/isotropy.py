# SPDX-License-Identifier: Apache-2.0
"""Structures of the Fisher matrix by the isotropic condition, and training with each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import diagnostics, ngd
from fastfisher.models import MLP
from fastfisher.plot import plot_scaling, plot_training_curves
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
TRAINED = ("full", "layer", "tridiagonal", "kfac", "unit")
GRADIENT_DESCENT = "gradient descent"

# No biases: units with one are isotropic on average only. Few samples, many units.
WIDTHS, SAMPLES = (300, 300, 300, 1), 30
BLOCK_WIDTHS, BLOCK_SAMPLES, BLOCKS = (60, 120, 120, 1), 30, (1, 3, 7, 15, 30, 60)
TRAINED_SAMPLES, TRAINED_INPUTS, STEPS = 40, 50, 6
PHI = {"relu": 2.0, "tanh": 3.0}
# Learning rate over 1 / alpha, and relative damping.
STEP, DAMPING = 0.5, 1e-6


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    seed = context.settings.seed
    width = context.settings.pick(quick=256, default=1024, full=2048)
    with context.progress.task("isotropic condition") as tick:
        mlp, x = _network(WIDTHS, SAMPLES, seed)
        found = diagnostics.isotropy(
            mlp, x, structures=tuple(NAMES), relative_damping=DAMPING, threshold=0.1
        )
        tick()
    with context.progress.task("sizes of blocks", len(PHI)) as tick:
        defects = {phi: _defects(phi, seed, tick) for phi in PHI}
    with context.progress.task("natural-gradient descent", len(TRAINED) + 1) as tick:
        losses, theory = _training(width, seed, tick)
    good = [row for row in found.rows if row.defect <= found.threshold]
    last = {name: curve[-1] / curve[0] for name, curve in losses.items()}
    slowest = max(last[NAMES[name]] for name in TRAINED)
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
        "defect_of_blocks": {"block": list(BLOCKS), **defects},
        "loss": {name: curve.tolist() for name, curve in losses.items()},
        "loss_predicted": {name: curve.tolist() for name, curve in theory.items()},
    }
    count, every = len(good), len(found.rows)
    return SectionResult(
        summary=(
            f"{count} of {every} structures move the outputs as the exact natural gradient does, "
            f"up to a factor &alpha;. After {STEPS} steps at the learning rate {STEP:g} / &alpha; "
            f"each of those trained leaves at most {slowest:.2g} of the loss, gradient descent "
            f"{last[GRADIENT_DESCENT]:.2g}."
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
        blocks=_blocks(found, defects, losses, theory),
        settings={
            "widths": list(WIDTHS),
            "samples": SAMPLES,
            "block_widths": list(BLOCK_WIDTHS),
            "block_samples": BLOCK_SAMPLES,
            "trained_width": width,
            "trained_samples": TRAINED_SAMPLES,
            "activation": "relu",
            "parameterization": "ntk",
            "sigma_w2": PHI,
            "sigma_b2": 0.0,
            "relative_damping": DAMPING,
            "learning_rate_times_alpha": STEP,
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


def _defects(phi: str, seed: int, tick: Callable[[], None]) -> list[float]:
    """Defects of blocks of some inputs of each unit."""
    mlp, x = _network(BLOCK_WIDTHS, BLOCK_SAMPLES, seed, phi)
    found = diagnostics.isotropy(
        mlp, x, structures=[("block", b) for b in BLOCKS], relative_damping=DAMPING
    )
    tick()
    return [row.defect for row in found.rows]


def _training(
    width: int, seed: int, tick: Callable[[], None]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Losses of networks and of the linear theory from the Jacobian before the first step."""
    widths = (TRAINED_INPUTS, width, width, 1)
    start, x = _network(widths, TRAINED_SAMPLES, seed)
    teacher = np.random.default_rng((seed, 2)).standard_normal((TRAINED_INPUTS, 1))
    y = np.tanh(x @ teacher / np.sqrt(TRAINED_INPUTS))
    jacobian = start.jacobian(x)
    e = np.asarray(jacobian.outputs) - y
    losses: dict[str, Floats] = {}
    theory: dict[str, Floats] = {}
    for structure in (*TRAINED, GRADIENT_DESCENT):
        plain = structure == GRADIENT_DESCENT
        options: dict[str, Any] = {"structure": structure, "relative_damping": DAMPING}
        if plain:
            matrix = np.asarray(jacobian.gram()) / TRAINED_SAMPLES
            flat = matrix.reshape(TRAINED_SAMPLES, TRAINED_SAMPLES)
            lr = 1 / float(np.linalg.eigvalsh(flat)[-1])
        else:
            matrix = np.asarray(ngd.function_space_matrix(jacobian, **options))
            flat = matrix.reshape(TRAINED_SAMPLES, TRAINED_SAMPLES)
            lr = STEP / float(np.trace(flat) / TRAINED_SAMPLES)
        j, residual, curve = jacobian, e, [_loss(e)]
        mlp = start
        for _ in range(STEPS):
            if plain:
                vector = j.T @ residual.reshape(-1) / TRAINED_SAMPLES
            else:
                vector = ngd.update(j, residual, **options).vector
            mlp = mlp.with_parameters(j.flatten(mlp.parameters) - lr * vector)
            j = mlp.jacobian(x)
            residual = np.asarray(j.outputs) - y
            curve.append(_loss(residual))
        name = NAMES.get(structure, structure)
        losses[name] = np.array(curve)
        expected = ngd.training_curve(matrix, e, lr=lr, steps=STEPS)
        theory[name] = np.array([_loss(one) for one in expected])
        tick()
    return losses, theory


def _loss(e: Any) -> float:
    return float(np.square(e).sum() / (2 * len(e)))


def _blocks(
    found: diagnostics.Isotropy,
    defects: dict[str, list[float]],
    losses: dict[str, Floats],
    theory: dict[str, Floats],
) -> tuple[Text | Figure | Table, ...]:
    def draw_training(ax: Axes) -> None:
        plot_training_curves(losses, predicted=theory, label="loss  (output²)", ax=ax)

    def draw_blocks(ax: Axes) -> None:
        label = "defect of Θ_G"
        plot_scaling(BLOCKS, defects, xlabel="inputs in a block", label=label, ax=ax)

    return (
        Text(
            "An update with a matrix G in place of the Fisher matrix moves the outputs on the "
            "training set by &minus;&eta; &Theta;<sub>G</sub> (f &minus; y), &Theta;<sub>G</sub> = "
            "J (G + &rho;)<sup>&minus;1</sup> J<sup>T</sup> / N. Where &Theta;<sub>G</sub> is "
            "&alpha; times the identity, no direction is slower than another and the learning rate "
            "1 / &alpha; would fit the samples in one step, as with the exact Fisher matrix. The "
            "defect says how far it is from that, the predicted &alpha; comes from ranks alone."
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
                    "training",
                    "Training loss against steps for several structures and gradient descent.",
                    draw_training,
                    (5.6, 4.2),
                ),
                Plot(
                    "blocks",
                    "Defect against the number of inputs in a block, for ReLU and tanh.",
                    draw_blocks,
                    (5.6, 4.2),
                ),
            ),
            f"Left: loss at the learning rate {STEP:g} / &alpha; (gradient descent: 1 / "
            "&lambda;<sub>max</sub>), Jacobian and G new at every step. Marks: networks. Dashed: "
            f"linear theory from the first Jacobian. Right: blocks within a unit, "
            f"{BLOCK_SAMPLES} samples: isotropy is lost where a block has fewer inputs than there "
            "are samples.",
        ),
    )
