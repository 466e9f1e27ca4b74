# SPDX-License-Identifier: Apache-2.0
"""Gram matrices of per-sample Jacobians: ``K[n, c, m, d] = <J[n, c], J2[m, d]>``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fastfisher import _by_library, _native
from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    empty,
    final,
    result_dtype,
    to_dtype,
)
from fastfisher._gram_checks import (
    Outputs,
    check_option,
    check_out,
    check_outputs,
    check_pair,
    check_same_outputs,
    raise_report,
    thread_number,
)
from fastfisher._info import GramInfo, LayerInfo
from fastfisher._layer import Layer, check_layers
from fastfisher._lookup import cut_pair
from fastfisher._memory import layer_bytes, memory_bytes, noted, scratch_bytes, sum_bytes
from fastfisher._progress import progress_numbers
from fastfisher.factors import Dense, Explicit, Separable, Shared

if TYPE_CHECKING:
    from fastfisher._jacobian import Jacobian

Precision = Literal["highest", "high", "medium", "exact"]
Method = Literal["auto", "S0", "S1", "S2", "S3", "S4"]

_PRECISIONS = ("highest", "high", "medium", "exact")


def gram(
    a: Array | Jacobian,
    g: Array | Separable | None = None,
    *,
    other: Jacobian | tuple[Array, Array] | None = None,
    outputs: Outputs = "full",
    bias: bool = False,
    precision: Precision = "highest",
    method: Method = "auto",
    out: Array | None = None,
    memory_limit: int | str | None = None,
    threads: int = 0,
    batch: bool = False,
    progress: bool = False,
    return_info: bool = False,
) -> Any:
    """Gram matrix of per-sample Jacobians, from one layer's factors or from a Jacobian.

    Parameters
    ----------
    a : array, shape (n, i) or (n, s, i), float32 | float64 | bfloat16 | float16, or Jacobian
        Inputs of one dense layer, or of a weight used at s positions; or a Jacobian, whose layers
        are summed.
    g : array, shape (n, c, o) or (n, c, s, o), or Separable; dtype, device and library of `a`
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
        "highest": products and sums along a depth in the dtype of the input (16-bit floats: in
        float32). "exact": float64 products. "medium" permits a GPU single TF32 products, errors
        near 3e-4; "high" is "highest", and on the CPU both are. Layers are summed in float64 in
        any case.
    method : "auto" | "S0" | "S1" | "S2" | "S3" | "S4"
        How layers are computed, see Notes; by default each as a cost model says. A method that a
        layer does not have is an error.
    out : array, optional
        Where to write, tile by tile; of the result's dtype, on the device of `a`, any strides, a
        memmap too. Returned.
    memory_limit : int or str, optional
        Bytes of scratch memory beside the factors and the output, for instance ``"512MB"``; by
        default on a GPU 1 GiB and twice the factors, elsewhere 48 MiB, or an eighth of the factors
        or two thirds of a byte a parameter where that is more and a weight is shared. Less memory
        means more passes over the factors. The summed gradients of "sum" and its float32 copies of
        16-bit factors are part of a given limit, and come on top of the default.
    threads : int
        0 means FASTFISHER_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use.
    batch : bool
        Whether all arrays have a leading axis e: one Gram for each of e networks, in one call. Not
        with a Jacobian, whose layers know.
    progress : bool
        Whether to show a progress bar on standard error.
    return_info : bool
        Whether to return ``(array, GramInfo)``.

    Returns
    -------
    array
        In the library and on the device of `a`, in its dtype, for 16-bit floats in float32.

        - "full": (N, C, M, D), contiguous, so ``.reshape(N * C, M * D)`` is ``J @ J2.T``
        - "trace": (N, M), sum over c of full[n, c, m, c]
        - "diagonal": (N, M, C), full[n, c, m, c]
        - "sum": (N, M), Gram of the summed outputs, sum over c and d of full[n, c, m, d]
        - int c: (N, M), full[n, c, m, c]

        With `batch` each has a leading axis e.

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
    ``K[n, c, m, d] = sum_l <J_l[n, c], J_l[m, d]>``, the dual of the Fisher matrix times N
    (Karakida, Akaho and Amari 2019, arXiv:1806.01316). No N C x P Jacobian is formed. Multiply-adds
    of one layer, a pair of samples with T positions, all halved when square:

    ====== ================================================== ==================================
    S0     dense: (A A^T) entrywise (G G^T)                   ``i + C D o``
    S1     per-sample gradients of a slice of parameters      ``C D i o``, a sample ``T C i o``
    S2     one side's gradients applied to the other's inputs ``C T i o + C D T o``
    S3     position pairs, contracted with one side first     ``T^2 (i + C o) + C D T o``
    S4     separable cotangents                               ``o (i + C D)``, a sample ``T i o``
    ====== ================================================== ==================================

    Results do not depend on `threads` or `memory_limit`. Factors whose largest entry is beyond
    2^48 (float64: 2^480; other methods than S0: 2^12 and 2^120) or below its inverse are scaled by
    one power of two a layer; where samples differ so much that this is not enough, a by one a
    sample and g by its inverse (beside a bias only by S1, S4 and "exact"; others raise). Errors are
    relative to the largest product of the a and the g of a sample, entries of one sample that are
    smaller by the square root of float64's range do not count; where float32 would lose more, by
    huge numbers that meet zeros, the Gram is computed again, exactly. Runs without the GIL; Ctrl-C
    stops within a tile and leaves `out` unspecified, as an error does.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> a = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> g = np.array([[[1.0]], [[2.0]]])
    >>> ff.gram(a, g, outputs="trace")
    array([[  5.,  22.],
           [ 22., 100.]])
    >>> kernel, info = ff.gram(np.ones((2, 9, 3)), np.ones((2, 1, 9, 4)), return_info=True)
    >>> info.layers[0].form
    'Shared'
    """
    options: dict[str, Any] = {
        "outputs": outputs,
        "precision": precision,
        "method": method,
        "out": out,
        "memory_limit": memory_limit,
        "threads": threads,
        "progress": progress,
        "return_info": return_info,
    }
    if g is None:
        return _gram_of_jacobian(a, other, bias=bias, batch=batch, **options)
    right = None
    if other is not None:
        if not (isinstance(other, tuple) and len(other) == 2):
            raise TypeError(f"other: expected a tuple (a2, g2), got {type(other).__name__}")
        right = [_layer(*other, bias=bias, label="other", batch=batch)]
    return gram_factors([_layer(a, g, bias=bias, label=None, batch=batch)], right, **options)


def _layer(a: Array, g: Array, *, bias: bool, label: str | None, batch: bool) -> Layer:
    """Layer that the ranks of `a` and `g` speak of."""
    shared = isinstance(g, Separable) or len(getattr(a, "shape", ())) - bool(batch) == 3
    return (Shared if shared else Dense)(a, g, bias=bias, label=label, batch=batch)


def _gram_of_jacobian(
    jacobian: Jacobian, other: object, *, bias: bool, batch: bool, **options: Any
) -> Any:
    from fastfisher._jacobian import Jacobian

    if not isinstance(jacobian, Jacobian):
        raise TypeError(
            f"gram: expected a Jacobian, or arrays a and g; got {type(jacobian).__name__} and no g"
        )
    if bias or batch:
        name = "bias" if bias else "batch"
        raise ValueError(f"{name}: not with a Jacobian, whose layers say it themselves")
    if other is not None and not isinstance(other, Jacobian):
        raise TypeError(f"other: expected a Jacobian, got {type(other).__name__}")
    return jacobian.gram(other, **options)


def gram_factors(
    left: Sequence[Layer],
    right: Sequence[Layer] | None = None,
    *,
    outputs: Outputs = "full",
    precision: Precision = "highest",
    method: Method = "auto",
    out: Array | None = None,
    memory_limit: int | str | None = None,
    threads: int = 0,
    progress: bool = False,
    return_info: bool = False,
) -> Any:
    """Gram of two lists of layers, see `gram`; `right` None means `left` with itself."""
    check_layers(left)
    if right is not None:
        check_pair(left, right)
    check_option("precision", precision, _PRECISIONS)
    check_option("method", method, ("auto", *_native.GRAM_METHODS))
    kind = check_outputs(outputs, left[0].n_outputs)
    if right is not None and outputs != "full" and outputs != "sum":
        check_same_outputs(left[0].n_outputs, right[0].n_outputs)
    given_left, given_right = left, right
    left, right = cut_pair(left, right)
    besides, scarce = 0, False
    if outputs == "sum" and memory_limit is not None and device_name(left[0].g) == "cpu":
        besides = sum_bytes((*left, *(right or ())))
        # Then nothing is summed, only asked how much it takes.
        scarce = besides >= memory_bytes(memory_limit)
    if kind != outputs:
        left = _select(left, outputs, scarce)
        right = right and _select(right, outputs, scarce)
    like = left[0].g
    n, c = left[0].samples, left[0].n_outputs
    m, d = (n, c) if right is None else (right[0].samples, right[0].n_outputs)
    batch = left[0].batch
    shape: tuple[int, ...] = {"full": (n, c, m, d), "trace": (n, m), "diagonal": (n, m, c)}[kind]
    if batch is not None:
        shape = (batch, *shape)
    dtype = result_dtype(like)
    result = empty(shape, like, dtype) if out is None else check_out(out, shape, like, dtype)
    start = time.perf_counter()
    if _by_library.is_needed((*left, *(right or ()))):
        if batch is not None or method != "auto":
            what = "batch" if batch is not None else "method"
            raise NotImplementedError(f"{what}: runs on the CPU only, got {device_name(like)}")
        limit = memory_bytes(memory_limit)
        _by_library.gram(left, right, result, outputs=kind, memory_limit=limit)
        seconds = time.perf_counter() - start
        return (result, library_info(left, limit, seconds)) if return_info else result
    target = result
    if precision == "exact" and not _is_exact(left):
        # There gradients are formed in the dtype of the factors.
        left = [_by_library.in_dtype(layer, "float64") for layer in left]
        right = right and [_by_library.in_dtype(layer, "float64") for layer in right]
        result = empty(shape, like, "float64")

    def run(precision: Precision) -> tuple[_native.GramReport, _native.GramEstimate]:
        with progress_numbers(progress, "Gram") as numbers_, noted(besides, memory_limit):
            return _native.gram(
                [layer.native() for layer in left],
                [layer.native() for layer in right or ()],
                result,
                outputs=kind,
                precision=precision,
                method=method,
                memory_limit=max(0, scratch_bytes(memory_limit, left, right) - besides),
                threads=thread_number(threads),
                batched=batch is not None,
                progress=numbers_,
            )

    report, estimate = run(precision)
    if report.kind == _native.LOST:  # only on the CPU, which is exact on factors as they are
        report, estimate = run("exact")
    if report.kind != _native.OK:
        raise_report(report, given_left, given_right)
    if target is not result:
        target[...] = to_dtype(result, dtype)
        result = target
    result = final(result, like) if out is None else out
    if not return_info:
        return result
    return result, _info_of(left, right, estimate, time.perf_counter() - start)


def _is_exact(layers: Sequence[Layer]) -> bool:
    """Whether the native Gram can be exact on these layers as they are."""
    like = layers[0].g
    return (
        device_name(like) == "cpu"
        or dtype_name(like) == "float64"
        or all(type(layer) in (Dense, Explicit) for layer in layers)
    )


def _info_of(
    left: Sequence[Layer],
    right: Sequence[Layer] | None,
    estimate: _native.GramEstimate,
    seconds: float,
) -> GramInfo:
    layers = tuple(
        LayerInfo(
            layer.label or str(index),
            type(layer).__name__,
            _native.GRAM_METHODS[method],
            multiply_adds,
            predicted,
            layer_bytes(layer) + (0 if right is None else layer_bytes(right[index])),
        )
        for index, (layer, (method, multiply_adds, predicted)) in enumerate(
            zip(left, estimate.choices, strict=True)
        )
    )
    return GramInfo(layers, estimate.workspace_bytes, estimate.blocks, estimate.slabs, seconds)


def library_info(left: Sequence[Layer], limit: int, seconds: float) -> GramInfo:
    """Info of a Gram by the caller's library, whose method has no number."""
    layers = tuple(
        LayerInfo(layer.label or str(k), type(layer).__name__, "library", math.nan, math.nan)
        for k, layer in enumerate(left)
    )
    return GramInfo(layers, limit, 1, 1, seconds)


def _select(layers: Sequence[Layer], outputs: Outputs, sizes_only: bool) -> list[Layer]:
    """Layers of the one output that "sum" or an integer asks for."""
    if outputs == "sum":
        return [layer.summed(sizes_only=sizes_only) for layer in layers]

    def one(x: Array, axis: int) -> Array:
        c = int(outputs) % x.shape[axis]
        return x[(slice(None),) * axis + (slice(c, c + 1),)]

    return [layer.with_outputs(one) for layer in layers]
