# SPDX-License-Identifier: Apache-2.0
"""What the iterations need of a matrix: a batch of products, sizes, a dtype and a scale.

Vectors are numpy's arrays for what is on the CPU, whatever its library, and arrays of the caller's
library for what is on a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import (
    ACCEPTED,
    Array,
    detached,
    device_name,
    dtype_name,
    empty,
    from_numpy,
    library,
    namespace,
    packed,
    read_later,
    to_dtype,
    to_numpy,
)
from fastfisher._jacobian import Jacobian
from fastfisher._numbers import integer
from fastfisher.errors import NonFiniteError

Host = np.ndarray[Any, Any]

# Asymmetry up to this many roundings of the largest entry is what a product in the dtype leaves.
_ROUNDINGS = 200
# Binary orders of magnitude within which products are left as they are.
_ROOM = {"float32": 24, "float64": 160}


class Operator:
    """Symmetric operators of one size: one, or a batch of dense matrices.

    Attributes
    ----------
    batch : number of operators e, and `single` if the result has no axis for it
    n : size
    dtype : of the vectors
    scale : (e,), ``scale**2`` is what the products are multiplied by; of a function known, if it
        is not 1, from the first product that is not zero
    like : an array of the library and device of the vectors
    on_device : whether that is not the CPU
    """

    def __init__(
        self, n: int, dtype: str, batch: int = 1, *, single: bool = True, given: Array | None = None
    ) -> None:
        self.n, self.dtype, self.batch, self.single = n, np.dtype(dtype), batch, single
        self._name = self.dtype.name  # numpy composes it anew at each call
        self.scale = np.ones(batch)
        self.matvecs = 0
        self._given = np.empty(0, dtype) if given is None else given
        self.on_device = device_name(self._given) != "cpu"
        self.like = self._given if self.on_device else np.empty(0, dtype)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Uninitialised vectors."""
        return empty(shape, self.like, self._name)

    def apply(self, x: Array, *, unit: bool = False) -> Array:
        """Scaled products with the rows of `x` (e, k, n); `unit` if these have length one."""
        self.matvecs += x.shape[1]
        result = self._apply(x)
        # Finite entries of order one times such rows are finite: a device is not waited for.
        if unit and self.on_device and isinstance(self, Dense):
            return result
        if not bool(namespace(result).isfinite(result).all()):
            host = to_numpy(result)
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
            raise NonFiniteError(
                f"A: expected finite products, got {host[where]} at index {where[2:]}"
            )
        return result

    def beside(self, damping: float) -> None:
        """Say, before any product, what is added to the diagonal: it must be in range too."""

    def unscaled(self, x: Any) -> Any:
        """Eigenvalues (e, k), or numbers of a single operator, as they are without the scale."""
        undo = 1 / (self.scale[0] if self.single else self.scale[:, None])
        with np.errstate(over="ignore", under="ignore"):
            return x * undo * undo

    def hand_over(self, x: Array) -> Array:
        """Host arrays or vectors in the caller's library, packed."""
        return from_numpy(packed(x), self._given) if isinstance(x, np.ndarray) else packed(x)

    def _apply(self, x: Array) -> Array:
        raise NotImplementedError

    def dense(self) -> Array | None:
        """Scaled matrices (e, n, n) in float64 if they are in memory anyway, else None."""
        return None


class Dense(Operator):
    """Symmetric matrices (e, n, n), of which products read one triangle."""

    def __init__(self, a: Array) -> None:
        name = dtype_name(a)
        if name not in ("float32", "float64"):
            raise TypeError(f"A: expected dtype float32 or float64, got dtype {name}")
        if len(a.shape) not in (2, 3) or a.shape[-1] != a.shape[-2]:
            raise ValueError(f"A: expected shape (n, n) or (b, n, n), got {tuple(a.shape)}")
        rows = detached(a) if device_name(a) != "cpu" else to_numpy(a)
        single = len(a.shape) == 2
        self._a = rows[None] if single else rows
        super().__init__(int(a.shape[-1]), name, len(self._a), single=single, given=a)
        found = np.zeros((self.batch, 2))
        if self.batch and self.n:
            sizes = empty((self.batch, 2), self.like, "float64")
            _native.symmetry(self._a, sizes)
            found = to_numpy(sizes)
        if not np.isfinite(found[:, 0]).all():
            host = to_numpy(a)
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
            raise NonFiniteError(f"A: expected finite numbers, got {host[where]} at index {where}")
        # Half of it is applied before and half after a product: powers of two change no bits.
        self.scale = np.exp2(-np.floor(np.frexp(found[:, 0])[1] / 2))
        self._scale = from_numpy(self.scale, self.like)
        uneven = found[:, 1] > _ROUNDINGS * np.finfo(name).eps * found[:, 0]
        if uneven.any():
            self._refuse(int(np.argmax(uneven)))

    def beside(self, damping: float) -> None:
        """Say, before any product, what is added to the diagonal: it must be in range too."""
        if damping != 0:
            self.scale = np.minimum(self.scale, 2.0 ** -(math.frexp(damping)[1] // 2))
            self._scale = from_numpy(self.scale, self.like)

    def _refuse(self, e: int) -> None:
        a = to_numpy(self._a[e])
        # Halves, since the difference of two large entries may overflow.
        place_of = divmod(int(np.argmax(np.abs(a / 2 - a.T / 2))), a.shape[1])
        i, j = max(place_of), min(place_of)
        place = "" if self.single else f"{e}, "
        raise ValueError(
            f"A: expected a symmetric matrix, got A[{place}{i}, {j}] = {a[i, j]} and "
            f"A[{place}{j}, {i}] = {a[j, i]}"
        )

    def _apply(self, x: Array) -> Array:
        out = self.empty(tuple(x.shape))
        _native.symm(self._a, x, self._scale, out)
        return out

    def passes(
        self, basis: Array, first: int, count: int, block: int, *, fresh: bool, seed: int
    ) -> Callable[[], Host]:
        """Queue `count` passes of Lanczos into `basis`; the result reads back what each found.

        See `_native.lanczos_steps`: (count + 1, e, block, width), zeros where that writes nothing.
        """
        self.matvecs += count * block
        width = first + (count + 1) * block + 1
        small = empty((count + 1, self.batch, block, width), self.like, "float64")
        small[:] = 0
        _native.lanczos_steps(self._a, self._scale, basis, first, small, fresh=fresh, seed=seed)
        read: Callable[[], Host] = read_later(small)
        return read

    def ends(self, k: int, which: str) -> tuple[Host, Host, Host, Host]:
        """`k` pairs at the ends of each scaled spectrum: values (e, k) in no order, vectors.

        (e, k, n), residual norms (e, k), largest magnitudes (e,). On the CPU.
        """
        values, norms = np.empty((2, self.batch, k))
        vectors, norm = np.empty((self.batch, k, self.n), self.dtype), np.empty(self.batch)
        _native.eigh_ends(self._a, self.scale, which, values, vectors, norms, norm)
        return values, vectors, norms, norm

    def dense(self) -> Array:
        """Scaled matrices in float64, lower triangles mirrored."""
        xp, half = namespace(self._a), self._scale.reshape(-1, 1, 1)
        lower = xp.tril(to_dtype(self._a, "float64") * half * half)
        return lower + xp.tril(lower, -1).swapaxes(1, 2)


class Function(Operator):
    """An operator given by its product with a matrix (n, k)."""

    def __init__(
        self, product: Callable[[Any], Any], n: int, dtype: str, given: Array | None = None
    ) -> None:
        super().__init__(n, dtype, given=given)
        self._product, self._settled, self._beside = product, False, 0.0
        self._library = given

    def _apply(self, x: Array) -> Array:
        columns = packed(x[0].T)
        if not self.on_device and self._library is not None:
            columns = from_numpy(columns, self._library)
        result = self._product(columns)
        if self.on_device:
            where = device_name(self.like)
            if library(result, "A") != library(columns) or device_name(result) != where:
                raise TypeError(
                    f"A: expected a product of library {library(columns)} on {where}, got one of "
                    f"{library(result)} on {device_name(result)}"
                )
            result = detached(result)
        else:
            result = np.asarray(to_numpy(result))
        if tuple(result.shape) != tuple(columns.shape):
            raise ValueError(
                f"A: expected a product of shape {tuple(columns.shape)}, got {tuple(result.shape)}"
            )
        rows = packed(result.T)
        if dtype_name(rows) != str(self.dtype):
            rows = to_dtype(rows, str(self.dtype))
        if not self._settled:
            self._settle(x, rows)
        half = float(self.scale[0])
        return (rows if half == 1 else rows * half * half)[None]

    def beside(self, damping: float) -> None:
        """Say, before any product, what is added to the diagonal: it must be in range too."""
        self._beside = abs(damping)

    def _settle(self, x: Array, rows: Array) -> None:
        """Choose the scale: squares of products with vectors of order one must be in range."""
        most = namespace(rows).amax if rows.shape[0] * rows.shape[1] else lambda _: 0.0
        ratio = max(float(most(abs(rows))) / (float(most(abs(x))) or 1.0), self._beside)
        self._settled = ratio > 0
        if not 0 < ratio < math.inf:
            return
        power = math.frexp(ratio)[1]
        if abs(power) > _ROOM[self.dtype.name]:
            self.scale[:] = 2.0 ** -(power // 2)


def operator(
    A: Any, n: int | None = None, dtype: str | None = None, like: Array | None = None
) -> Operator:
    """Turn whatever the public functions take into an Operator.

    A Jacobian stands for the smaller of ``J J^T`` and ``J^T J``. Where A does not say so itself,
    vectors are of the library and device of `like`, if that is on a device.
    """
    if isinstance(A, Operator):
        return A
    if isinstance(A, Jacobian):
        given = A.layers[0].g
        wide = A.shape[0] <= A.shape[1]
        name = "float64" if dtype_name(given) == "float64" else "float32"
        product = (lambda v: A @ (A.T @ v)) if wide else (lambda v: A.T @ (A @ v))
        return Function(product, min(A.shape), name, given)
    if hasattr(A, "matmat") and hasattr(A, "shape"):  # a scipy LinearOperator
        if len(A.shape) != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"A: expected a square operator, got shape {tuple(A.shape)}")
        kind = str(np.dtype(A.dtype)) if getattr(A, "dtype", None) is not None else "float64"
        if np.dtype(kind).kind in "iub":
            kind = "float64"
        given = _device_array(getattr(A, "like", None) if like is None else like)
        return Function(A.matmat, int(A.shape[0]), _float(dtype or kind), given)
    if hasattr(A, "__dlpack__"):
        return Dense(A)
    if callable(A):
        if n is None:
            raise ValueError("n: expected the size of the operator, as A is a function; got None")
        n = integer("n", n, least=0)
        return Function(A, n, _float(dtype or "float64"), _device_array(like))
    raise TypeError(
        f"A: expected {ACCEPTED}, a fastfisher.Jacobian, a scipy LinearOperator or a function, "
        f"got {type(A).__name__}"
    )


def _device_array(like: Array | None) -> Array | None:
    """`like` if it is on a device: functions of arrays on the CPU get numpy's."""
    return None if like is None or device_name(like) == "cpu" else like


def _float(given: Any) -> str:
    name = given if isinstance(given, str) else np.dtype(given).name
    if name not in ("float32", "float64"):
        raise TypeError(f"A: expected dtype float32 or float64, got dtype {name}")
    return name
