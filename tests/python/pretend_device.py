# SPDX-License-Identifier: Apache-2.0
"""A device that is none: torch tensors on another device than the CPU, whose memory is the host's.

Tensors of the class here say ``lazy:0`` where a GPU's say ``cuda:0``. As on a GPU, they mix with
tensors of the CPU only where those are single numbers, cannot be read by numpy, and are moved by
``to`` and ``cpu`` only. Whatever is read back to the host is counted. What the library does with
them is what it does with a GPU's tensors, but for the kernels: these are the CPU's ("native"), or
those of torch where there is no kernel of the device ("library").
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NAME = "lazy:0"
DEVICE = torch.device(NAME)
# Ops that may meet tensors of both devices: transfers, and indexing by positions of the host.
_MIXED = ("_to_copy", "copy_", "index.Tensor", "index_put", "_index_put")
_READS = ("_local_scalar_dense", "equal.default", "is_nonzero")

reads: Counter[str] = Counter()
"""What was read back: transfers by their shape, and single numbers, under the mode at hand."""


class PretendTensor(torch.Tensor):
    """Tensor of the pretended device around one of the host."""

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    def __init__(self, host: torch.Tensor) -> None:
        pass

    def __repr__(self) -> str:
        return f"PretendTensor({self.host!r})"

    def __array__(self, *args: object, **options: object) -> None:
        raise TypeError("can't convert lazy:0 device type tensor to numpy")

    def numpy(self, **options: object) -> None:
        raise TypeError("can't convert lazy:0 device type tensor to numpy")

    def tolist(self) -> list:
        reads["tolist"] += 1
        return self.host.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def __dlpack__(self, **options: object) -> object:
        raise BufferError("memory of lazy:0 is not the host's")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def is_here(x: object) -> bool:
    return isinstance(x, PretendTensor)


def bare(x):
    return x.host if is_here(x) else x


def run(func, args, kwargs):
    """Run an op on the memory of the host, and say whether its results are on the device."""
    tensors: list[torch.Tensor] = []

    def look(x):
        if isinstance(x, torch.Tensor):
            tensors.append(x)
        return x

    tree_map(look, (args, kwargs))
    here = [is_here(x) for x in tensors]
    name = str(func)
    given = kwargs.get("device")
    if given is not None:
        to_device = torch.device(given).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        to_device = any(here)
    if "copy_" in name and "_to_copy" not in name:
        to_device = bool(here) and here[0]
    if any(here) and not all(here) and not any(word in name for word in _MIXED):
        foreign = [x for x in tensors if not is_here(x) and x.ndim > 0]
        if foreign:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got some on {NAME} and one of "
                f"shape {tuple(foreign[0].shape)} on cpu ({name})"
            )
    leaves = any(here) and not to_device
    if leaves or any(word in name for word in _READS):
        reads[f"{name} {tuple(tensors[0].shape)}" if tensors else name] += any(here)
    if "_local_scalar_dense" in name and any(here):
        return func(*tree_map(bare, args), **kwargs)
    found = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    if func._schema.name.endswith("_") and args and isinstance(args[0], torch.Tensor):
        return args[0]  # written in place
    if not to_device:
        return found
    return tree_map(lambda x: PretendTensor(x) if isinstance(x, torch.Tensor) else x, found)


class _Mode(TorchDispatchMode):
    """Ops that make tensors from none, and those of tensors on the host that are moved."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(issubclass(kind, PretendTensor) for kind in types):
            return run(func, args, kwargs)
        given = kwargs.get("device")
        if given is not None and torch.device(given).type == DEVICE.type:
            return run(func, args, kwargs)
        return func(*args, **kwargs)


class _Core:
    """The extension module with the host's memory under pretended tensors, or without kernels."""

    def __init__(self, core, kernels: str) -> None:
        self._core, self._kernels = core, kernels

    def __getattr__(self, name: str):
        found = getattr(self._core, name)
        if not callable(found) or name == "build_info":
            return found

        def call(*args):
            if self._kernels == "library" and _any_here(args):
                raise NotImplementedError(f"{name}: the pretended device has no kernel")
            return found(*map(_on_host, args))

        return call


def _any_here(x) -> bool:
    if isinstance(x, (list, tuple)):
        return any(map(_any_here, x))
    return is_here(getattr(x, "tensor", x))


def _on_host(x):
    if isinstance(x, (list, tuple)):
        parts = [_on_host(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    x = getattr(x, "tensor", x) if type(x).__name__ == "DeviceArray" else x
    return bare(x).detach() if is_here(x) else x


def _workspace_of_the_host(query, *given, cuda: bool, **options):
    return query(*given, cuda=False, **options)


@contextlib.contextmanager
def pretend(kernels: str = "native") -> Iterator[None]:
    """Device for the time of the block; kernels are the CPU's ("native"), or none ("library")."""
    from fastfisher import _by_library, _native
    from fastfisher.optim import _options
    from fastfisher.psd._by_library import _rows

    patches: list[tuple[object, str, object]] = [
        (_native, "stream_of", lambda x: 0),
        (_options, "DEVICES", {"cpu", DEVICE.type}),
        (_native, "_core", _Core(_native._core, kernels)),
    ]
    if kernels == "native":
        patches += [
            (_by_library, "is_needed", lambda layers: False),
            (_native, "psd_workspace", partial(_workspace_of_the_host, _native.psd_workspace)),
            (_by_library, "is_needed_for_products", lambda layers: False),
        ]
    plain = torch.autocast

    def autocast(kind: str, **options):  # torch has none for this device
        return plain("cpu" if kind == DEVICE.type else kind, **options)

    patches.append((torch, "autocast", autocast))
    kept = [(where, name, getattr(where, name)) for where, name, _ in patches]
    for where, name, value in patches:
        setattr(where, name, value)
    reads.clear()
    _rows.cache_clear()
    try:
        with _Mode():
            yield
    finally:
        _rows.cache_clear()
        for where, name, value in kept:
            setattr(where, name, value)


def moved(x):
    """`x` (array of numpy or tensor, module) on the device."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.array(x))
    if isinstance(x, torch.nn.Module):
        return x.to(DEVICE)
    if isinstance(x, dict):
        return {name: moved(value) for name, value in x.items()}
    return x.to(DEVICE)


def host(x) -> np.ndarray:
    """Result of the device as an array of numpy."""
    assert is_here(x), f"left the device: {type(x).__name__}"
    return x.host.detach().numpy()
