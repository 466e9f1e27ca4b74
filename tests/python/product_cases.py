# SPDX-License-Identifier: Apache-2.0
"""The lists of layers that products with a Jacobian are tried on, and how they are checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import fastfisher as ff
from cases import as_float64, assert_close
from fastfisher import reference
from fastfisher._conv import _each


@dataclass(frozen=True)
class Spec:
    """One layer by its sizes; `space`, `kernel` and so on for convolutions."""

    kind: str
    i: int = 3
    o: int = 4
    t: int = 1
    bias: bool = False
    separable: bool = False
    space: tuple[int, ...] = ()
    kernel: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    @property
    def geometry(self) -> tuple:
        rank = len(self.space)
        four = [(self.kernel, 1), (self.stride, 1), (self.padding, 0), (self.dilation, 1)]
        return (*(_each("x", value, rank, least) for value, least in four), self.groups)

    def output(self) -> tuple[int, ...]:
        kernel, stride, padding, dilation, _ = self.geometry
        return tuple(
            max(0, (x + 2 * p - d * (k - 1) - 1) // s + 1)
            for x, k, s, p, d in zip(self.space, kernel, stride, padding, dilation, strict=True)
        )

    def shapes(self, n: int, c: int) -> dict[str, tuple[int, ...]]:
        if self.kind == "explicit":
            return {"j": (n, c, self.i)}
        if self.kind == "dense":
            return {"a": (n, self.i), "g": (n, c, self.o)}
        a, rows = (n, self.t, self.i), (self.t, self.o)
        if self.kind == "conv":
            a, rows = (n, self.i, *self.space), (self.o, *self.output())
        if self.separable:
            return {"a": a, "g": (n, *rows), "w": (c, self.o)}
        return {"a": a, "g": (n, c, *rows)}


def layer_of(spec: Spec, arrays: dict, label: str | None = None):
    if spec.kind == "explicit":
        return ff.Explicit(arrays["j"], label=label)
    g = ff.Separable(arrays["g"], arrays["w"]) if spec.separable else arrays["g"]
    if spec.kind == "conv":
        names = ("kernel", "stride", "padding", "dilation")
        options = dict(zip(names, spec.geometry, strict=False))
        return ff.Conv(arrays["a"], g, groups=spec.groups, bias=spec.bias, label=label, **options)
    kind = ff.Dense if spec.kind == "dense" else ff.Shared
    return kind(arrays["a"], g, bias=spec.bias, label=label)


def plain_of(spec: Spec, arrays: dict) -> tuple:
    """The layer for the reference."""
    host = {
        name: as_float64(x.double() if hasattr(x, "double") else x) for name, x in arrays.items()
    }
    if spec.kind == "explicit":
        return "explicit", host["j"]
    g = (host["g"], host["w"]) if spec.separable else host["g"]
    extra = (spec.geometry,) if spec.kind == "conv" else ()
    return spec.kind, host["a"], g, spec.bias, *extra


@dataclass(frozen=True)
class Case:
    id: str
    specs: tuple[Spec, ...]
    n: int = 5
    c: int = 3

    def __str__(self) -> str:
        return self.id

    def draw(self, rng, convert=lambda x: x) -> list[dict]:
        return [
            {
                name: convert(rng.standard_normal(shape))
                for name, shape in s.shapes(self.n, self.c).items()
            }
            for s in self.specs
        ]

    def jacobian(self, arrays: list[dict]) -> ff.Jacobian:
        pairs = zip(self.specs, arrays, strict=True)
        return ff.Jacobian.from_factors([layer_of(spec, given) for spec, given in pairs])

    def plain(self, arrays: list[dict]) -> list[tuple]:
        return [plain_of(spec, given) for spec, given in zip(self.specs, arrays, strict=True)]


def conv(*space: int, **options) -> Spec:
    return Spec("conv", space=space, **options)


CASES = [
    Case("dense", (Spec("dense", 7, 5), Spec("dense", 5, 3, bias=True))),
    Case("dense-off-the-tile", (Spec("dense", 257, 131, bias=True),), n=67, c=5),
    Case("dense-two-slabs-of-features", (Spec("dense", 5003, 9, bias=True),), n=7, c=2),
    Case("dense-many-samples", (Spec("dense", 9, 10, bias=True),), n=1100, c=2),
    Case("dense-wide", (Spec("dense", 3, 1201),), n=4, c=2),
    Case("shared", (Spec("shared", 6, 5, t=7, bias=True),)),
    Case("shared-long", (Spec("shared", 300, 5, t=270, bias=True),), n=3, c=2),
    Case("shared-separable", (Spec("shared", 6, 33, t=7, bias=True, separable=True),), c=19),
    Case("explicit", (Spec("explicit", 2500), Spec("explicit", 1)), c=6),
    Case("conv1", (conv(11, i=4, o=6, kernel=3, padding=1, bias=True),)),
    Case("conv1-strided", (conv(11, i=4, o=6, kernel=2, stride=3, padding=2, dilation=2),)),
    Case("conv2", (conv(9, 8, i=3, o=7, kernel=3, padding=1, bias=True),)),
    Case(
        "conv2-all-options",
        (
            conv(
                *(9, 10),
                i=4,
                o=6,
                kernel=(3, 2),
                stride=(2, 1),
                padding=(2, 3),
                dilation=(1, 3),
                groups=2,
                bias=True,
            ),
        ),
    ),
    Case("conv2-large", (conv(20, 20, i=3, o=5, kernel=5, padding=2, bias=True),), n=2, c=5),
    Case("conv2-depthwise", (conv(5, 6, i=8, o=8, kernel=3, padding=1, groups=8, bias=True),)),
    Case("conv2-one-by-one", (conv(4, 4, i=17, o=19),)),
    Case("conv2-only-padding", (conv(1, 1, i=2, o=3, kernel=2, padding=4, stride=3),)),
    Case("conv2-separable", (conv(6, 5, i=4, o=6, kernel=3, groups=2, bias=True, separable=True),)),
    Case("conv3", (conv(5, 4, 6, i=2, o=4, kernel=(2, 3, 2), padding=1, stride=2, bias=True),)),
    Case(
        "all-forms",
        (
            conv(6, 5, i=2, o=3, kernel=3, padding=1, bias=True),
            Spec("shared", 3, 4, t=5),
            Spec("dense", 4, 2, bias=True),
            Spec("explicit", 9),
        ),
    ),
    Case("one-of-all", (Spec("dense", 1, 1),), n=1, c=1),
    Case("many-outputs", (Spec("dense", 4, 7, bias=True),), n=3, c=130),
    Case("no-samples", (Spec("dense", bias=True), Spec("explicit", 3), conv(4, kernel=2)), n=0),
    Case("no-outputs", (Spec("dense", bias=True), Spec("explicit", 3), conv(4, kernel=2)), c=0),
    Case("no-inputs", (Spec("dense", i=0, bias=True), Spec("dense", i=0))),
    Case("no-units", (Spec("dense", o=0, bias=True), Spec("shared", o=0, t=2))),
    Case("no-positions", (Spec("shared", t=0, bias=True), conv(2, kernel=3, bias=True))),
    Case("no-parameters", (Spec("explicit", 0),)),
]
SMALL = [
    case for case in CASES if "conv3" in case.id or case.id in ("all-forms", "conv2-separable")
]

# Many rows and a small W: each part of the rows has sums of its own.
PARTS = [
    Case("shared-parts", (Spec("shared", 33, 19, t=521, bias=True),), n=4, c=3),
    Case("shared-parts-bias", (Spec("shared", 0, 5, t=521, bias=True),), n=4, c=2),
    Case("shared-parts-separable", (Spec("shared", 16, 7, t=700, separable=True),), n=3, c=5),
    Case("conv1-parts", (conv(531, i=5, o=7, kernel=3, padding=1, bias=True),), n=4, c=2),
    Case(
        "conv2-parts-channels",
        (conv(40, 45, i=32, o=10, kernel=3, stride=(1, 2), dilation=2, groups=2, bias=True),),
        n=3,
        c=2,
    ),
    Case(
        "conv2-parts-padding",
        (conv(21, 22, i=31, o=7, kernel=(3, 2), padding=(2, 1), bias=True),),
        n=4,
        c=2,
    ),
    Case("conv3-parts", (conv(9, 8, 9, i=16, o=5, kernel=2, padding=1, separable=True),), n=2),
]


def absolute(part):
    """Sizes of the arrays of a layer for the reference; other parts as they are."""
    if isinstance(part, tuple) and part and isinstance(part[0], np.ndarray):
        return tuple(absolute(array) for array in part)
    return np.abs(part) if isinstance(part, np.ndarray) else part


def check(
    jacobian, plain, rng, columns, dtype, convert=lambda x: x, positions=1, drawn=False
) -> None:
    """Both products against the reference; an entry sums so many positions.

    In cases that are `drawn` all terms may cancel by chance: their sizes are the scale.
    """
    n, c, (rows, parameters) = jacobian.samples, jacobian.n_outputs, jacobian.shape
    v, u = rng.standard_normal((parameters, *columns)), rng.standard_normal((rows, *columns))
    v, u = v.astype(dtype), u.astype(dtype)
    k = int(np.prod(columns))

    out, back = jacobian @ convert(v), jacobian.T @ convert(u)

    v, u = v.reshape(parameters, k), u.reshape(n, c, k)
    scales: tuple = (None, None)
    if drawn:
        sizes = [tuple(absolute(part) for part in layer) for layer in plain]
        scales = (
            np.linalg.norm(reference.jvp(sizes, np.abs(v))),
            np.linalg.norm(reference.vjp(sizes, np.abs(u))),
        )
    expected = reference.jvp(plain, v).reshape(rows, *columns)
    assert_close(out, expected, terms=parameters * positions, dtype=dtype, scale=scales[0])
    expected = reference.vjp(plain, u).reshape(parameters, *columns)
    assert_close(back, expected, terms=rows * positions, dtype=dtype, scale=scales[1])
    assert type(out) is type(back) is type(convert(v))
