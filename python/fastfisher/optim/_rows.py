# SPDX-License-Identifier: Apache-2.0
"""Sample space of one step: residuals, and products with their Jacobian.

Where they come from: a model on samples (its factors are captured, in blocks if memory is short),
functions of single samples (under vmap), or any closure (a backward pass a residual).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastfisher._jacobian import Jacobian
from fastfisher._memory import memory_bytes
from fastfisher._parameters import Parameters
from fastfisher.capture import Capture, check_inputs, kernel
from fastfisher.capture.model import all_finite, samples_of, take
from fastfisher.errors import NonFiniteError
from fastfisher.factors import Explicit
from fastfisher.ngd._update import centred_rows
from fastfisher.optim._tensors import in_words

Named = Mapping[str, torch.Tensor]
Term = tuple[Callable[..., Any], torch.Tensor]

_CHUNK_BYTES = 1 << 26
_BLOCK_SHARE = 4


class Rows:
    """A Jacobian (N C) x P in memory, with the outputs or residuals (N, C) that it is of."""

    def __init__(self, jacobian: Jacobian, values: torch.Tensor, *, factored: bool) -> None:
        self.jacobian: Jacobian | None = jacobian
        self.values, self.factored = values, factored

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, C)``."""
        n, c = self.values.shape
        return int(n), int(c)

    def centred(self) -> Rows:
        """Rows with their mean over the samples removed."""
        assert self.jacobian is not None
        j = centred_rows(self.jacobian)
        return Rows(j, self.values, factored=self.factored)

    def gram(self, memory_limit: int | str | None) -> np.ndarray[Any, Any]:
        """``J J^T`` (N C, N C)."""
        assert self.jacobian is not None
        rows = self.jacobian.shape[0]
        k = self.jacobian.gram(memory_limit=memory_limit)
        return in_words(k.reshape(rows, rows))

    def push(self, v: torch.Tensor) -> torch.Tensor:
        """``J v`` (N, C)."""
        assert self.jacobian is not None
        found: torch.Tensor = self.jacobian @ v
        return found.reshape(self.shape)

    def pull(self, z: torch.Tensor) -> torch.Tensor:
        """``J^T z`` (P,) for z (N, C)."""
        assert self.jacobian is not None
        found: torch.Tensor = self.jacobian.T @ z.reshape(-1).contiguous()
        return found


class Blocks(Rows):
    """Rows of a model whose factors do not fit: blocks of samples are captured when needed."""

    def __init__(
        self, capture: Capture, x: Any, values: torch.Tensor, limit: int, means: bool = False
    ) -> None:
        self.jacobian, self.values, self.factored = None, values, True
        self.capture, self.x, self.limit, self.means = capture, x, limit, means
        each = max(1.0, capture.cost.factors + capture.cost.capture)
        self.width = max(1, int(limit / _BLOCK_SHARE / each))

    def centred(self) -> Rows:
        """Rows with their mean over the samples removed."""
        return Blocks(self.capture, self.x, self.values, self.limit, means=True)

    def gram(self, memory_limit: int | str | None) -> np.ndarray[Any, Any]:
        """``J J^T``, tile by tile."""
        options = {"method": "auto", "precision": "highest", "threads": 0}
        found, _ = kernel(
            self.capture, self.x, None, outputs="full", each=False, out=None,
            memory_limit=self.limit, progress=False, options=options,
        )  # fmt: skip
        k = in_words(found[""])
        if self.means:
            k = k - k.mean(0, keepdims=True)
            k = k - k.mean(2, keepdims=True)
        rows = math.prod(self.shape)
        return k.reshape(rows, rows)

    def push(self, v: torch.Tensor) -> torch.Tensor:
        """``J v``."""
        parts = [
            (self.capture.jacobian(take(self.x, span), first=span.start) @ v).reshape(
                -1, self.shape[1]
            )
            for span in self._spans()
        ]
        result = torch.cat(parts)
        return result - result.mean(0) if self.means else result

    def pull(self, z: torch.Tensor) -> torch.Tensor:
        """``J^T z``."""
        if self.means:
            z = z - z.mean(0)
        result = z.new_zeros(sum(p.numel() for p in self.capture.model.parameters.values()))
        for span in self._spans():
            j = self.capture.jacobian(take(self.x, span), first=span.start)
            result += j.T @ z[span].reshape(-1).contiguous()
        return result

    def _spans(self) -> list[slice]:
        n = self.shape[0]
        return [slice(k, min(k + self.width, n)) for k in range(0, n, self.width)]


def rows_of_model(capture: Capture, x: Any, memory_limit: int | str | None) -> Rows:
    """Rows of a model on samples; in blocks if their factors are more than half of the limit."""
    check_inputs(x, capture.model, "x")
    n = samples_of(x)
    limit = None if memory_limit is None else memory_bytes(memory_limit)
    if limit is None or n * capture.cost.factors + capture.cost.capture <= limit / 2:
        j = capture.jacobian(x)
        return Rows(j, j.outputs, factored=True)
    blocks = Blocks(capture, x, torch.empty(n, 0), limit)
    found = [capture.model(take(x, span)).detach() for span in blocks._spans()]
    blocks.values = torch.cat(found)
    return blocks


def rows_of_terms(model: torch.nn.Module, parameters: Named, terms: Sequence[Term]) -> Rows:
    """Rows of functions of single samples, each term weighted by one over its samples.

    ``residual(f, x)`` with the model f for one sample x; the loss is the sum over terms of half the
    mean of the squared residuals.
    """
    found = [_vmapped(model, parameters, function, x) for function, x in terms]
    total = sum(len(values) for values, _ in found)
    width = max((values.shape[1] for values, _ in found), default=1)
    if any(values.shape[1] != width for values, _ in found):
        raise ValueError(
            "residuals: expected the same number from each sample of all terms, got "
            f"{[values.shape[1] for values, _ in found]}"
        )
    gains = [math.sqrt(total / max(1, len(values))) for values, _ in found]
    values = torch.cat([gain * v for gain, (v, _) in zip(gains, found, strict=True)])
    j = {
        name: torch.cat([gain * part[name] for gain, (_, part) in zip(gains, found, strict=True)])
        for name in parameters
    }
    return Rows(_explicit(parameters, j), values, factored=False)


def residuals_of_terms(
    model: torch.nn.Module, parameters: Named, terms: Sequence[Term]
) -> list[torch.Tensor]:
    """Residuals (N, C) of each term."""
    result = []
    with torch.no_grad():
        for function, x in terms:
            one = _single(model, parameters, function)
            result.append(torch.func.vmap(lambda sample, one=one: one(dict(parameters), sample))(x))
    return result


def _single(model: torch.nn.Module, parameters: Named, function: Any) -> Callable[..., Any]:
    """Residuals (C,) of one sample as a function of the parameters."""

    def one(values: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        def f(*inputs: torch.Tensor) -> Any:
            # Functions are of single samples, modules of batches.
            batch = tuple(z[None] if isinstance(z, torch.Tensor) else z for z in inputs)
            return torch.func.functional_call(model, values, batch)[0]

        found = function(f, sample)
        if not isinstance(found, torch.Tensor):
            raise TypeError(f"residuals: expected a tensor, got {type(found).__name__}")
        return found.reshape(-1)

    return one


def _vmapped(
    model: torch.nn.Module, parameters: Named, function: Any, x: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    one = _single(model, parameters, function)
    start = {name: p.detach() for name, p in parameters.items()}

    def twice(values: dict[str, torch.Tensor], sample: torch.Tensor) -> Any:
        found = one(values, sample)
        return found, found

    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, _CHUNK_BYTES // max(1, size))
    both = torch.func.vmap(
        torch.func.jacrev(twice, has_aux=True), in_dims=(None, 0), chunk_size=chunk
    )
    j, values = both(start, x)
    values = values.detach()
    _check_finite(values)
    n, c = values.shape
    return values, {name: part.detach().reshape(n, c, -1) for name, part in j.items()}


def rows_of_closure(parameters: Named, found: Any) -> Rows:
    """Rows of residuals that a closure returned: one backward pass a row, many at a time."""
    parts = list(found) if isinstance(found, (list, tuple)) else [found]
    if not parts:
        raise ValueError("residuals: expected a tensor or a list of them, got none")
    matrices = [_as_matrix(r) for r in parts]
    total = sum(len(r) for r in matrices)
    if len({r.shape[1] for r in matrices}) > 1:
        raise ValueError(
            "residuals: expected the same number of columns, got shapes "
            f"{[tuple(r.shape) for r in matrices]}"
        )
    j: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    values = []
    for r in matrices:
        gain = math.sqrt(total / max(1, len(r)))
        _check_finite(r.detach())
        values.append(r.detach() * gain)
        for name, part in _by_rows(r, parameters).items():
            j[name].append(part * gain)
    joined = {name: torch.cat(part) for name, part in j.items()}
    return Rows(_explicit(parameters, joined), torch.cat(values), factored=False)


def _by_rows(r: torch.Tensor, parameters: Named) -> dict[str, torch.Tensor]:
    n, c = r.shape
    flat = r.reshape(-1)
    tensors = list(parameters.values())
    result = {name: r.new_zeros(n * c, p.numel()) for name, p in parameters.items()}
    size = sum(p.numel() * p.element_size() for p in tensors)
    step = max(1, _CHUNK_BYTES // max(1, size))
    for start in range(0, n * c, step):
        stop = min(start + step, n * c)
        unit = torch.zeros(stop - start, n * c, dtype=r.dtype, device=r.device)
        unit[torch.arange(stop - start), torch.arange(start, stop)] = 1
        grads = torch.autograd.grad(
            flat, tensors, unit, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        for name, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                result[name][start:stop] = grad.detach().reshape(stop - start, -1)
    return {name: part.reshape(n, c, -1) for name, part in result.items()}


def _as_matrix(r: Any) -> torch.Tensor:
    if not isinstance(r, torch.Tensor):
        raise TypeError(f"residuals: expected a tensor, got {type(r).__name__}")
    if not r.is_floating_point():
        raise TypeError(f"residuals: expected a floating dtype, got dtype {r.dtype}")
    if r.ndim == 0:
        raise ValueError("residuals: expected one a sample, on the first axis, got a number")
    if not r.requires_grad:
        raise ValueError("residuals: expected a tensor that depends on the parameters, got one "
                         "without a graph")  # fmt: skip
    return r.reshape(len(r), -1) if r.numel() else r.reshape(len(r), 1)


def _check_finite(values: torch.Tensor) -> None:
    if not all_finite(values):
        where = tuple(torch.nonzero(~torch.isfinite(values))[0].tolist())
        raise NonFiniteError(
            f"residuals: expected finite numbers, got {float(values[where])} at index {where}"
        )


def _explicit(parameters: Named, j: Mapping[str, torch.Tensor]) -> Jacobian:
    layers = tuple(Explicit(j[name].contiguous(), label=name) for name in parameters)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return Jacobian(layers, None, None, Parameters(shapes, None, of_module=True))
