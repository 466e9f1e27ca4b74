# SPDX-License-Identifier: Apache-2.0
"""Structures of the Fisher matrix, one file each; `make` knows them by name.

Each takes a Jacobian of rows on the host and the factor in ``F = scale J^T J``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastfisher._jacobian import Jacobian
from fastfisher.structures._base import Structure
from fastfisher.structures._rooted import in_range, widened
from fastfisher.structures.coupled import full, layer, tridiagonal
from fastfisher.structures.diagonal import Diagonal, diagonal
from fastfisher.structures.ekfac import ekfac
from fastfisher.structures.kfac import Kfac, kfac
from fastfisher.structures.unit import unit

__all__ = ["STRUCTURES", "Structure", "add_up", "make"]

STRUCTURES: dict[str, Callable[..., Structure]] = {
    "full": full,
    "layer": layer,
    "tridiagonal": tridiagonal,
    "kfac": kfac,
    "ekfac": ekfac,
    "unit": unit,
    "diagonal": diagonal,
}


def add_up(total: Structure, part: Structure) -> Structure:
    """Sum of the structures of two sets of samples; of K-FAC's A the mean."""
    if isinstance(total, Diagonal) and isinstance(part, Diagonal) and total.size == part.size:
        return Diagonal(total.values + part.values)
    if isinstance(total, Kfac) and isinstance(part, Kfac):
        return total.with_samples_of(part)
    raise ValueError(f"x: batches of structure {total.name!r} do not fit each other")


_KRONECKER = ("kfac", "ekfac")
_BY_ROWS = ("full", "layer", "tridiagonal")


def make(
    structure: Any,
    jacobian: Jacobian,
    scale: float,
    *,
    weight_sharing: str = "expand",
    deferred: bool = False,
) -> Structure:
    """Structure by its name, or ``("block", b)``.

    With `deferred` the factors of "kfac" are made when they are first asked for.
    """
    name = structure
    options: dict[str, Any] = {}
    if isinstance(structure, tuple) and len(structure) == 2 and structure[0] == "block":
        name, options = "unit", {"block": structure[1]}
    if not isinstance(name, str) or name not in STRUCTURES:
        raise ValueError(
            f"structure: expected one of {list(STRUCTURES)} or ('block', b), got {structure!r}"
        )
    if name in _KRONECKER:
        options["weight_sharing"] = weight_sharing
    if name == "kfac":
        options["deferred"] = deferred
    if jacobian.sample_map is not None and name not in _BY_ROWS:
        raise ValueError(
            f"structure: outputs normalised over the batch couple samples; expected one of "
            f"{list(_BY_ROWS)}, got {structure!r}"
        )
    # K-FAC looks for itself: its sums mostly tell.
    if name != "kfac" and not in_range(jacobian) and name not in _BY_ROWS:
        jacobian = widened(jacobian)  # squares would leave the range of float32
    return STRUCTURES[name](jacobian, scale, **options)
