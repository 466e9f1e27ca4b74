# SPDX-License-Identifier: Apache-2.0
"""Numbers that say how trainable a network is before it is trained, from its tangent kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import Array, device_name, in_numpys_words, library
from fastfisher._jacobian import Jacobian
from fastfisher._ntk import ntk
from fastfisher.errors import NonFiniteError

__all__ = ["Scores", "scores"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a kernel K of size n.

    Attributes
    ----------
    condition_number : float
        Largest over smallest eigenvalue; infinite where the smallest is zero to rounding.
    effective_rank : float
        ``tr(K)^2 / ||K||_F^2``: n for the identity, 1 for rank one.
    entropy_rank : float
        Exponential of the entropy of the eigenvalues over their sum.
    alignment : float or None
        ``y^T K y / (||K||_F ||y||^2)``, from 0 to 1; None without labels.
    centred_alignment : float or None
        The same after the means over samples were taken out of kernel and labels.
    trace, largest, smallest : float
        Sum of the eigenvalues, and the two ends.
    """

    condition_number: float
    effective_rank: float
    entropy_rank: float
    alignment: float | None
    centred_alignment: float | None
    trace: float
    largest: float
    smallest: float


def scores(model: Any, x: Any = None, y: Array | None = None, **options: Any) -> Scores:
    """Conditioning, effective rank and label alignment of the tangent kernel.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters), MLP, Jacobian, or array (n, n)
        An array is taken as the kernel itself.
    x : array, mapping or iterable of batches, optional
        Samples; none with a Jacobian or a kernel.
    y : array, shape (N,) or (N, C), optional
        Targets; (N,) classes of an integer dtype count as one-hot with C > 1. A kernel (N, N) of
        the trace of the outputs goes with them too, summed over outputs.
    **options
        Of `fastfisher.ntk`.

    Returns
    -------
    Scores

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit; a kernel that is not square.

    Notes
    -----
    Alignment: Cristianini et al. 2001, centred: Cortes, Mohri and Rostamizadeh 2012; effective
    rank: Roy and Vetterli 2007. Cost: the kernel and its eigenvalues, (N C)^3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.diagnostics.scores(np.eye(4), y=np.ones(4)).alignment
    0.5
    """
    if "x2" in options:
        raise ValueError("x2: expected a square kernel, of x with itself")
    kernel, c, eps = _kernel(model, x, options)
    n = len(kernel)
    # Squares stay in range: all but the last three scores do not depend on the scale.
    most = float(np.abs(kernel).max(initial=0.0))
    unit = math.ldexp(1.0, min(1000, math.frexp(most)[1])) if most > 0 else 1.0
    kernel = kernel / unit
    w = np.linalg.eigvalsh(kernel) if n else np.zeros(0)
    total, norm = float(w.sum()), float(np.linalg.norm(w))
    top, low = (float(w[-1]), float(w[0])) if n else (0.0, 0.0)
    regular = low > n * eps * top
    shares = w[w > 0] / total if total > 0 else w[:0]
    plain = centred = None
    if y is not None:
        target = _target(y, n, c, device_name(kernel))
        target = target / (np.abs(target).max(initial=0.0) or 1.0)
        plain = _alignment(kernel, target)
        middle = kernel.reshape(n // c, c, n // c, c) if n else kernel.reshape(0, c, 0, c)
        middle = middle - middle.mean(0, keepdims=True) if n else middle
        middle = middle - middle.mean(2, keepdims=True) if n else middle
        wide = target.reshape(-1, c, target.shape[1])
        wide = wide - wide.mean(0) if n else wide
        centred = _alignment(middle.reshape(n, n), wide.reshape(n, -1))
    return Scores(
        top / low if regular else math.inf,
        total**2 / norm**2 if norm > 0 else 0.0,
        float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        plain,
        centred,
        total * unit,
        top * unit,
        low * unit,
    )


def _kernel(model: Any, x: Any, options: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int, float]:
    """Kernel (n, n), float64, the number of outputs of a sample among its rows, and rounding."""
    if isinstance(model, Jacobian):
        if x is not None:
            raise ValueError("x: expected None with a Jacobian, got one")
        full = model.gram(**options)
    elif x is None:
        library(model, "model")
        host = in_numpys_words(model, "model")
        if host.ndim != 2 or host.shape[0] != host.shape[1]:
            raise ValueError(f"model: expected a kernel of shape (n, n), got {host.shape}")
        if not np.isfinite(host).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
            raise NonFiniteError(f"model: expected finite numbers, got {host[where]} at {where}")
        eps = _rounding(host)
        apart = np.abs(host - host.T).max(initial=0.0)
        if apart > 1e3 * eps * np.abs(host).max(initial=0.0):
            raise ValueError(f"model: expected a symmetric kernel, got entries {apart:.3e} apart")
        return host.astype(np.float64), 1, eps
    else:
        full = ntk(model, x, **options)
    host = in_numpys_words(full)
    eps = _rounding(host)
    host = host.astype(np.float64)
    if host.ndim == 2:
        return host, 1, eps
    n, c = host.shape[:2]
    return host.reshape(n * c, n * c), c, eps


def _rounding(host: np.ndarray[Any, Any]) -> float:
    kind = host.dtype if host.dtype.kind == "f" else np.dtype(np.float64)
    return float(np.finfo(kind).eps)


def _target(y: Array, n: int, c: int, device: str) -> np.ndarray[Any, Any]:
    """Targets as columns (n, k) that go with the rows of the kernel."""
    library(y, "y")
    if device_name(y) != device:
        raise TypeError(f"y: expected targets on {device}, got some on {device_name(y)}")
    host = in_numpys_words(y, "y")
    if host.dtype.kind in "iu" and host.ndim == 1 and c > 1:
        if host.size and not (host.min() >= 0 and host.max() < c):
            raise ValueError(
                f"y: expected classes from 0 to {c - 1}, got {host.min()} to {host.max()}"
            )
        host = np.eye(c, like=host)[host]
    if not np.isfinite(host).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"y: expected finite numbers, got {host[where]} at index {where}")
    if host.shape in ((n // c, c), (n,)) and n % c == 0:
        return host.astype(np.float64).reshape(n, 1)
    if c == 1 and host.ndim == 2 and len(host) == n:
        return host.astype(np.float64)
    raise ValueError(f"y: expected shape ({n // c}, {c}), got {host.shape}")


def _alignment(kernel: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """``<K, y y^T> / (||K|| ||y y^T||)``."""
    size = float(np.linalg.norm(kernel) * np.linalg.norm(y.T @ y))
    return float(np.einsum("nk,nm,mk->", y, kernel, y, optimize=True)) / size if size else 0.0
