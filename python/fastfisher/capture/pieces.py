# SPDX-License-Identifier: Apache-2.0
"""Jacobians of many samples, put together from captures of a few at a time.

A run of few samples keeps autograd's intermediate arrays in the cache and its memory small; the
gradients are copied once, into arrays on large pages.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import numpy as np
import torch

from fastfisher._align import fit
from fastfisher._conv import Conv
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._lookup import Lookup
from fastfisher._memory import layer_bytes
from fastfisher._pool import workspace
from fastfisher.factors import Explicit, Shared


class DifferentPieces(Exception):
    """Pieces whose layers are not alike: samples took different ways through the model."""


class Costlier(Exception):
    """Samples whose way through the model costs more memory than blocks were planned for."""


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised tensor; on the CPU on large pages, which the next call may find again.

    Writing 100 MB for the first time takes three to ten times as long as the second time.
    """
    if device.type != "cpu" or not math.prod(shape):
        return torch.empty(shape, dtype=dtype, device=device)
    storage = workspace(math.prod(shape) * dtype.itemsize)
    return torch.from_numpy(storage).view(dtype).reshape(shape)


def gradient_bytes(layer: Layer) -> int:
    """Bytes of a layer's gradients, written out."""
    return int(layer.samples * layer.n_outputs * layer.parameters * layer.g.dtype.itemsize)


def is_compacted(layer: Layer) -> bool:
    """Whether a layer is smaller as gradients: a convolution, or a weight at many positions."""
    return (
        type(layer) in (Shared, Conv)
        and layer.w is None
        and 2 * gradient_bytes(layer) <= layer_bytes(layer)
    )


def compacted(piece: Jacobian) -> Jacobian:
    """Piece with such layers written out."""
    layers = tuple(
        Explicit(layer.block(), label=layer.label) if is_compacted(layer) else layer
        for layer in piece.layers
    )
    return Jacobian(layers, piece.outputs, parameters=piece.parameters)


class Room:
    """Arrays that take the gradients of all samples, piece by piece.

    A use whose gradients are factors as they are writes them where they stay; others get a buffer
    that the next piece writes over: one of the size for `width` samples at a time, so that calls
    find the memory of the calls before.
    """

    def __init__(self, n: int, width: int) -> None:
        self.n, self.width, self.start, self.samples = n, width, 0, 0
        self._whole: dict[int, torch.Tensor] = {}
        self._buffers: dict[int, torch.Tensor] = {}

    def at(self, start: int, samples: int) -> None:
        """Say which samples come next."""
        self.start, self.samples = start, samples

    def take(
        self,
        key: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        stays: bool,
    ) -> torch.Tensor:
        """Array of `shape` (c, samples * times, ...) for the use `key`."""
        if not stays:
            return self._buffer(key, shape, dtype, device)
        times, rest = divmod(shape[1], self.samples)
        if rest:
            raise DifferentPieces
        if key not in self._whole:
            full = (shape[0], self.n * times, *shape[2:])
            self._whole[key] = allocate(full, dtype, device)
        whole = self._whole[key]
        if whole.shape[0] != shape[0] or tuple(whole.shape[2:]) != shape[2:]:
            raise DifferentPieces
        if whole.shape[1] != self.n * times:
            raise DifferentPieces
        return whole[:, self.start * times : (self.start + self.samples) * times]

    def _buffer(
        self, key: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            largest = size * max(1, self.width) // max(1, self.samples)
            buffer = allocate((max(size, largest),), dtype, device)
            self._buffers[key] = buffer
        return buffer[:size].view(shape)

    def holds(self, array: torch.Tensor) -> bool:
        """Whether `array` already lies where it stays."""
        return self._home(array) is not None

    def strides(self, array: torch.Tensor) -> tuple[int, ...]:
        """Strides of all samples' array, of which `array`, one that it holds, is a part.

        Those of an array of one sample say nothing of where the next one is.
        """
        whole = self._home(array)
        assert whole is not None
        return (whole.shape[1] // self.n * whole.stride(1), *array.stride()[1:])

    def _home(self, array: torch.Tensor) -> torch.Tensor | None:
        place = array.untyped_storage().data_ptr()
        for whole in self._whole.values():
            if place == whole.untyped_storage().data_ptr():
                return whole
        return None


def put_together(pieces: Iterable[Jacobian], room: Room) -> Jacobian:
    """Jacobian of the samples of all `pieces`, whose gradients may lie in `room`.

    Raises
    ------
    DifferentPieces
        Layers that are not alike in all pieces.
    """
    whole: list[Layer] = []
    first: Jacobian | None = None
    outputs: torch.Tensor | None = None
    start = 0
    for piece in pieces:
        if first is None:
            first = piece
            whole = [_enlarged(layer, room) for layer in piece.layers]
            assert piece.outputs is not None
            outputs = piece.outputs.new_empty((room.n, piece.n_outputs))
        elif not _fit(first, piece):
            raise DifferentPieces
        for target, layer in zip(whole, piece.layers, strict=True):
            _put(target, layer, start, room)
        assert outputs is not None
        outputs[start : start + piece.samples] = piece.outputs
        start += piece.samples
    assert first is not None
    return Jacobian(tuple(whole), outputs, parameters=first.parameters)


def _fit(first: Jacobian, piece: Jacobian) -> bool:
    assert first.parameters is not None
    assert piece.parameters is not None
    return fit((first.layers, first.parameters), (piece.layers, piece.parameters))


def _enlarged(layer: Layer, room: Room) -> Layer:
    """Layer of all samples, its arrays yet to be written."""
    new = copy.copy(layer)
    for name in ("a", "g"):
        array = getattr(layer, name)
        if array is None:
            continue
        shape = (room.n, *array.shape[1:])
        if room.holds(array):
            large = array.as_strided(shape, room.strides(array), array.storage_offset())
        else:
            large = allocate(shape, array.dtype, array.device)
        setattr(new, name, large)
    if isinstance(new, Lookup):
        new.index = np.empty((room.n, *new.index.shape[1:]), np.int64)
    return new


def _put(target: Layer, layer: Layer, start: int, room: Room) -> None:
    span = slice(start, start + layer.samples)
    for name in ("a", "g"):
        array, large = getattr(layer, name), getattr(target, name)
        if array is None:
            continue
        if large.shape[1:] != array.shape[1:]:
            raise DifferentPieces
        if not room.holds(array):
            large[span] = array
        elif array.data_ptr() != large[span].data_ptr() or room.strides(array) != large.stride():
            raise DifferentPieces
    if isinstance(layer, Lookup) and isinstance(target, Lookup):
        if target.index.shape[1:] != layer.index.shape[1:]:
            raise DifferentPieces
        target.index[span] = layer.index
    if layer.w is not None and not torch.equal(layer.w, target.w):
        raise DifferentPieces
