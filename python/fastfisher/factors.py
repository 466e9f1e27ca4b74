# SPDX-License-Identifier: Apache-2.0
"""Canonical per-layer Jacobians: what a layer is to everything below capture.

``J[n, c] = sum_s g[n, c, s] (x) a[n, s]`` over the positions s at which the weight is used; its
parameters are ``[W (o, i) row-major, b (o)]``. `Dense` has one position, `Shared` many, `Conv` the
patches of its input, `Explicit` is the Jacobian itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False, slots=True)
class Separable:
    """Cotangents that split, ``g[n, c, s, o] = m[n, s, o] w[c, o]``: one factor for all outputs.

    The layer below pooling and a linear head has such cotangents, and so has the layer below one
    elementwise step and a linear head. Pass it as `g` of `Shared` or `Conv`.

    Parameters
    ----------
    m : array, shape (n, s, o), for `Conv` (n, o, *space)
        What is common to all outputs.
    w : array, shape (c, o)
        What is common to all samples and positions.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> g = ff.Separable(np.ones((4, 9, 5)), np.ones((2, 5)))
    >>> ff.Shared(np.ones((4, 9, 3)), g).n_outputs
    2
    """

    m: Array
    w: Array


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
        prefix = _prefix(label)
        self.a, self.g, self.w = a, g, w
        present = list(self.arrays.items())
        for (name, array), (rank, expected) in zip(present, shapes.values(), strict=True):
            _check_array(array, prefix + name, rank + batch, _batched(expected, batch))
        for name, array in present[1:]:
            _check_alike(present[0][1], array, prefix + present[0][0], prefix + name)
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"{prefix}bias: expected True or False, got {type(bias).__name__}")
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
                f"{_prefix(self.label)}{got}; expected {x} {_batched(a, axis)} and {y} "
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
                f"{_prefix(self.label)}w: expected shape {expected} as m has {o} units, got "
                f"{tuple(self.w.shape)}"
            )


class Dense(Layer):
    """Factors of one dense layer: ``J[n, c] = g[n, c] (x) a[n]``.

    Parameters
    ----------
    a : array, shape (n, i), float32 | float64 | bfloat16 | float16
        Inputs of the layer, one row a sample.
    g : array, shape (n, c, o), same dtype, device and library as `a`
        Gradients of the c outputs with respect to the layer's pre-activations.
    bias : bool
        Whether the layer has a bias: its parameters are then ``[W (o, i) row-major, b (o)]`` and
        `a` gains a trailing 1 (which is never stored).
    label : str, optional
        Name of the layer in messages.
    batch : bool
        Whether all arrays have a leading axis e, one network of a batch each.

    Raises
    ------
    ValueError
        Wrong rank or numbers of samples that differ.
    TypeError
        Not an array, a dtype that is not a float, mixed dtypes, libraries or devices.

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

    __slots__ = ()
    form = 0

    def __init__(
        self,
        a: Array,
        g: Array,
        *,
        bias: bool = False,
        label: str | None = None,
        batch: bool = False,
    ) -> None:
        shapes = {"a": (2, "(n, i)"), "g": (3, "(n, c, o)")}
        super().__init__(a, g, None, shapes=shapes, bias=bias, label=label, batch=batch)
        self._check_samples("(n, i)", "(n, c, o)")

    def _replaced(self, g: Array, w: Array) -> Dense:
        return Dense(self.a, g, bias=self.bias, label=self.label, batch=self._batch)

    def _positions(self) -> tuple[Array, Array]:
        return self.a[:, None], self.g[:, :, None]


class Shared(Layer):
    """Factors of a weight used at s positions: ``J[n, c] = sum_s g[n, c, s] (x) a[n, s]``.

    Positions are tokens, pixels, time steps, or several uses of one weight (then concatenated).

    Parameters
    ----------
    a : array, shape (n, s, i), float32 | float64 | bfloat16 | float16
        Inputs at each position.
    g : array, shape (n, c, s, o), or Separable (m (n, s, o), w (c, o)); dtype of `a`
        Gradients of the c outputs with respect to the pre-activations at each position.
    bias, label, batch
        As in `Dense`.

    Raises
    ------
    ValueError
        Wrong rank, numbers of samples or positions that differ.
    TypeError
        Not an array, a dtype that is not a float, mixed dtypes, libraries or devices.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> layer = ff.Shared(np.ones((4, 9, 3)), np.ones((4, 2, 9, 5)), bias=True)
    >>> layer.samples, layer.positions, layer.n_outputs, layer.parameters
    (4, 9, 2, 20)
    """

    __slots__ = ()
    form = 1

    def __init__(
        self,
        a: Array,
        g: Array | Separable,
        *,
        bias: bool = False,
        label: str | None = None,
        batch: bool = False,
    ) -> None:
        shapes = {"a": (3, "(n, s, i)"), "g": (4, "(n, c, s, o)")}
        w = None
        if isinstance(g, Separable):
            g, w = g.m, g.w
            shapes |= {"g": (3, "(n, s, o), the m of a Separable"), "w": (2, "(c, o)")}
        super().__init__(a, g, w, shapes=shapes, bias=bias, label=label, batch=batch)
        self._check_samples(shapes["a"][1], shapes["g"][1])
        if a.shape[-2] != g.shape[-2]:
            raise ValueError(
                f"{_prefix(label)}{list(self.arrays)[1]}: expected {a.shape[-2]} positions as in "
                f"a, got shape {tuple(g.shape)}"
            )
        self._check_separable()

    @property
    def positions(self) -> int:
        """Number of positions s."""
        return int(self.a.shape[-2])

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two sets of samples must have in common; the number of positions may differ."""
        return "Shared", self.in_features, self.out_features, self.bias

    def _replaced(self, g: Array, w: Array) -> Shared:
        cotangents = g if w is None else Separable(g, w)
        return Shared(self.a, cotangents, bias=self.bias, label=self.label, batch=self._batch)

    def _positions(self) -> tuple[Array, Array]:
        return self.a, self.g if self.w is None else self.g[:, None] * self.w[None, :, None]


class Explicit(Layer):
    """A Jacobian written out, for parameters whose Jacobian does not factor.

    Parameters
    ----------
    j : array, shape (n, c, p), float32 | float64 | bfloat16 | float16
        Gradient of each output of each sample.
    label, batch
        As in `Dense`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.Jacobian.from_factors([ff.Explicit(np.ones((4, 2, 7)))]).shape
    (8, 7)
    """

    __slots__ = ()
    form = 2
    _names: ClassVar[dict[str, str]] = {"g": "j"}

    def __init__(self, j: Array, *, label: str | None = None, batch: bool = False) -> None:
        shapes = {"g": (3, "(n, c, p)")}
        super().__init__(None, j, None, shapes=shapes, bias=False, label=label, batch=batch)

    @property
    def j(self) -> Array:
        """The Jacobian (n, c, p)."""
        return self.g

    @property
    def in_features(self) -> int:
        """Number of parameters p."""
        return int(self.g.shape[-1])

    @property
    def out_features(self) -> int:
        """One: the parameters have no structure."""
        return 1

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """One vector."""
        return {"parameters": (self.in_features,)}

    def block(self) -> Array:
        """Return the Jacobian itself."""
        self._expect_one_network()
        return self.g

    def _replaced(self, g: Array, w: Array) -> Explicit:
        return Explicit(g, label=self.label, batch=self._batch)


def _prefix(label: str | None) -> str:
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
