# SPDX-License-Identifier: Apache-2.0
"""Canonical per-layer Jacobians: what a layer is to everything below capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastfisher._arrays import Array, device_name, dtype_name, is_negated, library

FLOATS = ("float32", "float64")


@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """Factors of one dense layer: ``J[n, c] = g[n, c] (x) a[n]``.

    Parameters
    ----------
    a : array, shape (n, i), float32 | float64
        Inputs of the layer, one row a sample.
    g : array, shape (n, c, o), same dtype, device and library as `a`
        Gradients of the c outputs with respect to the layer's pre-activations.
    bias : bool
        Whether the layer has a bias: its parameters are then ``[W (o, i) row-major, b (o)]`` and
        `a` gains a trailing 1 (which is never stored).
    label : str, optional
        Name of the layer in messages.

    Raises
    ------
    ValueError
        Wrong rank or numbers of samples that differ.
    TypeError
        Not an array, a dtype that is not float32 or float64, mixed dtypes, libraries or devices.

    Notes
    -----
    The weight is W (o, i), so the layer's block of the Fisher matrix is close to ``G (x) A`` with
    ``A = a^T a / n`` and ``G = sum_c g_c^T g_c / n``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> layer = ff.Dense(np.ones((4, 3)), np.ones((4, 2, 5)), bias=True)
    >>> layer.samples, layer.n_outputs, layer.parameters
    (4, 2, 20)
    """

    a: Array
    g: Array
    bias: bool = False
    label: str | None = None

    def __init__(self, a: Array, g: Array, *, bias: bool = False, label: str | None = None) -> None:
        prefix = f"layer {label!r}: " if label else ""
        _check_array(a, prefix + "a", 2, "(n, i)")
        _check_array(g, prefix + "g", 3, "(n, c, o)")
        if a.shape[0] != g.shape[0]:
            raise ValueError(
                f"{prefix}a has {a.shape[0]} samples and g has {g.shape[0]}; expected a (n, i) and "
                "g (n, c, o) with the same n"
            )
        _check_alike(a, g, prefix + "a", prefix + "g")
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"{prefix}bias: expected True or False, got {type(bias).__name__}")
        for name, value in (("a", a), ("g", g), ("bias", bool(bias)), ("label", label)):
            object.__setattr__(self, name, value)

    @property
    def samples(self) -> int:
        """Number of samples n."""
        return int(self.a.shape[0])

    @property
    def n_outputs(self) -> int:
        """Number of outputs c."""
        return int(self.g.shape[1])

    @property
    def parameters(self) -> int:
        """Number of parameters: ``o * i``, and ``o`` more with a bias."""
        return int(self.g.shape[2]) * (int(self.a.shape[1]) + self.bias)


def _check_array(x: Array, name: str, rank: int, expected: str) -> None:
    library(x, name)
    if len(x.shape) != rank:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
    if is_negated(x):
        raise TypeError(f"{name}: has torch's negative bit set; pass x.resolve_neg()")
    dtype = dtype_name(x)
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float32 or float64, got dtype {dtype}")


def _check_alike(x: Array, y: Array, x_name: str, y_name: str) -> None:
    for what, of in (("dtype", dtype_name), ("array library", library), ("device", device_name)):
        if of(x) != of(y):
            raise TypeError(
                f"{x_name} and {y_name} must have the same {what}, got {of(x)} and {of(y)}"
            )


def check_layers(layers: Sequence[Dense]) -> None:
    """Check that `layers` describe one model on one set of samples.

    Raises
    ------
    ValueError
        No layer at all, or numbers of samples or outputs that differ; the message names the layer.
    TypeError
        Something that is no layer, or mixed dtypes, libraries or devices.
    """
    if len(layers) == 0:
        raise ValueError("layers: expected at least one layer, got none")
    for index, layer in enumerate(layers):
        if not isinstance(layer, Dense):
            raise TypeError(
                f"layers[{index}]: expected fastfisher.Dense, got {type(layer).__name__}"
            )
        if layer.g.shape[:2] != layers[0].g.shape[:2]:
            raise ValueError(
                f"layers[{index}]: g has (n, c) = {tuple(layer.g.shape[:2])}, layers[0] has "
                f"{tuple(layers[0].g.shape[:2])}; expected the same in every layer"
            )
        if index:
            _check_alike(layer.a, layers[0].a, f"layers[{index}]", "layers[0]")
