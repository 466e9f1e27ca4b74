# SPDX-License-Identifier: Apache-2.0
"""Everything about a model, its inputs and torch's settings that a call must leave as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


def settings() -> dict[str, Any]:
    """Switches of torch that belong to the caller."""
    backends = torch.backends
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "multithreading": torch.autograd.is_multithreading_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "mkldnn": backends.mkldnn.enabled,
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
        ),
        "fast path": backends.mha.get_fastpath_enabled(),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
    }


def randomness() -> tuple[Any, ...]:
    numbers = np.random.get_state()  # noqa: NPY002 - the global one is what must not move
    return torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2:]


def of_tensor(tensor: torch.Tensor, *, versions: bool) -> dict[str, Any]:
    uninitialised = isinstance(tensor, nn.UninitializedParameter)
    return {
        "identity": id(tensor),
        "type": type(tensor),
        "requires grad": tensor.requires_grad,
        "grad": tensor.grad if tensor.is_leaf else None,
        "hooks": list(tensor._backward_hooks or ()),
        "accumulation hooks": list(getattr(tensor, "_post_accumulate_grad_hooks", None) or ()),
        "memory": None if uninitialised else tensor.data_ptr(),
        "version": tensor._version if versions and not tensor.is_inference() else None,
        # Marks of the compiler on what it has seen come with running the model.
        "attributes": sorted(name for name in tensor.__dict__ if not name.startswith("_dynamo")),
    }


class Snapshot:
    """State of a model (or of a pair's parameters) and inputs, to be compared later.

    `versions` is False for models whose own forward pass writes into what they hold: they must be
    put back, and their versions count on.
    """

    def __init__(self, model: Any, *inputs: torch.Tensor, versions: bool = True) -> None:
        self.model, self.inputs, self.versions = model, inputs, versions
        self.state = self._state()
        self.values = {
            name: t.detach().clone().reshape(-1).contiguous()
            for name, t in self._tensors().items()
            if not isinstance(t, nn.UninitializedParameter)
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        inputs = {f"input {k}": x for k, x in enumerate(self.inputs)}
        if isinstance(self.model, tuple):
            return {**self.model[1], **inputs}
        held = [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()]
        return {**dict(held), **inputs}

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"settings": settings(), "randomness": randomness()}
        state["global hooks"] = {
            name: list(value)
            for name, value in vars(nn.modules.module).items()
            if name.startswith("_global") and isinstance(value, dict)
        }
        for name, tensor in self._tensors().items():
            writes = self.versions or name.startswith("input")
            state[name] = of_tensor(tensor, versions=writes and name not in self._moving())
        if isinstance(self.model, nn.Module):
            for name, module in self.model.named_modules():
                state[f"module {name}"] = self._of_module(module)
        return state

    def _moving(self) -> set[str]:
        """Buffers: a forward pass may write into them."""
        return (
            set() if isinstance(self.model, tuple) else {n for n, _ in self.model.named_buffers()}
        )

    @staticmethod
    def _of_module(module: nn.Module) -> dict[str, Any]:
        return {
            "class": type(module),
            "training": module.training,
            "attributes": sorted(module.__dict__),
            "hooks": {
                name: list(value)
                for name, value in module.__dict__.items()
                if "hooks" in name and isinstance(value, dict)
            },
            "children": list(module._modules.keys()),
            "parameters": list(module._parameters.keys()),
            "buffers": list(module._buffers.keys()),
        }

    def check(self) -> None:
        """Compare with now."""
        after = self._state()
        assert list(after) == list(self.state)
        for name, before in self.state.items():
            assert _same(before, after[name]), (name, before, after[name])
        for name, tensor in self._tensors().items():
            if name in self.values:
                now = tensor.detach().reshape(-1)
                torch.testing.assert_close(
                    now, self.values[name], rtol=0, atol=0, equal_nan=True, msg=f"{name} changed"
                )


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return list(before) == list(after) and all(_same(before[k], after[k]) for k in before)
    if isinstance(before, torch.Tensor):
        return before is after
    return before == after
