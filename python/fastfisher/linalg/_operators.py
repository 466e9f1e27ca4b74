# SPDX-License-Identifier: Apache-2.0
"""What the iterations need of a matrix: a batch of products, sizes, a dtype and a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import ACCEPTED, Array, device_name, dtype_name, from_numpy, to_numpy
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NonFiniteError

Host = np.ndarray[Any, Any]

# Asymmetry up to this many roundings of the largest entry is what a product in the dtype leaves.
_ROUNDINGS = 200


class Operator:
    """Symmetric operators of one size: one, or a batch of dense matrices.

    Attributes
    ----------
    batch : number of operators e, and `single` if the result has no axis for it
    n : size
    dtype : of the vectors
    scale : (e,), ``scale**2`` is what the products are multiplied by
    """

    def __init__(self, n: int, dtype: str, batch: int = 1, *, single: bool = True) -> None:
        self.n, self.dtype, self.batch, self.single = n, np.dtype(dtype), batch, single
        self.scale = np.ones(batch)
        self.matvecs = 0

    def apply(self, x: Host) -> Host:
        """Scaled products with the rows of `x` (e, k, n)."""
        self.matvecs += x.shape[1]
        result = self._apply(x)
        if not np.isfinite(result).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(result))[0])
            raise NonFiniteError(
                f"A: expected finite products, got {result[where]} at index {where[2:]}"
            )
        return result

    def hand_over(self, host: Host) -> Array:
        """`host` in the caller's library."""
        return host

    def _apply(self, x: Host) -> Host:
        raise NotImplementedError

    def dense(self) -> Host | None:
        """Scaled matrices (e, n, n) in float64 if they are in memory anyway, else None."""
        return None


class Dense(Operator):
    """Symmetric matrices (e, n, n), of which products read one triangle."""

    def __init__(self, a: Array) -> None:
        name = dtype_name(a)
        if name not in ("float32", "float64"):
            raise TypeError(f"A: expected dtype float32 or float64, got dtype {name}")
        if device_name(a) != "cpu":
            raise TypeError(f"A: expected an array on the CPU, got one on {device_name(a)}")
        if len(a.shape) not in (2, 3) or a.shape[-1] != a.shape[-2]:
            raise ValueError(f"A: expected shape (n, n) or (b, n, n), got {tuple(a.shape)}")
        host = to_numpy(a)
        self._like, self._given = a, host
        self._a = host if host.ndim == 3 else host[None]
        super().__init__(host.shape[-1], name, len(self._a), single=host.ndim == 2)
        found = np.zeros((self.batch, 2))
        if host.size:
            _native.symmetry(self._a, found)
        if not np.isfinite(found[:, 0]).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
            raise NonFiniteError(f"A: expected finite numbers, got {host[where]} at index {where}")
        # Half of it is applied before and half after a product: powers of two change no bits.
        self.scale = np.exp2(-np.floor(np.frexp(found[:, 0])[1] / 2))
        uneven = found[:, 1] > _ROUNDINGS * np.finfo(name).eps * found[:, 0]
        if uneven.any():
            self._refuse(int(np.argmax(uneven)))

    def _refuse(self, e: int) -> None:
        a = self._a[e]
        # Halves, since the difference of two large entries may overflow.
        place_of = divmod(int(np.argmax(np.abs(a / 2 - a.T / 2))), a.shape[1])
        i, j = max(place_of), min(place_of)
        place = "" if self.single else f"{e}, "
        raise ValueError(
            f"A: expected a symmetric matrix, got A[{place}{i}, {j}] = {a[i, j]} and "
            f"A[{place}{j}, {i}] = {a[j, i]}"
        )

    def _apply(self, x: Host) -> Host:
        out = np.empty(x.shape, self.dtype)
        _native.symm(self._a, x, self.scale, out)
        return out

    def ends(self, k: int, which: str) -> tuple[Host, Host, Host, Host]:
        """`k` pairs at the ends of each scaled spectrum: values (e, k) in no order, vectors.

        (e, k, n), residual norms (e, k), largest magnitudes (e,).
        """
        values, norms = np.empty((2, self.batch, k))
        vectors, norm = np.empty((self.batch, k, self.n), self.dtype), np.empty(self.batch)
        _native.eigh_ends(self._a, self.scale, which, values, vectors, norms, norm)
        return values, vectors, norms, norm

    def dense(self) -> Host:
        """Scaled matrices in float64, lower triangles mirrored."""
        half = self.scale[:, None, None]
        lower = np.tril(self._a.astype(np.float64) * half * half)
        return lower + np.tril(lower, -1).transpose(0, 2, 1)

    def hand_over(self, host: Host) -> Array:
        """`host` in the library of the matrix."""
        return from_numpy(host, self._like)


class Function(Operator):
    """An operator given by its product with a matrix (n, k)."""

    def __init__(
        self, product: Callable[[Any], Any], n: int, dtype: str, like: Array | None = None
    ) -> None:
        super().__init__(n, dtype)
        self._product, self._like = product, like

    def _apply(self, x: Host) -> Host:
        columns = np.ascontiguousarray(x[0].T)
        given = columns if self._like is None else from_numpy(columns, self._like)
        result = np.asarray(to_numpy(self._product(given)))
        if result.shape != columns.shape:
            raise ValueError(
                f"A: expected a product of shape {columns.shape}, got {tuple(result.shape)}"
            )
        return np.ascontiguousarray(result.T, self.dtype)[None]

    def hand_over(self, host: Host) -> Array:
        """`host` in the library of the factors."""
        return host if self._like is None else from_numpy(host, self._like)


def operator(A: Any, n: int | None = None, dtype: str | None = None) -> Operator:
    """Turn whatever the public functions take into an Operator.

    A Jacobian stands for the smaller of ``J J^T`` and ``J^T J``.
    """
    if isinstance(A, Operator):
        return A
    if isinstance(A, Jacobian):
        like = A.layers[0].g
        if device_name(like) != "cpu":
            raise TypeError(f"A: expected factors on the CPU, got some on {device_name(like)}")
        wide = A.shape[0] <= A.shape[1]
        name = "float64" if dtype_name(like) == "float64" else "float32"
        product = (lambda v: A @ (A.T @ v)) if wide else (lambda v: A.T @ (A @ v))
        return Function(product, min(A.shape), name, like)
    if hasattr(A, "matmat") and hasattr(A, "shape"):  # a scipy LinearOperator
        if len(A.shape) != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"A: expected a square operator, got shape {tuple(A.shape)}")
        kind = str(np.dtype(A.dtype)) if getattr(A, "dtype", None) is not None else "float64"
        if np.dtype(kind).kind in "iub":
            kind = "float64"
        return Function(A.matmat, int(A.shape[0]), _float(dtype or kind))
    if hasattr(A, "__dlpack__"):
        return Dense(A)
    if callable(A):
        if n is None:
            raise ValueError("n: expected the size of the operator, as A is a function; got None")
        if n < 0:
            raise ValueError(f"n: expected a size that is not negative, got {n}")
        return Function(A, n, _float(dtype or "float64"))
    raise TypeError(
        f"A: expected {ACCEPTED}, a fastfisher.Jacobian, a scipy LinearOperator or a function, "
        f"got {type(A).__name__}"
    )


def _float(name: str) -> str:
    if name not in ("float32", "float64"):
        raise TypeError(f"A: expected dtype float32 or float64, got dtype {name}")
    return name
