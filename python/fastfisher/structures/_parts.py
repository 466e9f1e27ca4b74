# SPDX-License-Identifier: Apache-2.0
"""Blocks of a Jacobian: the parameters of each module, and where they stand in the vector."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._jacobian import Jacobian

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Parameters of one block: their Jacobian and their positions in the vector.

    Positions that follow each other are a slice, which copies nothing.
    """

    name: str
    jacobian: Jacobian
    columns: Host | slice


def parts_of(jacobian: Jacobian) -> list[Part]:
    """Parameters of each module, in the order of the layers."""
    widths = [layer.parameters for layer in jacobian.layers]
    if jacobian.parameters is None:
        ends = np.cumsum([0, *widths]).tolist()
        return [
            Part(name, own, slice(start, stop))
            for (name, own), (start, stop) in zip(
                jacobian.split().items(), itertools.pairwise(ends), strict=True
            )
        ]
    found: dict[str, list[Host]] = {}
    columns = jacobian.parameters.columns(widths)
    for owners, own in zip(jacobian.parameters.owners(widths), columns, strict=True):
        for name, which in owners.items():
            found.setdefault(name, []).append(own[which])
    return [
        Part(name, own, _positions(np.concatenate(found[name])))
        for name, own in jacobian.split().items()
    ]


def _positions(columns: Host) -> Host | slice:
    """`columns`, as a slice where they follow each other."""
    if len(columns) and columns[-1] - columns[0] == len(columns) - 1:
        start = int(columns[0])
        if (columns == np.arange(start, start + len(columns))).all():
            return slice(start, start + len(columns))
    return columns
