# SPDX-License-Identifier: Apache-2.0
"""Reference of `fastfisher.fisher`: every kind and structure as a P x P matrix, by definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def softmax(f: Array) -> Array:
    """Probabilities of one sample's logits (C,)."""
    e = np.exp(f - f.max())
    return np.asarray(e / e.sum(), np.float64)


def hessian(likelihood: str, f: Array, variance: float = 1.0) -> Array:
    """Fisher matrix (C, C) of the outputs (C,) of one sample."""
    if likelihood == "gaussian":
        return np.eye(len(f)) / variance
    if likelihood == "categorical":
        p = softmax(f)
        return np.diag(p) - np.outer(p, p)
    p = 1 / (1 + np.exp(-f))
    return np.asarray(np.eye(len(f)) * (p * (1 - p)))


def gradient(likelihood: str, f: Array, y: Any, variance: float = 1.0) -> Array:
    """Gradient (C,) of -log p(y | f) for one sample."""
    if likelihood == "gaussian":
        return np.asarray((f - y) / variance)
    if likelihood == "categorical":
        return np.asarray(softmax(f) - np.eye(len(f))[y], np.float64)
    return np.asarray(1 / (1 + np.exp(-f)) - y)


def fisher(
    jacobian: Array,
    outputs: Array,
    *,
    likelihood: str = "gaussian",
    variance: float = 1.0,
    labels: Sequence[Any] | None = None,
    reduction: str = "mean",
) -> Array:
    """Fisher matrix (P, P) of a Jacobian (N, C, P), sample by sample.

    Exact without `labels`; with a list of sets of labels the mean over the sets of sums over
    samples of outer products of the gradients: one set for the empirical matrix.
    """
    n, _, p = jacobian.shape
    total = np.zeros((p, p))
    for k in range(n):
        if labels is None:
            total += jacobian[k].T @ hessian(likelihood, outputs[k], variance) @ jacobian[k]
            continue
        for drawn in labels:
            g = jacobian[k].T @ gradient(likelihood, outputs[k], drawn[k], variance)
            total += np.outer(g, g) / len(labels)
    return total / n if reduction == "mean" else total


def keep(matrix: Array, blocks: Sequence[Sequence[int]], *, neighbours: bool = False) -> Array:
    """Entries of `matrix` within the `blocks` of parameters, and between adjacent ones."""
    result = np.zeros_like(matrix)
    for k, own in enumerate(blocks):
        for j, other in enumerate(blocks):
            if j == k or (neighbours and abs(j - k) == 1):
                result[np.ix_(own, other)] = matrix[np.ix_(own, other)]
    return result


def kfac(
    inputs: Array, cotangents: Array, *, scale: float, weight_sharing: str = "expand"
) -> tuple[Array, Array]:
    """Factors A (i, i) and G (o, o) of inputs (N, S, i) and cotangents (N, R, S, o) of the rows."""
    n, s, i = inputs.shape
    a = np.zeros((i, i))
    g = np.zeros((cotangents.shape[3],) * 2)
    for k in range(n):
        if weight_sharing == "reduce":
            mean = inputs[k].mean(0)
            a += np.outer(mean, mean) / n
            for row in cotangents[k]:
                g += scale * np.outer(row.sum(0), row.sum(0))
            continue
        for t in range(s):
            a += np.outer(inputs[k, t], inputs[k, t]) / (n * s)
            for row in cotangents[k]:
                g += scale * np.outer(row[t], row[t])
    return a, g


def ekfac(rows: Array, a: Array, g: Array, *, scale: float) -> Array:
    """Block (o i, o i) of rows (n, r, o, i) with eigenvectors of G (x) A and exact moments."""
    q_a, q_g = np.linalg.eigh(a)[1], np.linalg.eigh(g)[1]
    basis = np.kron(q_g, q_a)
    flat = rows.reshape(-1, basis.shape[0]) @ basis
    return np.asarray(basis @ np.diag(scale * (flat**2).sum(0)) @ basis.T)
