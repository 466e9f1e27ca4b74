# SPDX-License-Identifier: Apache-2.0
"""Small models as factors, and their Fisher matrices by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastfisher as ff
from fastfisher import reference
from fastfisher.reference import fisher as ref
from fastfisher.reference.products import layer_jacobian

N = 5
LIKELIHOODS = ["gaussian", "categorical", "bernoulli"]
STRUCTURES: list[Any] = [
    "full", "layer", "tridiagonal", "kfac", "ekfac", "unit", ("block", 2), "diagonal",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A list of layers: ("dense", i, o, bias), ("shared", s, i, o, bias), ("explicit", p),
    ("conv", i, o, groups, bias), ("lookup", s, rows, d)."""

    name: str
    c: int
    layers: tuple[tuple[Any, ...], ...]

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("dense", 3, (("dense", 4, 3, True), ("dense", 3, 2, False), ("dense", 2, 3, True))),
    Case("one output", 1, (("dense", 3, 4, True), ("dense", 4, 1, True))),
    Case("shared", 2, (("shared", 3, 4, 2, True), ("shared", 2, 2, 3, False))),
    Case("explicit", 3, (("dense", 3, 2, True), ("explicit", 5), ("dense", 2, 3, False))),
    Case("conv", 2, (("conv", 2, 4, 2, True), ("dense", 4, 2, True))),
    Case("separable", 2, (("separable", 3, 2, 4, True), ("dense", 3, 2, False))),
    Case("lookup", 2, (("lookup", 3, 4, 2), ("dense", 2, 2, True))),
    Case("one layer", 2, (("dense", 3, 2, False),)),
]  # fmt: skip


def build(case: Case, dtype: str = "float64") -> tuple[list[ff.Dense], list[tuple[Any, ...]]]:
    """Layers of the library, and (Jacobian (n, c, p), a, g) of each: a (n, s, i), g (n, c, s, o)
    with the bias as an input, or None without factors."""
    rng = np.random.default_rng(len(case.name))
    layers: list[Any] = []
    truth: list[tuple[Any, ...]] = []

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(dtype)

    def wide(a: np.ndarray[Any, Any], bias: bool) -> np.ndarray[Any, Any]:
        a = a.astype(np.float64)
        return np.concatenate([a, np.ones((*a.shape[:2], 1))], 2) if bias else a

    for kind, *size in case.layers:
        if kind == "dense":
            i, o, bias = size
            a, g = draw(N, i), draw(N, case.c, o)
            layers.append(ff.Dense(a, g, bias=bias))
            j = layer_jacobian(("dense", a, g, bias))
            truth.append((j, wide(a[:, None], bias), g[:, :, None].astype(np.float64)))
        elif kind in ("shared", "separable"):
            s, i, o, bias = size
            a = draw(N, s, i)
            if kind == "shared":
                g = draw(N, case.c, s, o)
                layers.append(ff.Shared(a, g, bias=bias))
            else:
                m, w = draw(N, s, o), draw(case.c, o)
                layers.append(ff.Shared(a, ff.Separable(m, w), bias=bias))
                g = m[:, None] * w[None, :, None]
            truth.append((layer_jacobian(("shared", a, g, bias)), wide(a, bias), g.astype(float)))
        elif kind == "explicit":
            j = draw(N, case.c, size[0])
            layers.append(ff.Explicit(j))
            truth.append((j.astype(np.float64), None, None))
        elif kind == "lookup":
            s, rows, d = size
            index, g = rng.integers(0, rows, (N, s)), draw(N, case.c, s, d)
            layers.append(ff.Lookup(index, g, rows=rows))
            j = np.zeros((N, case.c, rows, d))
            for n in range(N):
                for t in range(s):
                    j[n, :, index[n, t]] += g[n, :, t]
            truth.append((j.reshape(N, case.c, -1), np.eye(rows)[index], g.astype(float)))
        else:
            i, o, groups, bias = size
            x, g = draw(N, i, 3, 4), draw(N, case.c, o, 2, 3)
            layers.append(ff.Conv(x, g, kernel=2, groups=groups, bias=bias))
            geometry = ((2, 2), (1, 1), (0, 0), (1, 1), groups)
            windows = np.lib.stride_tricks.sliding_window_view(x.astype(float), (2, 2), (2, 3))
            patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(N, 6, i, 4)
            flat = g.reshape(N, case.c, o, 6).swapaxes(2, 3).astype(float)
            truth.append((layer_jacobian(("conv", x, g, bias, geometry)), patches, flat))
    return layers, truth


def tables(case: Case) -> list[list[np.ndarray[Any, Any]]]:
    """Of each layer its weight matrices: positions (o, i) in the parameter vector."""
    result, start = [], 0
    for kind, *size in case.layers:
        if kind == "explicit":
            result.append([start + np.arange(size[0])[:, None]])
            start += size[0]
            continue
        if kind == "lookup":
            _, rows, d = size
            result.append([start + np.arange(rows * d).reshape(rows, d).T])
            start += rows * d
            continue
        groups = size[2] if kind == "conv" else 1
        if kind == "conv":
            i, o, bias = size[0] // groups * 4, size[1], size[3]
        else:
            i, o, bias = size[-3], size[-2], size[-1]
        table = start + np.arange(o * i).reshape(o, i)
        start += o * i
        if bias:
            table = np.concatenate([table, start + np.arange(o)[:, None]], 1)
            start += o
        result.append(np.split(table, groups))
    return result


def cotangent_rows(
    j: np.ndarray[Any, Any], roots: Sequence[np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """``S_n^T J_n`` for arrays (n, c, ...)."""
    return np.stack([np.tensordot(s.T, one, 1) for s, one in zip(roots, j, strict=True)])


def brute(
    case: Case,
    truth: list[tuple[Any, ...]],
    outputs: np.ndarray[Any, Any],
    structure: Any,
    *,
    likelihood: str,
    labels: Any = None,
    reduction: str = "mean",
    weight_sharing: str = "expand",
) -> np.ndarray[Any, Any]:
    """Matrix of one structure."""
    whole = np.concatenate([j for j, _, _ in truth], 2)
    exact = ref.fisher(whole, outputs, likelihood=likelihood, labels=labels, reduction=reduction)
    found = tables(case)
    own = [np.concatenate([t.reshape(-1) for t in layer]) for layer in found]
    if structure == "full":
        return exact
    if structure in ("layer", "tridiagonal"):
        return ref.keep(exact, own, neighbours=structure == "tridiagonal")
    if structure == "diagonal":
        return np.diag(np.diag(exact))
    if structure == "unit" or isinstance(structure, tuple):
        blocks = [
            row[k : k + step]
            for layer in found
            for table in layer
            for row in table
            for step in [len(row) if structure == "unit" else structure[1]]
            for k in range(0, len(row), step)
        ]
        return ref.keep(exact, blocks)
    # Kronecker factors. The root of the curvature may be any; here the symmetric one.
    if labels is None:
        roots = [_root(ref.hessian(likelihood, f)) for f in outputs]
    else:
        roots = [
            np.stack([ref.gradient(likelihood, f, y[n]) for y in labels], 1) / len(labels) ** 0.5
            for n, f in enumerate(outputs)
        ]
    scale = 1 / N if reduction == "mean" else 1.0
    result = np.zeros_like(exact)
    for (j, a, g), layer in zip(truth, found, strict=True):
        if a is None:
            at = layer[0][:, 0]
            rows = cotangent_rows(j, roots).reshape(-1, len(at))
            result[np.ix_(at, at)] = scale * rows.T @ rows
            continue
        rows = cotangent_rows(g, roots)
        for k, table in enumerate(layer):
            o, i = table.shape
            inputs = a if len(layer) == 1 else a[:, :, k * (a.shape[2] // len(layer)) :][:, :, :i]
            if a.ndim == 4:  # patches (n, s, channels, taps) of a convolution with a bias
                few = a.shape[2] // len(layer)
                inputs = a[:, :, k * few : (k + 1) * few].reshape(*a.shape[:2], -1)
                inputs = np.concatenate([inputs, np.ones((*a.shape[:2], 1))], 2)
            cotangents = rows[..., k * o : (k + 1) * o]
            factors = ref.kfac(inputs, cotangents, scale=scale, weight_sharing=weight_sharing)
            block = np.kron(factors[1], factors[0])
            if structure == "ekfac":
                gradients = np.einsum("nrso,nsi->nroi", cotangents, inputs)
                block = ref.ekfac(gradients, *factors, scale=scale)
            at = table.reshape(-1)
            result[np.ix_(at, at)] = block
    return result


def _root(h: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    w, q = np.linalg.eigh(h)
    return (q * np.sqrt(w.clip(0))) @ q.T


__all__ = ["CASES", "LIKELIHOODS", "STRUCTURES", "Case", "N", "brute", "build", "reference"]
