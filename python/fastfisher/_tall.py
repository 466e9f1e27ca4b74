# SPDX-License-Identifier: Apache-2.0
"""Panels of a few vectors of parameters: turned in place and multiplied, a piece at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]


def _pieces(x: Host) -> list[slice]:
    """Rows of a tall matrix, some at a time: what fits the cache needs no fresh memory."""
    step = 1 << 14
    return [slice(start, start + step) for start in range(0, len(x), step)]


def turn(x: Host, by: Host) -> None:
    """``x @ by`` in place."""
    small = by.astype(x.dtype)
    for rows in _pieces(x):
        x[rows] = x[rows] @ small


def distances(x: Host, y: Host, values: Host) -> Host:
    """Norms of the columns of ``x - values y``."""
    total = np.zeros(len(values), like=x)
    for rows in _pieces(x):
        total += np.square(x[rows] - values * y[rows]).sum(0, dtype=np.float64)
    return np.sqrt(total).astype(x.dtype)


def inner(x: Host, y: Host) -> Host:
    """``x^T y`` for tall x and y, added up in float64."""
    total = np.zeros((x.shape[1], y.shape[1]), like=x)
    for rows in _pieces(x):
        total += x[rows].T @ y[rows]
    return total
