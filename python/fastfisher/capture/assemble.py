# SPDX-License-Identifier: Apache-2.0
"""From the terms of all uses to the layers of a Jacobian: no cross term is lost.

Terms whose columns are equal become one layer (their positions concatenated), terms whose columns
do not meet become layers of their own, and terms that meet in part are written out and added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fastfisher._layer import Layer
from fastfisher._parameters import Parameters, module_of
from fastfisher.capture.columns import Columns
from fastfisher.capture.terms import Convolution, Full, Outer, Term, join


@dataclass(frozen=True, eq=False)
class Assembled:
    """Layers, where their columns stand, and how each parameter was treated."""

    layers: tuple[Layer, ...]
    parameters: Parameters
    treated: dict[str, str]


def assemble(
    terms: Sequence[tuple[Term, tuple[str, ...]]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    empty: torch.Tensor,
    *,
    of_module: bool,
) -> Assembled:
    """Layers of the sum of `terms`, each with the names of the parameters in it.

    Parameters
    ----------
    shapes : mapping of str to tuple
        All parameters in order.
    dtype : torch.dtype
        Of all factors.
    empty : Tensor, shape (n, c, 0)
        The Jacobian of no parameters.
    of_module : bool
        Whether the model is a module, not a function.
    """
    # Terms of parameters without entries belong to nobody.
    groups = _linked([(term, own) for term, own in _split_shared_bias(terms) if own])
    # In the order of the parameters, so that the columns of simple models need no reordering.
    groups.sort(key=lambda members: min(_first(term) for term, _ in members))
    layers: list[Layer] = []
    order: list[range | np.ndarray[Any, Any]] = []
    treated = {name: "no entries" for name, shape in shapes.items() if 0 in shape}
    for members in groups:
        names = tuple(name for name in shapes if any(name in own for _, own in members))
        merged = sorted(_merge([term for term, _ in members]), key=_first)
        for term in merged:
            label = _label(names, len(merged), layers)
            layers.append(cast(term, dtype).layer(label))
            order.extend(_positions(term))
        kinds = "+".join(sorted({type(layer).__name__ for layer in layers[-len(merged) :]}))
        for name in names:
            treated[name] = f"{kinds}, {len(members)} uses" if len(members) > 1 else kinds
    if not layers:
        layers = [Full(Columns((0,)), empty).layer(None)]
    total = sum(int(np.prod(s, dtype=np.int64)) for s in shapes.values())
    parameters = Parameters(dict(shapes), _order(order, total), of_module)
    return Assembled(tuple(layers), parameters, treated)


def _split_shared_bias(
    terms: Sequence[tuple[Term, tuple[str, ...]]],
) -> list[tuple[Term, tuple[str, ...]]]:
    """Biases stay with their weight unless one of the two is used without the other."""
    uses: dict[object, set[object]] = {}
    for term, _ in terms:
        bias = term.bias if isinstance(term, Outer | Convolution) else None
        uses.setdefault(term.columns.key, set()).add(None if bias is None else bias.key)
        if bias is not None:
            uses.setdefault(bias.key, set()).add(term.columns.key)
    result: list[tuple[Term, tuple[str, ...]]] = []
    for term, names in terms:
        if not isinstance(term, Outer | Convolution) or term.bias is None:
            result.append((term, names))
        elif _meet(term.columns, term.bias):
            # Entries of the weight itself: their two parts are added up.
            result += [(replace(term, bias=None), names), (term.bias_term(), names)]
        elif len(uses[term.columns.key]) > 1 or len(uses[term.bias.key]) > 1:
            result += [(replace(term, bias=None), names[:-1]), (term.bias_term(), names[-1:])]
        else:
            result.append((term, names))
    return result


def _meet(one: Columns, other: Columns) -> bool:
    """Whether they have positions in common."""
    (low, high), (first, last) = _bounds(one), _bounds(other)
    if high <= first or last <= low:
        return False
    return bool(torch.isin(one.positions(), other.positions()).any())


def _bounds(columns: Columns) -> tuple[int, int]:
    if columns.index is None or columns.size == 0:
        return columns.start, columns.start + columns.size
    low, high = torch.aminmax(columns.index)
    return int(low), int(high) + 1


def _linked(
    terms: Sequence[tuple[Term, tuple[str, ...]]],
) -> list[list[tuple[Term, tuple[str, ...]]]]:
    """Terms grouped by the parameters that they share."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for _, names in terms:
        for name in names[1:]:
            parent[root(name)] = root(names[0])
    groups: dict[str, list[tuple[Term, tuple[str, ...]]]] = {}
    for term, names in terms:
        groups.setdefault(root(names[0]), []).append((term, names))
    return list(groups.values())


def _merge(terms: Sequence[Term]) -> list[Term]:
    """Terms of disjoint columns with the sum of `terms`."""
    if len(terms) == 1:
        return list(terms)
    by_columns: dict[object, Term] = {}
    for term in terms:
        bias = term.bias if isinstance(term, Outer | Convolution) else None
        key = (_canonical(term), None if bias is None else bias.key)
        known = by_columns.get(key)
        joined = term if known is None else join(known, term)
        if joined is None:
            return [_written_out(terms)]
        by_columns[key] = joined
    merged = list(by_columns.values())
    taken = np.concatenate([np.asarray(part) for term in merged for part in _positions(term)])
    return merged if len(np.unique(taken)) == len(taken) else [_written_out(terms)]


def _canonical(term: Term) -> object:
    """Key of a term's columns; a convolution that could be unfolded counts as its matrix."""
    if isinstance(term, Convolution):
        return ("flat", term.columns.reshaped((term.columns.size,)).key)
    if isinstance(term, Outer):
        return ("flat", term.columns.reshaped((term.columns.size,)).key)
    return (type(term).__name__, term.columns.key)


def _written_out(terms: Sequence[Term]) -> Full:
    """One explicit term over all columns that `terms` touch."""
    parts = [np.concatenate([np.asarray(p) for p in _positions(term)]) for term in terms]
    union = np.unique(np.concatenate(parts))
    total: torch.Tensor | None = None
    for term, positions in zip(terms, parts, strict=True):
        block = term.block()
        if total is None:
            total = block.new_zeros((*block.shape[:2], len(union)))
        where = torch.from_numpy(np.searchsorted(union, positions)).to(block.device)
        total.index_add_(2, where, block.to(total.dtype))
    assert total is not None
    return Full(Columns((len(union),), index=torch.from_numpy(union)), total)


def _positions(term: Term) -> list[range | np.ndarray[Any, Any]]:
    """Columns of a term's layer in its order, in pieces."""
    parts = [term.columns]
    if isinstance(term, Outer | Convolution) and term.bias is not None:
        parts.append(term.bias)
    return [
        flat if isinstance(flat, range) else flat.cpu().numpy()
        for flat in (part.flat() for part in parts)
    ]


def _first(term: Term) -> int:
    """First column of a term."""
    piece = _positions(term)[0]
    return (piece.start if isinstance(piece, range) else int(piece.min())) if len(piece) else 0


def _order(pieces: Sequence[range | np.ndarray[Any, Any]], total: int) -> Any:
    """Columns of all layers in the parameter vector; None if they are 0, 1, 2, ..."""
    start = 0
    for piece in pieces:
        if not isinstance(piece, range) or (piece.start != start and len(piece)):
            break
        start += len(piece)
    else:
        if start == total:
            return None
    if not pieces:
        return np.empty(0, np.int64)
    return np.concatenate([np.asarray(piece, np.int64) for piece in pieces])


def _label(names: tuple[str, ...], parts: int, layers: Sequence[Layer]) -> str:
    modules = {module_of(name, of_module=False) for name in names}
    label = modules.pop() if len(modules) == 1 and len(names) > 1 else ", ".join(names)
    taken = {layer.label for layer in layers}
    if parts == 1 and label not in taken:
        return label
    index = 0
    while f"{label}[{index}]" in taken:
        index += 1
    return f"{label}[{index}]"


def cast(term: Term, dtype: torch.dtype) -> Term:
    """`term` with its floats in `dtype`."""
    changed = {
        name: value.to(dtype)
        for name, value in vars(term).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype
    }
    return replace(term, **changed) if changed else term
