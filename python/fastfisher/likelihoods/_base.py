# SPDX-License-Identifier: Apache-2.0
"""What a likelihood has to give, and what those of the package share."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError

Host = np.ndarray[Any, Any]


class Likelihood:
    """Base of likelihoods; a subclass of your own gives `hessian`, `sample` and `gradient`.

    Examples
    --------
    A Poisson likelihood with rate exp(f):

    >>> import numpy as np
    >>> import fastfisher as ff
    >>> class Poisson(ff.likelihoods.Likelihood):
    ...     def hessian(self, f):
    ...         return np.exp(f)[:, :, None] * np.eye(f.shape[1])
    ...     def sample(self, f, rng):
    ...         return rng.poisson(np.exp(f))
    ...     def gradient(self, f, y):
    ...         return np.exp(f) - y
    >>> J = ff.Jacobian.from_factors(
    ...     [ff.Dense(np.ones((3, 2)), np.ones((3, 1, 1)))], outputs=np.zeros((3, 1)))
    >>> ff.fisher(J, likelihood=Poisson()).dense()
    array([[1., 1.],
           [1., 1.]])
    """

    def hessian(self, f: Host) -> Host:
        """Fisher matrices (N, C, C) of the outputs `f`, positive semi-definite."""
        raise NotImplementedError(f"{type(self).__name__}.hessian")

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw one label of each sample from the model."""
        raise NotImplementedError(f"{type(self).__name__}.sample: kind='mc' needs it")

    def gradient(self, f: Host, y: Host) -> Host:
        """Gradient (N, C) of -log p(y | f) in f."""
        raise NotImplementedError(
            f"{type(self).__name__}.gradient: kind='mc' and kind='empirical' need it"
        )

    def root(self, f: Host) -> Host:
        """Any S (N, C, R) with ``S S^T = hessian(f)``; here the symmetric one."""
        h = as_array(self.hessian(f), np.float64)
        expected = (*f.shape, f.shape[1])
        if h.shape != expected:
            raise ValueError(f"hessian: expected shape {expected}, got {h.shape}")
        apart = np.abs(h - h.swapaxes(1, 2)).max(initial=0.0)
        if apart > 1e-8 * np.abs(h).max(initial=0.0):
            raise ValueError(f"hessian: expected symmetric matrices, got entries {apart:.3e} apart")
        return symmetric_root(h)

    def unrooted(self, f: Host, e: Host) -> Host:
        """E (N, R, k) with ``S E = e`` for e (N, C, k), where there is one; S as in `root`."""
        return as_array(np.linalg.pinv(self.root(f)) @ e)

    def labels(self, y: Host, f: Host) -> Host:
        """Check labels `y` for the outputs `f`; returns them in the shape of `gradient`."""
        return y


def symmetric_root(h: Host) -> Host:
    """Symmetric square roots of positive semi-definite matrices (N, C, C)."""
    if not np.isfinite(h).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(h))[0])
        raise NonFiniteError(f"hessian: expected finite numbers, got {h[where]} at index {where}")
    w, q = np.linalg.eigh(h)
    low, high = w[:, :1], np.abs(w).max(1, initial=0.0)[:, None]
    if (low < -1e-9 * high).any():
        n = int(np.argmin((low / np.where(high > 0, high, 1)).min(1)))
        raise NotPositiveDefiniteError(
            f"hessian: expected positive semi-definite matrices, got an eigenvalue "
            f"{w[n, 0]:.3e} for sample {n}"
        )
    return as_array((q * np.sqrt(w.clip(0))[:, None, :]) @ q.swapaxes(1, 2))


def ratio(a: Host, b: Host) -> Host:
    """Divide, with zero where b underflows."""
    return as_array(np.where(b > 0, a / np.where(b > 0, b, 1), 0))


def check_labels(y: Host, shape: tuple[int, ...], what: str) -> None:
    if y.shape != shape:
        raise ValueError(f"y: expected shape {shape}, {what}, got {y.shape}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(y))[0])
        raise NonFiniteError(f"y: expected finite numbers, got {y[where]} at index {where}")


def check_real(y: Host) -> None:
    if y.dtype.kind not in "biuf":
        raise TypeError(f"y: expected real numbers, got dtype {y.dtype}")
