# SPDX-License-Identifier: Apache-2.0
"""Reference of the layers: per-sample Jacobians written out, position by position, tap by tap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Given = np.ndarray[Any, np.dtype[Any]]
"""What comes in: any dtype, computed with in float64."""


@dataclass(frozen=True, eq=False, slots=True)
class Separable:
    """Cotangents ``g[n, c, s, o] = m[n, s, o] w[c, o]``; m of a `Conv` is (n, o, *space)."""

    m: Given
    w: Given


@dataclass(frozen=True, eq=False, slots=True)
class Shared:
    """Weight (o, i) used at s positions: a (n, s, i), g (n, c, s, o)."""

    a: Given
    g: Given | Separable
    bias: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Conv:
    """Convolution with weight (o, i / groups, *kernel): x (n, i, *space), g (n, c, o, *space)."""

    x: Given
    g: Given | Separable
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Explicit:
    """Jacobian (n, c, p) of parameters without structure."""

    j: Given


Dense = tuple[Given, Given, bool]
"""Dense layer: (a (n, i), g (n, c, o), bias)."""
Layer = Dense | Shared | Conv | Explicit


def dense_jacobian(layers: Sequence[Layer]) -> Array:
    """Compute the Jacobian (n, c, p): [W row-major, b] layer by layer, in float64."""
    return np.concatenate([layer_jacobian(layer) for layer in layers], axis=2)


def layer_jacobian(layer: Layer) -> Array:
    """Compute the Jacobian (n, c, p) of one layer, in float64."""
    if isinstance(layer, Explicit):
        return np.array(layer.j, dtype=np.float64)
    if isinstance(layer, Conv):
        return _conv(layer)
    if isinstance(layer, Shared):
        return _shared(_float64(layer.a), _cotangents(layer.g, "nso,co->ncso"), layer.bias)
    a, g, bias = layer
    return _shared(_float64(a)[:, None, :], _float64(g)[:, :, None, :], bias)


def _shared(a: Array, g: Array, bias: bool) -> Array:
    (n, positions, i), (_, c, _, o) = a.shape, g.shape
    weight, offset = np.zeros((n, c, o, i)), np.zeros((n, c, o))
    for s in range(positions):
        weight += g[:, :, s, :, None] * a[:, None, s, None, :]
        offset += g[:, :, s]
    return _joined(weight, offset, bias)


def _conv(layer: Conv) -> Array:
    x, g = _float64(layer.x), _cotangents(layer.g, "no...,co->nco...")
    (n, channels), (_, c, o) = x.shape[:2], g.shape[:3]
    inputs, units = channels // layer.groups, o // layer.groups
    weight, offset = np.zeros((n, c, o, inputs, *layer.kernel)), np.zeros((n, c, o))
    for position in np.ndindex(*g.shape[3:]):
        at = g[(slice(None), slice(None), slice(None), *position)]  # (n, c, o)
        offset += at
        for tap in np.ndindex(*layer.kernel):
            # torch.nn.Conv2d: output position p reads input p * stride + tap * dilation - padding.
            source = tuple(
                p * stride + k * dilation - padding
                for p, k, stride, padding, dilation in zip(
                    position, tap, layer.stride, layer.padding, layer.dilation, strict=True
                )
            )
            if not all(0 <= k < extent for k, extent in zip(source, x.shape[2:], strict=True)):
                continue  # zero padding
            values = x[(slice(None), slice(None), *source)]  # (n, i)
            for group in range(layer.groups):
                rows = slice(group * units, (group + 1) * units)
                columns = slice(group * inputs, (group + 1) * inputs)
                # Indexing by the tap's integers leaves a view (n, c, o, i).
                view = weight[(slice(None), slice(None), rows, slice(None), *tap)]
                view += at[:, :, rows, None] * values[:, None, None, columns]
    return _joined(weight, offset, layer.bias)


def _cotangents(g: Given | Separable, product: str) -> Array:
    if isinstance(g, Separable):
        return np.asarray(np.einsum(product, _float64(g.m), _float64(g.w)))
    return _float64(g)


def _joined(weight: Array, offset: Array, bias: bool) -> Array:
    n, c = weight.shape[:2]
    flat = weight.reshape(n, c, int(np.prod(weight.shape[2:])))
    return np.concatenate([flat, offset], axis=2) if bias else flat


def _float64(x: Given) -> Array:
    return np.asarray(x, dtype=np.float64)
