# SPDX-License-Identifier: Apache-2.0
"""Traces, log-determinants and densities of symmetric operators, by products alone.

Vectors are float64 and stay where the operator is; random ones are the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import Array, empty, from_numpy, namespace, packed, to_numpy
from fastfisher._numbers import integer, number
from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.linalg._operators import Operator
from fastfisher.linalg._products import inner, product, signs, single

__all__ = ["Density", "Estimate", "logdet", "spectral_density", "trace"]

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A stochastic estimate: `value`, its standard `error` (0 where exact) and `matvecs`."""

    value: float
    error: float
    matvecs: int


@dataclass(frozen=True, eq=False, slots=True)
class Density:
    """Spectral density smoothed by a normal of width `sigma`, over `grid`; it integrates to 1.

    `mean` and `second_moment` are of the eigenvalues, with their standard errors.
    """

    grid: Host
    density: Host
    error: Host
    sigma: float
    mean: float
    mean_error: float
    second_moment: float
    second_moment_error: float
    matvecs: int


def trace(
    A: Any, *, matvecs: int = 96, seed: int = 0, n: int | None = None, like: Array | None = None
) -> Estimate:
    """Trace by Hutch++: exact on a sketched subspace, random signs on the rest.

    Parameters
    ----------
    A : as in `eigsh`, not a batch
    matvecs : int
        Products to spend; with at least n of them the trace is exact.
    seed, n : int
        Of the random signs; size of a callable.
    like : array, optional
        On a GPU: a callable takes and returns arrays of its library there (else numpy's).

    Returns
    -------
    Estimate

    Notes
    -----
    Meyer, Musco, Musco and Woodruff 2021, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> trace(np.diag([1.0, 2.0, 3.0])).value
    6.0
    """
    a = single(A, n, like)
    matvecs, seed = integer("matvecs", matvecs, least=1), integer("seed", seed, least=0)
    if matvecs >= a.n:
        exact = to_numpy(product(a, from_numpy(np.eye(a.n), a.like)))
        return Estimate(float(a.unscaled(np.trace(exact))), 0.0, a.matvecs)
    rng = np.random.default_rng(seed)
    third = max(1, matvecs // 3)
    sketch = product(a, signs(a, rng, third))
    q = packed(namespace(sketch).linalg.qr(sketch.T)[0].T)
    g = signs(a, rng, third)
    g -= (g @ q.T) @ q
    heads, rest = inner((q, product(a, q)), (g, product(a, g)))
    error = float(rest.std(ddof=1) / math.sqrt(third)) if third > 1 else math.inf
    value = float(heads.sum()) + float(rest.mean())
    return Estimate(float(a.unscaled(value)), float(a.unscaled(error)), a.matvecs)


def _quadrature(a: Operator, steps: int, probes: int, seed: int) -> tuple[list[Host], list[Host]]:
    """Scaled nodes and weights of Lanczos quadrature for each of the random signs, all in step.

    Each step reads two numbers a vector back.
    """
    rng = np.random.default_rng(seed)
    steps = min(steps, a.n)
    q = signs(a, rng, probes) / math.sqrt(a.n)
    basis = empty((probes, steps, a.n), a.like, "float64")
    alpha, beta = np.zeros((probes, steps)), np.zeros((probes, steps))
    used = np.full(probes, steps)
    xp = namespace(q)
    for j in range(steps):
        basis[:, j] = q
        w = product(a, q)
        along, held = xp.einsum("pn,pn->p", w, q), basis[:, : j + 1]
        for _ in range(2):
            w -= xp.einsum("pj,pjn->pn", xp.einsum("pjn,pn->pj", held, w), held)
        alpha[:, j], squares = to_numpy(xp.stack([along, xp.einsum("pn,pn->p", w, w)]))
        norms = np.sqrt(squares)
        size = np.abs(alpha[:, : j + 1]).max(1) + beta[:, :j].max(1, initial=0.0)
        ended = (norms <= 16 * np.finfo(a.dtype).eps * size) & (used == steps)
        used[ended] = j + 1
        beta[:, j] = norms
        q = w / from_numpy(np.where(norms > 0, norms, 1)[:, None], w)
    nodes, weights = [], []
    for p in range(probes):
        m = used[p]
        t = np.diag(alpha[p, :m]) + np.diag(beta[p, : m - 1], 1) + np.diag(beta[p, : m - 1], -1)
        theta, y = np.linalg.eigh(t)
        nodes.append(theta)
        weights.append(y[0] ** 2)
    return nodes, weights


def _mean(values: list[float]) -> tuple[float, float]:
    count = len(values)
    error = float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else math.inf
    return float(np.mean(values)), error


def logdet(
    A: Any, *, damping: float = 0.0, steps: int = 40, probes: int = 16, seed: int = 0,
    n: int | None = None, like: Array | None = None,
) -> Estimate:  # fmt: skip
    """``log det(A + damping I)`` by stochastic Lanczos quadrature.

    Parameters
    ----------
    A : as in `eigsh`, not a batch
    damping : float
        Added to the diagonal.
    steps, probes : int
        Lanczos steps for each of the random vectors.
    seed, n : int
        Of the random vectors; size of a callable.
    like : array, optional
        On a GPU: a callable takes and returns arrays of its library there (else numpy's).

    Raises
    ------
    NotPositiveDefiniteError
        A node of the quadrature, and so an eigenvalue of A + damping I, is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> round(logdet(2 * np.eye(10)).value, 6)
    6.931472
    """
    a = single(A, n, like)
    steps, probes = integer("steps", steps, least=1), integer("probes", probes, least=1)
    damping, seed = number("damping", damping), integer("seed", seed, least=0)
    if a.n == 0:
        return Estimate(0.0, 0.0, 0)
    a.beside(damping)
    sums = []
    for theta, weight in zip(*_quadrature(a, steps, probes, seed), strict=True):
        half = float(a.scale[0])
        added = damping * half * half
        # What a negative damping leaves of an eigenvalue may be nothing but rounding.
        if theta[0] + added <= 16 * np.finfo(a.dtype).eps * max(-added, 0):
            raise NotPositiveDefiniteError(
                f"A: expected A + damping I to be positive definite, got an eigenvalue near "
                f"{a.unscaled(theta[0]) + damping:.3e}"
            )
        sums.append(a.n * (float(weight @ np.log(theta + added)) - 2 * math.log(half)))
    return Estimate(*_mean(sums), a.matvecs)


def spectral_density(
    A: Any, *, points: int = 256, sigma: float | None = None, steps: int = 60, probes: int = 8,
    seed: int = 0, n: int | None = None, like: Array | None = None,
) -> Density:  # fmt: skip
    """Density of the eigenvalues by stochastic Lanczos quadrature, with error bars.

    Parameters
    ----------
    A : as in `eigsh`, not a batch
    points : int
        Points of the grid.
    sigma : float, optional
        Width of the smoothing; a hundredth of the spectrum's by default.
    steps, probes : int
        Lanczos steps for each of the random vectors.
    seed, n : int
        Of the random vectors; size of a callable.
    like : array, optional
        On a GPU: a callable takes and returns arrays of its library there (else numpy's).

    Returns
    -------
    Density

    Examples
    --------
    >>> import numpy as np
    >>> round(spectral_density(np.diag(np.arange(5.0))).mean, 6)
    2.0
    """
    a = single(A, n, like)
    points, steps = integer("points", points, least=1), integer("steps", steps, least=1)
    probes, seed = integer("probes", probes, least=1), integer("seed", seed, least=0)
    integer("n", a.n, least=1)
    if sigma is not None and not number("sigma", sigma) > 0:
        raise ValueError(f"sigma: expected a positive width, got {sigma}")
    scaled, weights = _quadrature(a, steps, probes, seed)
    nodes = [a.unscaled(x) for x in scaled]
    low, high = min(x[0] for x in nodes), max(x[-1] for x in nodes)
    span = (high - low) or abs(high) or 1.0
    width = float(0.01 * span if sigma is None else sigma)
    grid = np.linspace(low - 4 * width, high + 4 * width, points)
    norm = 1 / (math.sqrt(2 * math.pi) * width)
    curves = np.stack(
        [
            np.exp(-0.5 * ((grid[:, None] - x) / width) ** 2) @ w
            for x, w in zip(nodes, weights, strict=True)
        ]
    )
    means = _mean([float(w @ x) for x, w in zip(scaled, weights, strict=True)])
    mean, mean_error = (float(a.unscaled(x)) for x in means)
    squares = _mean([float(w @ x**2) for x, w in zip(scaled, weights, strict=True)])
    second, spread = (float(a.unscaled(a.unscaled(x))) for x in squares)
    error = curves.std(0, ddof=1) / math.sqrt(probes) if probes > 1 else np.full(points, np.inf)
    # The height comes last: its squares need not be in range.
    return Density(
        grid, norm * curves.mean(0), norm * error, width, mean, mean_error, second, spread,
        a.matvecs,
    )  # fmt: skip
