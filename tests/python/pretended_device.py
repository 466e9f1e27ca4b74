# SPDX-License-Identifier: Apache-2.0
"""A device where there is none: CPU tensors of torch that show hidden copies.

The pretended device says "cuda:0", takes the CPU's kernels and refuses to be read but through
``to_numpy``, whose calls are counted: the way of the vectors is the device's.
"""

from __future__ import annotations

import sys

import pytest

from fastfisher import _arrays


class Pretended:
    """Reads of the pretended device so far."""

    def __init__(self) -> None:
        self.reads = 0
        self.open = False


def pretend(monkeypatch) -> Pretended:
    """Let torch's CPU tensors pass for a device until the end of the test."""
    torch = pytest.importorskip("torch")
    state = Pretended()
    originals = {name: getattr(_arrays, name) for name in ("device_name", "to_numpy", "from_numpy")}

    def device_name(x) -> str:
        return "cuda:0" if isinstance(x, torch.Tensor) else originals["device_name"](x)

    def to_numpy(x):
        if not isinstance(x, torch.Tensor):
            return originals["to_numpy"](x)
        state.reads += 1
        state.open = True
        try:
            return originals["to_numpy"](x).copy()
        finally:
            state.open = False

    def from_numpy(host, like):
        moved = originals["from_numpy"](host, like)
        return moved.clone() if isinstance(moved, torch.Tensor) else moved

    for module in [m for name, m in sys.modules.items() if name.startswith("fastfisher")]:
        for name, new in (
            ("device_name", device_name), ("to_numpy", to_numpy), ("from_numpy", from_numpy),
            ("stream_of", lambda x: 0),
        ):  # fmt: skip
            if hasattr(module, name):
                monkeypatch.setattr(module, name, new)

    def guarded(name: str):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **options):
            assert state.open, f"a hidden read by {name}"
            return original(self, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, method)

    def counted(name: str):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **options):
            state.reads += 1
            return original(self, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, method)

    for name in ("numpy", "__array__"):
        guarded(name)
    for name in ("__bool__", "__float__", "__int__", "item", "tolist"):
        counted(name)
    return state
