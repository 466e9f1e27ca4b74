# SPDX-License-Identifier: Apache-2.0
"""Matrix products: linear layers, packed projections, recurrent steps, einsum, matmul, bilinear.

A product ``z = alpha A B + beta C`` with the weight on either side is ``g (x) a``: for B the
rows of A are the positions, for A the columns of B.
"""

from __future__ import annotations

import torch

from fastfisher.capture.columns import Columns
from fastfisher.capture.site import Family, NotUnderstood, SampleAxis, Site, broadcast_term
from fastfisher.capture.terms import Outer, Term

_MOST_MATRICES = 64


def _product(site: Site, slot_a: int, names: tuple[str, str], alpha: float) -> list[Term]:
    """Terms of a product of matrices whose left factor is edge `slot_a`, its right the next."""
    terms: list[Term] = []
    if slot_a + 1 in site.weights:  # B (i, o): rows of the result are samples
        _expect(site, 0)
        a = site.rows(site.saved(names[0]))
        g = site.cotangents(1) if site.separable is None else site.cotangents(1)[:, 0]
        terms.append(_outer(site, site.weights[slot_a + 1].T, a, g, alpha))
    if slot_a in site.weights:  # A (o, i): columns of the result are samples
        _expect(site, 1)
        a = site.rows(site.saved(names[1]).t())
        g = site.cotangents(0) if site.separable is None else site.cotangents(0)[:, 0]
        terms.append(_outer(site, site.weights[slot_a], a, g, alpha))
    return terms


def _outer(
    site: Site, columns: Columns, a: torch.Tensor, g: torch.Tensor, alpha: float = 1
) -> Outer:
    return Outer(columns, a, g if alpha == 1 else alpha * g, site.separable)


def _expect(site: Site, axis: int) -> None:
    if site.layout.axis != axis:
        raise NotUnderstood(f"{site.node.name()}: samples on axis {site.layout.axis}")


def mm(site: Site) -> list[Term]:
    """``mm(self, mat2)``."""
    return _product(site, 0, ("self", "mat2"), 1)


def addmm(site: Site) -> list[Term]:
    """``addmm(self, mat1, mat2)``; `self` is the bias."""
    alpha, beta = float(site.saved("alpha")), float(site.saved("beta"))
    terms = _product(site, 1, ("mat1", "mat2"), alpha)
    bias = site.weights.get(0)
    if bias is None:
        return terms
    single = len(terms) == 1 and len(bias.shape) == 1 and alpha == beta == 1
    if single and 2 in site.weights:
        (term,) = terms
        assert isinstance(term, Outer)
        return [Outer(term.columns, term.a, term.g, term.w, bias)]
    return [*terms, broadcast_term(site, beta * full_gradient(site), bias)]


def bmm(site: Site) -> list[Term]:
    """``bmm(self, mat2)``: one product a matrix of the weight."""
    terms: list[Term] = []
    if 1 in site.weights:  # (b, i, o), samples among the rows of (b, r, i)
        _expect(site, 1)
        columns, a, g = site.weights[1], site.saved("self"), site.gradient
        for b in range(_few(columns)):
            part = Site(site.node, {}, _first(site), site.samples, g[:, b])
            terms.append(Outer(columns.part(b).T, part.rows(a[b]), part.cotangents(1)))
    if 0 in site.weights:  # (b, o, i), samples among the columns of (b, i, r)
        _expect(site, 2)
        columns, a, g = site.weights[0], site.saved("mat2"), site.gradient
        for b in range(_few(columns)):
            part = Site(site.node, {}, _first(site), site.samples, g[:, b])
            terms.append(Outer(columns.part(b), part.rows(a[b].t()), part.cotangents(0)))
    return terms


def baddbmm(site: Site) -> list[Term]:
    """``baddbmm(self, batch1, batch2)``: only its additive part."""
    if set(site.weights) != {0}:
        raise NotUnderstood("baddbmm of a weight")
    beta = float(site.saved("beta"))
    return [broadcast_term(site, beta * site.gradient, site.weights[0])]


def mv(site: Site) -> list[Term]:
    """``mv(self, vec)`` with the vector as weight (one output unit)."""
    if set(site.weights) != {1}:
        raise NotUnderstood("mv of a weight matrix")
    a = site.rows(site.saved("self"))
    g = site.split(site.gradient, 1)  # (n, c[, s])
    g = g[:, :, None] if g.ndim == 2 else g
    return [Outer(site.weights[1].reshaped((1, *site.weights[1].shape)), a, g[..., None])]


def trilinear(site: Site) -> list[Term]:
    """``nn.Bilinear``: z[o] = x1^T W[o] x2, inputs x1 (x) x2."""
    if set(site.weights) != {1} or len(site.weights[1].shape) != 3:
        raise NotUnderstood("trilinear")
    columns = site.weights[1]
    o, i, j = columns.shape
    left, right = site.saved("i1"), site.saved("i3")
    _expect(site, 0)
    if left.numel() != left.shape[0] * i or right.numel() != right.shape[0] * j:
        raise NotUnderstood("trilinear")
    pairs = left.reshape(-1, i, 1) * right.reshape(-1, 1, j)
    g = site.gradient.reshape(site.gradient.shape[0], -1, o)
    flat = Site(site.node, {}, site.layout, site.samples, g)
    return [Outer(columns.reshaped((o, i * j)), flat.rows(pairs.flatten(1)), flat.cotangents(1))]


def full_gradient(site: Site) -> torch.Tensor:
    """Gradient (c, *result) whether separable or not; separable ones have units last."""
    if site.separable is None:
        return site.gradient
    w = site.separable
    return site.gradient * w.reshape(w.shape[0], *[1] * (site.gradient.ndim - 2), w.shape[1])


def _few(columns: Columns) -> int:
    if columns.shape[0] > _MOST_MATRICES:
        raise NotUnderstood(f"bmm of {columns.shape[0]} weight matrices")
    return columns.shape[0]


def _first(site: Site) -> SampleAxis:
    return SampleAxis(0, site.layout.outer)


FAMILIES: dict[str, Family] = {
    "Mm": mm,
    "Addmm": addmm,
    "Bmm": bmm,
    "Baddbmm": baddbmm,
    "Mv": mv,
    "Trilinear": trilinear,
}
SEPARABLE = {"Mm": 1, "Addmm": 1}
