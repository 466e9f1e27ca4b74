# SPDX-License-Identifier: Apache-2.0
"""Grams and products by the caller's own array library, for devices without a native kernel.

Gradients are formed for a piece of the samples at a time and multiplied; dense layers need no
forming. The arithmetic is the library's: on a GPU with torch, its matrix products at the precision
that the caller has set. Layers are added up in float64, pieces at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

from fastfisher import _native
from fastfisher._arrays import (
    Array,
    device_name,
    namespace,
    result_dtype,
    to_dtype,
)
from fastfisher._layer import Layer
from fastfisher.errors import NonFiniteError, NumericalError
from fastfisher.factors import Dense


def is_needed(layers: Sequence[Layer]) -> bool:
    """Whether these layers are on a device for which there is no native Gram."""
    if device_name(layers[0].g) == "cpu":
        return False
    native = bool(_native.build_info()["backends"]["cuda"]["available"])
    return not native


def is_needed_for_products(layers: Sequence[Layer]) -> bool:
    """Whether these layers are on a device where no native backend multiplies with them."""
    device = device_name(layers[0].g)
    if device == "cpu":
        return False
    native = bool(_native.build_info()["backends"]["cuda"]["available"])
    return not (native and device.startswith("cuda"))


def gram(
    left: Sequence[Layer],
    right: Sequence[Layer] | None,
    out: Array,
    *,
    outputs: str,
    memory_limit: int,
) -> None:
    """Gram in the form `outputs` ("full", "trace", "diagonal") into `out`.

    Raises
    ------
    NonFiniteError
        A factor holds NaN or infinity.
    NumericalError
        The result overflows.
    """
    _check_finite(left, "")
    if right is not None:
        _check_finite(right, "other, ")
    square, others = right is None, left if right is None else right
    rows = _pieces(left, memory_limit // 4)
    for index, row in enumerate(rows):
        for column in rows[index:] if square else _pieces(others, memory_limit // 4):
            tile = _tile(left, others, row, column, outputs)
            if square and row == column:
                tile = _symmetric(tile, outputs)
            _store(out, row, column, tile, outputs)
            if square and row != column:
                _store(out, column, row, _mirrored(tile, outputs), outputs)
    if not bool(namespace(out).isfinite(out).all()):
        raise NumericalError(
            f"gram: the result overflows {result_dtype(left[0].g)}; scale the factors"
        )


def jvp(layers: Sequence[Layer], v: Array) -> Array:
    """``J v`` (n, c, k) for v (p, k)."""
    total, start = 0, 0
    for layer in layers:
        part = v[start : start + layer.parameters]
        start += layer.parameters
        spans = _pieces([layer], _PIECE) or [slice(0, 0)]
        total = total + namespace(v).concatenate([_block(layer, s) @ part for s in spans], 0)
    return total


def vjp(layers: Sequence[Layer], u: Array) -> Array:
    """``J^T u`` (p, k) for u (n, c, k)."""
    parts = []
    for layer in layers:
        total = 0
        for span in _pieces([layer], _PIECE) or [slice(0, 0)]:
            j, w = _block(layer, span), u[span]
            rows = j.shape[0] * j.shape[1]
            total = total + j.reshape(rows, j.shape[2]).T @ w.reshape(rows, w.shape[2])
        parts.append(total)
    return namespace(u).concatenate(parts, 0)


_PIECE = 256 << 20


def _pieces(layers: Sequence[Layer], limit: int) -> list[slice]:
    """Spans of samples whose gradients of any one layer fit into `limit` bytes."""
    n, c = layers[0].samples, layers[0].n_outputs
    widest = max(layer.parameters for layer in layers)
    width = max(1, limit // max(1, 8 * c * widest))
    return [slice(k, min(k + width, n)) for k in range(0, n, width)]


def _part(layer: Layer, span: slice) -> Layer:
    """Take samples of a layer, 16-bit floats widened."""
    piece = copy.copy(layer)
    piece.g = layer.g[span]
    piece.a = None if layer.a is None else layer.a[span]
    return in_dtype(piece, result_dtype(layer.g))


def in_dtype(layer: Layer, dtype: str) -> Layer:
    """Layer with its factors in `dtype`."""
    other = copy.copy(layer)
    other.g = to_dtype(layer.g, dtype)
    other.a = None if layer.a is None else to_dtype(layer.a, dtype)
    other.w = None if layer.w is None else to_dtype(layer.w, dtype)
    return other


def _block(layer: Layer, span: slice) -> Array:
    """Gradients (n, c, p) of a piece of the samples."""
    return _part(layer, span).block()


def _tile(
    left: Sequence[Layer], right: Sequence[Layer], row: slice, column: slice, outputs: str
) -> Array:
    total: Any = 0
    for x, y in zip(left, right, strict=True):
        if type(x) is Dense and type(y) is Dense:
            k = _dense(_part(x, row), _part(y, column), outputs)
        else:
            k = _product(_block(x, row), _block(y, column), outputs)
        total = total + to_dtype(k, "float64")
    return to_dtype(total, result_dtype(left[0].g))


def _dense(x: Layer, y: Layer, outputs: str) -> Array:
    inputs = x.a @ y.a.T
    if x.bias:
        inputs = inputs + 1
    k = _product(x.g, y.g, outputs)
    if outputs == "full":
        return k * inputs[:, None, :, None]
    return k * (inputs if outputs == "trace" else inputs[:, :, None])


def _product(x: Array, y: Array, outputs: str) -> Array:
    """Products of gradients x (n, c, p) and y (m, d, p)."""
    n, c, p = x.shape
    m, d, _ = y.shape
    if outputs == "full":
        return (x.reshape(n * c, p) @ y.reshape(m * d, p).T).reshape(n, c, m, d)
    if outputs == "trace":
        return x.reshape(n, c * p) @ y.reshape(m, d * p).T
    products = namespace(x).einsum("ncp,mcp->cnm", x, y)
    return namespace(x).moveaxis(products, 0, 2)


def _symmetric(k: Array, outputs: str) -> Array:
    return (k + _mirrored(k, outputs)) / 2


def _mirrored(k: Array, outputs: str) -> Array:
    if outputs == "full":
        return k.swapaxes(0, 2).swapaxes(1, 3)
    return k.swapaxes(0, 1)


def _store(out: Array, row: slice, column: slice, tile: Array, outputs: str) -> None:
    if outputs == "full":
        out[row, :, column] = tile
    else:
        out[row, column] = tile


def _arrays_of(layers: Sequence[Layer], prefix: str) -> Iterator[tuple[str, Array]]:
    for index, layer in enumerate(layers):
        for name, array in layer.arrays.items():
            yield f"{prefix}layer {layer.label or index!r}, {name}", array


def _check_finite(layers: Sequence[Layer], prefix: str) -> None:
    for name, array in _arrays_of(layers, prefix):
        if math.prod(array.shape) and not bool(namespace(array).isfinite(array).all()):
            raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity")
