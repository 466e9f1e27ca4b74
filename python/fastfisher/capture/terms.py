# SPDX-License-Identifier: Apache-2.0
"""What one use of a weight contributes to the Jacobian, before uses are put together.

Letters as everywhere: n samples, c outputs, s positions, i in-features, o out-features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fastfisher._conv import Conv
from fastfisher._layer import Layer
from fastfisher._lookup import Lookup
from fastfisher.capture.columns import Columns
from fastfisher.factors import Dense, Explicit, Separable, Shared


@dataclass(frozen=True, eq=False)
class Term:
    """Base: `columns` of the weight, in the term's own order of entries."""

    columns: Columns

    def layer(self, label: str | None) -> Layer:
        """Factors of the term."""
        raise NotImplementedError

    def block(self) -> torch.Tensor:
        """Jacobian (n, c, p), written out."""
        return self.layer(None).block()

    @property
    def kind(self) -> str:
        """How `info` calls it."""
        return type(self).__name__


@dataclass(frozen=True, eq=False)
class Outer(Term):
    """``sum_s g[n, c, s] (x) a[n, s]``, columns (o, i); with `w` separable: g (n, s, o), w (c, o).

    `bias` has the columns (o,) of a vector added to the same result.
    """

    a: torch.Tensor
    g: torch.Tensor
    w: torch.Tensor | None = None
    bias: Columns | None = None

    def layer(self, label: str | None) -> Layer:
        """Dense or shared layer."""
        bias = self.bias is not None
        if self.w is not None:
            return Shared(self.a, Separable(self.g, self.w), bias=bias, label=label)
        if self.a.shape[1] == 1:
            return Dense(self.a[:, 0], self.g[:, :, 0], bias=bias, label=label)
        return Shared(self.a, self.g, bias=bias, label=label)

    def bias_term(self) -> Full:
        """Split off the bias."""
        assert self.bias is not None
        total = self.g.sum(-2)
        return Full(self.bias, total if self.w is None else total[:, None] * self.w)

    def dense_g(self) -> torch.Tensor:
        """G (n, c, s, o) whether separable or not."""
        return self.g if self.w is None else self.g[:, None] * self.w[None, :, None]


@dataclass(frozen=True, eq=False)
class Convolution(Term):
    """A convolution's input x (n, i, *space) and g (n, c, o, *space), columns (o, i / q, *kernel).

    With `w` separable: g (n, o, *space), w (c, o).
    """

    x: torch.Tensor
    g: torch.Tensor
    geometry: dict[str, Any]
    w: torch.Tensor | None = None
    bias: Columns | None = None

    def layer(self, label: str | None) -> Conv:
        """Convolution."""
        g = self.g if self.w is None else Separable(self.g, self.w)
        return Conv(self.x, g, bias=self.bias is not None, label=label, **self.geometry)

    def bias_term(self) -> Full:
        """Split off the bias."""
        assert self.bias is not None
        space = tuple(range(self.g.ndim - len(self.geometry["kernel"]), self.g.ndim))
        total = self.g.sum(space)
        return Full(self.bias, total if self.w is None else total[:, None] * self.w)

    def unfolded(self) -> Outer | None:
        """Write the patches out as positions; None with groups."""
        conv = replace(self, bias=None).layer(None)
        if conv.groups != 1:
            return None
        g = (
            self.g
            if self.w is None
            else self.g[:, None] * self.w.reshape(1, *self.w.shape, *[1] * len(conv.kernel))
        )
        g = g.reshape(*g.shape[:3], conv.positions).transpose(2, 3)
        columns = self.columns.reshaped((self.columns.shape[0], conv.in_features))
        return Outer(columns, conv.patches()[:, 0], g, bias=self.bias)


@dataclass(frozen=True, eq=False)
class Full(Term):
    """The Jacobian itself, j (n, c, p)."""

    j: torch.Tensor

    def layer(self, label: str | None) -> Explicit:
        """Explicit layer."""
        return Explicit(self.j, label=label)


@dataclass(frozen=True, eq=False)
class Rows(Term):
    """Rows `index` (n, s) of a table (v, d), their gradients g (n, c, s, d); columns (v, d)."""

    index: torch.Tensor
    g: torch.Tensor

    def layer(self, label: str | None) -> Lookup:
        """Table."""
        return Lookup(self.index, self.g, rows=self.columns.shape[0], label=label)


def join(first: Term, second: Term) -> Term | None:
    """Sum of two terms of equal columns as one term that is no larger, None if there is none."""
    if isinstance(first, Full) and isinstance(second, Full):
        return replace(first, j=first.j + second.j)
    if isinstance(first, Rows) and isinstance(second, Rows):
        return replace(
            first,
            index=torch.cat([first.index, second.index], 1),
            g=torch.cat([first.g, second.g], 2),
        )
    if isinstance(first, Convolution):
        first = first.unfolded() or first
    if isinstance(second, Convolution):
        second = second.unfolded() or second
    if isinstance(first, Outer) and isinstance(second, Outer):
        if first.columns.shape != second.columns.shape or (first.bias is None) != (
            second.bias is None
        ):
            return None
        return replace(
            first,
            a=torch.cat([first.a, second.a], 1),
            g=torch.cat([first.dense_g(), second.dense_g()], 2),
            w=None,
        )
    return None
