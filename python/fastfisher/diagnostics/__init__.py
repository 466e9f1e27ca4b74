# SPDX-License-Identifier: Apache-2.0
"""What the curvature of a network says: learning rates, conditioning, alignment, inputs."""

from __future__ import annotations

from fastfisher.diagnostics.conditional_fisher import ConditionalFisher, conditional_fisher
from fastfisher.diagnostics.input_metric import Metric, input_metric
from fastfisher.diagnostics.isotropy import Isotropy, IsotropyRow, isotropy
from fastfisher.diagnostics.lr_bound import LrBound, lr_bound
from fastfisher.diagnostics.scores import Scores, scores
from fastfisher.diagnostics.track import Tracker, track

__all__ = [
    "ConditionalFisher",
    "Isotropy",
    "IsotropyRow",
    "LrBound",
    "Metric",
    "Scores",
    "Tracker",
    "conditional_fisher",
    "input_metric",
    "isotropy",
    "lr_bound",
    "scores",
    "track",
]
