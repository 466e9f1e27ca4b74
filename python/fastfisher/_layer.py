# SPDX-License-Identifier: Apache-2.0
"""What all layers have: factors, sizes, checks, and the tuple of the native waist."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    is_negated,
    library,
    namespace,
    requires_grad,
    stand_in,
    total,
    widened,
)

FLOATS = ("float32", "float64")
STORED = (*FLOATS, "bfloat16", "float16")
"""dtypes of factors. The 16-bit ones are widened before any product; results are float32."""

Native = tuple[int, Array, Array, Array, bool, Any]
"""A layer at the native waist: (form, a or None, g, w or None, bias, geometry or None)."""


class Layer:
    """What all layers have: factors `a` and `g`, `bias`, `label`, sizes.

    A subclass sets `form` and the shapes, and gives `block` and `parameter_shapes`.
    """

    __slots__ = ("_batch", "a", "bias", "g", "label", "w")

    form: int
    a: Array
    g: Array
    w: Array
    bias: bool
    label: str | None

    def __repr__(self) -> str:
        """Name, shapes and dtype."""
        shapes = ", ".join(f"{name}={tuple(x.shape)}" for name, x in self.arrays.items())
        label = "" if self.label is None else f", label={self.label!r}"
        return f"{type(self).__name__}({shapes}, bias={self.bias}, {dtype_name(self.g)}{label})"

    def converted(self, change: Callable[[Array], Array]) -> Layer:
        """Layer with `change` made to its factors."""
        new = copy.copy(self)
        for name in ("a", "g", "w"):
            array = getattr(self, name)
            if array is not None:
                setattr(new, name, change(array))
        return new

    def widened(self) -> Layer:
        """Layer with 16-bit floats in float32; itself if it has none."""
        return self if dtype_name(self.g) in FLOATS else self.converted(widened)

    def __init__(
        self,
        a: Array,
        g: Array,
        w: Array,
        *,
        shapes: dict[str, tuple[int, str]],
        bias: bool,
        label: str | None,
        batch: bool,
    ) -> None:
        start = prefix(label)
        self.a, self.g, self.w = a, g, w
        for key in shapes:
            if getattr(self, key) is None:
                raise TypeError(f"{start}{self._names[key]}: expected an array, got None")
        present = list(self.arrays.items())
        for (name, array), (rank, expected) in zip(present, shapes.values(), strict=True):
            _check_array(array, start + name, rank + batch, _batched(expected, batch))
        for name, array in present[1:]:
            _check_alike(present[0][1], array, start + present[0][0], start + name)
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"{start}bias: expected True or False, got {type(bias).__name__}")
        self.bias, self.label = bool(bias), label
        self._batch = batch

    _names: ClassVar[dict[str, str]] = {"a": "a", "g": "g", "w": "w"}

    @property
    def batch(self) -> int | None:
        """Number of networks e of a batch; None if the arrays have no such axis."""
        return int(self.g.shape[0]) if self._batch else None

    @property
    def samples(self) -> int:
        """Number of samples n."""
        return int(self.g.shape[self._batch])

    @property
    def n_outputs(self) -> int:
        """Number of outputs c."""
        if self.w is not None:
            return int(self.w.shape[self._batch])
        return int(self.g.shape[1 + self._batch])

    @property
    def in_features(self) -> int:
        """Inputs i of each unit."""
        return int(self.a.shape[-1])

    @property
    def out_features(self) -> int:
        """Units o."""
        return int(self.g.shape[-1])

    @property
    def parameters(self) -> int:
        """Number of parameters: ``o * i``, and ``o`` more with a bias."""
        return self.out_features * (self.in_features + self.bias)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by kind, in their order."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        return shapes

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays by the names that messages use, those that exist."""
        given = {"a": self.a, "g": self.g, "w": self.w}
        names = self._names if self.w is None else self._names | {"g": "m"}
        return {text: given[key] for key, text in names.items() if given[key] is not None}

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two sets of samples of one layer must have in common."""
        return type(self).__name__, self.in_features, self.out_features, self.bias

    def with_outputs(self, select: Callable[[Array, int], Array]) -> Layer:
        """Layer of the outputs that ``select(array, axis)`` makes of the axis c of g or w."""
        g, w, axis = self.g, self.w, int(self._batch)
        if w is None:
            return self._replaced(select(g, 1 + axis), None)
        return self._replaced(g, select(w, axis))

    def summed(self, *, sizes_only: bool = False) -> Layer:
        """Layer of the sum of all outputs; 16-bit floats are widened before they are added."""
        wide, add = (stand_in, stand_in) if sizes_only else (widened, total)
        layer, axis = copy.copy(self), int(self._batch)
        layer.a = None if self.a is None else wide(self.a)
        if self.w is None:
            layer.g = add(self.g, 1 + axis)
        else:
            layer.g, layer.w = wide(self.g), add(self.w, axis)
        return layer

    def native(self) -> Native:
        """Tuple of the native waist."""
        return self.form, self.a, self.g, self.w, self.bias, None

    def block(self) -> Array:
        """Write out the Jacobian, (n, c, p); for small layers and tests."""
        self._expect_one_network()
        a, g = self._positions()
        xp = namespace(g)
        weight = xp.einsum("ncso,nsi->ncoi", g, a)
        blocks = weight.reshape(*weight.shape[:2], weight.shape[2] * weight.shape[3])
        return xp.concatenate([blocks, g.sum(2)], -1) if self.bias else blocks

    def _expect_one_network(self) -> None:
        if self._batch:
            raise ValueError("layers: hold a batch of networks; expected one, without the axis e")

    def _positions(self) -> tuple[Array, Array]:
        """Factors a (n, s, i) and g (n, c, s, o)."""
        raise NotImplementedError

    def _replaced(self, g: Array, w: Array) -> Layer:
        raise NotImplementedError

    def _check_samples(self, a: str, g: str) -> None:
        """Check that a and g, described by their expected shapes, agree on (e and) n."""
        axis = int(self._batch)
        n, m = self.a.shape[: 1 + axis], self.g.shape[: 1 + axis]
        if tuple(n) != tuple(m):
            x, y = list(self.arrays)[:2]
            got = f"{x} has {n[-1]} samples and {y} has {m[-1]}"
            if axis:
                got = f"{x} has (e, n) = {tuple(n)} and {y} has {tuple(m)}"
            raise ValueError(
                f"{prefix(self.label)}{got}; expected {x} {_batched(a, axis)} and {y} "
                f"{_batched(g, axis)} with the same n" + (" and e" if axis else "")
            )

    def _check_separable(self) -> None:
        """Check that w agrees with m on o (and e)."""
        if self.w is None:
            return
        axis, o = int(self._batch), self.out_features
        if self.w.shape[-1] != o or tuple(self.w.shape[:axis]) != tuple(self.g.shape[:axis]):
            expected = f"({self.g.shape[0]}, c, {o})" if axis else f"(c, {o})"
            raise ValueError(
                f"{prefix(self.label)}w: expected shape {expected} as m has {o} units, got "
                f"{tuple(self.w.shape)}"
            )


def prefix(label: str | None) -> str:
    return f"layer {label!r}: " if label else ""


def _batched(shape: str, batch: bool | int) -> str:
    return shape.replace("(n", "(e, n").replace("(c", "(e, c") if batch else shape


def _check_array(x: Array, name: str, rank: int, expected: str) -> None:
    library(x, name)
    if len(x.shape) != rank:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
    if requires_grad(x):
        raise TypeError(f"{name}: cannot be borrowed: it requires grad (pass x.detach())")
    if is_negated(x):
        raise TypeError(f"{name}: has torch's negative bit set; pass x.resolve_neg()")
    dtype = dtype_name(x)
    if dtype not in STORED:
        raise TypeError(
            f"{name}: expected dtype float32, float64, bfloat16 or float16, got dtype {dtype}"
        )
    if isinstance(x, np.ndarray) and dtype == "bfloat16":
        raise TypeError(
            f"{name}: numpy cannot hand over arrays of dtype bfloat16; expected a torch or jax "
            "array, or x.astype('float32')"
        )


def _check_alike(x: Array, y: Array, x_name: str, y_name: str) -> None:
    for what, of in (("dtype", dtype_name), ("array library", library), ("device", device_name)):
        if of(x) != of(y):
            raise TypeError(
                f"{x_name} and {y_name} must have the same {what}, got {of(x)} and {of(y)}"
            )


def check_layers(layers: Sequence[Layer]) -> None:
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
        if not isinstance(layer, Layer):
            raise TypeError(
                f"layers[{index}]: expected a layer such as fastfisher.Dense, got "
                f"{type(layer).__name__}"
            )
        first = layers[0]
        if layer.batch != first.batch:
            raise ValueError(
                f"layers[{index}]: batch is {layer.batch}, layers[0] has {first.batch}; expected "
                "the same in every layer"
            )
        if (layer.samples, layer.n_outputs) != (first.samples, first.n_outputs):
            raise ValueError(
                f"layers[{index}]: g has (n, c) = {(layer.samples, layer.n_outputs)}, layers[0] "
                f"has {(first.samples, first.n_outputs)}; expected the same in every layer"
            )
        if index:
            _check_alike(layer.g, first.g, f"layers[{index}]", "layers[0]")
