# SPDX-License-Identifier: Apache-2.0
"""What a `memory_limit` means: bytes of the native Gram, and of what is made before it."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastfisher._arrays import Array, device_name, dtype_name, free_bytes, library, result_dtype
from fastfisher._layer import Layer
from fastfisher.factors import Dense

DEFAULT_MEMORY = 48 << 20
_DEVICE_SCRATCH = 1 << 30
_MOST_MEMORY = 2**62
_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def memory_bytes(limit: int | str | None) -> int:
    """Bytes that a `memory_limit` stands for: a number, or text such as "512MB", "1.5 GiB"."""
    if limit is None:
        return DEFAULT_MEMORY
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]I?|)B?\s*", limit.upper())
        if match is None:
            raise ValueError(f"memory_limit: expected bytes or text such as '512MB', got {limit!r}")
        return int(min(float(match[1]) * _UNITS[match[2]], _MOST_MEMORY))
    if isinstance(limit, bool) or not isinstance(limit, numbers.Real) or not limit >= 0:
        raise ValueError(f"memory_limit: expected bytes or text such as '512MB', got {limit!r}")
    return int(min(limit, _MOST_MEMORY))


def free_memory(like: Array | None = None) -> int:
    """Bytes that this machine can still give, or the device of `like`."""
    found = None if like is None else free_bytes(like)
    if found is not None:
        return found
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def scratch_bytes(
    limit: int | str | None, left: Sequence[Layer], right: Sequence[Layer] | None
) -> int:
    """Bytes of scratch memory: gradients that are formed in slices like it large."""
    given = memory_bytes(limit)
    if limit is None and device_name(left[0].g) != "cpu":
        # Room to pack the factors, half as large again, and for the inner products of inputs.
        factors = sum(layer_bytes(layer) for layer in (*left, *(right or ())))
        return _DEVICE_SCRATCH + 2 * factors
    if limit is not None or all(type(layer) is Dense for layer in left):
        return given
    factors = sum(layer_bytes(layer) for layer in (*left, *(right or ())))
    # What is packed is listed: for 256 parameters an entry of 72 bytes, and twice that in all.
    parameters: int = sum(layer.parameters for layer in left)
    return max(given, factors // 8, parameters * 2 // 3)


def layer_bytes(layer: Layer) -> int:
    """Bytes of a layer's factors, as if they were contiguous."""
    return sum(
        math.prod(array.shape) * _BYTES[dtype_name(array)] for array in layer.arrays.values()
    )


def sum_bytes(layers: Sequence[Layer]) -> int:
    """Bytes of what ``Layer.summed`` makes."""
    total = 0
    for layer in layers:
        narrow = dtype_name(layer.g)
        wide = result_dtype(layer.g)
        for array in (layer.a, layer.g, layer.w):
            if array is None:
                continue
            size = math.prod(array.shape) * _BYTES[wide]
            if array is (layer.g if layer.w is None else layer.w):
                # The sum, and in torch one widened output at a time.
                parts = 2 if narrow != wide and library(array) == "torch" else 1
                total += parts * size // max(1, layer.n_outputs)
            elif narrow != wide:
                total += size
    return total


@contextmanager
def noted(besides: int, limit: int | str | None) -> Iterator[None]:
    """Add `besides` to what an error of the native Gram, given the rest of `limit`, asks for."""
    try:
        yield
    except MemoryError as error:
        needed = re.search(r"needs about (\d+) bytes", str(error))
        if besides == 0 or needed is None:
            raise
        raise MemoryError(
            f"memory_limit: needs about {int(needed[1]) + besides} bytes, {besides} of them for "
            f"summed gradients, got {limit}"
        ) from None
