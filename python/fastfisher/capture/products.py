# SPDX-License-Identifier: Apache-2.0
"""Matrix products of autograd's passes by the kernels of the Gram, where these are faster.

Products are half of a backward pass. torch's come from MKL, which gives some processors half of
their vectors. Here `mm` and `bmm` have functions of ours under a dispatch key that is off by
default, that of a device torch no longer supports: they are on in one block of one thread, all
other ops fall through, and hooks, saved tensors and custom functions act as ever.

What is used of torch here is private to it: without it, its own products do the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import library
from torch.autograd import forward_ad

from fastfisher._products import beside_torch, bmm, outruns_mkl

_KEY = "AutocastIPU"
_LEAST_WORK = 1 << 22
"""Multiply-adds: for fewer the way to our function and back, 6 us, takes longer than it saves."""
_LEAST_ROWS = 32
"""For fewer it does not pay to pack what they meet."""
_MOST_PACKED = 1 << 23
"""Bytes of what is met: its packed copy is in nobody's count of memory."""
_TYPES = (torch.Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64)

enabled = outruns_mkl()


@contextmanager
def own_products(device: torch.device) -> Iterator[None]:
    """Make the products of passes on `device` ours in this block, if that is faster."""
    key = _registered() if enabled and device.type == "cpu" else None
    if key is None:
        yield
        return
    included = torch._C._IncludeDispatchKeyGuard(key)
    with torch._C._SetExcludeDispatchKeyGuard(key, False), included, beside_torch():
        yield


def _registered() -> Any | None:
    """Key of our functions, None if this version of torch does not have what they need."""
    with _lock:
        if not _keys:
            _keys.append(_register())
        return _keys[0]


def _register() -> Any | None:
    try:
        key = getattr(torch._C.DispatchKey, _KEY)
        torch._C._IncludeDispatchKeyGuard, torch._C._SetExcludeDispatchKeyGuard  # noqa: B018
        torch.is_autocast_enabled("cpu"), forward_ad._current_level
        plain = torch._C._dispatch_keys(torch.empty(0)).raw_repr()
        make, fall_through = (getattr(library, name) for name in ("Library", "fallthrough_kernel"))
        others, ours = make("_", "IMPL"), make("aten", "IMPL")
        others.fallback(fall_through, _KEY)
        for op, rank in ((torch.ops.aten.mm.default, 2), (torch.ops.aten.bmm.default, 3)):
            ours.impl(op, _product_for(op, rank, key, plain), _KEY)
    except (AttributeError, RuntimeError, TypeError):
        return None
    _registrations.extend((others, ours))
    return key


_lock = threading.Lock()
_keys: list[Any] = []
_registrations: list[Any] = []
"""They end with these objects."""


def _product_for(
    op: Callable[..., torch.Tensor], rank: int, key: Any, plain: int
) -> Callable[..., torch.Tensor]:
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if not (_is_plain(a, plain) and _is_plain(b, plain) and _is_ours(a, b, rank)):
            with torch._C._SetExcludeDispatchKeyGuard(key, True):
                return op(a, b)
        out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype)
        bmm(a.detach(), b.detach(), out)
        return out

    return product


def _is_ours(a: torch.Tensor, b: torch.Tensor, rank: int) -> bool:
    """Whether the product is one that nobody wants to follow, and large enough."""
    return (
        not torch.is_grad_enabled()
        and a.ndim == b.ndim == rank
        and a.numel() * b.shape[-1] >= _LEAST_WORK
        and a.shape[-2] >= _LEAST_ROWS
        and b.nbytes <= _MOST_PACKED
        and a.dtype in _DTYPES
        and a.dtype == b.dtype
        and a.shape[-1] == b.shape[-2]
        and a.shape[:-2] == b.shape[:-2]
        # Modes of the caller's want to see the products, wherever they begin.
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _is_plain(x: torch.Tensor, plain: int) -> bool:
    """Whether it is an array in memory and nothing else: no wrapper, no view that negates."""
    return (
        type(x) in _TYPES
        and torch._C._dispatch_keys(x).raw_repr() == plain
        and x.untyped_storage().nbytes() > 0
    )
