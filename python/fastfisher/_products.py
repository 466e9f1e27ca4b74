# SPDX-License-Identifier: Apache-2.0
"""Products with a Jacobian held as factors: ``J v`` and ``J^T u``, no matrix formed.

Native ops do the work on the CPU and, where the CUDA backend is available, on a GPU; the caller's
library does elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastfisher import _by_library, _native
from fastfisher._arrays import (
    Array,
    dtype_name,
    empty,
    final,
    namespace,
    result_dtype,
    to_numpy,
)
from fastfisher._layer import Layer
from fastfisher.errors import NonFiniteError, NumericalError


def jvp(layers: Sequence[Layer], v: Array, given: Array) -> Array:
    """``J v`` (n, c, k) for v (p, k); `given` is v as the caller has it, for messages."""
    if _by_library.is_needed_for_products(layers):
        return _by_library.jvp(layers, v)
    like = layers[0].g
    shape = (layers[0].samples, layers[0].n_outputs, int(v.shape[1]))
    out = empty(shape, like, result_dtype(like))
    report = _native.jvp([layer.native() for layer in layers], v, out)
    if report.kind != _native.OK:
        _raise(report, layers, given, "v")
    return final(out, like)


def vjp(layers: Sequence[Layer], u: Array, given: Array) -> Array:
    """``J^T u`` (p, k) for u (n, c, k); `given` is u as the caller has it, for messages."""
    if _by_library.is_needed_for_products(layers):
        return _by_library.vjp(layers, u)
    like = layers[0].g
    shape = (sum(layer.parameters for layer in layers), int(u.shape[2]))
    out = empty(shape, like, result_dtype(like))
    report = _native.vjp([layer.native() for layer in layers], u, out)
    if report.kind != _native.OK:
        _raise(report, layers, given, "u")
    return final(out, like)


def check_dense(j: Array, layers: Sequence[Layer]) -> None:
    """Check that a formed Jacobian is finite."""
    if bool(namespace(j).isfinite(j).all()):
        return
    for index, layer in enumerate(layers):
        for name, array in layer.arrays.items():
            host = to_numpy(array)
            bad = np.argwhere(~np.isfinite(host))
            if len(bad):
                at = tuple(int(k) for k in bad[0])
                where = _place(layers, index, name)
                raise NonFiniteError(
                    f"{where}: expected finite numbers, got {host[at]} at index {at}"
                )
    raise NumericalError(f"dense: an entry overflows {dtype_name(j)}; scale the factors")


def _place(layers: Sequence[Layer], index: int, name: str) -> str:
    if layers[index].label is not None:
        return f"layer {layers[index].label!r}, {name}"
    return f"layers[{index}], {name}" if len(layers) > 1 else name


def _raise(report: _native.ProductReport, layers: Sequence[Layer], given: Array, name: str) -> None:
    array, where = given, name
    if report.kind == _native.NON_FINITE and report.layer >= 0:
        layer = layers[report.layer]
        array = (layer.a, layer.g, layer.w)[report.argument]
        name_of = next(key for key, value in layer.arrays.items() if value is array)
        where = _place(layers, report.layer, name_of)
    host = to_numpy(array)
    bad = np.argwhere(~np.isfinite(host))
    if report.kind == _native.OVERFLOW or len(bad) == 0:
        product = "J @ v" if name == "v" else "J.T @ u"
        raise NumericalError(
            f"{product}: the result overflows {result_dtype(layers[0].g)}; scale {name} or the "
            "factors"
        )
    index = tuple(int(k) for k in bad[0])
    raise NonFiniteError(f"{where}: expected finite numbers, got {host[index]} at index {index}")


def bmm(a: Array, b: Array, out: Array) -> None:
    """Write ``a @ b`` of the CPU, or of matrices along a first axis, by the kernels of the Gram."""
    _native.bmm(a, b, out)


beside_torch = _native.beside_torch


def outruns_mkl() -> bool:
    """Whether `bmm` takes about half as long as MKL's on this processor."""
    return bool(_native.build_info()["outruns_mkl"])
