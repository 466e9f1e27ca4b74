# SPDX-License-Identifier: Apache-2.0
"""A Jacobian whose outputs went through a root of the likelihood's Hessian: ``F = J^T J / N``.

With S_n S_n^T = H_n, row r of sample n is ``sum_c S_n[c, r] J[n, c]``: the same layers with other
cotangents. The exact Fisher matrix has one row for each column of a root of H_n, a sampled one the
gradient of each draw, the empirical one the gradient for the label. Everything below sees rows.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from fastfisher._arrays import Array, device_name, in_numpys_words, to_numpy
from fastfisher._arrays import widened as widened_array
from fastfisher._device_array import contiguous
from fastfisher._finite import largest
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._sample_map import SampleMap
from fastfisher.errors import NonFiniteError

Host = np.ndarray[Any, Any]


def in_numpy(jacobian: Jacobian) -> Jacobian:
    """Jacobian with numpy's views of all factors, of those on a device in numpy's words.

    16-bit floats are widened.

    Raises
    ------
    TypeError
        Factors on a device that are not torch's.
    ValueError
        A batch of networks.
    """
    if jacobian.layers[0].batch is not None:
        raise ValueError("layers: a batch of networks has no Fisher matrix; expected one network")
    kept = jacobian.sample_map
    if kept is not None:
        kept = SampleMap(_worded(kept.basis), _worded(kept.scale))
    return Jacobian(
        tuple(layer.converted(_worded) for layer in jacobian.layers),
        None if jacobian.outputs is None else _worded(jacobian.outputs),
        kept,
        jacobian.parameters,
    )


def rooted(jacobian: Jacobian, root: Host | None) -> Jacobian:
    """Rows ``S_n^T J_n`` for a `root` S (N, C, R); None is the identity."""
    if root is None:
        return jacobian
    layers = [_contracted(layer, root) for layer in jacobian.layers]
    return Jacobian(tuple(layers), None, None, jacobian.parameters)


def widened(jacobian: Jacobian) -> Jacobian:
    """Jacobian with float64 factors."""
    layers = []
    for layer in jacobian.layers:
        new = copy.copy(layer)
        for name in ("a", "g", "w"):
            array = getattr(layer, name)
            if array is not None:
                setattr(new, name, array.astype(np.float64))
        layers.append(new)
    kept = jacobian.sample_map
    if kept is not None:
        kept = SampleMap(kept.basis.astype(np.float64), kept.scale.astype(np.float64))
    return Jacobian(tuple(layers), None, kept, jacobian.parameters)


def in_range(jacobian: Jacobian) -> bool:
    """Check that all factors are finite; False where squares of float32 ones are lost.

    Raises
    ------
    NonFiniteError
        The message names the layer and the first index.
    """
    low, high = 1e-16, 1e16
    arrays = [
        (name, key, array)
        for name, layer in zip(jacobian.names, jacobian.layers, strict=True)
        for key, array in layer.arrays.items()
        if array.size
    ]
    tops = largest([array for _, _, array in arrays])
    for (name, key, array), top in zip(arrays, tops, strict=True):
        if math.isfinite(top):
            continue
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        raise NonFiniteError(
            f"layer {name!r}, {key}: expected finite numbers, got {array[where]} at index {where}"
        )
    return not any(
        top and not low < top < high
        for (_, _, array), top in zip(arrays, tops, strict=True)
        if array.dtype == np.float32
    )


def _worded(x: Array) -> Any:
    """`x` in numpy's words, 16-bit floats in float32."""
    if device_name(x) == "cpu":
        host = to_numpy(x)
        return host.astype(np.float32) if host.dtype == np.float16 else host
    return in_numpys_words(widened_array(x), "layers")


def _contracted(layer: Layer, root: Host) -> Layer:
    """Layer with the R outputs ``sum_c S[n, c, r] g[n, c]``."""
    kind = layer.g.dtype
    to_rows = contiguous(root.swapaxes(1, 2), kind)  # (n, r, c)
    n, r, c = to_rows.shape
    if layer.w is None:
        g = layer.g
        flat = to_rows @ g.reshape(n, c, math.prod(g.shape[2:]))
        return layer._replaced(flat.reshape(n, r, *g.shape[2:]), None)
    # Cotangents m (n, [s,] o or o, *space) times w (c, o): w differs between samples from now on.
    w = to_rows @ layer.w  # (n, r, o)
    axis = 2 if layer.form != 1 else layer.g.ndim
    shape = [n, r] + [1] * (layer.g.ndim - 1)
    shape[axis] = w.shape[2]
    return layer._replaced(layer.g[:, None] * w.reshape(shape), None)
