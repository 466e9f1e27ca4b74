# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers and names that the optimisers are given, and of what they are to train."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fastfisher import _numbers
from fastfisher._numbers import integer

DEVICES = {"cpu", "cuda"}
Groups = Iterable[torch.Tensor] | Iterable[Mapping[str, Any]] | None


def number(name: str, value: Any, *, low: float = 0.0, **bounds: Any) -> float:
    """Finite number of at least zero, as most options are."""
    return _numbers.number(name, value, low=low, **bounds)


def count(name: str, value: Any) -> int:
    """Integer of at least one."""
    return integer(name, value, least=1)


def function_or_none(name: str, value: Any) -> Any:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a function, got {value!r}")
    return value


def member(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """One of a few values."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")
    return value


def module_of(model: Any) -> torch.nn.Module:
    """Check that `model` is a module whose parameters can be followed here."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    places: dict[torch.device, str] = {}
    for name, p in model.named_parameters():
        if p.is_complex():
            raise TypeError(f"model: expected a real dtype, got dtype {p.dtype} of {name!r}")
        if p.requires_grad and p.device.type not in DEVICES:
            raise TypeError(
                f"model: expected parameters on the CPU or a CUDA device, got {name!r} on "
                f"{p.device}; pass model.cpu()"
            )
        if p.requires_grad:
            places.setdefault(p.device, name)
    if len(places) > 1:
        got = ", ".join(f"{name!r} on {device}" for device, name in places.items())
        raise TypeError(f"model: expected all parameters on one device, got {got}")
    return model


def groups_of(model: torch.nn.Module, params: Groups) -> list[dict[str, Any]]:
    """Parameter groups: `params` as torch takes them, by default all that require gradients.

    Raises
    ------
    ValueError
        Nothing to train, or parameters that are not the model's.
    """
    if params is None:
        own = [p for p in model.parameters() if p.requires_grad]
        if not own:
            raise ValueError("model: expected parameters that require gradients, got none")
        return [{"params": own}]
    if isinstance(params, torch.Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"params: expected parameters or groups of them, got {type(params).__name__}"
        )
    listed = list(params)
    if not listed:
        raise ValueError("params: expected parameters or groups of them, got none")
    groups = (
        [dict(group) for group in listed]
        if isinstance(listed[0], Mapping)
        else [{"params": listed}]
    )
    names = {p: name for name, p in model.named_parameters()}
    for group in groups:
        one = group.get("params")
        group["params"] = [one] if isinstance(one, torch.Tensor) else list(one or ())
        for p in group["params"]:
            if p not in names:
                raise ValueError(
                    f"params: expected parameters of the model, got another tensor of shape "
                    f"{tuple(getattr(p, 'shape', ()))}"
                )
    return groups


def names_of(model: torch.nn.Module, groups: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Parameters that are trained now, by name, in the order of the model."""
    chosen = {p for group in groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if p in chosen and p.requires_grad}


_TORCHS = frozenset(vars(torch.optim.SGD([torch.zeros(1)], lr=0.0))) | {
    "step", "found_inf", "grad_scale",  # put there by schedulers and scalers
}  # fmt: skip


def check_group(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """Check the options of one group: numbers, and none that only the optimiser has.

    Raises
    ------
    ValueError
        Otherwise.
    """
    for name in ("lr", "momentum", "weight_decay"):
        value = group.get(name, 0.0)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = float(value)
        number(name, value)
    if group.get("momentum", 0.0) >= 1:
        raise ValueError(f"momentum: expected a number below 1, got {group['momentum']!r}")
    known = {"momentum", "weight_decay"}
    for kind in type(optimizer).__mro__:
        if kind is torch.optim.Optimizer:
            break
        known |= set(inspect.signature(kind).parameters)
    for name in group:
        if name in known - {"params"} and name not in optimizer.defaults:
            raise ValueError(
                f"{name}: no option of a group, expected some of {list(optimizer.defaults)}"
            )


def own_state(optimizer: torch.optim.Optimizer, *left: str) -> dict[str, Any]:
    """Attributes that torch's optimisers do not copy by themselves, but those `left` out."""
    return {k: v for k, v in vars(optimizer).items() if k not in _TORCHS and k not in left}
