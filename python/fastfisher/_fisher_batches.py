# SPDX-License-Identifier: Apache-2.0
"""Fisher matrices of data that come in batches: added up batch by batch where that is exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from fastfisher._arrays import Array, library, namespace, result_dtype
from fastfisher._batches import check_alike, check_iterable
from fastfisher._device_array import as_array
from fastfisher._fisher_matrix import Fisher
from fastfisher._fisher_rows import Recipe, rows_of
from fastfisher.structures import Structure, add_up, make

STREAMED = ("kfac", "diagonal")


def is_batches(x: Any) -> TypeGuard[Iterable[Any]]:
    """Whether `x` is an iterable of batches, not samples themselves."""
    arrays = isinstance(x, Mapping) or hasattr(x, "__dlpack__")
    return x is not None and not arrays and isinstance(x, Iterable)


def pairs(x: Iterable[Any], y: Array | None, *, labelled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield samples and labels of each batch; labels are a part of `y` if that is given."""
    check_iterable(x, "x")
    start, before = 0, None
    for batch in x:
        first, label = batch, None
        if isinstance(batch, (tuple, list)):
            if not batch:
                raise ValueError("x: expected batches, got an empty tuple")
            first = batch[0]
            label = batch[1] if labelled and len(batch) > 1 else None
        check_alike([first if before is None else before, first], "x", joined=False)
        before = first
        n = int(_samples(first))
        if y is not None:
            label = y[start : start + n]
        if labelled and label is None:
            raise ValueError("y: expected labels with kind='empirical', got None")
        start += n
        yield first, label
    if y is not None and len(y) != start:
        raise ValueError(f"y: expected {start} labels as the batches have samples, got {len(y)}")


def gathered(x: Iterable[Any], y: Array | None, *, labelled: bool) -> tuple[Any, Array | None]:
    """All batches put together."""
    if y is not None and not labelled:
        raise ValueError("y: expected None for a kind other than 'empirical'")
    found = list(pairs(x, y, labelled=labelled))
    if not found:
        raise ValueError("x: expected at least one batch, got none")
    firsts = [first for first, _ in found]
    if isinstance(firsts[0], Mapping):
        joined: Any = {key: _joined([batch[key] for batch in firsts]) for key in firsts[0]}
    else:
        check_alike(firsts, "x", joined=True)
        joined = _joined(firsts)
    return joined, _joined([label for _, label in found]) if labelled else None


def streamed(
    model: Any, x: Iterable[Any], y: Array | None, recipe: Recipe, *,
    structure: str, reduction: str, weight_sharing: str,
) -> Fisher:  # fmt: skip
    """Structure whose parts are sums over samples, one batch in memory at a time."""
    if y is not None and recipe.kind != "empirical":
        raise ValueError(f"y: expected None with kind={recipe.kind!r}")
    total: Structure | None = None
    count, last = 0, None
    for k, (first, label) in enumerate(pairs(x, y, labelled=recipe.kind == "empirical")):
        # Draws of one batch do not repeat in the next.
        own = replace(recipe, seed=(int(as_array(recipe.seed)), k))
        last = rows_of(model, first, label, own)
        part = make(structure, last.rows, last.weight, weight_sharing=weight_sharing)
        total = part if total is None else add_up(total, part)
        count += last.rows.samples
    if total is None or last is None:
        raise ValueError("x: expected at least one batch, got none")
    scale = last.weight / (max(1, count) if reduction == "mean" else 1)
    if reduction == "mean":
        total = total.scaled(1 / max(1, count))
    return Fisher(
        jacobian=None,
        rows=None,
        scale=scale,
        structure=total,
        likelihood=recipe.likelihood,
        kind=recipe.kind,
        like=last.like,
        dtype=np.dtype(result_dtype(last.like)),
        shapes=last.rows.parameter_shapes,
        reduction=reduction,
    )


def _samples(x: Any) -> Any:
    if isinstance(x, Mapping):
        return next(iter(x.values())).shape[0]
    library(x, "x")
    return x.shape[0]


def _joined(parts: list[Any]) -> Any:
    return namespace(parts[0]).concatenate(parts, 0)
