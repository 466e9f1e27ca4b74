# SPDX-License-Identifier: Apache-2.0
"""Samples that come as an iterable: batches, or a pair of samples and labels by mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastfisher._arrays import dtype_name, namespace

_HINT = (
    "samples with their labels are one batch, x=[(x, y)], labels alone go into y= where a function "
    "has it"
)


def check_iterable(x: Any, name: str) -> None:
    """Refuse a tuple of arrays: it may be samples and labels, which are not two batches.

    Raises
    ------
    ValueError
        Such a tuple.
    """
    if isinstance(x, tuple) and x and all(hasattr(one, "__dlpack__") for one in x):
        shapes = [tuple(one.shape) for one in x]
        raise ValueError(
            f"{name}: expected samples, a mapping or an iterable of batches such as a list, got a "
            f"tuple of arrays of shapes {shapes}; {_HINT}"
        )


def joined(x: Any, name: str) -> Any:
    """One array: `x` itself, or the batches of an iterable one after the other.

    Raises
    ------
    TypeError, ValueError
        A batch that is no array, no batch at all, or batches that differ.
    """
    if hasattr(x, "__dlpack__") or isinstance(x, Mapping) or not isinstance(x, Iterable):
        return x
    check_iterable(x, name)
    batches = [one[0] if isinstance(one, (tuple, list)) and one else one for one in x]
    for one in batches:
        if not hasattr(one, "__dlpack__"):
            raise TypeError(f"{name}: expected batches of arrays, got one of {type(one).__name__}")
    if not batches:
        raise ValueError(f"{name}: expected at least one batch, got none")
    check_alike(batches, name, joined=True)
    return namespace(batches[0]).concatenate(batches)


def check_alike(batches: Sequence[Any], name: str, *, joined: bool) -> None:
    """Check that arrays that are batches have one dtype and rank, to be `joined` one shape.

    Raises
    ------
    ValueError
        The shape or dtype of one differs.
    """
    arrays = [one for one in batches if hasattr(one, "__dlpack__")]
    for one in arrays:
        same = len(one.shape) == len(arrays[0].shape) and dtype_name(one) == dtype_name(arrays[0])
        if same and (not joined or tuple(one.shape[1:]) == tuple(arrays[0].shape[1:])):
            continue
        raise ValueError(
            f"{name}: expected batches alike, got shape {tuple(arrays[0].shape)} of dtype "
            f"{dtype_name(arrays[0])}, then {tuple(one.shape)} of dtype {dtype_name(one)}; {_HINT}"
        )
