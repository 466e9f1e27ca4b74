# SPDX-License-Identifier: Apache-2.0
"""Words, tables and pictures of the section on optimisers for the Poisson equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.plot import plot_learning_curves
from fastfisher.report._section import Fact, Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["blocks", "facts", "headline", "summary", "values"]

Found = Mapping[str, Mapping[str, Any]]
SIZE = (5.6, 4.2)
NEVER = "-"


def values(found: Found, target: float) -> dict[str, Any]:
    """Plain values of each method; None where a run never had the error that is asked for."""
    result: dict[str, Any] = {}
    for method, one in found.items():
        hits = [np.flatnonzero(error <= target) for error in one["error"]]
        result[method] = {
            "rate": one["setting"] or None,
            "last_errors_of_rates": {f"{k:g}": v for k, v in one["last"].items() if k},
            "steps": one["steps"][0].tolist(),
            "seconds": one["seconds"].tolist(),
            "error": one["error"].tolist(),
            "loss": one["loss"].tolist(),
            **{
                f"{key}_to_target": [
                    float(one[key][k][hit[0]]) if hit.size else None for k, hit in enumerate(hits)
                ]
                for key in ("steps", "seconds")
            },
        }
    return result


def _last(values: dict[str, Any], method: str) -> float:
    return float(np.median([error[-1] for error in values[method]["error"]]))


def _seconds(values: dict[str, Any], method: str) -> float:
    return float(np.median([seconds[-1] for seconds in values[method]["seconds"]]))


def _time(values: dict[str, Any], method: str, key: str = "seconds") -> float | None:
    known = values[method][f"{key}_to_target"]
    return None if any(x is None for x in known) else float(np.median(known))


def _arrival(values: dict[str, Any], method: str, target: float) -> str:
    time = _time(values, method)
    if time is None:
        return f"{method} ends at {_last(values, method):.1e}"
    return f"{method} has a relative error of {target:g} after {time:.1f} s"


def summary(values: dict[str, Any], target: float) -> str:
    """Say what was found (markup)."""
    parts = [_arrival(values, method, target) for method in ("NGD", "SPRING")]
    others = [
        f"{method} is at {_last(values, method):.1e} after {_seconds(values, method):.1f} s"
        for method in ("Adam", "L-BFGS")
    ]
    return f"{'; '.join(parts)}. {'; '.join(others)}."


def headline(values: dict[str, Any]) -> str:
    """Say the same in one line of plain text."""
    parts = [
        f"{method} {_last(values, method):.0e} ({_seconds(values, method):.1f} s)"
        for method in values
    ]
    return f"relative L2 error: {', '.join(parts)}"


def facts(values: dict[str, Any]) -> tuple[Fact, ...]:
    """Pick the headline figures."""
    return tuple(
        Fact(
            f"{method}: relative error",
            f"{_last(values, method):.1e}",
            f"after {_seconds(values, method):.1f}&nbsp;s",
        )
        for method in values
    )


def blocks(
    found: Found, values: dict[str, Any], target: float
) -> tuple[Text | Figure | Table, ...]:
    """Lay out the section from top to bottom."""
    runs = len(found["NGD"]["error"])
    several = "one network" if runs == 1 else f"medians of {runs} networks, bands over all of them"
    return (
        Text(
            "A network with hard boundary values is to solve &minus;&Delta;u = f on the unit "
            "square; the residual at 400 points is a least-squares problem. Natural gradient "
            "solves its linearisation in every step, by the matrix of inner products of the "
            "points' gradients; NGD adapts the damping to how well that model predicts the loss. "
            "SPRING also keeps the part of its last step about which the points say nothing, and "
            "bounds the length of a step: without that bound full steps overshoot at the start. "
            "Adam has cosine decay over its steps and the best of its rates, L-BFGS a strong Wolfe "
            "line search; a step of L-BFGS is 20 of its iterations."
        ),
        Figure(
            tuple(
                Plot(
                    key,
                    f"{title} against seconds for NGD, SPRING, Adam and L-BFGS.",
                    _draw(found, key, label, target),
                    SIZE,
                )
                for key, title, label in (
                    ("error", "Relative L2 error", "relative L2 error of u"),
                    ("loss", "Loss", "half mean square of the residual"),
                )
            ),
            f"Left: relative L2 error of the solution on a grid of 50 by 50 points. Right: loss at "
            f"the 400 points that the network is trained on. Against seconds of training, {several}"
            f"; dashed: a relative error of {target:g}.",
        ),
        _table(values, target),
    )


def _draw(found: Found, key: str, label: str, target: float) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_learning_curves(
            {name: (np.median(one["seconds"], 0), one[key]) for name, one in found.items()},
            target=target if key == "error" else None,
            target_label=f"{target:g}",
            xlabel="time (s)",
            label=label,
            xscale="log",
            ax=ax,
        )

    return draw


def _table(values: dict[str, Any], target: float) -> Table:
    rows = []
    for method, one in values.items():
        steps, seconds = _time(values, method, "steps"), _time(values, method)
        rows.append(
            (
                method if one["rate"] is None else f"{method}, rate {one['rate']:g}",
                NEVER if steps is None else f"{steps:.0f}",
                NEVER if seconds is None else f"{seconds:.2f}",
                f"{one['steps'][-1]:.0f}",
                f"{_seconds(values, method):.2f}",
                f"{_last(values, method):.2g}",
                f"{float(np.median([loss[-1] for loss in one['loss']])):.2g}",
            )
        )
    return Table(
        f"Steps and seconds to a relative error of {target:g} (-: not reached), and what "
        "each method has at its end; medians over networks.",
        (
            "method",
            f"steps to {target:g}",
            f"seconds to {target:g}",
            "steps",
            "seconds",
            "last error",
            "last loss",
        ),
        tuple(rows),
    )
