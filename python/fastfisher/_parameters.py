# SPDX-License-Identifier: Apache-2.0
"""Parameters by name and as one vector, each row-major, in the order of a table of shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import Array, dtype_name, library, namespace

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False, slots=True)
class Parameters:
    """Named parameters of a model, and where the columns of its layers stand among them.

    Attributes
    ----------
    shapes : dict of str to tuple
        Shape of each parameter, in the order of the parameter vector.
    order : int64 array or None
        For the columns of all layers one after the other, their positions in that vector, each at
        most once; None if they are 0, 1, 2, .... Parameters without a column are zero blocks.
    of_module : bool
        Whether the model is a module, which owns all parameters without a dot in their names.
    """

    shapes: dict[str, tuple[int, ...]]
    order: np.ndarray[Any, Any] | None
    of_module: bool = False

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def columns(self, widths: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """Positions of the columns of each layer, for the layers' `widths`."""
        ends = np.cumsum([0, *widths])
        order = np.arange(ends[-1]) if self.order is None else self.order
        return [order[start:stop] for start, stop in itertools.pairwise(ends)]

    def owner(self, name: str) -> str:
        """Name the module that owns a parameter."""
        return module_of(name, of_module=self.of_module)

    def owners(self, widths: Sequence[int]) -> list[dict[str, Any]]:
        """For each layer, the modules that own its parameters, each with their columns in it."""
        names = list(self.shapes)
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        result: list[dict[str, Any]] = []
        for columns in self.columns(widths):
            which = np.searchsorted(ends, columns, side="right")
            found: dict[str, list[int]] = {}
            for k in np.unique(which).tolist():
                found.setdefault(self.owner(names[k]), []).append(k)
            if len(found) == 1:
                result.append(dict.fromkeys(found, slice(None)))
            else:
                result.append(
                    {name: np.flatnonzero(np.isin(which, own)) for name, own in found.items()}
                )
        return result


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


def module_of(name: str, *, of_module: bool) -> str:
    """Name the module that owns a parameter.

    The model itself is ``""``, as for torch; without one a name without a dot stands for itself.
    """
    found = name.rpartition(".")[0]
    return found if found or of_module else name


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
