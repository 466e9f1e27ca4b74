# SPDX-License-Identifier: Apache-2.0
"""Rows of a Jacobian seen as weight matrices: units, their inputs, and where they stand.

A weight (o, i) has o units; with a bias each unit has i + 1 inputs, of which the last is 1. A
convolution has one such matrix a group; a table that is looked up has unit vectors as inputs;
parameters without factors are units with one input each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._conv import Conv
from fastfisher._device_array import as_array
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._lookup import Lookup
from fastfisher.factors import Explicit
from fastfisher.structures._place import Place

Host = np.ndarray[Any, Any]

CHUNK_BYTES = 1 << 26
"""Bytes of per-sample gradients or patches formed at a time."""


@dataclass(frozen=True, eq=False, slots=True)
class Weight:
    """One weight matrix of a Jacobian with rows (n, r).

    Attributes
    ----------
    name : of the layer
    layer : Layer
    place : Place
        Where its entries stand in the parameter vector; a bias is the last column.
    group : int
        Of a convolution.
    """

    name: str
    layer: Layer
    place: Place
    group: int = 0

    @property
    def columns(self) -> Host:
        """Position (o, i) of each entry in the parameter vector."""
        return self.place.columns

    @property
    def out_features(self) -> int:
        """Units o."""
        return self.place.shape[0]

    @property
    def in_features(self) -> int:
        """Inputs i of each unit, the one of the bias included."""
        return self.place.shape[1]

    @property
    def positions(self) -> int:
        """Positions s at which a sample uses the weight."""
        if isinstance(self.layer, Lookup):
            return int(self.layer.index.shape[1])
        return int(getattr(self.layer, "positions", 1))

    @property
    def factored(self) -> bool:
        """Whether the gradients are products of inputs and cotangents."""
        return not isinstance(self.layer, Explicit)

    @property
    def simple(self) -> bool:
        """Whether each gradient is one product of an input and a cotangent."""
        return self.factored and self.positions == 1

    def chunk(self, entries: int) -> int:
        """Give the number of samples at a time, for so many `entries` of a sample."""
        return max(1, CHUNK_BYTES // max(1, entries * int(self.layer.g.itemsize)))

    def factors(self, samples: slice) -> tuple[Host, Host]:
        """Take inputs a (n, s, i) and cotangents g (n, r, s, o) of some samples."""
        layer = self.layer
        if isinstance(layer, Conv):
            few = _samples(layer, samples)
            assert isinstance(few, Conv)
            a = few.patches()[:, self.group]
            units = self.out_features
            g = _cotangents(few)[:, :, self.group * units : (self.group + 1) * units]
            g = g.reshape(*g.shape[:3], -1).swapaxes(2, 3)
        elif isinstance(layer, Lookup):
            cut = layer.cut(np.arange(layer.rows))
            a, g = cut.a[samples], cut.g[samples]
        else:
            a, g = _samples(layer, samples)._positions()
        if layer.bias:
            a = np.concatenate([a, np.ones((*a.shape[:2], 1), a.dtype, like=a)], 2)
        return a, g

    def gradients(self, samples: slice, units: slice = slice(None)) -> Host:
        """Rows (n, r, o, i) of some samples and units."""
        if isinstance(self.layer, Explicit):
            return as_array(self.layer.j[samples][:, :, units, None])
        a, g = self.factors(samples)
        return as_array(g[..., units].swapaxes(2, 3) @ a[:, None])

    def pieces(self, *, formed: bool = True) -> Iterator[slice]:
        """Slices of samples, so small that what is made of them fits a chunk.

        That is patches and, where gradients are `formed`, these.
        """
        n = self.layer.samples
        entries = self.positions * self.in_features
        if formed:
            entries = max(entries, self.layer.n_outputs * self.out_features * self.in_features)
        step = self.chunk(entries)
        return (slice(start, min(start + step, n)) for start in range(0, n, step))


def weights(jacobian: Jacobian) -> list[Weight]:
    """Weight matrices of a Jacobian on the host, in the order of its layers."""
    widths = [layer.parameters for layer in jacobian.layers]
    order = None if jacobian.parameters is None else jacobian.parameters.order
    starts = np.cumsum([0, *widths]).tolist()
    result: list[Weight] = []
    for name, layer, start, width in zip(
        jacobian.names, jacobian.layers, starts, widths, strict=False
    ):
        o, i = layer.out_features, layer.in_features
        groups = layer.groups if isinstance(layer, Conv) else 1
        factored = not isinstance(layer, (Explicit, Lookup))
        if order is None and factored and groups == 1:
            result.append(Weight(name, layer, Place((o, i + layer.bias), start, layer.bias)))
            continue
        own = np.arange(start, start + width) if order is None else order[start : start + width]
        if isinstance(layer, Explicit):
            result.append(Weight(name, layer, Place.at(own[:, None])))
            continue
        if isinstance(layer, Lookup):
            result.append(Weight(name, layer, Place.at(own.reshape(i, o).T)))
            continue
        table = own[: o * i].reshape(o, i)
        if layer.bias:
            table = np.concatenate([table, own[o * i :, None]], 1)
        for group in range(groups):
            units = slice(group * (o // groups), (group + 1) * (o // groups))
            result.append(Weight(name, layer, Place.at(table[units]), group))
    return result


def _samples(layer: Layer, samples: slice) -> Layer:
    """Layer of some samples."""
    new = copy.copy(layer)
    new.a, new.g = layer.a[samples], layer.g[samples]
    return new


def _cotangents(layer: Conv) -> Host:
    """Cotangents (n, r, o, *space) of a convolution, separable or not."""
    if layer.w is None:
        return as_array(layer.g)
    w = layer.w.reshape(1, *layer.w.shape, *[1] * (layer.g.ndim - 2))
    return as_array(layer.g[:, None] * w)
