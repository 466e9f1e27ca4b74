# SPDX-License-Identifier: Apache-2.0
"""Numpy's functions for arrays of a device: what each name means in torch, by numpy's dtypes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher._device_array import DeviceArray, dtype_of, is_tensor, moved_to, operand, torch_

__all__ = ["CREATORS", "FUNCTIONS", "UFUNCS"]


def _alike(tensors: list[Any]) -> list[Any]:
    """Tensors in the dtype that numpy would give all of them."""
    torch = torch_()
    kinds = [x.dtype for x in tensors]
    if len(set(kinds)) == 1:
        return tensors
    kind = kinds[0]
    for one in kinds[1:]:
        kind = torch.promote_types(kind, one)
    return [x.to(kind) for x in tensors]


def _tensors(arrays: Any) -> list[Any]:
    like = next(x.tensor for x in arrays if isinstance(x, DeviceArray))
    return _alike([operand(x, like) for x in arrays])


def _full(x: Any, y: Any) -> tuple[Any, Any]:
    """Both as tensors of one dtype; a number becomes a tensor of the other's."""
    torch = torch_()
    if not is_tensor(x):
        x = torch.full((), x, dtype=y.dtype, device=y.device)
    if not is_tensor(y):
        y = torch.full((), y, dtype=x.dtype, device=x.device)
    x, y = _alike([x, y])
    return x, y


def _paired(x: Any, y: Any) -> tuple[Any, Any]:
    """Both in one dtype; numbers stay."""
    if is_tensor(x) and is_tensor(y):
        x, y = _alike([x, y])
    return x, y


def _named(name: str) -> Callable[..., Any]:
    return lambda *x: getattr(torch_(), name)(*x)


def _both(name: str) -> Callable[..., Any]:
    return lambda x, y: getattr(torch_(), name)(*_full(x, y))


UFUNCS: dict[str, Callable[..., Any]] = {
    **{
        name: _named(name)
        for name in (
            "square", "sqrt", "exp", "log", "log1p", "negative", "isfinite", "isnan", "sign",
            "tanh",
        )
    },
    **{
        name: _both(name)
        for name in ("matmul", "maximum", "minimum", "logaddexp", "bitwise_and", "bitwise_or")
    },
    "add": lambda x, y: operator.add(*_paired(x, y)),
    "subtract": lambda x, y: operator.sub(*_paired(x, y)),
    "multiply": lambda x, y: operator.mul(*_paired(x, y)),
    "divide": lambda x, y: operator.truediv(*_paired(x, y)),
    "absolute": _named("abs"),
    "invert": _named("bitwise_not"),
    "logical_not": _named("logical_not"),
    "power": lambda x, y: x**y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
}  # fmt: skip


def _solve(a: Any, b: Any) -> Any:
    torch = torch_()
    try:
        return DeviceArray(torch.linalg.solve(*_tensors([a, b])))
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(str(error)) from None


def _factorised(name: str) -> Callable[..., Any]:
    def call(a: Any, **options: Any) -> Any:
        torch = torch_()
        try:
            found = getattr(torch.linalg, name)(a.tensor, **options)
        except torch.linalg.LinAlgError as error:
            raise np.linalg.LinAlgError(str(error)) from None
        return DeviceArray(found) if is_tensor(found) else tuple(map(DeviceArray, found))

    return call


def _norm(x: Any, ord: Any = None, axis: Any = None) -> Any:
    torch = torch_()
    if ord is not None:
        return DeviceArray(torch.linalg.norm(x.tensor, ord, dim=axis))
    return DeviceArray(torch.linalg.vector_norm(x.tensor, dim=axis))


def _where(condition: Any, x: Any, y: Any) -> Any:
    like = next(one.tensor for one in (condition, x, y) if isinstance(one, DeviceArray))
    chosen, first, second = (operand(one, like) for one in (condition, x, y))
    if is_tensor(first) or is_tensor(second):
        first, second = _full(first, second)
    else:
        first = torch_().full((), float(first), dtype=torch_().float64, device=like.device)
    return DeviceArray(torch_().where(chosen, first, second))


def _einsum(text: str, *arrays: Any, optimize: Any = False) -> Any:
    return DeviceArray(torch_().einsum(text, *_tensors(arrays)))


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if not isinstance(axes, int):
        axes = [[k] if isinstance(k, int) else list(k) for k in axes]
    return DeviceArray(torch_().tensordot(*_tensors([a, b]), dims=axes))


def _joined(name: str) -> Callable[..., Any]:
    def call(arrays: Any, axis: int = 0) -> Any:
        return DeviceArray(getattr(torch_(), name)(_tensors(list(arrays)), axis))

    return call


def _block(rows: Any) -> Any:
    torch = torch_()
    return DeviceArray(torch.cat([torch.cat(_tensors(row), -1) for row in rows], -2))


def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    return DeviceArray(a.tensor.diagonal(offset, axis1, axis2))


def _trace(a: Any, axis1: int = 0, axis2: int = 1, dtype: Any = None) -> Any:
    return _diagonal(a, 0, axis1, axis2).sum(-1, dtype=dtype)


def _outer(a: Any, b: Any) -> Any:
    return DeviceArray(torch_().outer(*_tensors([a, b])))


def _tile(a: Any, reps: Any) -> Any:
    return DeviceArray(a.tensor.tile(reps if isinstance(reps, tuple) else (reps,)))


def _bincount(x: Any, minlength: int = 0) -> Any:
    return DeviceArray(torch_().bincount(x.tensor, minlength=minlength))


def _argwhere(a: Any) -> Any:
    return DeviceArray(torch_().nonzero(a.tensor))


def _empty_like(a: Any, dtype: Any = None) -> Any:
    kind = a.tensor.dtype if dtype is None else dtype_of(dtype)
    return DeviceArray(torch_().empty_like(a.tensor, dtype=kind))


def _zeros_like(a: Any, dtype: Any = None) -> Any:
    kind = a.tensor.dtype if dtype is None else dtype_of(dtype)
    return DeviceArray(torch_().zeros_like(a.tensor, dtype=kind))


def _full_like(a: Any, value: Any) -> Any:
    return DeviceArray(torch_().full_like(a.tensor, value))


def _pinv(a: Any) -> Any:
    # numpy's bound for singular values: 1e-15 of the largest.
    return DeviceArray(torch_().linalg.pinv(a.tensor, rtol=1e-15))


def _qr(a: Any) -> Any:
    return tuple(map(DeviceArray, torch_().linalg.qr(a.tensor)))


# With ``like=``: the first argument is the tensor whose device is meant.


def _zeros(like: Any, shape: Any, dtype: Any = float) -> Any:
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    return DeviceArray(torch_().zeros(shape, dtype=dtype_of(dtype), device=like.device))


def _empty(like: Any, shape: Any, dtype: Any = float) -> Any:
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    return DeviceArray(torch_().empty(shape, dtype=dtype_of(dtype), device=like.device))


def _ones(like: Any, shape: Any, dtype: Any = float) -> Any:
    return _zeros(like, shape, dtype) + 1


def _eye(like: Any, size: int, dtype: Any = float) -> Any:
    return DeviceArray(torch_().eye(size, dtype=dtype_of(dtype), device=like.device))


def _arange(like: Any, *bounds: int) -> Any:
    return DeviceArray(torch_().arange(*bounds, device=like.device))


def _asarray(like: Any, x: Any, dtype: Any = None) -> Any:
    tensor = x.tensor if isinstance(x, DeviceArray) else moved_to(x, like)
    return DeviceArray(tensor if dtype is None else tensor.to(dtype_of(dtype)))


CREATORS = (_zeros, _empty, _ones, _eye, _arange, _asarray)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "zeros": _zeros,
    "empty": _empty,
    "ones": _ones,
    "eye": _eye,
    "arange": _arange,
    "asarray": _asarray,
    "zeros_like": _zeros_like,
    "empty_like": _empty_like,
    "full_like": _full_like,
    "where": _where,
    "einsum": _einsum,
    "tensordot": _tensordot,
    "concatenate": _joined("cat"),
    "stack": _joined("stack"),
    "block": _block,
    "diagonal": _diagonal,
    "trace": _trace,
    "outer": _outer,
    "tile": _tile,
    "bincount": _bincount,
    "argwhere": _argwhere,
    "swapaxes": lambda a, x, y: a.swapaxes(x, y),
    "broadcast_to": lambda a, shape: DeviceArray(a.tensor.expand(shape)),
    "argmin": lambda a: DeviceArray(a.tensor.argmin()),
    "argsort": lambda a: DeviceArray(a.tensor.argsort()),
    "linalg.norm": _norm,
    "linalg.solve": _solve,
    "linalg.eigh": _factorised("eigh"),
    "linalg.eigvalsh": _factorised("eigvalsh"),
    "linalg.inv": _factorised("inv"),
    "linalg.cholesky": _factorised("cholesky"),
    "linalg.svd": _factorised("svd"),
    "linalg.pinv": _pinv,
    "linalg.qr": _qr,
}
