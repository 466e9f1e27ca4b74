# SPDX-License-Identifier: Apache-2.0
"""Normalisation of a network's outputs, and its derivative."""

from __future__ import annotations

import numpy as np

from fastfisher._arrays import Array, dtype_name, from_numpy, in_numpys_words, namespace, to_numpy
from fastfisher._sample_map import SampleMap

NORMALIZATIONS = (None, "mean", "batch", "layer")


def normalise(f: Array, kind: str | None, what: str = "outputs") -> tuple[Array, Array | None]:
    """Normalise `what`, f (n, c); also return the standard deviations they were divided by, if any.

    Raises
    ------
    ValueError
        Outputs that do not vary along the axis of a division.
    """
    if kind is None:
        return f, None
    axis = 1 if kind == "layer" else 0
    back = (slice(None), None) if axis else (None, slice(None))  # puts the summed axis back
    if f.shape[0] == 0:
        return f, namespace(f).ones_like(f.sum(axis))[back]
    centred = f - (f.sum(axis) / f.shape[axis])[back]
    if kind == "mean":
        return centred, None
    deviation = ((centred * centred).sum(axis) / f.shape[axis]) ** 0.5
    _require_variation(f, deviation, axis, what)
    deviation = deviation[back]
    return centred / deviation, deviation


def derivative(
    z: Array, deviation: Array | None, kind: str | None
) -> tuple[Array | None, SampleMap | None]:
    """Differentiate `normalise`: a matrix per sample (n, c, c), or a map of sample space."""
    if kind == "mean":
        return None, SampleMap.mean(z)
    if kind == "batch":
        return None, SampleMap.batch(z, deviation)
    if kind is None or deviation is None:
        return None, None
    c = z.shape[1]
    identity = from_numpy(np.eye(c, dtype=dtype_name(z)), z)
    return (identity - 1 / c - z[:, :, None] * z[:, None, :] / c) / deviation[:, :, None], None


def through(root: Array, delta: Array, sample_map: SampleMap | None) -> Array:
    """Cotangents (n, r, c) of the rows at the last layer."""
    if sample_map is not None:
        raise ValueError(
            "normalization: outputs normalised over the batch couple samples; expected None or "
            "'layer'"
        )
    return root if delta.shape[0] == 1 else root @ delta


def _require_variation(f: Array, deviation: Array, axis: int, what: str) -> None:
    """Refuse a deviation of no more than rounding errors: the result would be arbitrary."""
    largest = np.abs(in_numpys_words(f)).max(axis)
    flat = in_numpys_words(deviation) <= 4 * np.finfo(dtype_name(f)).eps * largest
    if flat.any():
        argument = "normalization" if what == "outputs" else "hidden_normalization"
        kind, named, over = "batch", what, "samples"
        if axis:
            kind, named, over = "layer", "samples", "outputs"
        raise ValueError(
            f"x: {argument}={kind!r} needs {what} that vary over the {over}, "
            f"but {named} {np.flatnonzero(to_numpy(flat))[:5].tolist()} are constant"
        )
