# SPDX-License-Identifier: Apache-2.0
"""NTK of a wide network on real digits, its Fisher spectrum, its critical learning rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher.models import MLP
from fastfisher.plot import plot_gd_curves, plot_ntk_heatmap, plot_spectrum
from fastfisher.report import _device
from fastfisher.report._descent import Descent, descend, linear_descent
from fastfisher.report._machine import check_memory
from fastfisher.report._section import Context, SectionResult
from fastfisher.report.sections import _ntk_spectrum_page as page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["build"]

Floats = NDArray[np.float64]

# The growth factor is read off the first steps only: later, above eta_c, a wide network leaves the
# linear regime and may even recover at a smaller curvature.
FIRST_STEPS = 3
# The check starts with labels this far from the first outputs: the change of the kernel along the
# way, and with it the deviation from linear theory, shrinks in proportion.
SMALL = 1e-4
# What "agrees with linear theory" means for the growth factor of the check, absolute.
AGREEMENT = 0.01


def build(context: Context) -> SectionResult:
    """Compute the section (kernel, spectrum, descent) and describe it."""
    settings, data, progress = context.settings, context.data, context.progress
    n, c = data.targets.shape
    # The Gram matrix, its eigenvectors and the work space of LAPACK's divide and conquer.
    check_memory(5 * 8 * (n * c) ** 2, f"the spectrum of {n} samples and {c} outputs", "samples")
    widths = (data.x.shape[1], *settings.hidden, c)
    model = MLP(
        widths,
        activation=cast(Any, settings.activation),  # MLP checks it
        sigma_w2=settings.sigma_w2,
        sigma_b2=settings.sigma_b2,
        seed=settings.seed,
    )
    with progress.task("tangent kernel", 2) as tick:
        jacobian = model.jacobian(data.x)
        kernel = _device.gram(jacobian, outputs="trace") / c
        tick()
        fisher = _device.gram(jacobian).reshape(n * c, n * c) / n
        tick()
    with progress.task(f"eigenvalues of a {n * c:,} by {n * c:,} matrix") as tick:
        eigenvalues, top, alignment = _spectrum(fisher, n, c)
        tick()
    eta_c = 2 / float(eigenvalues[0])
    with progress.task("gradient descent", 2 * settings.steps * len(settings.ratios)) as tick:
        small = _runs(context, model, fisher, eta_c, top, SMALL, tick)
        full = _runs(context, model, fisher, eta_c, top, 1.0, tick)
    check, training = ([_rate(run, eta_c) for run in runs] for runs in (small, full))
    confirmed = all(
        (r["growth"] < 1) == (r["ratio"] < 1)
        and abs(r["growth"] - r["growth_predicted"]) <= AGREEMENT
        for r in check
    )
    values: dict[str, Any] = {
        "outputs": c,
        "parameters": int(jacobian.shape[1]),
        "lambda_max": float(eigenvalues[0]),
        "eta_c": eta_c,
        "outliers": eigenvalues[:c].tolist(),
        "next_eigenvalue": float(eigenvalues[c]),
        "trace": float(np.trace(fisher)),
        "outlier_share_of_trace": float(eigenvalues[:c].sum() / np.trace(fisher)),
        "alignment_with_constant_vectors": alignment,
        "kernel": _kernel_values(kernel, data.labels),
        "confirmed": confirmed,
        "training_agrees_in_first_step": all(
            (r["growth_first_step"] < 1) == (r["ratio"] < 1) for r in training
        ),
        "check": check,
        "training": training,
        "eigenvalues": eigenvalues.tolist(),
    }
    draw: dict[str, Callable[[Axes], None]] = {
        "kernel": partial(_draw_kernel, kernel=kernel, labels=data.labels),
        "spectrum": partial(_draw_spectrum, eigenvalues=eigenvalues, c=c),
        "check-residual": partial(_draw_descent, runs=small, loss=False),
        "check-loss": partial(_draw_descent, runs=small, loss=True),
        "training-residual": partial(_draw_descent, runs=full, loss=False),
        "training-loss": partial(_draw_descent, runs=full, loss=True),
    }
    return SectionResult(
        summary=page.summary(values),
        facts=page.facts(values),
        blocks=page.blocks(values, min(FIRST_STEPS, settings.steps), draw),
        settings={
            "widths": list(widths),
            "activation": settings.activation,
            "sigma_w2": settings.sigma_w2,
            "sigma_b2": settings.sigma_b2,
            "parameterization": "standard",
            "dtype": "float64",
            "samples": n,
            "seed": settings.seed,
            "learning_rates_over_eta_c": list(settings.ratios),
            "steps": settings.steps,
            "first_steps": min(FIRST_STEPS, settings.steps),
            "distance_of_labels_in_check": SMALL,
        },
        values=values,
        headline=page.headline(values),
    )


def _spectrum(fisher: Floats, n: int, c: int) -> tuple[Floats, Floats, float]:
    """Return eigenvalues, first eigenvector, share of the top c in the constant vectors."""
    ascending, vectors = _device.eigh(fisher)
    top = vectors[:, ::-1][:, :c]
    # ||V_C^T (1 (x) I_C) / sqrt N||_F^2 / C: 1 if the outliers live on "the same change for every
    # sample".
    sums = top.reshape(n, c, c).sum(axis=0)
    return ascending[::-1].copy(), np.ascontiguousarray(top[:, 0]), float((sums**2).sum() / (n * c))


class _Run(NamedTuple):
    ratio: float
    measured: Descent
    linear: Descent


def _runs(
    context: Context,
    model: MLP,
    fisher: Floats,
    eta_c: float,
    top: Floats,
    distance: float,
    tick: Callable[[], None],
) -> list[_Run]:
    """Descend at every rate towards labels at `distance` times theirs from the first outputs."""
    settings, x = context.settings, context.data.x
    outputs = np.asarray(model(x))
    residual = distance * (outputs - context.data.targets)
    runs = []
    for ratio in settings.ratios:
        eta = ratio * eta_c
        measured = descend(
            model, x, outputs - residual, eta=eta, steps=settings.steps, direction=top, tick=tick
        )
        linear = linear_descent(
            fisher,
            residual.reshape(-1),
            eta=eta,
            steps=settings.steps,
            direction=top,
            samples=x.shape[0],
        )
        runs.append(_Run(ratio, measured, linear))
    return runs


def _rate(run: _Run, eta_c: float) -> dict[str, Any]:
    return {
        "ratio": run.ratio,
        "eta": run.ratio * eta_c,
        "growth_predicted": abs(1 - 2 * run.ratio),
        "growth_first_step": run.measured.growth(1),
        "growth": run.measured.growth(min(FIRST_STEPS, len(run.measured.loss) - 1)),
        "loss": run.measured.loss.tolist(),
        "loss_predicted": run.linear.loss.tolist(),
        "residual": run.measured.projection.tolist(),
        "residual_predicted": run.linear.projection.tolist(),
    }


def _kernel_values(kernel: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    same = labels[:, None] == labels[None, :]
    np.fill_diagonal(same, False)
    different = labels[:, None] != labels[None, :]
    return {
        "diagonal": float(np.diag(kernel).mean()),
        "same_class": float(kernel[same].mean()) if same.any() else float("nan"),
        "different_class": float(kernel[different].mean()) if different.any() else float("nan"),
    }


def _draw_kernel(ax: Axes, *, kernel: Floats, labels: NDArray[np.int64]) -> None:
    plot_ntk_heatmap(kernel, classes=labels, label="Θ / C  (output² / parameter²)", ax=ax)
    ax.set(xlabel="image, by digit", ylabel="image, by digit")


def _draw_spectrum(ax: Axes, *, eigenvalues: Floats, c: int) -> None:
    plot_spectrum(eigenvalues, outliers=c, ax=ax)


def _draw_descent(ax: Axes, *, runs: list[_Run], loss: bool) -> None:
    plot_gd_curves(
        [r.measured.loss if loss else np.abs(r.measured.projection) for r in runs],
        ratios=[r.ratio for r in runs],
        predicted=[r.linear.loss if loss else np.abs(r.linear.projection) for r in runs],
        label="loss E  (output²)" if loss else "|residual along top eigenvector|  (output)",
        ax=ax,
    )
