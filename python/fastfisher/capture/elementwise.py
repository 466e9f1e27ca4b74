# SPDX-License-Identifier: Apache-2.0
"""Weights that meet the data entry by entry: scales, shifts, PReLU, norms, broadcasts, selections.

Their Jacobian has one entry a parameter and position, summed over positions: it is small, and
explicit.
"""

from __future__ import annotations

import math

import torch

from fastfisher.capture.linear import full_gradient
from fastfisher.capture.site import Family, NotUnderstood, Site, broadcast_term
from fastfisher.capture.terms import Full, Term


def _terms(site: Site, *factors: torch.Tensor | float | None) -> list[Term]:
    """One explicit term a weight; `factors` are the derivatives of the result by edge."""
    g = full_gradient(site)
    terms: list[Term] = []
    for slot, columns in site.weights.items():
        factor = factors[slot] if slot < len(factors) else None
        if factor is None:
            raise NotUnderstood(f"{site.node.name()}: edge {slot}")
        terms.append(broadcast_term(site, g * factor, columns))
    return terms


def add(site: Site) -> list[Term]:
    """``self + alpha * other``."""
    return _terms(site, 1.0, float(site.saved("alpha")))


def sub(site: Site) -> list[Term]:
    """``self - alpha * other``."""
    return _terms(site, 1.0, -float(site.saved("alpha")))


def rsub(site: Site) -> list[Term]:
    """``other - alpha * self``."""
    return _terms(site, -float(site.saved("alpha")), 1.0)


def mul(site: Site) -> list[Term]:
    """``self * other``."""
    return _terms(
        site,
        site.saved("other") if 0 in site.weights else None,
        site.saved("self") if 1 in site.weights else None,
    )


def div(site: Site) -> list[Term]:
    """``self / other``."""
    other = site.saved("other")
    if getattr(site.node, "_saved_rounding_mode", None) is not None:
        raise NotUnderstood("division that rounds")
    return _terms(
        site, 1 / other, -site.saved("self") / (other * other) if 1 in site.weights else None
    )


def prelu(site: Site) -> list[Term]:
    """Slope of the negative half."""
    x = site.saved("self")
    return _terms(site, None, torch.clamp(x, max=0))


def where(site: Site) -> list[Term]:
    """``where(condition, self, other)``."""
    condition = site.saved("condition").to(site.gradient.dtype)
    # Edges of where are (self, other).
    return _terms(site, condition, 1 - condition)


def expand(site: Site) -> list[Term]:
    """Copy a weight along new axes, one of them the samples."""
    (columns,) = site.weights.values()
    return [broadcast_term(site, full_gradient(site), columns)]


def repeat(site: Site) -> list[Term]:
    """Tile a weight, along the samples too (instance norm)."""
    (columns,) = site.weights.values()
    rank = len(site.shape)
    widths = [1] * (rank - len(columns.shape)) + list(columns.shape)
    g = site.gradient
    shape: list[int] = []
    for size, width in zip(site.shape, widths, strict=True):
        shape += [size // width, width]
    tiles = g.reshape(g.shape[0], *shape)
    sample = 1 + 2 * site.layout.axis
    if tiles.shape[sample] % site.samples or site.layout.outer != 1:
        raise NotUnderstood("repeat: samples within a tile")
    tiles = tiles.unflatten(sample, (site.samples, -1)).movedim(sample, 0)
    # (n, c, tiles 0, width 0, ...): the sample's own tile axis keeps its rest.
    over = [k for k in range(2, tiles.ndim) if (k - 2) % 2 == 0]
    return [Full(columns, tiles.sum(over).reshape(site.samples, g.shape[0], columns.size))]


def layer_norm(site: Site) -> list[Term]:
    """Scale and shift over the last axes."""
    if 0 in site.weights:
        raise NotUnderstood("layer norm of a weight")
    x = site.saved("input")
    normal = (x - site.saved("result1")) * site.saved("result2")
    return _terms(site, None, normal, 1.0)


def group_norm(site: Site) -> list[Term]:
    """Scale and shift of channels (axis 1)."""
    x, groups = site.saved("input"), int(site.saved("group"))
    split = x.reshape(x.shape[0], groups, -1)
    mean, inverse = (site.saved(k).reshape(x.shape[0], groups, 1) for k in ("result1", "result2"))
    return _channels(site, ((split - mean) * inverse).reshape(x.shape))


def batch_norm(site: Site) -> list[Term]:
    """Scale and shift of channels (axis 1) with fixed or the sample's own statistics."""
    x = site.saved("input")
    if site.saved("training"):
        mean, inverse = site.saved("result1"), site.saved("result2")
    else:
        mean = site.saved("running_mean")
        inverse = (site.saved("running_var") + float(site.saved("eps"))).rsqrt()
    shape = (1, -1, *[1] * (x.ndim - 2))
    return _channels(site, (x - mean.reshape(shape)) * inverse.reshape(shape))


def _channels(site: Site, normal: torch.Tensor) -> list[Term]:
    """Terms of scale (edge 1) and shift (edge 2) of axis 1."""
    g, terms = site.gradient, list[Term]()
    if site.layout.axis == 1:
        raise NotUnderstood(f"{site.node.name()}: samples among the channels")
    for slot, columns in site.weights.items():
        if slot == 0:
            raise NotUnderstood(f"{site.node.name()} of a weight")
        lifted = columns.reshaped((columns.size, *[1] * (normal.ndim - 2)))
        terms.append(broadcast_term(site, g * normal if slot == 1 else g, lifted))
    return terms


def embedding(site: Site) -> list[Term]:
    """Rows of a table."""
    from fastfisher.capture.terms import Rows

    if site.saved("scale_grad_by_freq"):
        raise NotUnderstood("embedding with scale_grad_by_freq")
    (columns,) = site.weights.values()
    index = site.saved("indices")
    g = site.split(site.gradient, 1 + site.layout.axis)  # (n, c, ..., d)
    rows = site.split(index, site.layout.axis).reshape(site.samples, -1)
    g = g.reshape(site.samples, g.shape[1], rows.shape[1], g.shape[-1])
    padding = int(site.saved("padding_idx"))
    if 0 <= padding < columns.shape[0]:
        g = g * (rows != padding)[:, None, :, None]
    return [Rows(columns, rows, g)]


def embedding_bag(site: Site) -> list[Term]:
    """Add up or average rows of a table, one bag a sample."""
    from fastfisher.capture.terms import Rows

    mode = int(site.saved("mode"))
    weights = site.saved("per_sample_weights")
    if set(site.weights) != {0} or mode > 1 or (weights is not None and weights.numel()):
        raise NotUnderstood("embedding bag: maximum, or weights of its own")
    if site.saved("scale_grad_by_freq") or site.layout.axis != 0:
        raise NotUnderstood("embedding bag")
    columns, index = site.weights[0], site.saved("indices")
    n, offsets = site.samples, site.saved("offsets")
    if site.shape[0] != n:
        raise NotUnderstood("embedding bag: several bags a sample")
    starts = offsets[:n].tolist()
    stops = [*starts[1:], int(offsets[n]) if len(offsets) > n else len(index)]
    longest = max((b - a for a, b in zip(starts, stops, strict=True)), default=0)
    rows = index.new_zeros((n, longest))
    scale = site.gradient.new_zeros((n, longest))
    padding = int(site.saved("padding_idx"))
    for k, (a, b) in enumerate(zip(starts, stops, strict=True)):
        rows[k, : b - a] = index[a:b]
        kept = (index[a:b] != padding).to(scale.dtype) if padding >= 0 else 1.0
        count = max(float(b - a if isinstance(kept, float) else kept.sum()), 1.0)
        scale[k, : b - a] = kept / (count if mode == 1 else 1.0)
    g = site.gradient.transpose(0, 1)[:, :, None] * scale[:, None, :, None]
    return [Rows(columns, rows, g)]


def index(site: Site) -> list[Term]:
    """``table[index]`` along the first axis."""
    (columns,) = site.weights.values()
    given = site.saved("indices")
    picked = [k for k in given if k is not None]
    if len(picked) != 1 or given[0] is None or picked[0].dtype == torch.bool:
        raise NotUnderstood("indexing of other axes than the first")
    return _picked(site, columns, picked[0])


def index_select(site: Site) -> list[Term]:
    """``index_select(table, 0, index)``."""
    (columns,) = site.weights.values()
    if int(site.saved("dim")) % len(columns.shape):
        raise NotUnderstood("index_select of another axis than the first")
    return _picked(site, columns, site.saved("index"))


def _picked(site: Site, columns: object, picked: torch.Tensor) -> list[Term]:
    from fastfisher.capture.columns import Columns
    from fastfisher.capture.terms import Rows

    assert isinstance(columns, Columns)
    length, width = columns.shape[0], math.prod(columns.shape[1:])
    rows = site.split(picked % length, site.layout.axis).reshape(site.samples, -1)
    g = site.split(site.gradient, 1 + site.layout.axis)
    g = g.reshape(site.samples, g.shape[1], rows.shape[1], width)
    return [Rows(columns.reshaped((length, width)), rows, g)]


FAMILIES: dict[str, Family] = {
    "Add": add,
    "Sub": sub,
    "Rsub": rsub,
    "Mul": mul,
    "Div": div,
    "PreluKernel": prelu,
    "Where": where,
    "Expand": expand,
    "Repeat": repeat,
    "NativeLayerNorm": layer_norm,
    "NativeGroupNorm": group_norm,
    "NativeBatchNorm": batch_norm,
    "Embedding": embedding,
    "EmbeddingBag": embedding_bag,
    "Index": index,
    "IndexSelect": index_select,
}
