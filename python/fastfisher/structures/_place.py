# SPDX-License-Identifier: Apache-2.0
"""Where a weight matrix stands in the parameter vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Positions (o, i) of a weight; the last column is the bias where there is one.

    Attributes
    ----------
    columns : int64 array, shape (o, i)
    start : int or None
        Of a weight row-major with its bias right behind it: both are sliced, not gathered.
    bias : bool
    """

    columns: Host
    start: int | None = None
    bias: bool = False

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

    def _parts(self, v: Host) -> tuple[Host, Host]:
        assert self.start is not None
        o, i = self.columns.shape
        middle, end = self.start + o * (i - self.bias), self.start + o * i
        return (
            v[self.start : middle].reshape(o, i - self.bias, v.shape[1]),
            v[middle:end].reshape(o, int(self.bias), v.shape[1]),
        )
