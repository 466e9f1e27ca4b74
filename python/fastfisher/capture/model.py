# SPDX-License-Identifier: Apache-2.0
"""The model as capture sees it: parameters by name, one call, and a promise to leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastfisher._batches import check_alike, check_iterable
from fastfisher._parameters import module_of
from fastfisher.capture.random_states import RandomStates
from fastfisher.errors import CaptureError, NonFiniteError

Inputs = Any
"""A tensor, or a mapping of keyword arguments; samples on the first axis of every tensor."""
Chosen = Sequence[str] | str | Callable[[str], bool] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A torch module, or a function of (parameters, x), with the parameters that count.

    Attributes
    ----------
    forward : callable
        From inputs to what the model returns.
    parameters : dict of str to Tensor
        Trainable leaves that were asked for, in order.
    module : torch.nn.Module or None
        The module itself, for names in messages.
    select : callable or None
        From what the model returns to a tensor.
    tail : list
        The shape of a sample's outputs once it is known: a model that squeezes its outputs drops
        the axis of samples where there is one.
    """

    forward: Callable[[Inputs], Any]
    parameters: dict[str, torch.Tensor]
    module: torch.nn.Module | None
    select: Callable[[Any], torch.Tensor] | None
    tail: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, x: Inputs) -> torch.Tensor:
        """Compute outputs (n, C) under autograd; further output axes are flattened into C."""
        returned = self.forward(x)
        y = returned if self.select is None else self.select(returned)
        if not isinstance(y, torch.Tensor):
            what = "the model returns" if self.select is None else "select returns"
            raise CaptureError(
                f"{what} {type(y).__name__}, expected a tensor; pass select=, a function from what "
                "the model returns to the tensor of outputs"
            )
        n = samples_of(x)
        if n == 1 and _is_squeezed(y, self.tail):
            y = y.reshape(1, *self.tail[0])
        if y.ndim == 0 or y.shape[0] != n:
            raise CaptureError(
                f"model: expected outputs with the {n} samples on their first axis, got shape "
                f"{tuple(y.shape)}"
            )
        if n > 1 and not self.tail:
            self.tail.append(tuple(y.shape[1:]))
        if not y.is_floating_point():
            raise CaptureError(f"model: expected floating-point outputs, got dtype {y.dtype}")
        return y.reshape(n, -1) if y.numel() else y.reshape(n, _width(y))

    @property
    def like(self) -> torch.Tensor | None:
        """A parameter, None if there is none."""
        return next(iter(self.parameters.values()), None)

    def owner(self, name: str) -> str:
        """Name the module that owns a parameter, for a function the parameter itself."""
        return module_of(name, of_module=self.module is not None)

    def named_modules(self) -> list[tuple[str, torch.nn.Module]]:
        """Modules by name, none for a function."""
        return [] if self.module is None else list(self.module.named_modules())


def _width(y: torch.Tensor) -> int:
    width = 1
    for k in y.shape[1:]:
        width *= int(k)
    return width


def _is_squeezed(y: torch.Tensor, tail: list[tuple[int, ...]]) -> bool:
    """Whether outputs of one sample lack axes that those of several have."""
    if not tail or tuple(y.shape) == (1, *tail[0]):
        return False
    return [d for d in y.shape if d != 1] == [d for d in tail[0] if d != 1]


def torch_model(
    model: Any, *, select: Callable[[Any], torch.Tensor] | None = None, params: Chosen = None
) -> Model:
    """Model of a ``torch.nn.Module`` or of a pair (function, parameters).

    Raises
    ------
    TypeError
        Something else, or parameters that are no tensors.
    ValueError
        A name in `params` that fits no parameter.
    """
    if select is not None and not callable(select):
        raise TypeError(f"select: expected a callable, got {type(select).__name__}")
    if isinstance(model, torch.nn.Module):
        # A compiled model hides its graph; the module that it was made from computes the same.
        runner = getattr(model, "_orig_mod", model)
        named = dict(model.named_parameters())
        kept = _choose(named, params)
        trainable = {name: p for name, p in kept.items() if p.requires_grad}
        _check_parameters(trainable)

        def run(x: Inputs) -> Any:
            return runner(**x) if isinstance(x, Mapping) else runner(x)

        return Model(run, trainable, model, select)
    function, given = model
    if not isinstance(given, Mapping):
        raise TypeError(
            f"model: expected (function, dict of parameters), got {type(given).__name__}"
        )
    for name, p in given.items():
        if not isinstance(p, torch.Tensor):
            raise TypeError(
                f"model: parameter {name!r} is {type(p).__name__}, expected a torch tensor"
            )
    chosen = _choose(dict(given), params)
    leaves = {
        name: p.detach().requires_grad_(name in chosen and p.is_floating_point())
        for name, p in given.items()
    }
    _check_parameters(leaves)
    trainable = {name: leaves[name] for name in chosen if leaves[name].requires_grad}

    def call(x: Inputs) -> Any:
        return function(leaves, **x) if isinstance(x, Mapping) else function(leaves, x)

    return Model(call, trainable, None, select)


def _check_parameters(parameters: Mapping[str, torch.Tensor]) -> None:
    for name, p in parameters.items():
        if torch.nn.parameter.is_lazy(p):
            raise CaptureError(
                f"parameter {name!r} is not initialized yet (a lazy module): run the model once"
            )
        if p.is_inference():
            raise CaptureError(
                f"parameter {name!r} was made in inference mode and records no gradients; make the "
                "model outside of torch.inference_mode()"
            )
        if p.is_complex():
            raise CaptureError(f"parameter {name!r} is complex, expected real numbers")
        values = p.detach()
        if not all_finite(values):
            where = torch.nonzero(~torch.isfinite(values))[0].tolist()
            raise NonFiniteError(
                f"parameter {name!r}: expected finite numbers, got "
                f"{float(values[tuple(where)])} at index {tuple(where)}"
            )


def all_finite(x: torch.Tensor) -> bool:
    """Whether all entries are finite, in one pass without a temporary tensor."""
    if x.numel() == 0 or not x.is_floating_point():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(x))).all())  # NaN is kept by both


def _choose(named: dict[str, torch.Tensor], params: Chosen) -> dict[str, torch.Tensor]:
    """Parameters that `params` asks for: names, prefixes of names, or a predicate."""
    if params is None:
        return named
    if callable(params):
        return {name: p for name, p in named.items() if params(name)}
    listed = [params] if isinstance(params, str) or not isinstance(params, Iterable) else params
    prefixes = list(listed)
    if not all(isinstance(prefix, str) for prefix in prefixes):
        raise TypeError(f"params: expected names, prefixes or a callable, got {params!r}")
    chosen: set[str] = set()
    for prefix in prefixes:
        fits = {
            name
            for name in named
            if name == prefix or name.startswith(prefix.rstrip(".") + ".") or prefix == ""
        }
        if not fits:
            raise ValueError(
                f"params: {prefix!r} is no parameter and no prefix of one; expected some of "
                f"{list(named)}"
            )
        chosen |= fits
    return {name: p for name, p in named.items() if name in chosen}


def tensors_of(x: Inputs) -> list[torch.Tensor]:
    """Tensors among the inputs."""
    values = x.values() if isinstance(x, Mapping) else [x]
    return [value for value in values if isinstance(value, torch.Tensor)]


def gather(x: Any, name: str) -> Inputs:
    """Gather samples into one tensor or one mapping; batches of an iterable are put together.

    Raises
    ------
    TypeError
        Something that is neither, named `name`.
    ValueError
        No batch at all, batches that differ in shape or dtype, or a tuple of tensors.
    """
    if isinstance(x, torch.Tensor | Mapping):
        return x
    if isinstance(x, np.ndarray) or not isinstance(x, Iterable):
        raise TypeError(
            f"{name}: expected a torch tensor, a mapping of them or an iterable of batches, got "
            f"{type(x).__name__}"
        )
    check_iterable(x, name)
    batches = []
    for batch in x:
        first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        if not isinstance(first, torch.Tensor | Mapping):
            raise TypeError(
                f"{name}: expected batches of torch tensors, got one of {type(first).__name__}"
            )
        batches.append(first)
    if not batches:
        raise ValueError(f"{name}: expected at least one batch, got none")
    if isinstance(batches[0], Mapping):
        return {key: _joined(key, batches, name) for key in batches[0]}
    check_alike(batches, name, joined=True)
    return torch.cat(batches)


def _joined(key: str, batches: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Tensors of all batches one after the other; anything else must be the same in all."""
    if any(set(batch) != set(batches[0]) for batch in batches):
        raise ValueError(f"{name}: expected the keys {list(batches[0])} in every batch")
    values = [batch[key] for batch in batches]
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if any(value is not values[0] and value != values[0] for value in values):
        raise ValueError(f"{name}: {key!r} is no tensor, expected the same value in every batch")
    return values[0]


def samples_of(x: Inputs) -> int:
    """Count the samples."""
    return int(tensors_of(x)[0].shape[0])


def take(x: Inputs, index: slice | torch.Tensor) -> Inputs:
    """Take samples of `x`."""
    if isinstance(x, Mapping):
        return {
            name: value[index] if isinstance(value, torch.Tensor) else value
            for name, value in x.items()
        }
    return x[index]


def in_dtype(x: Inputs, dtype: torch.dtype) -> Inputs:
    """Convert all tensors of the samples to `dtype`."""
    if isinstance(x, Mapping):
        return {
            name: value.to(dtype) if isinstance(value, torch.Tensor) else value
            for name, value in x.items()
        }
    return x.to(dtype)


def recorded(x: Inputs) -> tuple[Inputs, list[torch.Tensor]]:
    """Copy of the inputs that autograd follows, and its leaves: the caller's stay as they are."""
    leaves: list[torch.Tensor] = []

    def one(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        start = value.detach()
        if start.is_inference():
            start = start.clone()
        leaves.append(start.requires_grad_())
        # A copy, so that a model may write into its input.
        return start.clone(memory_format=torch.preserve_format)

    if isinstance(x, Mapping):
        return {name: one(value) for name, value in x.items()}, leaves
    return one(x), leaves


_RECORDING: ContextVar[bool] = ContextVar("recording", default=False)


def is_recording() -> bool:
    """Whether a model runs to be captured: its hooks may leave such runs alone."""
    return _RECORDING.get()


@contextmanager
def recording() -> Iterator[None]:
    """Autograd on, whatever the caller has set; autocast stays as it is."""
    with ExitStack() as stack:
        stack.callback(_RECORDING.reset, _RECORDING.set(True))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def untouched(model: Model) -> Iterator[None]:
    """Buffers and the state of random generators as they were, also after an exception."""
    buffers = []
    held_by: list[tuple[torch.nn.Module, dict[str, Any], set[str]]] = []
    if model.module is not None:
        for _, module in model.named_modules():
            held_by.append(
                (module, dict(module._buffers.items()), set(module._non_persistent_buffers_set))
            )
            held = list(module._buffers.items())
            if getattr(module, "max_norm", None) is not None:
                held += module._parameters.items()  # the forward pass writes into the table
            for _, value in held:
                if isinstance(value, torch.Tensor):
                    buffers.append((value, value.detach().clone()))
    random_states = RandomStates()
    try:
        yield
    finally:
        random_states.restore()
        for module, before, passing in held_by:
            now = dict(module._buffers.items())
            changed = [name for name in before if name in now and now[name] is not before[name]]
            if isinstance(module._buffers, dict) and (changed or list(now) != list(before)):
                module._buffers.clear()
                module._buffers.update(before)
                module._non_persistent_buffers_set.intersection_update(passing)
                module._non_persistent_buffers_set.update(passing)
            elif not isinstance(module._buffers, dict):  # a scripted module
                for name in changed:
                    module._buffers[name] = before[name]
        for value, copy in buffers:
            if not torch.equal(value, copy):
                with torch.no_grad():
                    _once(value).copy_(_once(copy, like=value))


def _once(x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """`x` with one entry of each axis along which `like` (by default `x`) is expanded."""
    for axis, stride in enumerate((x if like is None else like).stride()):
        if stride == 0 and x.shape[axis] > 1:
            x = x.narrow(axis, 0, 1)
    return x
