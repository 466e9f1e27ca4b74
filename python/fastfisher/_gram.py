# SPDX-License-Identifier: Apache-2.0
"""Gram matrices of per-sample Jacobians: ``K[n, c, m, d] = <J[n, c], J2[m, d]>``."""

from __future__ import annotations

import numbers
import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastfisher import _native
from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    empty,
    final,
    library,
    namespace,
    to_numpy,
)
from fastfisher.errors import NonFiniteError, NumericalError
from fastfisher.factors import Dense, check_layers

if TYPE_CHECKING:
    from fastfisher._jacobian import Jacobian

Outputs = Literal["full", "trace", "diagonal", "sum"] | int
Precision = Literal["highest", "high", "medium", "exact"]

DEFAULT_MEMORY = 48 << 20
_MOST_MEMORY = 2**62
_PRECISIONS = ("highest", "high", "medium", "exact")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def gram(
    a: Array | Jacobian,
    g: Array | None = None,
    *,
    other: Jacobian | tuple[Array, Array] | None = None,
    outputs: Outputs = "full",
    bias: bool = False,
    precision: Precision = "highest",
    out: Array | None = None,
    memory_limit: int | str | None = None,
    threads: int = 0,
) -> Array:
    """Gram matrix of per-sample Jacobians, from one layer's factors or from a Jacobian.

    Parameters
    ----------
    a : array, shape (n, i), float32 | float64, or Jacobian
        Inputs of one dense layer; or a Jacobian, whose layers are summed.
    g : array, shape (n, c, o), same dtype, device and library as `a`
        Gradients of the c outputs with respect to the layer's pre-activations. Not with a Jacobian.
    other : Jacobian or (a2, g2), optional
        The second set of samples, for the cross Gram. By default the first set meets itself: then
        only one half is computed and the result is symmetric bit for bit with a diagonal that is
        not negative.
    outputs : "full" | "trace" | "diagonal" | "sum" | int
        Which outputs meet which, see Returns. Trace is a plain sum over c, not divided by C.
    bias : bool
        Whether the layer has a bias (`a` then gains a trailing 1). Not with a Jacobian, whose
        layers know.
    precision : "highest" | "high" | "medium" | "exact"
        "highest": products and sums along a depth in the dtype of the input. "exact": float32
        input, float64 products. "high" and "medium" permit a device less than that; the CPU has no
        use for it. Layers are summed in float64 in any case.
    out : array, optional
        Where to write; same dtype and device as `a`, any strides. Returned.
    memory_limit : int or str, optional
        Bytes of scratch memory beside the factors and the output, for instance ``"512MB"``;
        48 MiB by default. Less memory means more passes over the factors, never other numbers.
    threads : int
        0 means FASTFISHER_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use.

    Returns
    -------
    array
        In the library and dtype and on the device of `a`.

        - "full": (N, C, M, D), contiguous, so ``.reshape(N * C, M * D)`` is ``J @ J2.T``
        - "trace": (N, M), sum over c of full[n, c, m, c]
        - "diagonal": (N, M, C), full[n, c, m, c]
        - "sum": (N, M), Gram of the summed outputs, sum over c and d of full[n, c, m, d]
        - int c: (N, M), full[n, c, m, c]

    Raises
    ------
    ValueError
        A wrong shape or value, an `out` that is read-only or overlaps an input.
    TypeError
        Not an array, or a dtype, device or library that does not fit.
    NonFiniteError
        An input holds NaN or infinity; the message says where.
    NumericalError
        The result overflows the dtype.
    MemoryError
        `memory_limit` is too small; the message says what is needed.

    Notes
    -----
    ``K[n, c, m, d] = sum_l (<a_l[n], a_l[m]> + bias_l) <g_l[n, c], g_l[m, d]>``, the dual
    of the Fisher matrix times N (Karakida, Akaho and Amari 2019, arXiv:1806.01316).
    Multiply-adds: ``N M (i + C D o)`` a layer, halved when square; no N C x P Jacobian is formed.
    Results do not depend on `threads` or `memory_limit`. Factors whose largest entry is beyond
    2^48 (float64: 2^480) or below its inverse are scaled by one power of two a layer: errors are
    relative to the layer's largest samples, and samples smaller by the square root of the dtype's
    range do not count. Runs without the GIL; Ctrl-C stops within
    a tile and leaves `out` unspecified.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> a = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> g = np.array([[[1.0]], [[2.0]]])
    >>> ff.gram(a, g, outputs="trace")
    array([[  5.,  22.],
           [ 22., 100.]])
    """
    if g is None:
        return _gram_of_jacobian(
            a,
            other,
            bias,
            outputs=outputs,
            precision=precision,
            out=out,
            memory_limit=memory_limit,
            threads=threads,
        )
    right = None
    if other is not None:
        if not (isinstance(other, tuple) and len(other) == 2):
            raise TypeError(f"other: expected a tuple (a2, g2), got {type(other).__name__}")
        right = [Dense(*other, bias=bias, label="other")]
    return gram_factors(
        [Dense(a, g, bias=bias)],
        right,
        outputs=outputs,
        precision=precision,
        out=out,
        memory_limit=memory_limit,
        threads=threads,
    )


def _gram_of_jacobian(
    jacobian: Jacobian, other: object, bias: bool, *, outputs: Outputs, **options: object
) -> Array:
    from fastfisher._jacobian import Jacobian

    if not isinstance(jacobian, Jacobian):
        raise TypeError(
            f"gram: expected a Jacobian, or arrays a and g; got {type(jacobian).__name__} and no g"
        )
    if bias:
        raise ValueError("bias: not with a Jacobian, whose layers say whether they have one")
    if other is not None and not isinstance(other, Jacobian):
        raise TypeError(f"other: expected a Jacobian, got {type(other).__name__}")
    return jacobian.gram(other, outputs=outputs, **options)  # type: ignore[arg-type]


def gram_factors(
    left: Sequence[Dense],
    right: Sequence[Dense] | None = None,
    *,
    outputs: Outputs = "full",
    precision: Precision = "highest",
    out: Array | None = None,
    memory_limit: int | str | None = None,
    threads: int = 0,
) -> Array:
    """Gram of two lists of layers, see `gram`; `right` None means `left` with itself."""
    check_layers(left)
    if right is not None:
        _check_pair(left, right)
    if precision not in _PRECISIONS:
        raise ValueError(f"precision: expected one of {_PRECISIONS}, got {precision!r}")
    kind = check_outputs(outputs, left[0].n_outputs)
    if right is not None and outputs != "full" and outputs != "sum":
        _check_same_outputs(left[0].n_outputs, right[0].n_outputs)
    given_left, given_right = left, right
    if kind != outputs:
        left, right = _select(left, outputs), right and _select(right, outputs)
    like = left[0].a
    n, c = left[0].g.shape[:2]
    m, d = (n, c) if right is None else right[0].g.shape[:2]
    shape = {"full": (n, c, m, d), "trace": (n, m), "diagonal": (n, m, c)}[kind]
    result = empty(shape, like) if out is None else _check_out(out, shape, like)
    report = _native.gram(
        [(layer.a, layer.g, layer.bias) for layer in left],
        [(layer.a, layer.g, layer.bias) for layer in right or ()],
        result,
        outputs=kind,
        exact=precision == "exact",
        memory_limit=memory_bytes(memory_limit),
        threads=_thread_number(threads),
    )
    if report.kind != _native.OK:
        _raise(report, given_left, given_right)
    return final(result, like) if out is None else out


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


def _select(layers: Sequence[Dense], outputs: Outputs) -> list[Dense]:
    """Layers of the one output that "sum" or an integer asks for."""

    def one(g: Array) -> Array:
        if outputs == "sum":
            return namespace(g).sum(g, axis=1)[:, None]
        c = int(outputs) % g.shape[1]
        return g[:, c : c + 1]

    return [Dense(x.a, one(x.g), bias=x.bias, label=x.label) for x in layers]


def _check_pair(left: Sequence[Dense], right: Sequence[Dense]) -> None:
    check_layers(right)
    if len(right) != len(left):
        raise ValueError(f"other: expected {len(left)} layers as in the first, got {len(right)}")
    for index, (x, y) in enumerate(zip(left, right, strict=True)):
        got, expected = (y.a.shape[1], y.g.shape[2], y.bias), (x.a.shape[1], x.g.shape[2], x.bias)
        if got != expected:
            raise ValueError(f"other: layer {index} has (i, o, bias) = {got}, expected {expected}")
    for what, of in (("dtype", dtype_name), ("array library", library), ("device", device_name)):
        if of(left[0].a) != of(right[0].a):
            raise TypeError(
                f"other: expected {what} {of(left[0].a)} as in the first, got {of(right[0].a)}"
            )


def _check_same_outputs(c: int, d: int) -> None:
    if c != d:
        raise ValueError(f"other: has {d} outputs, expected {c} as the first unless outputs='full'")


def _check_out(out: Array, shape: tuple[int, ...], like: Array) -> Array:
    if library(out, "out") == "jax":
        raise ValueError("out: jax arrays cannot be written; pass a numpy array")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out: expected shape {tuple(shape)}, got {tuple(out.shape)}")
    for what, of in (("dtype", dtype_name), ("device", device_name)):
        if of(out) != of(like):
            raise TypeError(f"out: expected {what} {of(like)}, got {what} {of(out)}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out: is read-only, expected a writable array")
    return out


def memory_bytes(limit: int | str | None) -> int:
    """Bytes that a `memory_limit` stands for: a number, or text such as "512MB", "1.5 GiB"."""
    if limit is None:
        return DEFAULT_MEMORY
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]I?|)B?\s*", limit.upper())
        if match is None:
            raise ValueError(f"memory_limit: expected bytes or text such as '512MB', got {limit!r}")
        return int(min(float(match[1]) * _UNITS[match[2]], _MOST_MEMORY))
    if isinstance(limit, bool) or not isinstance(limit, numbers.Real) or not limit >= 0:
        raise ValueError(f"memory_limit: expected bytes or text such as '512MB', got {limit!r}")
    return int(min(limit, _MOST_MEMORY))


def _thread_number(threads: int) -> int:
    if (
        isinstance(threads, bool)
        or not isinstance(threads, numbers.Integral)
        or not 0 <= threads <= 4096
    ):
        raise ValueError(
            f"threads: expected an integer from 0 (automatic) to 4096, got {threads!r}"
        )
    return int(threads)


def _raise(
    report: _native.GramReport, left: Sequence[Dense], right: Sequence[Dense] | None
) -> None:
    if report.kind == _native.OVERFLOW:
        raise NumericalError(
            f"gram: the result overflows {dtype_name(left[0].a)}; scale the factors"
        )
    layers = left if report.side == 0 or right is None else right
    layer = layers[report.layer]
    name = "ag"[report.argument]
    array = layer.a if name == "a" else layer.g
    host = to_numpy(array)
    bad = np.argwhere(~np.isfinite(host))
    if len(bad) == 0:
        raise NumericalError(f"{name}: its sum over outputs overflows {dtype_name(array)}")
    index = tuple(int(k) for k in bad[0])
    where = f"other, {name}" if report.side else name
    if layer.label is not None:
        where = f"layer {layer.label!r}, {where}"
    elif len(layers) > 1:
        where = f"layers[{report.layer}], {where}"
    raise NonFiniteError(f"{where}: expected finite numbers, got {host[index]} at index {index}")
