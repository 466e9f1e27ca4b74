# SPDX-License-Identifier: Apache-2.0
"""What the curvature of a network says: learning rates, conditioning, alignment, inputs."""

from __future__ import annotations

from fastfisher.diagnostics.isotropy import Isotropy, IsotropyRow, isotropy
from fastfisher.diagnostics._conditional import ConditionalFisher, conditional_fisher
from fastfisher.diagnostics._metric import Metric, input_metric
from fastfisher.diagnostics.lr_bound import LrBound, lr_bound
from fastfisher.diagnostics.scores import Scores, scores
from fastfisher.diagnostics.track import Tracker, track

__all__ = [
    "Isotropy",
    "IsotropyRow",
    "LrBound",
    "Scores",
    "Tracker",
    "isotropy",
    "ConditionalFisher",
    "LrBound",
    "Metric",
    "Scores",
    "Tracker",
    "conditional_fisher",
    "input_metric",
    "lr_bound",
    "scores",
    "track",
]
