# SPDX-License-Identifier: Apache-2.0
"""Samples that come as an iterable: batches, or a pair of samples and labels by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastfisher._arrays import dtype_name

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
