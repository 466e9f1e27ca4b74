# SPDX-License-Identifier: Apache-2.0
"""The only place that knows the array libraries: namespaces, allocation, hand-over, streams.

No numerics here. Other modules ask for ``namespace(x)`` and write ``xp.tanh(x)``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from fastfisher import _pool
from fastfisher._device_array import DeviceArray, bare

Array = Any
"""An array of numpy, torch, cupy or jax: anything this module's ``library`` accepts."""

_NUMPY_NAMES = {np.dtype(name).str: name for name in ("float32", "float64")}
ACCEPTED = "a numpy, torch, cupy or jax array"


def library(x: object, name: str = "array") -> str:
    """Name of the library that owns `x`: ``"numpy"``, ``"torch"``, ``"cupy"`` or ``"jax"``.

    Raises
    ------
    TypeError
        If `x` is none of these. A masked array is refused, since its mask would be lost in silence.
    """
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(
                f"{name}: got a masked array, whose mask would be ignored; expected {ACCEPTED}"
            )
        return "numpy"
    if isinstance(x, DeviceArray):
        return "torch"
    # The class decides, not isinstance, so that a library which is not in use is never imported.
    for base in type(x).__mro__:
        root = base.__module__.partition(".")[0]
        if root in ("torch", "cupy"):
            return root
        if root in ("jax", "jaxlib"):
            return "jax"
    raise TypeError(f"{name}: expected {ACCEPTED}, got {type(x).__name__}")


def namespace(x: object) -> ModuleType:
    """Return the module with the functions for `x`: numpy, torch, jax.numpy or cupy."""
    return _module(library(x))


def _module(owner: str) -> ModuleType:
    if owner == "numpy":
        return np
    if owner == "torch":
        return import_module("torch")
    return import_module("jax.numpy" if owner == "jax" else "cupy")


def dtype_name(x: Array) -> str:
    """Name of the dtype of `x`, spelled alike for every library, for instance ``"float32"``."""
    if isinstance(x, np.ndarray):
        # numpy composes .name anew at each call (5 us); foreign byte orders keep their spelling.
        return _NUMPY_NAMES.get(x.dtype.str) or (x.dtype.name if x.dtype.isnative else x.dtype.str)
    return str(x.dtype).rpartition(".")[2]


def device_name(x: Array) -> str:
    """Device of `x`: ``"cpu"``, ``"cuda:0"``, ..."""
    owner = library(x)
    if owner == "numpy":
        return "cpu"
    if owner == "torch":
        return str(x.device)
    if owner == "cupy":
        return f"cuda:{x.device.id}"
    device = next(iter(x.devices()))
    return "cpu" if device.platform == "cpu" else f"{device.platform}:{device.id}"


def stream_of(x: Array) -> int:
    """Handle of the caller's current stream for `x`; 0 on CPU, 1 for CUDA's default stream."""
    if isinstance(x, np.ndarray) or device_name(x) == "cpu":
        return 0
    owner = library(x)
    if owner == "torch":
        import torch

        return int(torch.cuda.current_stream(x.device).cuda_stream) or 1
    if owner == "cupy":
        import cupy

        return int(cupy.cuda.get_current_stream().ptr) or 1
    return 1


def result_dtype(x: Array) -> str:
    """Name of the dtype of results on `x`: its own, float32 for the 16-bit floats."""
    name = dtype_name(x)
    return "float32" if name in ("bfloat16", "float16") else name


def empty(shape: tuple[int, ...], like: Array, dtype: str | None = None) -> Array:
    """Uninitialised array like `like` in library, device and dtype (for jax a numpy buffer)."""
    name = dtype or dtype_name(like)
    if isinstance(like, np.ndarray):
        return _pool.empty(shape, name)
    owner = library(like)
    if owner == "jax":
        if device_name(like) != "cpu":
            raise TypeError(f"jax arrays are supported on CPU only, got one on {device_name(like)}")
        return np.empty(shape, name)
    xp = _module(owner)
    if owner == "torch":
        made = xp.empty(shape, dtype=getattr(xp, name), device=like.device)
        return DeviceArray(made) if isinstance(like, DeviceArray) else made
    with xp.cuda.Device(like.device.id):
        return xp.empty(shape, dtype=name)


def empty_on(device: str) -> Array:
    """Empty tensor of torch on a device, as an example of what is there."""
    return _module("torch").empty(0, device=device)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros like `like` in library, device and dtype."""
    owner = library(like)
    xp = _module(owner)
    if owner == "torch":
        made = xp.zeros(shape, dtype=getattr(xp, dtype_name(like)), device=like.device)
        return DeviceArray(made) if isinstance(like, DeviceArray) else made
    return xp.zeros(shape, dtype=like.dtype)


def total(x: Array, axis: int) -> Array:
    """Sum of `x` over `axis`, which stays with extent one; of 16-bit floats in float32."""
    name = result_dtype(x)
    if library(x) != "torch":
        return x.sum(axis, keepdims=True, dtype=name)
    import torch

    # On the CPU torch widens all of its operand before it adds: one entry of the axis at a time.
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    out = torch.zeros(shape, dtype=getattr(torch, name), device=x.device)
    for k in range(x.shape[axis]):
        out += x.narrow(axis, k, 1)
    return out


def stand_in(x: Array, axis: int | None = None) -> Array:
    """Shape and dtype of ``widened(x)``, with an axis that is `total`, and no memory."""
    shape = list(x.shape)
    if axis is not None:
        shape[axis] = 1
    return np.broadcast_to(np.zeros((), result_dtype(x)), shape)


def take_rows(x: Array, rows: np.ndarray[Any, Any]) -> Array:
    """``x[rows]`` along the first axis."""
    return x[from_numpy(rows, x)]


def put_rows(x: Array, rows: np.ndarray[Any, Any], into: Array) -> Array:
    """`into` with ``x`` at the distinct `rows` of its first axis, written in place where it can."""
    if library(x) == "jax":
        return into.at[rows].set(x)
    into[from_numpy(rows, x)] = x
    return into


def widened(x: Array) -> Array:
    """`x` in float32 if its dtype is a 16-bit float, else `x`."""
    if result_dtype(x) == dtype_name(x):
        return x
    return to_dtype(x, "float32")


def to_dtype(x: Array, name: str) -> Array:
    """`x` in the dtype `name`."""
    if library(x) == "torch" and not isinstance(x, DeviceArray):
        return x.to(getattr(_module("torch"), name))
    return x.astype(name)


def scratch(size: int, like: Array) -> Array:
    """Uninitialised `size` bytes on the device of `like`, from its library (on CPU from numpy).

    To be kept in a variable: memory of a pool that died within a native call would swallow an
    interrupt, for its finaliser is the first Python code to run.
    """
    if isinstance(like, np.ndarray) or device_name(like) == "cpu":
        return _pool.workspace(size)
    owner = library(like)
    xp = _module(owner)
    if owner == "torch":
        return xp.empty(size, dtype=xp.uint8, device=like.device)
    with xp.cuda.Device(like.device.id):
        return xp.empty(size, dtype=xp.uint8)


def final(x: Array, like: Array) -> Array:
    """Hand the finished `x` over to the library of `like` (jax arrays cannot be written)."""
    return from_numpy(x, like) if library(like) == "jax" else x


def from_numpy(host: np.ndarray[Any, Any], like: Array) -> Array:
    """`host` as an array of the library and device of `like`; without a copy on CPU."""
    owner = library(like)
    if owner == "numpy":
        return host
    if owner == "torch":
        import torch

        if (
            not host.flags.writeable
        ):  # torch has no read-only tensors: sharing would let them be written
            host = host.copy()
        # Memory that is not pinned has been read when the call returns: no need to wait for more.
        moved = torch.from_numpy(host).to(like.device, non_blocking=True)
        return DeviceArray(moved) if isinstance(like, DeviceArray) else moved
    if owner == "jax":
        import jax

        if host.dtype == np.float64 and not jax.config.jax_enable_x64:
            raise TypeError("dtype float64 needs jax.config.update('jax_enable_x64', True)")
        return jax.numpy.from_dlpack(host)
    import cupy

    with cupy.cuda.Device(like.device.id):
        return cupy.asarray(host)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Numpy view of `x`; without a copy for arrays on CPU, a transfer for others."""
    owner, x = library(x), bare(x)
    if owner == "numpy":
        return x  # type: ignore[no-any-return]
    if owner == "torch":
        x = x.detach().cpu()
        # numpy has no bfloat16; float32 holds its numbers exactly.
        return (x.float() if dtype_name(x) == "bfloat16" else x).numpy()  # type: ignore[no-any-return]
    if owner == "cupy":
        return x.get()  # type: ignore[no-any-return]
    return np.asarray(x)


def read_later(x: Array) -> Callable[[], np.ndarray[Any, Any]]:
    """Start to read `x` back; the result waits for that, not for what follows on the device.

    So for tensors of torch on an NVIDIA GPU; others are read when the result is asked for.
    """
    if isinstance(x, np.ndarray) or library(x) != "torch" or x.device.type != "cuda":
        return lambda: to_numpy(x)
    import torch

    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    read = torch.cuda.Event()
    read.record(torch.cuda.current_stream(x.device))

    def wait() -> np.ndarray[Any, Any]:
        read.synchronize()
        return host.numpy()  # type: ignore[no-any-return]

    return wait


def detached(x: Array) -> Array:
    """`x` without what torch records for gradients."""
    return x.detach() if not isinstance(x, np.ndarray) and library(x) == "torch" else x


def packed(x: Array) -> Array:
    """`x` in row-major order without gaps, a copy if need be."""
    if not isinstance(x, np.ndarray) and library(x) == "torch":
        return x.contiguous()
    return namespace(x).ascontiguousarray(x)


def eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues (e, n), ascending, and eigenvectors as columns, by the library of `x`."""
    xp = namespace(x)
    if library(x) != "cupy":
        values, vectors = xp.linalg.eigh(x)
        return values, vectors
    # For a stack cupy takes Jacobi's method, which is for small matrices.
    pairs = [xp.linalg.eigh(matrix) for matrix in x]
    return xp.stack([w for w, _ in pairs]), xp.stack([v for _, v in pairs])


def in_numpys_words(x: Array, name: str = "array") -> np.ndarray[Any, Any]:
    """`x` for code written in numpy's words: its view in numpy, on a device a `DeviceArray`.

    Raises
    ------
    TypeError
        An array of a library other than torch on a device.
    """
    if isinstance(x, DeviceArray):
        return x  # type: ignore[return-value]
    if device_name(x) == "cpu":
        return to_numpy(x)
    if library(x) != "torch":
        raise TypeError(
            f"{name}: on {device_name(x)} expected a tensor of torch, got an array of "
            f"{library(x)}; pass torch.from_dlpack(x), which shares its memory"
        )
    return DeviceArray(x.detach())  # type: ignore[return-value]


def in_library(x: Any, like: Array) -> Array:
    """Array from such code as one of the library and device of `like`."""
    if isinstance(x, DeviceArray):
        if device_name(like) == "cpu":  # asked for by who handed over an array of the host
            return from_numpy(to_numpy(x), like)
        return x if isinstance(like, DeviceArray) else x.tensor
    return from_numpy(x, like)


def free_bytes(x: Array) -> int | None:
    """Bytes that are free on the GPU of `x`, with those its library keeps; None for the CPU."""
    owner, x = library(x), bare(x)
    if owner == "torch" and x.device.type == "cuda":
        cuda = _module("torch").cuda
        kept = cuda.memory_reserved(x.device) - cuda.memory_allocated(x.device)
        return int(cuda.mem_get_info(x.device)[0] + kept)
    if owner == "cupy":
        cupy = _module("cupy")
        with cupy.cuda.Device(x.device.id) as device:
            pool = cupy.get_default_memory_pool()
            return int(device.mem_info[0] + pool.free_bytes())
    return None


def requires_grad(x: Array) -> bool:
    """Whether `x` is a torch tensor that records gradients, which DLPack refuses."""
    return not isinstance(x, np.ndarray) and library(x) == "torch" and bool(x.requires_grad)


def is_negated(x: Array) -> bool:
    """Whether `x` is a torch view whose sign is a flag, which DLPack would drop."""
    return not isinstance(x, np.ndarray) and library(x) == "torch" and bool(x.is_neg())


def erf(x: Array) -> Array:
    """Error function in the library of `x`; for numpy by scipy where it is installed."""
    owner = library(x)
    if owner == "torch":
        return _module(owner).erf(x)
    if owner == "jax":
        import jax.scipy.special

        return jax.scipy.special.erf(x)
    if owner == "cupy":
        from cupyx.scipy.special import erf as cupy_erf

        return cupy_erf(x)
    try:
        from scipy.special import erf as scipy_erf
    except ImportError:
        import math

        return np.vectorize(math.erf, otypes=[x.dtype])(x)
    return scipy_erf(x)
