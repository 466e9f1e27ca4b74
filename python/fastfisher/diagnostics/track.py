# SPDX-License-Identifier: Apache-2.0
"""The largest eigenvalue along training, each search started from the last eigenvector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastfisher._arrays import Array, dtype_name
from fastfisher.diagnostics.lr_bound import LrBound, lr_bound

__all__ = ["Tracker", "track"]


@dataclass(eq=False)
class Tracker:
    """What `track` returns; call it after some steps of training.

    Attributes
    ----------
    history : list of LrBound
        Without their vectors, in the order of the calls.
    """

    model: Any
    x: Any
    options: dict[str, Any]
    history: list[LrBound] = field(default_factory=list)
    _vector: Array | None = None

    def __call__(self, model: Any = None, x: Any = None) -> LrBound:
        """Bound for the model as it is now; another batch `x` or `model` may be given.

        Raises
        ------
        ValueError, TypeError
            As in `lr_bound`; a model with another number or dtype of parameters.
        """
        try:
            bound = lr_bound(
                self.model if model is None else model,
                self.x if x is None else x,
                v0=self._vector,
                **self.options,
            )
        except (TypeError, ValueError) as error:
            if self._vector is None or not str(error).startswith("v0:"):
                raise
            raise type(error)(
                f"model: expected the parameters of the one before, {self._vector.shape[0]} of "
                f"dtype {dtype_name(self._vector)}, whose eigenvector the search starts from; "
                f"another model needs a tracker of its own ({error})"
            ) from error
        self._vector = bound.vector
        self.history.append(
            LrBound(
                bound.lr,
                bound.safe_lr,
                bound.lambda_max,
                bound.residual_norm,
                bound.certified,
                None,
            )
        )
        return bound


def track(model: Any, x: Any = None, **options: Any) -> Tracker:
    """Follow the largest eigenvalue of the Fisher matrix, and so the largest learning rate.

    Parameters
    ----------
    model, x
        As in `lr_bound`; a torch module is looked at again at each call.
    **options
        Of `lr_bound`.

    Returns
    -------
    Tracker
        Call it to measure. `fastfisher.optim.CriticalLR` sets the learning rate by one.

    Examples
    --------
    >>> import torch
    >>> import fastfisher as ff
    >>> torch.manual_seed(0) and None
    >>> model = torch.nn.Linear(3, 1)
    >>> measure = ff.diagnostics.track(model, torch.randn(8, 3))
    >>> first, second = measure(), measure()
    >>> abs(first.lr / second.lr - 1) < 1e-5, len(measure.history)
    (True, 2)
    """
    return Tracker(model, x, options)
