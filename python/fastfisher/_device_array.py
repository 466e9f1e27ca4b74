# SPDX-License-Identifier: Apache-2.0
"""Tensors of a device under numpy's names, so that code written for numpy's arrays runs there.

Structures, updates and likelihoods are written once, in numpy's words. On the CPU they get numpy's
arrays; a tensor of torch on another device comes as a `DeviceArray`, to which numpy's functions
hand over (``__array_ufunc__``, ``__array_function__``). Nothing is converted in silence: what is
not known here raises, and so does ``numpy.asarray``. ``float(x)``, ``bool(x)`` and ``x.tolist()``
wait for the device and read back what they name. For the type checker these are numpy's arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

_NUMPY: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "float16": np.dtype(np.float16),
}


_BACKWARDS = slice(None, None, -1)


class _Flags:
    """As much of numpy's flags as is asked for."""

    def __init__(self, c_contiguous: bool) -> None:
        self.c_contiguous = c_contiguous
        self.writeable = True


class DeviceArray(NDArrayOperatorsMixin):
    """Tensor of torch with the methods of numpy's arrays, and their rules for dtypes.

    Parameters
    ----------
    tensor : torch.Tensor
        Shared, not copied.
    """

    __slots__ = ("tensor",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    # What tensors say of themselves, for `_arrays` and the native waist.

    @property
    def device(self) -> Any:
        """Of the tensor."""
        return self.tensor.device

    def detach(self) -> DeviceArray:
        """Itself: it records no gradients."""
        return self

    def contiguous(self) -> DeviceArray:
        """Without gaps."""
        return DeviceArray(self.tensor.contiguous())

    @property
    def requires_grad(self) -> bool:
        """Of the tensor."""
        return bool(self.tensor.requires_grad)

    def is_neg(self) -> bool:
        """Of the tensor."""
        return bool(self.tensor.is_neg())

    def __dlpack__(self, **options: Any) -> Any:
        """Memory of the tensor."""
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        """Device of the tensor."""
        return self.tensor.__dlpack_device__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Functions of torch work on the tensor."""
        return dressed(func(*bare(args), **bare(kwargs or {})))

    # What numpy's arrays say of themselves.

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.tensor.ndim)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self.tensor.numel())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of numpy."""
        found: np.dtype[Any] = _NUMPY[str(self.tensor.dtype).rpartition(".")[2]]
        return found

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return int(self.tensor.element_size())

    @property
    def flags(self) -> _Flags:
        """Whether it is contiguous."""
        return _Flags(bool(self.tensor.is_contiguous()))

    @property
    def T(self) -> DeviceArray:
        """All axes turned round."""
        return DeviceArray(self.tensor.permute(*range(self.ndim - 1, -1, -1)))

    def __len__(self) -> int:
        """Extent of the first axis."""
        return int(self.tensor.shape[0])

    def __iter__(self) -> Iterator[DeviceArray]:
        """Along the first axis."""
        return (DeviceArray(one) for one in self.tensor)

    def __float__(self) -> float:
        """Read the number back."""
        return float(self.tensor)

    def __int__(self) -> int:
        """Read the number back."""
        return int(self.tensor)

    def __bool__(self) -> bool:
        """Read the truth back."""
        return bool(self.tensor)

    def __format__(self, spec: str) -> str:
        """Of a number read back."""
        return format(self.tensor.item(), spec)

    def __repr__(self) -> str:
        """Say what it is, not what it holds."""
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def __array__(self, *args: Any, **options: Any) -> Any:
        """Refuse to become numpy's by itself."""
        raise TypeError(
            f"an array on {self.device} was about to be copied to the host; pass x.cpu() for that"
        )

    def tolist(self) -> Any:
        """Read back as numbers."""
        return self.tensor.tolist()

    def item(self) -> Any:
        """Read the number back."""
        return self.tensor.item()

    def __getitem__(self, index: Any) -> DeviceArray:
        """Entries by numpy's rules; positions of the host are moved."""
        index = _tuple(index)
        turned = [k for k, one in enumerate(index) if type(one) is slice and one == _BACKWARDS]
        if turned and all(type(one) is slice for one in index):
            index = tuple(slice(None) if k in turned else one for k, one in enumerate(index))
            return DeviceArray(self.tensor[index].flip(turned))
        return DeviceArray(self.tensor[_index(index, self.tensor)])

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write entries."""
        self.tensor[_index(index, self.tensor)] = _value(value, self.tensor)

    def astype(self, dtype: Any, copy: bool = True) -> DeviceArray:
        """In another dtype; a copy unless told otherwise."""
        return DeviceArray(self.tensor.to(dtype_of(dtype), copy=copy))

    def copy(self) -> DeviceArray:
        """In memory of its own."""
        return DeviceArray(self.tensor.clone())

    def reshape(self, *shape: Any) -> DeviceArray:
        """View where that is possible."""
        return DeviceArray(self.tensor.reshape(*(int(k) for k in _flat(shape))))

    def swapaxes(self, first: int, second: int) -> DeviceArray:
        """View with two axes exchanged."""
        return DeviceArray(self.tensor.transpose(first, second))

    def transpose(self, *axes: Any) -> DeviceArray:
        """View with axes in another order."""
        return DeviceArray(self.tensor.permute(*_flat(axes))) if axes else self.T

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> DeviceArray:
        """Sum over axes."""
        wide = None if dtype is None else dtype_of(dtype)
        axes = tuple(range(self.ndim)) if axis is None else axis
        if axes == ():
            return DeviceArray(self.tensor.clone())
        return DeviceArray(self.tensor.sum(axes, keepdim=keepdims, dtype=wide))

    def mean(self, axis: Any = None, keepdims: bool = False) -> DeviceArray:
        """Mean over axes."""
        axes = tuple(range(self.ndim)) if axis is None else axis
        t = self.tensor if self.tensor.is_floating_point() else self.tensor.double()
        return DeviceArray(t.mean(axes, keepdim=keepdims))

    def max(self, axis: Any = None, *, initial: Any = None, keepdims: bool = False) -> DeviceArray:
        """Largest entry."""
        return self._extreme("amax", axis, initial, keepdims)

    def min(self, axis: Any = None, *, initial: Any = None, keepdims: bool = False) -> DeviceArray:
        """Smallest entry."""
        return self._extreme("amin", axis, initial, keepdims)

    def _extreme(self, name: str, axis: Any, initial: Any, keepdims: bool) -> DeviceArray:
        t = self.tensor
        axes = tuple(range(t.ndim)) if axis is None else axis
        if initial is not None:
            # As one more entry, so that empty arrays have an extreme as well.
            bound = "clamp_min" if name == "amax" else "clamp_max"
            listed = axes if isinstance(axes, tuple) else (axes,)
            if any(t.shape[k] == 0 for k in listed):
                shape = [1 if k in [j % t.ndim for j in listed] else t.shape[k]
                         for k in range(t.ndim)]  # fmt: skip
                t = t.new_full(shape, initial)
            return DeviceArray(getattr(getattr(t, name)(axes, keepdim=keepdims), bound)(initial))
        return DeviceArray(getattr(t, name)(axes, keepdim=keepdims))

    def all(self, axis: Any = None) -> DeviceArray:
        """Whether all are true."""
        return DeviceArray(self.tensor.all() if axis is None else self.tensor.all(axis))

    def any(self, axis: Any = None) -> DeviceArray:
        """Whether any is true."""
        return DeviceArray(self.tensor.any() if axis is None else self.tensor.any(axis))

    def clip(self, low: Any = None, high: Any = None) -> DeviceArray:
        """Bounded from below, from above."""
        return DeviceArray(self.tensor.clamp(min=low, max=high))

    def cumsum(self, axis: int) -> DeviceArray:
        """Add up along an axis."""
        return DeviceArray(self.tensor.cumsum(axis))

    # Numpy's functions.

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Entrywise functions."""
        from fastfisher import _device_functions

        name = ufunc.__name__
        if method == "at" and name == "add":
            into, index, values = inputs
            into.tensor.index_put_(_tuple(_index(index, into.tensor)), _value(values, into.tensor),
                                   accumulate=True)  # fmt: skip
            return None
        if (
            method != "__call__"
            or name not in _device_functions.UFUNCS
            or options.keys() - {"out", "dtype"}
        ):
            return NotImplemented
        like = next(x.tensor for x in inputs if isinstance(x, DeviceArray))
        operands = [operand(x, like) for x in inputs]
        if options.get("dtype") is not None:
            kind = dtype_of(options["dtype"])
            operands = [x.to(kind) if is_tensor(x) else x for x in operands]
        found = _device_functions.UFUNCS[name](*operands)
        out = options.get("out")
        if out is None:
            return DeviceArray(found)
        if not isinstance(out[0], DeviceArray):
            return NotImplemented
        out[0].tensor.copy_(found)
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """All other functions."""
        from fastfisher import _device_functions

        name = func.__module__.replace("numpy", "", 1).lstrip(".") + "." + func.__name__
        found = _device_functions.FUNCTIONS.get(name.lstrip("."))
        if found is None:
            return NotImplemented
        if found in _device_functions.CREATORS:
            # numpy adds what it has by default: order, device, columns.
            known = {key: value for key, value in kwargs.items() if key == "dtype"}
            return found(self.tensor, *args, **known)
        return found(*args, **kwargs)


def dressed(x: Any) -> Any:
    """`x` with its tensors as arrays, also in tuples, lists and dictionaries."""
    if is_tensor(x):
        return DeviceArray(x)
    if type(x) in (tuple, list):
        return type(x)(dressed(one) for one in x)
    return x


def bare(x: Any) -> Any:
    """`x` with arrays as their tensors, also in tuples, lists and dictionaries."""
    if isinstance(x, DeviceArray):
        return x.tensor
    if type(x) in (tuple, list):
        return type(x)(bare(one) for one in x)
    if type(x) is dict:
        return {key: bare(one) for key, one in x.items()}
    return x


def as_array(x: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
    """``numpy.asarray`` that leaves arrays on their device."""
    if isinstance(x, DeviceArray):
        return x if dtype is None else x.astype(dtype, copy=False)  # type: ignore[return-value]
    return np.asarray(x, dtype)


def contiguous(x: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
    """``numpy.ascontiguousarray`` that leaves arrays on their device."""
    if isinstance(x, DeviceArray):
        kind = x.tensor.dtype if dtype is None else dtype_of(dtype)
        return DeviceArray(x.tensor.to(kind).contiguous())  # type: ignore[return-value]
    return np.ascontiguousarray(x, dtype)


def torch_() -> Any:
    return import_module("torch")


def is_tensor(x: Any) -> bool:
    return hasattr(x, "__torch_function__") and not isinstance(x, DeviceArray)


def dtype_of(given: Any) -> Any:
    return getattr(torch_(), np.dtype(given).name)


def _flat(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape


def _tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


def moved_to(x: Any, like: Any) -> Any:
    """Array of numpy on the device of `like`: small constants and positions."""
    host = np.asarray(x)
    if not host.flags.writeable or any(stride < 0 for stride in host.strides):
        host = host.copy()
    return torch_().from_numpy(host).to(like.device, non_blocking=True)


def _index(index: Any, like: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_index(one, like) for one in index)
    if isinstance(index, DeviceArray):
        return index.tensor
    if isinstance(index, (np.ndarray, list)):
        return moved_to(index, like)
    return int(index) if isinstance(index, np.integer) else index


def _value(value: Any, like: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.tensor.to(like.dtype)
    if isinstance(value, np.ndarray):
        return moved_to(value, like).to(like.dtype)
    return value


def operand(x: Any, like: Any) -> Any:
    """Tensor, or a number without a dtype of its own."""
    if isinstance(x, DeviceArray):
        return x.tensor
    if isinstance(x, np.ndarray):
        return moved_to(x, like)
    return x.item() if isinstance(x, np.generic) else x
