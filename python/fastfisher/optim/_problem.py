# SPDX-License-Identifier: Apache-2.0
"""What one step minimises: a likelihood on samples, or squared residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastfisher._arrays import device_name
from fastfisher._device_array import as_array, contiguous
from fastfisher.capture import outputs_of
from fastfisher.capture.model import samples_of, take
from fastfisher.errors import NonFiniteError
from fastfisher.likelihoods import Gaussian, Likelihood, likelihood_at
from fastfisher.optim._losses import mean_loss
from fastfisher.optim._rows import (
    Blocks,
    Rows,
    residuals_of_terms,
    rows_of_closure,
    rows_of_model,
    rows_of_terms,
)
from fastfisher.optim._tensors import in_words, tensor_of

if TYPE_CHECKING:
    from fastfisher.optim.ngd import NGD

Named = dict[str, torch.Tensor]
_PLAIN = Gaussian()


class Problem:
    """One step's samples or residual functions."""

    def __init__(self, optimizer: NGD, closure: Any, x: Any, y: Any, residual: Any) -> None:
        if (closure is None) == (x is None):
            what = "neither" if closure is None else "both"
            raise ValueError(f"closure: expected residuals or samples x=, got {what}")
        if closure is not None and (y is not None or residual is not None):
            raise ValueError("y: expected None with a closure, got labels or a residual")
        if y is not None and residual is not None:
            raise ValueError("residual: expected it or labels y, got both")
        self.of, self.closure, self.x, self.y, self.residual = optimizer, closure, x, y, residual
        self.terms: Sequence[tuple[Callable[..., Any], torch.Tensor]] | None = None
        if closure is not None and not callable(closure):
            self.terms = _terms(closure)
        plain = type(optimizer.likelihood) is Gaussian
        if x is not None and y is None and residual is None and not plain:
            raise ValueError("y: expected labels for this likelihood, got None")

    @property
    def likelihood(self) -> Likelihood:
        """Of residual functions always Gaussian."""
        return self.of.likelihood if self.x is not None else _PLAIN

    def rows(self, parameters: Named) -> tuple[Rows, torch.Tensor, float | None]:
        """Jacobian, gradient (N, C) of each sample's loss in the outputs, and the mean loss."""
        if self.terms is not None:
            rows = rows_of_terms(self.of.model, parameters, self.terms)
            return rows, rows.values, _half_mean(rows.values)
        if self.closure is not None:
            rows = rows_of_closure(parameters, self.closure())
            return rows, rows.values, _half_mean(rows.values)
        capture = self.of._captures(self.x, parameters)
        rows = rows_of_model(capture, self.x, self.of.memory_limit)
        f = rows.values
        if self.residual is not None:
            e = self.residual
            expected = tuple(f.shape)
            if not isinstance(e, torch.Tensor) or not e.is_floating_point():
                what = getattr(e, "dtype", type(e).__name__)
                raise TypeError(f"residual: expected a tensor of a floating dtype, got {what}")
            if tuple(e.shape) != expected and not (f.shape[1] == 1 and e.shape == f.shape[:1]):
                raise ValueError(f"residual: expected shape {expected}, got {tuple(e.shape)}")
            if e.device != f.device:
                raise TypeError(f"residual: expected device {f.device}, got {e.device}")
            e = e.detach().reshape(expected).to(f.dtype)
            _check(e, "residual")
            return rows, e, None
        host = in_words(f).astype(np.float64)
        labels = self._labels(host)
        likelihood = likelihood_at(self.likelihood, host)
        gradient = as_array(likelihood.gradient(host, labels), np.float64)
        loss = mean_loss(self.likelihood, host, labels)
        return rows, tensor_of(gradient).to(f.dtype), loss

    def loss(self, parameters: Named) -> float:
        """Loss for the parameters as they are now; infinite where it is not finite."""
        if self.terms is not None:
            found = residuals_of_terms(self.of.model, parameters, self.terms)
            return _total(found)
        if self.closure is not None:
            with torch.enable_grad():
                found = self.closure()
            return _total(list(found) if isinstance(found, (list, tuple)) else [found])
        model = self.of._captures(self.x, parameters).model
        n = samples_of(self.x)
        step = max(1, n if self.of.memory_limit is None else self._width(parameters))
        parts = [outputs_of(model, take(self.x, slice(k, k + step))) for k in range(0, n, step)]
        f = in_words(torch.cat(parts)).astype(np.float64)
        if not np.isfinite(f).all():
            return float("inf")
        value = mean_loss(self.likelihood, f, self._labels(f))
        assert value is not None
        return value

    def curved(self, rows: Rows, change: torch.Tensor) -> torch.Tensor:
        """``H change``, the curvature of the outputs times their change (N, C), float64."""
        if type(self.likelihood) is Gaussian:
            return change / self.likelihood.variance
        f = in_words(rows.values).astype(np.float64)
        h = likelihood_at(self.likelihood, f).hessian(f)
        return (tensor_of(contiguous(h)) @ change[:, :, None])[:, :, 0]

    def _width(self, parameters: Named) -> int:
        capture = self.of._captures(self.x, parameters)
        from fastfisher._memory import memory_bytes

        limit = memory_bytes(self.of.memory_limit)
        return Blocks(capture, self.x, torch.empty(samples_of(self.x), 0), limit).width

    def _labels(self, f: np.ndarray[Any, Any]) -> Any:
        if self.y is None:
            return np.zeros_like(f)
        if not isinstance(self.y, torch.Tensor):
            raise TypeError(f"y: expected a tensor, got {type(self.y).__name__}")
        y = self.y.detach()
        if device_name(y) != device_name(f):
            raise TypeError(f"y: expected labels on {device_name(f)}, got some on {device_name(y)}")
        if y.is_floating_point():
            y = y.double()
        host = in_words(y)
        if len(host) == len(f) and host.ndim > 2 and host[0].size == f.shape[1]:
            host = host.reshape(f.shape)  # as outputs with more axes
        labels = likelihood_at(self.likelihood, f).labels(host, f)
        if labels.ndim == 0 or len(labels) != len(f):
            raise ValueError(f"y: expected {len(f)} labels, got shape {labels.shape}")
        return labels


def _terms(given: Any) -> list[tuple[Callable[..., Any], torch.Tensor]]:
    """Pairs (function, points), checked."""
    listed = list(given)
    if not listed:
        raise ValueError("closure: expected at least one pair (function, points), got none")
    for pair in listed:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and callable(pair[0])):
            raise TypeError(
                "closure: expected a callable or pairs (function, points), got "
                f"{type(pair).__name__}"
            )
        _check(pair[1], "points")
    return [(function, points) for function, points in listed]


def _check(x: Any, name: str) -> None:
    if not isinstance(x, torch.Tensor) or x.ndim == 0:
        raise TypeError(f"{name}: expected a tensor with samples on its first axis, got "
                        f"{type(x).__name__}")  # fmt: skip
    bad = torch.nonzero(~torch.isfinite(x))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise NonFiniteError(
            f"{name}: expected finite numbers, got {float(x[where])} at index {where}"
        )


def _half_mean(values: torch.Tensor) -> float:
    """Half the mean over samples of the squares."""
    return 0.5 * float(values.double().square().sum()) / max(1, len(values))


def _total(parts: list[torch.Tensor]) -> float:
    total = sum(_half_mean(r.detach()) for r in parts)
    return total if np.isfinite(total) else float("inf")
