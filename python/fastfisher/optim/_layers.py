# SPDX-License-Identifier: Apache-2.0
"""From recorded inputs and output gradients of modules to layers of factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastfisher._conv import Conv
from fastfisher._device_array import as_array, contiguous
from fastfisher._layer import Layer
from fastfisher._lookup import Lookup
from fastfisher.factors import Dense, Shared
from fastfisher.optim._factors import Record
from fastfisher.optim._sites import Site
from fastfisher.optim._tensors import Host, in_words


def layers_of(records: list[Record], *, joined: bool) -> list[Layer]:
    """Layers of the calls of one site in one pass; with `joined` one layer of all positions.

    Raises
    ------
    ValueError
        Calls that cannot be joined.
    """
    calls = [record for record in records if record.g]
    if not calls:
        return []
    if len(calls) == 1 or not joined:
        return [_layer(record) for record in calls]
    site = calls[0].site
    sides = [_positions(record) for record in calls]
    if len({(len(a), g.shape[1]) for a, g in sides}) > 1:
        raise ValueError(
            f"layer {site.name!r}: expected the same number of samples in each call, got "
            f"{[len(a) for a, _ in sides]}; expected weight_sharing='expand'"
        )
    a = np.concatenate([a for a, _ in sides], 1)
    g = np.concatenate([g for _, g in sides], 2)
    if site.kind == "embedding":
        return [Lookup(a, g, rows=len(site.weight), label=site.name)]
    return [Shared(a, g, bias=site.bias is not None, label=site.name)]


def _layer(record: Record) -> Layer:
    site, bias = record.site, record.site.bias is not None
    if site.kind == "conv":
        return _convolution(record)
    a, g = _positions(record)
    if site.kind == "embedding":
        return Lookup(a, g, rows=len(site.weight), label=site.name)
    if a.shape[1] == 1:
        return Dense(a[:, 0], g[:, :, 0], bias=bias, label=site.name)
    return Shared(a, g, bias=bias, label=site.name)


def _positions(record: Record) -> tuple[Host, Host]:
    """Give inputs (n, s, i), of an embedding (n, s), and gradients (n, r, s, o)."""
    site = record.site
    if site.kind == "conv":
        if site.groups > 1:
            raise ValueError(
                f"layer {site.name!r}: a grouped convolution that is called several times; "
                "expected weight_sharing='expand'"
            )
        layer = _convolution(record)
        g = layer.g.reshape(*layer.g.shape[:3], -1).swapaxes(2, 3)
        return as_array(layer.patches()[:, 0]), contiguous(g)
    a, o = record.a, record.g[0].shape[-1]
    table = site.kind == "embedding"
    axes = a.ndim if table else a.ndim - 1
    n = len(a) if axes else 1
    gradients = torch.stack([g.reshape(n, -1, o) for g in record.g], 1)
    if not table:
        return _host(a.reshape(n, -1, a.shape[-1]), site), _host(gradients, site)
    index = a.reshape(n, -1)
    padding = record.module.padding_idx
    if padding is not None:  # its row has no gradient
        gradients = gradients * (index != padding)[:, None, :, None]
    return in_words(index), _host(gradients, site)


def _convolution(record: Record) -> Conv:
    module: Any = record.module
    x, gradients = record.a, record.g
    if x.ndim == module.weight.ndim - 1:  # one sample without an axis of its own
        x, gradients = x[None], [g[None] for g in gradients]
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = torch.nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = 0
    return Conv(
        _host(x, record.site), _host(torch.stack(gradients, 1), record.site),
        kernel=module.kernel_size, stride=module.stride, padding=padding,
        dilation=module.dilation, groups=module.groups, bias=record.site.bias is not None,
        label=record.site.name,
    )  # fmt: skip


def _host(x: torch.Tensor, site: Site) -> Host:
    kind = torch.float64 if site.weight.dtype == torch.float64 else torch.float32
    return in_words(x.to(kind).contiguous())
