# SPDX-License-Identifier: Apache-2.0
"""Reference of `jvp` and `vjp`: the Jacobian of each sample written out, then one product."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Layer = tuple[Any, ...]
"""One of ("dense", a, g, bias), ("shared", a, g, bias), ("explicit", j) and
("conv", x, g, bias, (kernel, stride, padding, dilation, groups)), the geometry a tuple a spatial
axis; g may be a pair (m, w)."""


def layer_jacobian(layer: Layer) -> Array:
    """Jacobian (n, c, p) of one layer, parameters [W (o, i) row-major, b (o)]."""
    kind, *arguments = layer
    if kind == "explicit":
        return np.asarray(arguments[0], dtype=np.float64)
    a, g, bias = arguments[:3]
    a = np.asarray(a, dtype=np.float64)
    if isinstance(g, tuple):
        m, w = (np.asarray(x, dtype=np.float64) for x in g)
        if kind == "conv":
            g = np.einsum("no...,co->nco...", m, w)
        else:
            g = np.einsum("nso,co->ncso", m, w)
    g = np.asarray(g, dtype=np.float64)
    if kind == "conv":
        return _conv_jacobian(a, g, bias, *arguments[3])
    if kind == "dense":
        a, g = a[:, None], g[:, :, None]
    n, c, _, o = g.shape
    weight = np.einsum("ncso,nsi->ncoi", g, a).reshape(n, c, o * a.shape[2])
    return np.concatenate([weight, g.sum(axis=2)], axis=2) if bias else weight


def _conv_jacobian(
    x: Array,
    g: Array,
    bias: bool,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Array:
    """Each weight by itself: the input that it meets at an output, times that output's gradient."""
    n, c, o = g.shape[:3]
    channels = x.shape[1] // groups
    weight = np.zeros((n, c, o, channels, *kernel))
    for place in np.ndindex(g.shape[3:]):
        for tap in np.ndindex(*kernel):
            at = tuple(
                p * s + t * d - q
                for p, s, t, d, q in zip(place, stride, tap, dilation, padding, strict=True)
            )
            if any(k < 0 or k >= extent for k, extent in zip(at, x.shape[2:], strict=True)):
                continue
            for unit in range(o):
                first = unit // (o // groups) * channels
                seen = x[(slice(None), slice(first, first + channels), *at)]
                gradient = g[(slice(None), slice(None), unit, *place)]
                weight[(slice(None), slice(None), unit, slice(None), *tap)] += (
                    gradient[:, :, None] * seen[:, None, :]
                )
    flat = weight.reshape(n, c, o * channels * int(np.prod(kernel)))
    if not bias:
        return flat
    return np.concatenate([flat, g.sum(axis=tuple(range(3, g.ndim)))], axis=2)


def _jacobian(layers: list[Layer]) -> Array:
    return np.concatenate([layer_jacobian(layer) for layer in layers], axis=2)


def jvp(layers: list[Layer], v: Array) -> Array:
    """``J v`` (n, c, k) for v (p, k)."""
    return np.asarray(np.einsum("ncp,pk->nck", _jacobian(layers), v.astype(np.float64)))


def vjp(layers: list[Layer], u: Array) -> Array:
    """``J^T u`` (p, k) for u (n, c, k)."""
    return np.asarray(np.einsum("ncp,nck->pk", _jacobian(layers), u.astype(np.float64)))
