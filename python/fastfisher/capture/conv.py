# SPDX-License-Identifier: Apache-2.0
"""Convolutions in one to three dimensions, transposed ones and those of frames of a sample."""

from __future__ import annotations

import math

import torch

from fastfisher.capture.columns import Columns
from fastfisher.capture.site import Family, NotUnderstood, Site
from fastfisher.capture.terms import Convolution, Full, Outer, Term


def convolution(site: Site) -> list[Term]:
    """``convolution(input, weight, bias)``."""
    if site.layout.axis != 0:
        raise NotUnderstood(f"convolution: samples on axis {site.layout.axis}")
    terms: list[Term] = []
    weight, bias = site.weights.get(1), site.weights.get(2)
    if weight is not None:
        terms = _transposed(site, weight) if site.saved("transposed") else _plain(site, weight)
    if bias is None:
        return terms
    if len(terms) == 1 and isinstance(terms[0], Convolution):
        term = terms[0]
        return [Convolution(term.columns, term.x, term.g, term.geometry, term.w, bias)]
    g = site.gradient.flatten(3).sum(-1)  # (c, n * t, o), for separable ones c = 1
    if site.separable is not None:
        g = g * site.separable[:, None]
    g = site.split(g, 1)
    return [*terms, Full(bias, g if g.ndim == 3 else g.sum(2))]


def _plain(site: Site, weight: Columns) -> list[Term]:
    x = site.saved("input")
    geometry = {
        "kernel": tuple(weight.shape[2:]),
        **{name: _each(site, name) for name in ("stride", "padding", "dilation")},
        "groups": int(site.saved("groups")),
    }
    n, frames = site.samples, x.shape[0] // site.samples
    g = site.gradient
    if frames == 1:
        if site.separable is not None:
            return [Convolution(weight, x, g[0], geometry, site.separable)]
        return [Convolution(weight, x, g.transpose(0, 1), geometry)]
    # Frames of one sample are positions of a shared weight.
    c = g.shape[0]
    frame = Convolution(weight, x, g.transpose(0, 1), geometry).unfolded()
    if frame is None:
        raise NotUnderstood("grouped convolution of several frames a sample")
    a = site.split(frame.a, 0).flatten(1, 2)
    cotangents = site.split(frame.g, 0).transpose(1, 2).reshape(n, c, a.shape[1], -1)
    return [Outer(frame.columns, a, cotangents)]


def _each(site: Site, name: str) -> tuple[int, ...]:
    """Return a saved extent for each axis of space; torch may keep one number for all."""
    values, rank = tuple(site.saved(name)), len(site.shape) - 2
    return values * rank if len(values) == 1 else values


def _transposed(site: Site, weight: Columns) -> list[Term]:
    """Roles swap: positions of the input see a patch of the result, weight (i, o / q, *kernel)."""
    if site.separable is not None or site.gradient.shape[1] != site.samples:
        raise NotUnderstood("transposed convolution of several frames a sample")
    x, g = site.saved("input"), site.gradient
    q = int(site.saved("groups"))
    kernel = tuple(weight.shape[2:])
    n, i, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    c, o = g.shape[0], g.shape[2]
    patches = _patches(
        g.flatten(0, 1),
        kernel,
        _each(site, "stride"),
        _each(site, "padding"),
        _each(site, "dilation"),
        tuple(x.shape[2:]),
    )  # (c * n, o, taps, s)
    width = o // q * math.prod(kernel)
    patches = patches.reshape(c, n, q, width, positions).permute(2, 1, 0, 4, 3)
    inputs = x.reshape(n, q, i // q, positions).permute(1, 0, 3, 2)
    matrix = weight.reshaped((i, width))
    if q == 1:
        return [Outer(matrix.T, inputs[0], patches[0])]
    rows = matrix.positions().reshape(q, i // q, width)
    return [
        Outer(Columns((i // q, width), index=rows[k]).T, inputs[k], patches[k]) for k in range(q)
    ]


def _patches(
    x: torch.Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    space: tuple[int, ...],
) -> torch.Tensor:
    """Patches of `x` (b, o, *extents) at the positions `space`: (b, o, taps, s)."""
    pads: list[int] = []
    for k, s, p, d, extent, size in zip(
        kernel, stride, padding, dilation, space, x.shape[2:], strict=True
    ):
        needed = (extent - 1) * s + (k - 1) * d + 1
        pads[:0] = [p, max(0, needed - size - p)]
    x = torch.nn.functional.pad(x, pads)
    taps = []
    for tap in torch.cartesian_prod(*[torch.arange(k) for k in kernel]).reshape(-1, len(kernel)):
        window = x
        for axis, (t, s, d, extent) in enumerate(
            zip(tap.tolist(), stride, dilation, space, strict=True), 2
        ):
            window = window.narrow(axis, t * d, (extent - 1) * s + 1)
            window = window[(slice(None),) * axis + (slice(None, None, s),)]
        taps.append(window.flatten(2))
    return torch.stack(taps, 2)


FAMILIES: dict[str, Family] = {"Convolution": convolution, "ConvolutionOverrideable": convolution}
SEPARABLE = {"Convolution": 1}
