# SPDX-License-Identifier: Apache-2.0
"""Traces, log-determinants, densities and solves of symmetric operators, by products alone.

Vectors are float64 and stay where the operator is; random ones are the same on every device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import (
    Array,
    detached,
    device_name,
    empty,
    from_numpy,
    library,
    namespace,
    packed,
    to_dtype,
    to_numpy,
)
from fastfisher.errors import ConvergenceWarning, NonFiniteError, NotPositiveDefiniteError
from fastfisher.linalg._operators import Operator, operator

__all__ = ["CgResult", "Density", "Estimate", "cg", "logdet", "spectral_density", "trace"]

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


@dataclass(frozen=True, eq=False, slots=True)
class CgResult:
    """Solution `x` of `cg`, with the true `residual_norms` relative to b, per column."""

    x: Array
    residual_norms: Host
    converged: Any
    iterations: int


def _single(A: Any, n: int | None, like: Array | None = None) -> Operator:
    a = operator(A, n, like=like)
    if not a.single:
        raise ValueError("A: expected one matrix or operator, got a batch")
    return a


def _product(a: Operator, x: Array) -> Array:
    """Unscaled product with rows, in float64."""
    rows = to_dtype(packed(x), str(a.dtype))[None]
    return to_dtype(a.apply(rows)[0], "float64") / float(a.scale[0]) ** 2


def _signs(a: Operator, rng: np.random.Generator, count: int) -> Array:
    return from_numpy(rng.choice([-1.0, 1.0], (count, a.n)), a.like)


def _row_dots(*pairs: tuple[Array, Array]) -> Host:
    """``<x[k], y[k]>`` of each pair (pairs, k), read back at once."""
    xp = namespace(pairs[0][0])
    return to_numpy(xp.stack([xp.einsum("kn,kn->k", x, y) for x, y in pairs]))


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value}")


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
    a = _single(A, n, like)
    _positive("matvecs", matvecs)
    if matvecs >= a.n:
        exact = to_numpy(_product(a, from_numpy(np.eye(a.n), a.like)))
        return Estimate(float(np.trace(exact)), 0.0, a.matvecs)
    rng = np.random.default_rng(seed)
    third = max(1, matvecs // 3)
    sketch = _product(a, _signs(a, rng, third))
    q = packed(namespace(sketch).linalg.qr(sketch.T)[0].T)
    g = _signs(a, rng, third)
    g -= (g @ q.T) @ q
    heads, rest = _row_dots((q, _product(a, q)), (g, _product(a, g)))
    error = float(rest.std(ddof=1) / math.sqrt(third)) if third > 1 else math.inf
    return Estimate(float(heads.sum()) + float(rest.mean()), error, a.matvecs)


def _quadrature(a: Operator, steps: int, probes: int, seed: int) -> tuple[list[Host], list[Host]]:
    """Nodes and weights of Lanczos quadrature for each of the random signs, all in step.

    Each step reads two numbers a vector back.
    """
    rng = np.random.default_rng(seed)
    steps = min(steps, a.n)
    q = _signs(a, rng, probes) / math.sqrt(a.n)
    basis = empty((probes, steps, a.n), a.like, "float64")
    alpha, beta = np.zeros((probes, steps)), np.zeros((probes, steps))
    used = np.full(probes, steps)
    xp = namespace(q)
    for j in range(steps):
        basis[:, j] = q
        w = _product(a, q)
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
    a = _single(A, n, like)
    _positive("steps", steps)
    _positive("probes", probes)
    if a.n == 0:
        return Estimate(0.0, 0.0, 0)
    sums = []
    for theta, weight in zip(*_quadrature(a, steps, probes, seed), strict=True):
        if theta[0] + damping <= 0:
            raise NotPositiveDefiniteError(
                f"A: expected A + damping I to be positive definite, got an eigenvalue near "
                f"{theta[0] + damping:.3e}"
            )
        sums.append(a.n * float(weight @ np.log(theta + damping)))
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
    a = _single(A, n, like)
    for name, value in (("points", points), ("steps", steps), ("probes", probes), ("n", a.n)):
        _positive(name, value)
    nodes, weights = _quadrature(a, steps, probes, seed)
    low, high = min(x[0] for x in nodes), max(x[-1] for x in nodes)
    span = (high - low) or abs(high) or 1.0
    width = float(0.01 * span if sigma is None else sigma)
    if not width > 0:
        raise ValueError(f"sigma: expected a positive width, got {sigma}")
    grid = np.linspace(low - 4 * width, high + 4 * width, points)
    norm = 1 / (math.sqrt(2 * math.pi) * width)
    curves = np.stack(
        [
            norm * np.exp(-0.5 * ((grid[:, None] - x) / width) ** 2) @ w
            for x, w in zip(nodes, weights, strict=True)
        ]
    )
    first = _mean([float(w @ x) for x, w in zip(nodes, weights, strict=True)])
    second = _mean([float(w @ x**2) for x, w in zip(nodes, weights, strict=True)])
    error = curves.std(0, ddof=1) / math.sqrt(probes) if probes > 1 else np.full(points, np.inf)
    return Density(grid, curves.mean(0), error, width, *first, *second, a.matvecs)


def cg(
    A: Any, b: Array, *, damping: float = 0.0, tol: float = 1e-6, max_iter: int | None = None,
    preconditioner: Callable[[Array], Array] | None = None, n: int | None = None,
) -> CgResult:  # fmt: skip
    """Solve ``(A + damping I) x = b`` by conjugate gradients, all columns in the same passes.

    Parameters
    ----------
    A : as in `eigsh`, not a batch; positive definite with the damping
    b : array, shape (n,) or (n, k)
        On a GPU where A is; a callable takes arrays of its library there (of others numpy's).
    damping : float
        Added to the diagonal.
    tol : float
        Residual norm relative to that of b, for each column.
    max_iter : int, optional
        Passes at most (10 n).
    preconditioner : callable, optional
        Takes residuals (n, k), float64, and returns an approximate solution; numpy's arrays, on a
        GPU those of b's library.
    n : int, optional
        Size of a callable.

    Raises
    ------
    NonFiniteError
        b or a product holds NaN or infinity.
    NotPositiveDefiniteError
        A direction of curvature that is not positive was met.

    Warns
    -----
    ConvergenceWarning
        The tolerance was not reached.

    Examples
    --------
    >>> import numpy as np
    >>> cg(np.diag([1.0, 2.0]), np.array([1.0, 1.0])).x
    array([1. , 0.5])
    """
    a = _single(A, n, b)
    columns, one = _right_side(a, b)
    if not 0 <= tol < 1:
        raise ValueError(f"tol: expected 0 <= tol < 1, got {tol}")
    if max_iter is not None and (isinstance(max_iter, bool) or max_iter < 1):
        raise ValueError(f"max_iter: expected an integer of at least 1, got {max_iter!r}")
    # Squares of very small or large numbers leave the range of float64.
    largest = np.zeros(columns.shape[1])
    if a.n:
        largest = to_numpy(namespace(columns).amax(abs(columns), 0)).copy()
    largest[largest == 0] = 1.0
    right = columns / from_numpy(largest, columns)
    size = np.sqrt(_row_dots((right.T, right.T))[0])

    def product(x: Array) -> Array:
        return _product(a, x.T).T + damping * x

    def prepared(r: Array) -> Array:
        if preconditioner is None:
            return r
        z = preconditioner(r)
        return z if a.on_device else np.asarray(z)

    x = namespace(right).zeros_like(right)
    r, z = right, prepared(right)
    p = z
    squares, rz = _row_dots((r.T, r.T), (r.T, z.T))
    done = 0
    while done < (max_iter or 10 * a.n) and (np.sqrt(squares) > tol * size).any():
        ap = product(p)
        curve = _row_dots((p.T, ap.T))[0]
        active = np.sqrt(squares) > tol * size
        if (curve[active] <= 0).any():
            raise NotPositiveDefiniteError(
                f"A: expected A + damping I to be positive definite, got a direction of curvature "
                f"{curve[active].min():.3e}"
            )
        step = from_numpy(np.where(active, rz / np.where(active, curve, 1), 0), x)
        x = x + step * p
        r = r - step * ap
        z = prepared(r)
        squares, new = _row_dots((r.T, r.T), (r.T, z.T))
        p = z + from_numpy(np.where(active, new / np.where(active, rz, 1), 0), x) * p
        rz = new
        done += 1
    rest = right - product(x)
    final = np.sqrt(_row_dots((rest.T, rest.T))[0]) / np.where(size > 0, size, 1)
    converged = final <= max(tol, 8 * float(np.finfo(a.dtype).eps)) * 1.1
    if not converged.all():
        warnings.warn(
            f"cg: {int((~converged).sum())} of {converged.size} columns did not reach tol = "
            f"{tol:.1e}; the largest residual is {final.max():.1e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    x = to_dtype(x * from_numpy(largest, x), str(a.dtype))
    solution = a.hand_over(x[:, 0] if one else x)
    return CgResult(solution, final, bool(converged[0]) if one else converged, done)


def _right_side(a: Operator, b: Array) -> tuple[Array, bool]:
    """Columns (n, k) in float64 where the operator is, and whether `b` is one vector."""
    where = device_name(a.like)
    if device_name(b) != where or (a.on_device and library(b) != library(a.like)):
        raise TypeError(
            f"b: expected an array of library {library(a.like)} on {where}, got one of "
            f"{library(b)} on {device_name(b)}"
        )
    if a.on_device:
        values = to_dtype(detached(b), "float64")
    else:
        values = np.asarray(to_numpy(b), np.float64)
    shape = tuple(values.shape)
    if len(shape) not in (1, 2) or shape[0] != a.n:
        raise ValueError(f"b: expected shape ({a.n},) or ({a.n}, k), got {shape}")
    if not bool(namespace(values).isfinite(values).all()):
        host = to_numpy(values)
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"b: expected finite numbers, got {host[at]} at index {at}")
    return (values[:, None], True) if len(shape) == 1 else (values, False)
