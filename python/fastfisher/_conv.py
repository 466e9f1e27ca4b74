# SPDX-License-Identifier: Apache-2.0
"""Factors of convolutions: the patches of the input are the positions of a shared weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fastfisher._arrays import Array, namespace, zeros
from fastfisher._layer import Layer, Native
from fastfisher.factors import Separable

_SPACE = {1: "w", 2: "h, w", 3: "d, h, w"}


class Conv(Layer):
    """Factors of a convolution in 1, 2 or 3 dimensions, as torch defines it (zero padding).

    Parameters
    ----------
    x : array, shape (n, i, *space), float32 | float64 | bfloat16 | float16
        Input of the layer. It is unfolded sample by sample inside the kernels, never as a whole.
    g : array, shape (n, c, o, *space), or Separable (m (n, o, *space), w (c, o)); dtype of `x`
        Gradients of the c outputs with respect to the layer's pre-activations.
    kernel : int or sequence of int
        Extents of the kernel; the weight is (o, i / groups, *kernel).
    stride, padding, dilation : int or sequence of int
        As in ``torch.nn.Conv2d``. Other modes of padding: pad `x` yourself.
    groups : int
        Number of groups of channels.
    bias, label, batch
        As in `Dense`.

    Raises
    ------
    ValueError
        Shapes that do not fit the geometry; the message says what is expected.
    TypeError
        Not an array, a dtype that is not a float, mixed dtypes, libraries or devices.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x, g = np.ones((4, 3, 8, 8)), np.ones((4, 2, 5, 8, 8))
    >>> layer = ff.Conv(x, g, kernel=3, padding=1, bias=True)
    >>> layer.positions, layer.parameters
    (64, 140)
    """

    __slots__ = ("dilation", "groups", "kernel", "padding", "stride")
    form = 3
    _names: ClassVar[dict[str, str]] = {"a": "x", "g": "g", "w": "w"}

    def __init__(
        self,
        x: Array,
        g: Array | Separable,
        *,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        label: str | None = None,
        batch: bool = False,
    ) -> None:
        rank = len(getattr(x, "shape", ())) - 2 - bool(batch)
        if rank not in _SPACE:
            raise ValueError(
                "x: expected shape (n, i, *space) with one to three spatial axes, got "
                f"{tuple(getattr(x, 'shape', ()))}"
            )
        space, w = _SPACE[rank], None
        shapes = {"a": (2 + rank, f"(n, i, {space})"), "g": (3 + rank, f"(n, c, o, {space})")}
        if isinstance(g, Separable):
            g, w = g.m, g.w
            shapes |= {
                "g": (2 + rank, f"(n, o, {space}), the m of a Separable"),
                "w": (2, "(c, o)"),
            }
        super().__init__(x, g, w, shapes=shapes, bias=bias, label=label, batch=batch)
        self._check_samples(shapes["a"][1], shapes["g"][1])
        self.kernel = _each("kernel", kernel, rank, 1)
        self.stride = _each("stride", stride, rank, 1)
        self.padding = _each("padding", padding, rank, 0)
        self.dilation = _each("dilation", dilation, rank, 1)
        (self.groups,) = _each("groups", groups, 1, 1)
        self._check_geometry()
        self._check_separable()

    @property
    def _rank(self) -> int:
        return len(self.kernel)

    @property
    def space(self) -> tuple[int, ...]:
        """Extents of the output."""
        return tuple(int(k) for k in self.g.shape[-self._rank :])

    @property
    def positions(self) -> int:
        """Number of patches."""
        return math.prod(self.space)

    @property
    def in_features(self) -> int:
        """Entries of a patch of one group."""
        channels = int(self.a.shape[-self._rank - 1])
        return channels // self.groups * math.prod(self.kernel)

    @property
    def out_features(self) -> int:
        """Output channels o."""
        return int(self.g.shape[-self._rank - 1])

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight`` (o, i / groups, *kernel), ``bias`` (o,)."""
        channels = int(self.a.shape[-self._rank - 1]) // self.groups
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, channels, *self.kernel)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        return shapes

    @property
    def geometry(self) -> tuple[Any, ...]:
        """(kernel, stride, padding, dilation, groups)."""
        return self.kernel, self.stride, self.padding, self.dilation, self.groups

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two sets of samples must have in common; extents, stride, padding may differ."""
        return "Conv", *self.parameter_shapes["weight"], self.groups, self.bias

    def native(self) -> Native:
        """Tuple of the native waist."""
        return self.form, self.a, self.g, self.w, self.bias, self.geometry

    def block(self) -> Array:
        """Write out the Jacobian, (n, c, p); for small layers and tests."""
        self._expect_one_network()
        patches, g = self.patches(), self.g
        n, c, q, o = self.samples, self.n_outputs, self.groups, self.out_features
        xp = namespace(g)
        if self.w is not None:
            g = g[:, None] * self.w.reshape(1, c, o, *[1] * self._rank)
        g = g.reshape(n, c, q, o // q, self.positions)
        weight = xp.einsum("ncqos,nqsi->ncqoi", g, patches).reshape(n, c, o * self.in_features)
        return xp.concatenate([weight, g.sum(-1).reshape(n, c, o)], -1) if self.bias else weight

    def patches(self) -> Array:
        """Unfolded input (n, groups, s, i / groups * kernel); for small layers and tests."""
        x, xp = self.a, namespace(self.a)
        for axis, pad in enumerate(self.padding, 2):
            shape = (*x.shape[:axis], pad, *x.shape[axis + 1 :])
            border = zeros(shape, x)
            x = xp.concatenate([border, x, border], axis)
        taps = []
        for tap in np.ndindex(*self.kernel):
            window = tuple(
                slice(k * d, k * d + extent * s, s)
                for k, d, s, extent in zip(tap, self.dilation, self.stride, self.space, strict=True)
            )
            taps.append(
                x[(slice(None), slice(None), *window)].reshape(*x.shape[:2], self.positions)
            )
        unfolded = xp.stack(taps, 2)  # (n, i, taps, s)
        return unfolded.reshape(
            self.samples, self.groups, self.in_features, self.positions
        ).swapaxes(2, 3)

    def _replaced(self, g: Array, w: Array) -> Conv:
        return Conv(
            self.a,
            g if w is None else Separable(g, w),
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias,
            label=self.label,
            batch=self._batch,
        )

    def _check_geometry(self) -> None:
        channels, o = int(self.a.shape[-self._rank - 1]), self.out_features
        if channels % self.groups or o % self.groups:
            raise ValueError(
                f"groups: expected a divisor of {channels} input and {o} output channels, got "
                f"{self.groups}"
            )
        if self.in_features >= 2**31:
            raise ValueError(
                f"kernel: expected patches of fewer than 2^31 entries, got {self.in_features} with "
                f"kernel {self.kernel}"
            )
        expected = tuple(
            max(0, (int(extent) + 2 * p - d * (k - 1) - 1) // s + 1)
            for extent, k, s, p, d in zip(
                self.a.shape[-self._rank :],
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        if self.space != expected:
            raise ValueError(
                f"g: expected spatial extents {expected} for x {tuple(self.a.shape)} with kernel "
                f"{self.kernel}, stride {self.stride}, padding {self.padding}, dilation "
                f"{self.dilation}; got shape {tuple(self.g.shape)}"
            )


def _each(name: str, value: int | Sequence[int], rank: int, least: int) -> tuple[int, ...]:
    """`value` for each spatial axis."""
    try:
        values = (value,) * rank if isinstance(value, (int, np.integer)) else tuple(value)
        # Bounded, so that positions in the input are numbers of 64 bits.
        checked = tuple(
            int(k)
            for k in values
            if int(k) == k and least <= k < 2**31 and not isinstance(k, (bool, np.bool_))
        )
    except (TypeError, ValueError, OverflowError):
        checked = ()
    if len(checked) != rank:
        raise ValueError(
            f"{name}: expected an integer >= {least}"
            + (f" or {rank} of them" if rank > 1 else "")
            + f", got {value!r}"
        )
    return checked
