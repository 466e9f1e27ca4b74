# SPDX-License-Identifier: Apache-2.0
"""What the Gram checks of its arguments, and how it says what the native op found in them."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastfisher import _native
from fastfisher._arrays import Array, device_name, dtype_name, library, result_dtype, to_numpy
from fastfisher._layer import Layer, check_layers
from fastfisher.errors import NonFiniteError, NumericalError
from fastfisher.factors import Dense

Outputs = Literal["full", "trace", "diagonal", "sum"] | int


def check_option(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that `value` is one of the words `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")


def check_outputs(outputs: Outputs, n_outputs: int) -> str:
    """Name of the native form of `outputs`: "full", "trace" or "diagonal"."""
    if isinstance(outputs, str):
        if outputs in _native.GRAM_OUTPUTS:
            return outputs
        if outputs == "sum":
            return "trace"
    elif not isinstance(outputs, bool):
        try:
            index = operator.index(outputs)
        except TypeError:
            pass
        else:
            if -n_outputs <= index < n_outputs:
                return "trace"
            raise ValueError(f"outputs: index {index} is out of range for {n_outputs} outputs")
    raise ValueError(
        f"outputs: expected 'full', 'trace', 'diagonal', 'sum' or an integer, got {outputs!r}"
    )


def check_pair(left: Sequence[Layer], right: Sequence[Layer]) -> None:
    """Check that the layers of a second set of samples are those of the first."""
    check_layers(right)
    if len(right) != len(left):
        raise ValueError(f"other: expected {len(left)} layers as in the first, got {len(right)}")
    for index, (x, y) in enumerate(zip(left, right, strict=True)):
        if type(x) is Dense and type(y) is Dense:
            got = (y.in_features, y.out_features, y.bias)
            expected = (x.in_features, x.out_features, x.bias)
            if got != expected:
                raise ValueError(
                    f"other: layer {index} has (i, o, bias) = {got}, expected {expected}"
                )
        elif x.signature != y.signature:
            raise ValueError(
                f"other: layer {index} is {y.signature}, expected {x.signature} as in the first"
            )
        if (x.w is None) != (y.w is None):
            raise ValueError(
                f"other: layer {index} expected cotangents that are "
                f"{'not ' if x.w is None else ''}Separable, as in the first"
            )
    if left[0].batch != right[0].batch:
        raise ValueError(f"other: batch is {right[0].batch}, expected {left[0].batch}")
    for what, of in (("dtype", dtype_name), ("array library", library), ("device", device_name)):
        if of(left[0].g) != of(right[0].g):
            raise TypeError(
                f"other: expected {what} {of(left[0].g)} as in the first, got {of(right[0].g)}"
            )


def check_same_outputs(c: int, d: int) -> None:
    """Check the numbers of outputs where each meets its like."""
    if c != d:
        raise ValueError(f"other: has {d} outputs, expected {c} as the first unless outputs='full'")


def check_out(out: Array, shape: tuple[int, ...], like: Array, dtype: str) -> Array:
    """Check that `out` can take a result of `shape` and `dtype` on the device of `like`."""
    if library(out, "out") == "jax":
        raise ValueError("out: jax arrays cannot be written; pass a numpy array")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out: expected shape {tuple(shape)}, got {tuple(out.shape)}")
    if dtype_name(out) != dtype:
        raise TypeError(f"out: expected dtype {dtype}, got dtype {dtype_name(out)}")
    if device_name(out) != device_name(like):
        raise TypeError(f"out: expected device {device_name(like)}, got {device_name(out)}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out: is read-only, expected a writable array")
    return out


def thread_number(threads: int) -> int:
    """Check a number of threads, 0 for the automatic one."""
    if (
        isinstance(threads, bool)
        or not isinstance(threads, numbers.Integral)
        or not 0 <= threads <= 4096
    ):
        raise ValueError(
            f"threads: expected an integer from 0 (automatic) to 4096, got {threads!r}"
        )
    return int(threads)


def raise_report(
    report: _native.GramReport, left: Sequence[Layer], right: Sequence[Layer] | None
) -> None:
    """Raise what a `report` that is not OK says, by the names that the layers' arrays have."""
    if report.kind == _native.OVERFLOW:
        raise NumericalError(
            f"gram: the result overflows {result_dtype(left[0].g)}; scale the factors"
        )
    layers = left if report.side == 0 or right is None else right
    layer = layers[report.layer]
    array = (layer.a, layer.g, layer.w)[report.argument]
    name = next(key for key, value in layer.arrays.items() if value is array)
    host = to_numpy(array)
    bad = np.argwhere(~np.isfinite(host))
    if len(bad) == 0:
        raise NumericalError(f"{name}: its sum over outputs overflows {dtype_name(array)}")
    index = tuple(int(k) for k in bad[0])
    where = f"other, {name}" if report.side else name
    if layer.label is not None and not (report.side and layer.label == "other"):
        where = f"layer {layer.label!r}, {where}"
    elif len(layers) > 1:
        where = f"layers[{report.layer}], {where}"
    raise NonFiniteError(f"{where}: expected finite numbers, got {host[index]} at index {index}")
