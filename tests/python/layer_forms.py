# SPDX-License-Identifier: Apache-2.0
"""Layers of every form: how a test draws them, and how they become layers of fastfisher.

A layer is drawn as one of the reference (numpy arrays of the dtype under test); `ours` makes the
layer of fastfisher with the same arrays, of any library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import fastfisher as ff
from fastfisher import reference


def _shared_terms(s: int, i: int, o: int, summed: int, method: str) -> int:
    """Longest chain: gradients sum positions, then parameters meet; S3 sums pairs of positions."""
    gradients, pairs = s + i * o, i + o + s * s
    return summed * (max(gradients, pairs) if method in ("auto", "S3") else gradients)


@dataclass(frozen=True)
class D:
    """Dense layer."""

    i: int
    o: int
    bias: bool = False

    methods = ("S0", "S1", "S3")
    positions = 1

    def terms(self, summed: int, method: str = "auto") -> int:
        """Length of the reduction of one entry, over `summed` outputs."""
        return self.i + summed * self.o

    def draw(self, normal, n: int, c: int, right: bool = False):
        return normal(n, self.i), normal(n, c, self.o), self.bias


@dataclass(frozen=True)
class S:
    """Weight used at s positions, t on the right side of a cross Gram."""

    s: int
    i: int
    o: int
    bias: bool = False
    separable: bool = False
    t: int | None = None

    @property
    def methods(self):
        return ("S1", "S2", "S3", *(["S4"] if self.separable else []))

    @property
    def positions(self) -> int:
        return max(self.s, self.t or 0)

    def terms(self, summed: int, method: str = "auto") -> int:
        return _shared_terms(self.positions, self.i, self.o, summed, method)

    def draw(self, normal, n: int, c: int, right: bool = False):
        s = self.t if right and self.t is not None else self.s
        if self.separable:
            g = reference.Separable(normal(n, s, self.o), normal(c, self.o))
        else:
            g = normal(n, c, s, self.o)
        return reference.Shared(normal(n, s, self.i), g, self.bias)


@dataclass(frozen=True)
class C:
    """Convolution; `space2` are the extents of the inputs on the right side of a cross Gram."""

    channels: int
    space: tuple[int, ...]
    o: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    separable: bool = False
    space2: tuple[int, ...] | None = None

    @property
    def methods(self):
        return ("S1", "S2", "S3", *(["S4"] if self.separable else []))

    @property
    def geometry(self) -> dict:
        rank = len(self.space)
        return {
            "kernel": self.kernel,
            "stride": self.stride or (1,) * rank,
            "padding": self.padding or (0,) * rank,
            "dilation": self.dilation or (1,) * rank,
            "groups": self.groups,
        }

    def out_space(self, space) -> tuple[int, ...]:
        """Extents of the output, by counting the places where the kernel fits."""
        geometry = self.geometry
        return tuple(
            len(range(0, extent + 2 * p - d * (k - 1), s))
            for extent, k, s, p, d in zip(
                space,
                self.kernel,
                geometry["stride"],
                geometry["padding"],
                geometry["dilation"],
                strict=True,
            )
        )

    @property
    def positions(self) -> int:
        """The most that one side has."""
        return max(math.prod(self.out_space(x)) for x in (self.space, self.space2 or self.space))

    @property
    def parameters(self) -> int:
        weight = self.o * (self.channels // self.groups) * math.prod(self.kernel)
        return weight + self.o * self.bias

    def terms(self, summed: int, method: str = "auto") -> int:
        i = self.channels // self.groups * math.prod(self.kernel)
        return _shared_terms(self.positions, i, self.o, summed, method)

    def draw(self, normal, n: int, c: int, right: bool = False):
        space = self.space2 if right and self.space2 is not None else self.space
        out = self.out_space(space)
        if self.separable:
            g = reference.Separable(normal(n, self.o, *out), normal(c, self.o))
        else:
            g = normal(n, c, self.o, *out)
        return reference.Conv(normal(n, self.channels, *space), g, **self.geometry, bias=self.bias)


@dataclass(frozen=True)
class E:
    """Jacobian written out."""

    p: int

    methods = ("S1",)
    positions = 1

    def terms(self, summed: int, method: str = "auto") -> int:
        return self.p * summed

    def draw(self, normal, n: int, c: int, right: bool = False):
        return reference.Explicit(normal(n, c, self.p))


@dataclass(frozen=True)
class LayerCase:
    """A list of layers, n samples on the left and m on the right, c outputs."""

    id: str
    n: int
    m: int
    c: int
    layers: tuple

    def __str__(self) -> str:
        return self.id

    def terms(self, outputs, method: str = "auto") -> int:
        """Length of the reduction, over outputs too where these are summed."""
        summed = max(self.c, 1) if outputs in ("trace", "sum") else 1
        return max(spec.terms(summed, method) for spec in self.layers)

    @property
    def methods(self) -> list[str]:
        """Methods that every layer has."""
        return [
            k for k in ("S0", "S1", "S2", "S3", "S4") if all(k in s.methods for s in self.layers)
        ]

    def draw(self, rng, dtype: str, right: bool = False) -> list:
        """Layers of the reference with random entries."""

        def normal(*shape):
            return rng.standard_normal(shape).astype(dtype)

        samples = self.m if right else self.n
        return [spec.draw(normal, samples, self.c, right) for spec in self.layers]


def mapped(layer, convert):
    """Layer of the reference with ``convert(array)`` for each of its arrays, in their order."""
    if isinstance(layer, tuple):
        return convert(layer[0]), convert(layer[1]), layer[2]
    if isinstance(layer, reference.Explicit):
        return reference.Explicit(convert(layer.j))
    name = "a" if isinstance(layer, reference.Shared) else "x"
    first, g = convert(getattr(layer, name)), layer.g
    if isinstance(g, reference.Separable):
        g = reference.Separable(convert(g.m), convert(g.w))
    else:
        g = convert(g)
    return replace(layer, **{name: first, "g": g})


def arrays(layer) -> dict:
    """Arrays of a layer of the reference by the names that messages use."""
    if isinstance(layer, tuple):
        return {"a": layer[0], "g": layer[1]}
    if isinstance(layer, reference.Explicit):
        return {"j": layer.j}
    first = {"a": layer.a} if isinstance(layer, reference.Shared) else {"x": layer.x}
    if isinstance(layer.g, reference.Separable):
        return {**first, "m": layer.g.m, "w": layer.g.w}
    return {**first, "g": layer.g}


def our_layer(layer, **options):
    """Layer of fastfisher with the arrays of one of the reference."""
    if isinstance(layer, tuple):
        return ff.Dense(layer[0], layer[1], bias=layer[2], **options)
    if isinstance(layer, reference.Explicit):
        return ff.Explicit(layer.j, **options)
    g = layer.g
    if isinstance(g, reference.Separable):
        g = ff.Separable(g.m, g.w)
    if isinstance(layer, reference.Shared):
        return ff.Shared(layer.a, g, bias=layer.bias, **options)
    return ff.Conv(
        layer.x,
        g,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias,
        **options,
    )


def ours(layers, convert=None, **options) -> list:
    """Layers of fastfisher with the arrays of those of the reference, each through `convert`."""
    if convert is not None:
        layers = [mapped(layer, convert) for layer in layers]
    return [our_layer(layer, **options) for layer in layers]
