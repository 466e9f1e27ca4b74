# SPDX-License-Identifier: Apache-2.0
"""The words and figures of the section ``ntk_spectrum``, apart from its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastfisher.report._section import Fact, Figure, Plot, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["blocks", "facts", "headline", "summary"]


def summary(values: dict[str, Any]) -> str:
    """Say whether gradient descent confirms the critical learning rate."""
    if not values["confirmed"]:
        return (
            "With these settings the first steps of gradient descent do <strong>not</strong> "
            "follow linear theory: compare the factors in the last table."
        )
    text = (
        "Gradient descent confirms the critical learning rate &eta;<sub>c</sub>: in its first "
        "steps the residual along the top eigenvector shrinks below &eta;<sub>c</sub> and grows "
        "above it, at the predicted factors."
    )
    if not values["training_agrees_in_first_step"]:
        text += (
            " Trained on the labels themselves, this network is too narrow for that: its kernel "
            "changes within the first step."
        )
    return text


def headline(values: dict[str, Any]) -> str:
    """Say the same in one line of plain text."""
    verdict = "confirmed" if values["confirmed"] else "NOT confirmed"
    return (
        f"largest eigenvalue of F* {values['lambda_max']:.5g}, critical learning rate "
        f"{values['eta_c']:.4g}, {verdict} by gradient descent"
    )


def facts(values: dict[str, Any]) -> tuple[Fact, ...]:
    """Pick the headline figures."""
    worst = max(abs(r["growth"] - r["growth_predicted"]) for r in values["check"])
    return (
        Fact(
            "&eta;<sub>c</sub> = 2 / &lambda;<sub>max</sub>",
            f"{values['eta_c']:.4g}",
            "largest stable learning rate",
        ),
        Fact("&lambda;<sub>max</sub> of F*", f"{values['lambda_max']:.4g}", "loss / parameter²"),
        Fact(
            f"{values['outputs']} largest of {len(values['eigenvalues']):,} eigenvalues",
            f"{100 * values['outlier_share_of_trace']:.0f} %",
            "of the trace of F*",
        ),
        Fact(
            "growth factor: largest error",
            f"{worst:.1g}",
            "against |1 &minus; &eta;&lambda;<sub>max</sub>|",
        ),
    )


def blocks(
    values: dict[str, Any], first: int, draw: dict[str, Callable[[Axes], None]]
) -> tuple[Text | Figure | Table, ...]:
    """Lay out the section from top to bottom; `draw` holds one function for each picture."""
    return (*_kernel(values, draw), *_spectrum(values, draw), *_descent(values, first, draw))


def _kernel(
    values: dict[str, Any], draw: dict[str, Callable[[Axes], None]]
) -> tuple[Text | Figure, ...]:
    c, mean = values["outputs"], values["kernel"]
    return (
        Text(
            "The empirical neural tangent kernel is &Theta; = J J<sup>T</sup>, where J holds the "
            f"derivatives of the {c} outputs for every image with respect to all "
            f"{values['parameters']:,} parameters. It says how far a gradient step on one image "
            "moves the output on another. J itself is never formed: the kernel comes from each "
            "layer's inputs and output gradients."
        ),
        Figure(
            (
                Plot(
                    "kernel",
                    "Heat map of the tangent kernel between images ordered by digit.",
                    draw["kernel"],
                    (7.0, 5.7),
                ),
            ),
            f"Tangent kernel between images, averaged over the {c} outputs. Images of one digit "
            f"share a block: the mean is {mean['same_class']:.4g} between two images of one digit, "
            f"{mean['different_class']:.4g} between different digits and {mean['diagonal']:.4g} on "
            "the diagonal.",
        ),
    )


def _spectrum(
    values: dict[str, Any], draw: dict[str, Callable[[Axes], None]]
) -> tuple[Text | Figure, ...]:
    c, eigenvalues = values["outputs"], np.asarray(values["eigenvalues"])
    return (
        Text(
            "The Fisher matrix of the squared loss shares its non-zero eigenvalues with its dual "
            "F* = J J<sup>T</sup> / N. In a wide network a few of them, one for each output, can "
            f"tower above the rest and fix the learning rate. Here the {c} largest lie between "
            f"{eigenvalues[c - 1]:.4g} and {eigenvalues[0]:.4g}; the next is {eigenvalues[c]:.4g}. "
            f"Their eigenvectors lie {100 * values['alignment_with_constant_vectors']:.1f}&nbsp;% "
            "in the space of changes that are the same for every image; for unrelated inputs "
            "theory expects all of it in the limit of infinite width."
        ),
        Figure(
            (
                Plot(
                    "spectrum",
                    (
                        "Eigenvalues of the dual Fisher matrix by rank, both axes logarithmic; the "
                        "largest are marked."
                    ),
                    draw["spectrum"],
                ),
            ),
            (
                f"All {eigenvalues.size:,} eigenvalues of F*, largest first; the {c} largest are "
                "marked."
            ),
        ),
    )


def _descent(
    values: dict[str, Any], first: int, draw: dict[str, Callable[[Axes], None]]
) -> tuple[Text | Figure | Table, ...]:
    side = (
        "The first step still falls on the right side at every rate."
        if values["training_agrees_in_first_step"]
        else "Here not even the first step falls on the right side at every rate."
    )
    return (
        Text(
            "As long as the kernel stays what it is, a step of gradient descent with learning rate "
            "&eta; multiplies the residual f &minus; y along an eigenvector by 1 &minus; "
            "&eta;&lambda;. Above &eta;<sub>c</sub> = 2 / &lambda;<sub>max</sub> the residual "
            "along the first eigenvector grows from the first step on. To see this alone, the "
            "network first learns labels very close to its own first outputs, in the direction of "
            "the true ones: the kernel then hardly changes."
        ),
        Figure(
            _pair("check", "labels close to the first outputs", draw),
            "Full-batch gradient descent towards labels close to the first outputs. Marks: the "
            "network. Dashed: linear theory, from the kernel before the first step.",
        ),
        _growth(values, first),
        Text(
            "On the labels themselves the residual is far larger and the kernel moves. "
            f"{side} The network may then leave the unstable region, settle where the curvature "
            "is smaller and learn even above &eta;<sub>c</sub>. The loss, a sum over all "
            "directions, can fall while the residual along the first eigenvector grows. Only the "
            "first steps are evidence."
        ),
        Figure(
            _pair("training", "one-hot labels", draw),
            "Full-batch gradient descent on the one-hot labels from the same start. Marks: the "
            "network. Dashed: linear theory.",
        ),
        _losses(values, first),
    )


def _pair(name: str, of: str, draw: dict[str, Callable[[Axes], None]]) -> tuple[Plot, ...]:
    words = {"residual": "Residual along the top eigenvector", "loss": "Loss"}
    return tuple(
        Plot(
            f"{name}-{what}",
            f"{text} against gradient-descent steps, {of}, with linear theory.",
            draw[f"{name}-{what}"],
            (5.6, 4.2),
        )
        for what, text in words.items()
    )


def _growth(values: dict[str, Any], first: int) -> Table:
    return Table(
        "Factor by which the residual along the top eigenvector changes each step "
        f"(geometric mean of the first {first}).",
        (
            "&eta; / &eta;<sub>c</sub>",
            "&eta;",
            "predicted |1 &minus; &eta;&lambda;<sub>max</sub>|",
            "labels close by",
            "one-hot labels",
            "their first step",
        ),
        tuple(
            (
                f"{near['ratio']:g}",
                f"{near['eta']:.4g}",
                f"{near['growth_predicted']:.4f}",
                f"{near['growth']:.4f}",
                f"{full['growth']:.4f}",
                f"{full['growth_first_step']:.4f}",
            )
            for near, full in zip(values["check"], values["training"], strict=True)
        ),
    )


def _losses(values: dict[str, Any], first: int) -> Table:
    last = len(values["training"][0]["loss"]) - 1
    shown = sorted({0, 1, first, last})
    return Table(
        "Training loss on the one-hot labels.",
        ("&eta; / &eta;<sub>c</sub>", *("at the start" if s == 0 else f"step {s}" for s in shown)),
        tuple(
            (
                f"{r['ratio']:g}",
                *(f"{r['loss'][s]:.4g}" if np.isfinite(r["loss"][s]) else "blew up" for s in shown),
            )
            for r in values["training"]
        ),
    )
