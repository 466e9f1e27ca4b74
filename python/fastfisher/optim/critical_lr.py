# SPDX-License-Identifier: Apache-2.0
"""A learning rate that stays at a fraction of the largest stable one."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from fastfisher.diagnostics import Tracker
from fastfisher.diagnostics.lr_bound import ZeroCurvatureError
from fastfisher.optim._options import count

__all__ = ["CriticalLR"]


class CriticalLR(torch.optim.lr_scheduler.LRScheduler):  # type: ignore[misc]
    """Set the learning rate of all groups to ``fraction * 2 (1 + momentum) / lambda_max``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    tracker : Tracker
        Of `fastfisher.diagnostics.track`, with the momentum of the optimiser.
    fraction : float
        From 0 to 1, exclusive.
    every : int
        Steps between measurements.
    max_lr : float
        Largest rate to set: where the curvature vanishes, as with cross-entropy towards the end of
        training, the bound tells little.
    last_epoch : int
        As in torch's schedulers.

    Notes
    -----
    Where the Fisher matrix is zero, or so small that the rate overflows the dtype of the
    parameters, every rate is stable: `max_lr` if it is finite, else the rate stays as it is.

    Examples
    --------
    >>> import torch
    >>> import fastfisher as ff
    >>> model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> schedule = ff.optim.CriticalLR(optimizer, ff.diagnostics.track(model, x), fraction=0.5)
    >>> bound = ff.diagnostics.lr_bound(model, x).lr
    >>> abs(optimizer.param_groups[0]["lr"] / bound - 0.5) < 1e-5
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        tracker: Tracker,
        *,
        fraction: float = 0.5,
        every: int = 1,
        max_lr: float = math.inf,
        last_epoch: int = -1,
    ) -> None:
        if not (_is_number(fraction) and 0 < fraction < 1):
            raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction!r}")
        if not (_is_number(max_lr) and max_lr > 0):
            raise ValueError(f"max_lr: expected a number > 0, got {max_lr!r}")
        if not _is_called(tracker):
            raise TypeError(
                "tracker: expected one of fastfisher.diagnostics.track, got "
                f"{type(tracker).__name__}"
            )
        self.tracker, self.fraction, self.every = tracker, float(fraction), count("every", every)
        self.max_lr = float(max_lr)
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """State without the tracker, whose model and samples are not the scheduler's to save."""
        return {key: value for key, value in super().state_dict().items() if key != "tracker"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; the tracker stays."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "tracker"})

    def get_lr(self) -> list[float]:
        """Learning rate of each group."""
        if self.last_epoch % self.every:
            return [group["lr"] for group in self.optimizer.param_groups]
        try:
            rate = self.fraction * self.tracker().lr
        except ZeroCurvatureError:
            rate = math.inf
        return [self._of(group, rate) for group in self.optimizer.param_groups]

    def _of(self, group: dict[str, Any], rate: float) -> float:
        """Rate of a group; its present one, up to `max_lr`, where its dtype has no such number."""
        kinds = [p.dtype for p in group["params"] if p.is_floating_point()]
        most = min((torch.finfo(kind).max for kind in kinds), default=math.inf)
        if rate > self.max_lr:
            return self.max_lr
        return rate if rate <= most else float(group["lr"])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def _is_called(value: Any) -> bool:
    return callable(value)
