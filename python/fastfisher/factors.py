# SPDX-License-Identifier: Apache-2.0
"""Canonical per-layer Jacobians: what a layer is to everything below capture.

``J[n, c] = sum_s g[n, c, s] (x) a[n, s]`` over the positions s at which the weight is used; its
parameters are ``[W (o, i) row-major, b (o)]``. `Dense` has one position, `Shared` many, `Conv` the
patches of its input, `Explicit` is the Jacobian itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastfisher._arrays import Array
from fastfisher._layer import Layer, prefix


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
                f"{prefix(label)}{list(self.arrays)[1]}: expected {a.shape[-2]} positions as in "
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
