# SPDX-License-Identifier: Apache-2.0
"""Parameters by name and as one vector, each row-major, in the order of a table of shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastfisher._arrays import Array, dtype_name, library, namespace

Shapes = Mapping[str, tuple[int, ...]]


def flatten(parameters: Mapping[str, Array], shapes: Shapes) -> Array:
    """Vector of named `parameters` in the order of `shapes`."""
    if set(parameters) != set(shapes):
        raise ValueError(f"parameters: expected the names {list(shapes)}, got {list(parameters)}")
    for name, shape in shapes.items():
        library(parameters[name], f"parameters[{name!r}]")
        got = tuple(parameters[name].shape)
        if got != shape:
            raise ValueError(f"parameters[{name!r}]: expected shape {shape}, got {got}")
    for what, of in (("library", library), ("dtype", dtype_name)):
        found = sorted({of(parameters[name]) for name in shapes})
        if len(found) > 1:
            raise TypeError(f"parameters: expected one {what} for all, got {what} {found}")
    parts = [parameters[name].reshape(-1) for name in shapes]
    return namespace(parts[0]).concatenate(parts, 0)


def module_of(name: str) -> str:
    """Name the module that owns a parameter; one of the model itself stands for itself."""
    return name.rpartition(".")[0] or name


def unflatten(vector: Array, shapes: Shapes) -> dict[str, Array]:
    """Inverse of `flatten`: views of `vector` by name."""
    library(vector, "vector")
    total = sum(math.prod(shape) for shape in shapes.values())
    if tuple(vector.shape) != (total,):
        raise ValueError(f"vector: expected shape ({total},), got {tuple(vector.shape)}")
    parameters, start = {}, 0
    for name, shape in shapes.items():
        parameters[name] = vector[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return parameters
