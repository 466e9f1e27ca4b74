# SPDX-License-Identifier: Apache-2.0
"""Traces, log-determinants, densities and solves of symmetric operators, by products alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import Array, to_numpy
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


def _single(A: Any, n: int | None) -> Operator:
    a = operator(A, n)
    if not a.single:
        raise ValueError("A: expected one matrix or operator, got a batch")
    return a


def _product(a: Operator, x: Host) -> Host:
    """Unscaled product with rows, in float64."""
    scale = float(a.scale[0]) ** 2
    rows = np.ascontiguousarray(x, a.dtype)[None]
    return np.asarray(a.apply(rows)[0] / scale, np.float64)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value}")


def trace(A: Any, *, matvecs: int = 96, seed: int = 0, n: int | None = None) -> Estimate:
    """Trace by Hutch++: exact on a sketched subspace, random signs on the rest.

    Parameters
    ----------
    A : as in `eigsh`, not a batch
    matvecs : int
        Products to spend; with at least n of them the trace is exact.
    seed, n : int
        Of the random signs; size of a callable.

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
    a = _single(A, n)
    _positive("matvecs", matvecs)
    if matvecs >= a.n:
        return Estimate(float(np.trace(_product(a, np.eye(a.n)))), 0.0, a.matvecs)
    rng = np.random.default_rng(seed)
    third = max(1, matvecs // 3)
    q = np.linalg.qr(_product(a, rng.choice([-1.0, 1.0], (third, a.n))).T)[0].T
    head = float(np.einsum("kn,kn->", q, _product(a, q)))
    g = rng.choice([-1.0, 1.0], (third, a.n))
    g -= (g @ q.T) @ q
    rest = np.einsum("kn,kn->k", g, _product(a, g))
    error = float(rest.std(ddof=1) / math.sqrt(third)) if third > 1 else math.inf
    return Estimate(head + float(rest.mean()), error, a.matvecs)


def _quadrature(a: Operator, steps: int, probes: int, seed: int) -> tuple[list[Host], list[Host]]:
    """Nodes and weights of Lanczos quadrature for each of the random signs, all in step."""
    rng = np.random.default_rng(seed)
    steps = min(steps, a.n)
    q = rng.choice([-1.0, 1.0], (probes, a.n)) / math.sqrt(a.n)
    basis = np.zeros((probes, steps, a.n))
    alpha, beta = np.zeros((probes, steps)), np.zeros((probes, steps))
    used = np.full(probes, steps)
    for j in range(steps):
        basis[:, j] = q
        w = _product(a, q)
        alpha[:, j] = np.einsum("pn,pn->p", w, q)
        for _ in range(2):
            w -= np.einsum("pj,pjn->pn", np.einsum("pjn,pn->pj", basis[:, : j + 1], w),
                           basis[:, : j + 1])  # fmt: skip
        norms = np.linalg.norm(w, axis=1)
        size = np.abs(alpha[:, : j + 1]).max(1) + beta[:, :j].max(1, initial=0.0)
        ended = (norms <= 16 * np.finfo(a.dtype).eps * size) & (used == steps)
        used[ended] = j + 1
        beta[:, j] = norms
        q = w / np.where(norms > 0, norms, 1)[:, None]
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
    n: int | None = None,
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
    a = _single(A, n)
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
    seed: int = 0, n: int | None = None,
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

    Returns
    -------
    Density

    Examples
    --------
    >>> import numpy as np
    >>> spectral_density(np.diag(np.arange(5.0))).mean
    2.0
    """
    a = _single(A, n)
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
    preconditioner: Callable[[Host], Host] | None = None, n: int | None = None,
) -> CgResult:  # fmt: skip
    """Solve ``(A + damping I) x = b`` by conjugate gradients, all columns in the same passes.

    Parameters
    ----------
    A : as in `eigsh`, not a batch; positive definite with the damping
    b : array, shape (n,) or (n, k)
    damping : float
        Added to the diagonal.
    tol : float
        Residual norm relative to that of b, for each column.
    max_iter : int, optional
        Passes at most (10 n).
    preconditioner : callable, optional
        Takes residuals (n, k), float64, and returns an approximate solution.
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
    a = _single(A, n)
    host = np.asarray(to_numpy(b), np.float64)
    if host.ndim not in (1, 2) or host.shape[0] != a.n:
        raise ValueError(f"b: expected shape ({a.n},) or ({a.n}, k), got {tuple(host.shape)}")
    if not np.isfinite(host).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"b: expected finite numbers, got {host[where]} at index {where}")
    if not 0 <= tol < 1:
        raise ValueError(f"tol: expected 0 <= tol < 1, got {tol}")
    if max_iter is not None and (isinstance(max_iter, bool) or max_iter < 1):
        raise ValueError(f"max_iter: expected an integer of at least 1, got {max_iter!r}")
    # Squares of very small or large numbers leave the range of float64.
    largest = np.abs(host.reshape(a.n, -1)).max(axis=0, initial=0.0)
    largest[largest == 0] = 1.0
    right = host.reshape(a.n, -1) / largest
    size = np.linalg.norm(right, axis=0)

    def product(x: Host) -> Host:
        return _product(a, x.T).T + damping * x

    x = np.zeros_like(right)
    r = right.copy()
    z = r if preconditioner is None else np.asarray(preconditioner(r))
    p, rz = z.copy(), np.einsum("nk,nk->k", r, z)
    done = 0
    while done < (max_iter or 10 * a.n) and (np.linalg.norm(r, axis=0) > tol * size).any():
        ap = product(p)
        curve = np.einsum("nk,nk->k", p, ap)
        active = np.linalg.norm(r, axis=0) > tol * size
        if (curve[active] <= 0).any():
            raise NotPositiveDefiniteError(
                f"A: expected A + damping I to be positive definite, got a direction of curvature "
                f"{curve[active].min():.3e}"
            )
        step = np.where(active, rz / np.where(active, curve, 1), 0)
        x += step * p
        r -= step * ap
        z = r if preconditioner is None else np.asarray(preconditioner(r))
        new = np.einsum("nk,nk->k", r, z)
        p = z + np.where(active, new / np.where(active, rz, 1), 0) * p
        rz = new
        done += 1
    final = np.linalg.norm(right - product(x), axis=0) / np.where(size > 0, size, 1)
    converged = final <= max(tol, 8 * float(np.finfo(a.dtype).eps)) * 1.1
    if not converged.all():
        warnings.warn(
            f"cg: {int((~converged).sum())} of {converged.size} columns did not reach tol = "
            f"{tol:.1e}; the largest residual is {final.max():.1e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    x *= largest
    one = host.ndim == 1
    solution = a.hand_over(np.ascontiguousarray(x[:, 0] if one else x, a.dtype))
    return CgResult(solution, final, bool(converged[0]) if one else converged, done)
