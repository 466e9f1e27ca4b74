# SPDX-License-Identifier: Apache-2.0
"""Words, tables and pictures of the section on optimisers for a classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_learning_curves
from fastfisher.report._section import Fact, Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["blocks", "facts", "headline", "summary", "values"]

Floats = NDArray[np.float64]
Found = Mapping[str, Mapping[str, Mapping[str, Any]]]
SIZE = (5.6, 4.2)
NEVER = "-"


def values(found: Found, reached: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> Any:
    """Plain values of each network and method; None where a run never had Adam's last loss."""
    return {
        network: {
            method: {
                "setting": one["setting"],
                "last_losses_of_settings": {f"{k:g}": v for k, v in one["last"].items()},
                "steps": one["steps"][0].tolist(),
                "seconds": one["seconds"].tolist(),
                "loss": one["loss"].tolist(),
                "accuracy": one["accuracy"][:, -1].tolist(),
                "steps_to_target": _known(reached[network][method]["steps"]),
                "seconds_to_target": _known(reached[network][method]["seconds"]),
            }
            for method, one in methods.items()
        }
        for network, methods in found.items()
    }


def _known(numbers: Floats) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in numbers]


def _ratio(values: Any, network: str, method: str, key: str) -> float | None:
    """Median over networks of a method's share of what Adam needs; None if a run never arrived."""
    own, adam = values[network][method][key], values[network]["Adam"][key]
    if any(x is None for x in own):
        return None
    return float(np.median([x / y for x, y in zip(own, adam, strict=True)]))


def _words(ratio: float | None, unit: str) -> str:
    return f"not in its {unit}" if ratio is None else f"{ratio:.2f} of the {unit}"


def summary(values: Any) -> str:
    """Say what was found (markup)."""
    parts = []
    for network in values:
        steps, seconds = (
            _words(_ratio(values, network, "K-FAC", f"{key}_to_target"), key)
            for key in ("steps", "seconds")
        )
        parts.append(f"on the {network} in {steps} and {seconds}")
    return f"K-FAC has the loss at which tuned Adam ends {'; '.join(parts)} that Adam takes."


def headline(values: Any) -> str:
    """Say the same in one line of plain text."""
    parts = [
        f"{network} {_words(_ratio(values, network, 'K-FAC', 'steps_to_target'), 'steps')}"
        for network in values
    ]
    return f"K-FAC has tuned Adam's loss: {', '.join(parts)}"


def facts(values: Any) -> tuple[Fact, ...]:
    """Pick the headline figures."""
    result = []
    for network in values:
        for key in ("steps", "seconds"):
            ratio = _ratio(values, network, "K-FAC", f"{key}_to_target")
            shown = NEVER if ratio is None else f"{ratio:.2f}"
            result.append(
                Fact(f"{network}: {key}, K-FAC / Adam", shown, "to the loss at which Adam ends")
            )
    return tuple(result)


def blocks(found: Found, values: Any) -> tuple[Text | Figure | Table, ...]:
    """Lay out the section from top to bottom."""
    runs = len(next(iter(found.values()))["Adam"]["loss"])
    several = "one network" if runs == 1 else f"medians of {runs} networks, bands over all of them"
    return (
        Text(
            "K-FAC multiplies the gradient of each layer by the inverses of two small matrices, "
            "the second moments of its inputs and of its output gradients; EKFAC also fits the "
            "diagonal in their eigenbasis. Both are given a third of the steps of Adam and SGD; "
            "every run has cosine decay to zero, and each method is tuned over what the settings "
            "say. When the images are fitted the curvature of softmax goes to zero with the loss, "
            "so the loss stops near the damping: it must be small here."
        ),
        *(_figure(network, methods, several) for network, methods in found.items()),
        _table(values),
    )


def _figure(network: str, methods: Mapping[str, Mapping[str, Any]], several: str) -> Figure:
    target = float(np.median(methods["Adam"]["loss"][:, -1]))
    return Figure(
        tuple(
            Plot(
                f"{network.lower()}-{key}",
                f"Training loss of the {network} against {key} for K-FAC, EKFAC, Adam and SGD.",
                _draw(methods, key, target, several),
                SIZE,
            )
            for key in ("steps", "seconds")
        ),
        f"{network}: cross-entropy of all training images against steps (left) and seconds of "
        f"training (right), {several}; every method at its best setting of those tried. Dashed: "
        "the loss at which Adam ends.",
    )


def _draw(
    methods: Mapping[str, Mapping[str, Any]], key: str, target: float, several: str
) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_learning_curves(
            {name: (np.median(one[key], 0), one["loss"]) for name, one in methods.items()},
            target=target,
            target_label="Adam's last",
            xlabel="step" if key == "steps" else "time (s)",
            label="training loss (nats)",
            ax=ax,
        )

    return draw


def _table(values: Any) -> Table:
    rows = []
    for network, methods in values.items():
        for method, one in methods.items():
            what = "clip" if "FAC" in method else "rate"
            rows.append(
                (
                    network,
                    method,
                    f"{what} {one['setting']:g}",
                    _median(one["steps_to_target"], ".0f"),
                    _median(one["seconds_to_target"], ".2f"),
                    f"{float(np.median([loss[-1] for loss in one['loss']])):.2g}",
                    f"{100 * float(np.mean(one['accuracy'])):.1f} %",
                )
            )
    return Table(
        "Until each run has the loss at which Adam ends with the same start (-: it never "
        "has); medians over networks.",
        (
            "network",
            "method",
            "best setting",
            "steps",
            "seconds",
            "last training loss",
            "test accuracy",
        ),
        tuple(rows),
    )


def _median(numbers: list[float | None], form: str) -> str:
    known = [x for x in numbers if x is not None]
    return NEVER if len(known) < len(numbers) else f"{float(np.median(known)):{form}}"
