# SPDX-License-Identifier: Apache-2.0
"""Matrix products of autograd's passes by the kernels of the Gram, where these are faster.

Products are half of a backward pass. torch's come from MKL, which gives some processors half of
their vectors. Here `mm` and `bmm` have functions of ours under a dispatch key that is off by
default, that of a device torch no longer supports: they are on in one block of one thread, all
other ops fall through, and hooks, saved tensors and custom functions act as ever.

What is used of torch here is private to it: without it, its own products do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from fastfisher._products import beside_torch, bmm, outruns_mkl

_KEY = "AutocastIPU"
_LEAST_WORK = 1 << 22
"""Multiply-adds: for fewer the way to our function and back, 6 us, takes longer than it saves."""
_LEAST_ROWS = 32
"""For fewer it does not pay to pack what they meet."""
_TYPES = (torch.Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64)

enabled = outruns_mkl()


@contextmanager
def own_products(device: torch.device) -> Iterator[None]:
    """Make the products of passes on `device` ours in this block, if that is faster."""
    key = _registered() if enabled and device.type == "cpu" else None
    # A mode of the caller's wants to see the products.
    if key is None or torch._C._len_torch_dispatch_stack() > 0:
        yield
        return
    included = torch._C._IncludeDispatchKeyGuard(key)
    with torch._C._SetExcludeDispatchKeyGuard(key, False), included, beside_torch():
        yield


@lru_cache(maxsize=1)
def _registered() -> Any | None:
    """Key of our functions, None if this version of torch does not have what they need."""
    try:
        key = getattr(torch._C.DispatchKey, _KEY)
        torch._C._IncludeDispatchKeyGuard, torch._C._SetExcludeDispatchKeyGuard  # noqa: B018
        others = torch.library.Library("_", "IMPL")
        others.fallback(torch.library.fallthrough_kernel, _KEY)
        ours = torch.library.Library("aten", "IMPL")
        for op in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            ours.impl(op, _product_for(op, key), _KEY)
    except (AttributeError, RuntimeError, TypeError):
        return None
    _registrations.extend((others, ours))
    return key


_registrations: list[torch.library.Library] = []
"""They end with these objects."""


def _product_for(op: Callable[..., torch.Tensor], key: Any) -> Callable[..., torch.Tensor]:
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if not _is_ours(a, b):
            with torch._C._SetExcludeDispatchKeyGuard(key, True):
                return op(a, b)
        out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype)
        bmm(a.detach(), b.detach(), out)
        return out

    return product


def _is_ours(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are plain arrays that nobody wants to follow, and large enough."""
    return (
        not torch.is_grad_enabled()
        and a.numel() * b.shape[-1] >= _LEAST_WORK
        and a.shape[-2] >= _LEAST_ROWS
        and a.dtype in _DTYPES
        and a.dtype == b.dtype
        and a.shape[-1] == b.shape[-2]
        and a.shape[:-2] == b.shape[:-2]
        and _is_plain(a)
        and _is_plain(b)
    )


def _is_plain(x: torch.Tensor) -> bool:
    return (
        type(x) in _TYPES
        and x.is_cpu
        and x.layout == torch.strided
        and not x.is_neg()
        and not x._is_zerotensor()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )
