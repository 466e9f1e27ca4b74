# SPDX-License-Identifier: Apache-2.0
"""Factors of a table whose rows are looked up (an embedding), for tables of any length.

``J[n, c] = sum_s e(index[n, s]) (x) g[n, c, s]`` with unit vectors e. Before a native call the
table is cut down to the rows that the samples at hand use, and the unit vectors are written out:
from then on it is a `Shared` layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fastfisher._arrays import Array, device_name, dtype_name, from_numpy, library, to_numpy, zeros
from fastfisher._layer import Layer, Native
from fastfisher.factors import Shared


class Lookup(Layer):
    """Factors of a table (v, d) of which each sample uses s rows.

    Parameters
    ----------
    index : integer array, shape (n, s)
        Row of each position; kept by the host, to which an index on a device is copied.
    g : array, shape (n, c, s, d), float32 | float64 | bfloat16 | float16
        Gradients of the c outputs with respect to the rows that were looked up.
    rows : int
        Length v of the table.
    label : str, optional
        Name of the layer in messages.

    Raises
    ------
    ValueError
        Shapes that do not fit, or an index outside of the table.
    TypeError
        Not an array, or a dtype that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> layer = ff.Lookup(np.array([[0, 2], [2, 2]]), np.ones((2, 1, 2, 3)), rows=1000)
    >>> layer.parameters
    3000
    >>> ff.Jacobian.from_factors([layer]).gram(outputs="trace")
    array([[ 6.,  6.],
           [ 6., 12.]])
    """

    __slots__ = ("index", "rows")
    _names: ClassVar[dict[str, str]] = {"g": "g"}

    def __init__(self, index: Array, g: Array, *, rows: int, label: str | None = None) -> None:
        super().__init__(
            None, g, None, shapes={"g": (4, "(n, c, s, d)")}, bias=False, label=label, batch=False
        )
        library(index, "index")
        if "int" not in dtype_name(index):
            raise TypeError(f"index: expected an integer dtype, got dtype {dtype_name(index)}")
        expected = (g.shape[0], g.shape[2])
        if tuple(index.shape) != expected:
            raise ValueError(
                f"index: expected shape {expected} as g {tuple(g.shape)}, got {tuple(index.shape)}"
            )
        host = to_numpy(index)
        if host.size and not (host.min() >= 0 and host.max() < rows):
            raise ValueError(
                f"index: expected rows from 0 to {rows - 1}, got {host.min()} to {host.max()}"
            )
        self.index, self.rows = host.astype(np.int64, copy=False), int(rows)

    @property
    def in_features(self) -> int:
        """Rows v of the table."""
        return self.rows

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight`` (v, d)."""
        return {"weight": (self.rows, self.out_features)}

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two sets of samples must have in common."""
        return "Lookup", self.rows, self.out_features, False

    def native(self) -> Native:
        """Not available: see `cut`."""
        raise NotImplementedError("Lookup: write it out with `cut` first")

    def cut(self, rows: np.ndarray[Any, Any]) -> Shared:
        """Layer of the sorted `rows` of the table only, with weight (d, len(rows))."""
        position = np.searchsorted(rows, self.index)
        shape = (*self.index.shape, len(rows))
        if device_name(self.g) != "cpu":
            a = zeros(shape, self.g)
            first = np.arange(self.index.size) * len(rows)
            a.reshape(-1)[from_numpy(first + position.reshape(-1), self.g)] = 1
            return Shared(a, self.g, label=self.label)
        unit = np.zeros(shape, np.float32)
        np.put_along_axis(unit, position[..., None], 1, -1)
        name = dtype_name(self.g)
        if library(self.g) == "torch":
            a = from_numpy(unit, self.g).to(self.g.dtype)
        else:
            a = from_numpy(unit.astype(name), self.g)
        return Shared(a, self.g, label=self.label)

    def used(self) -> np.ndarray[Any, Any]:
        """Rows that the samples use, sorted."""
        return np.unique(self.index)

    def columns(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Columns of the table's Jacobian that those of ``cut(rows)`` are, in its order."""
        d = self.out_features
        return (rows[None, :] * d + np.arange(d)[:, None]).reshape(-1)

    def block(self) -> Array:
        """Write out the Jacobian, (n, c, v * d); for small tables and tests."""
        rows = np.arange(self.rows)
        shared = self.cut(rows).block()
        return shared[..., np.argsort(self.columns(rows))]

    def _replaced(self, g: Array, w: Array) -> Lookup:
        return Lookup(self.index, g, rows=self.rows, label=self.label)


def cut(
    given: Sequence[Layer], order: np.ndarray[Any, Any] | None
) -> tuple[Sequence[Layer], np.ndarray[Any, Any] | None]:
    """Layers with tables cut to the rows in use, and the positions of their columns.

    `order` has those of the columns of the layers as given, None for one after the other; so has
    the result where there is no table.
    """
    if not any(isinstance(layer, Lookup) for layer in given):
        return given, order
    layers: list[Layer] = []
    pieces: list[np.ndarray[Any, Any]] = []
    start = 0
    for layer in given:
        if isinstance(layer, Lookup):
            rows = layer.used()
            layers.append(layer.cut(rows))
            columns = start + layer.columns(rows)
        else:
            layers.append(layer)
            columns = np.arange(start, start + layer.parameters)
        pieces.append(columns if order is None else order[columns])
        start += layer.parameters
    return tuple(layers), np.concatenate(pieces)


def cut_pair(
    left: Sequence[Layer], right: Sequence[Layer] | None
) -> tuple[Sequence[Layer], Sequence[Layer] | None]:
    """Both lists with their tables cut down to the rows that either side uses."""
    if not any(isinstance(layer, Lookup) for layer in left):
        return left, right
    first, second = list(left), None if right is None else list(right)
    for index, layer in enumerate(left):
        if not isinstance(layer, Lookup):
            continue
        rows = layer.used()
        if right is not None and second is not None:
            other = right[index]
            assert isinstance(other, Lookup)
            rows = np.union1d(rows, other.used())
            second[index] = other.cut(rows)
        first[index] = layer.cut(rows)
    return first, second
