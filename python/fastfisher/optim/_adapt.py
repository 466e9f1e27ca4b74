# SPDX-License-Identifier: Apache-2.0
"""Levenberg-Marquardt rule for the damping of K-FAC."""

from __future__ import annotations

from dataclasses import dataclass

_EVERY = 5
_SHRINK = 0.95**_EVERY
_BOUNDS = (1e-10, 1e10)


@dataclass(eq=False)
class DampingRule:
    """Damping that follows how well the quadratic model predicts the loss.

    Every fifth step: smaller by 0.95^5 where the loss fell by more than three quarters of what the
    model says, larger by as much where by less than one quarter (Martens and Grosse 2015, section
    6.5).
    """

    damping: float
    adaptive: bool

    def due(self, step: int) -> bool:
        """Whether the loss is asked for after this step."""
        return self.adaptive and (step + 1) % _EVERY == 0

    def judge(self, change: float, model: float) -> None:
        """Take the `change` of the loss and what the quadratic `model` says it is."""
        if model < 0 and change / model > 0.75:
            self.damping *= _SHRINK
        elif not (model < 0 and change / model >= 0.25):  # also where it is not finite
            self.damping /= _SHRINK
        self.damping = min(max(self.damping, _BOUNDS[0]), _BOUNDS[1])
