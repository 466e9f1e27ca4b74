# SPDX-License-Identifier: Apache-2.0
"""Where a weight matrix stands in the parameter vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._native import SandwichItem

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Positions (o, i) of a weight; the last column is the bias where there is one.

    Attributes
    ----------
    shape : tuple of int
        (o, i).
    start : int or None
        Of a weight row-major with its bias right behind it: both are sliced, not gathered.
    bias : bool
    table : int64 array, shape (o, i), or None
        Positions where there is no start.
    """

    shape: tuple[int, int]
    start: int | None = None
    bias: bool = False
    table: Host | None = None

    @classmethod
    def at(cls, table: Host) -> Place:
        """Place of a table of positions (o, i)."""
        return cls((int(table.shape[0]), int(table.shape[1])), table=table)

    @property
    def columns(self) -> Host:
        """Positions (o, i), int64."""
        if self.table is not None:
            return self.table
        assert self.start is not None
        o, i = self.shape
        weight = self.start + np.arange(o * (i - self.bias)).reshape(o, i - self.bias)
        if not self.bias:
            return weight
        behind = self.start + o * (i - 1) + np.arange(o)[:, None]
        return np.concatenate([weight, behind], 1)

    def take(self, v: Host) -> Host:
        """Entries (o, i, k) of vectors `v` (P, k)."""
        if self.start is None:
            return v[self.columns]
        weight, bias = self._parts(v)
        return np.concatenate([weight, bias], 1) if self.bias else weight

    def put(self, x: Host, into: Host) -> None:
        """Write entries `x` (o, i, k) into vectors (P, k)."""
        if self.start is None or not into.flags.c_contiguous:  # else a reshape may be a copy
            into[self.columns] = x
            return
        weight, bias = self._parts(into)
        weight[...] = x[:, : weight.shape[1]]
        if self.bias:
            bias[...] = x[:, -1:]

    def sandwich(self, left: Host, right: Host, v: Host, into: Host) -> SandwichItem | None:
        """Item that writes ``left V right`` for one vector `v` (P, 1); None where a copy is needed.

        It takes the vectors as they lie. `left` and `right` are matrices, or factors of such.
        """
        flat = v.flags.c_contiguous and into.flags.c_contiguous and v.shape[1] == 1
        alike = v.dtype == into.dtype == left.dtype == right.dtype
        if self.start is None or not flat or not alike:
            return None
        weight, bias = (part[:, :, 0] for part in self._parts(v))
        out, out_bias = (part[:, :, 0] for part in self._parts(into))
        return SandwichItem(left, weight, bias.reshape(-1), right, out, out_bias.reshape(-1))

    def _parts(self, v: Host) -> tuple[Host, Host]:
        assert self.start is not None
        o, i = self.shape
        middle, end = self.start + o * (i - self.bias), self.start + o * i
        return (
            v[self.start : middle].reshape(o, i - self.bias, v.shape[1]),
            v[middle:end].reshape(o, int(self.bias), v.shape[1]),
        )
