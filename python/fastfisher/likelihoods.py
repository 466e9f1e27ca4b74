# SPDX-License-Identifier: Apache-2.0
"""Likelihoods p(y | f) of a model's outputs f (N, C): what turns a Jacobian into a Fisher matrix.

The Fisher matrix of the parameters is ``sum_n J_n^T H_n J_n / N`` with the Fisher matrix H_n (C, C)
of the outputs, which for these likelihoods is also the Hessian of -log p. All arrays are numpy's,
float64. Those defined here also run where a model's outputs are, on a device; labels are drawn by
numpy's generator in any case. Outputs are read back for likelihoods of your own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastfisher._arrays import to_numpy
from fastfisher._device_array import DeviceArray, as_array
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "likelihood_of"]

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


class Gaussian(Likelihood):
    """Normal outputs with a fixed variance: regression, ``||f - y||^2 / (2 variance)``.

    Parameters
    ----------
    variance : float
    """

    def __init__(self, variance: float = 1.0) -> None:
        if not (variance > 0 and math.isfinite(variance)):
            raise ValueError(f"variance: expected a positive finite number, got {variance!r}")
        self.variance = float(variance)

    def hessian(self, f: Host) -> Host:
        """``I / variance``."""
        return np.broadcast_to(np.eye(f.shape[1], like=f) / self.variance, (*f.shape, f.shape[1]))

    def root(self, f: Host) -> Host:
        """``I / sqrt(variance)``."""
        return np.broadcast_to(
            np.eye(f.shape[1], like=f) / math.sqrt(self.variance), (*f.shape, f.shape[1])
        )

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw ``f`` plus noise."""
        return f + math.sqrt(self.variance) * rng.standard_normal(f.shape)

    def gradient(self, f: Host, y: Host) -> Host:
        """``(f - y) / variance``."""
        return (f - y) / self.variance

    def labels(self, y: Host, f: Host) -> Host:
        """Targets (N, C), for C = 1 also (N,)."""
        if f.shape[1] == 1 and y.shape == f.shape[:1]:
            y = y[:, None]
        _check_labels(y, f.shape, "one target an output")
        return y.astype(np.float64)


class Categorical(Likelihood):
    """Classes with logits f: softmax and cross-entropy."""

    def hessian(self, f: Host) -> Host:
        """``diag(p) - p p^T``."""
        s = self.root(f)  # p (1 - p) would cancel where one class is sure
        return as_array(s @ s.swapaxes(1, 2))

    def root(self, f: Host) -> Host:
        """``diag(sqrt p) - p sqrt(p)^T``."""
        p = softmax(f)
        s = np.sqrt(p)
        return as_array(s[:, :, None] * np.eye(f.shape[1], like=f) - p[:, :, None] * s[:, None, :])

    def unrooted(self, f: Host, e: Host) -> Host:
        """``e / sqrt p``, if e sums to zero over the classes."""
        return _ratio(e, np.sqrt(softmax(f))[:, :, None])

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw classes (N,)."""
        if f.size == 0:
            return np.zeros(len(f), np.int64, like=f)
        edges = softmax(f).cumsum(1)
        # The last edge may round to less than 1.
        draws = rng.random((len(f), 1)) * edges[:, -1:]
        return as_array((draws >= edges).sum(1).clip(0, f.shape[1] - 1))

    def gradient(self, f: Host, y: Host) -> Host:
        """``p - one_hot(y)``."""
        p = softmax(f)
        p[np.arange(len(f)), y] -= 1
        return p

    def labels(self, y: Host, f: Host) -> Host:
        """Classes (N,), integers from 0 to C - 1."""
        _check_labels(y, f.shape[:1], "one class a sample")
        if y.dtype.kind not in "iu":
            raise TypeError(f"y: expected classes of an integer dtype, got dtype {y.dtype}")
        if y.size and not (y.min() >= 0 and y.max() < f.shape[1]):
            raise ValueError(
                f"y: expected classes from 0 to {f.shape[1] - 1}, got {y.min()} to {y.max()}"
            )
        return y


class Bernoulli(Likelihood):
    """Independent binary labels, each with a logit of its own."""

    def hessian(self, f: Host) -> Host:
        """``diag(p (1 - p))``."""
        return _slope(f)[:, :, None] * np.eye(f.shape[1], like=f)

    def root(self, f: Host) -> Host:
        """``diag(sqrt(p (1 - p)))``."""
        return np.sqrt(_slope(f))[:, :, None] * np.eye(f.shape[1], like=f)

    def unrooted(self, f: Host, e: Host) -> Host:
        """``e / sqrt(p (1 - p))``."""
        return _ratio(e, np.sqrt(_slope(f))[:, :, None])

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw labels (N, C)."""
        return (_sigmoid(f) > rng.random(f.shape)).astype(np.float64)

    def gradient(self, f: Host, y: Host) -> Host:
        """``p - y``."""
        return _sigmoid(f) - y

    def labels(self, y: Host, f: Host) -> Host:
        """Labels (N, C), for C = 1 also (N,), in [0, 1]."""
        if f.shape[1] == 1 and y.shape == f.shape[:1]:
            y = y[:, None]
        _check_labels(y, f.shape, "one label an output")
        y = y.astype(np.float64)
        if y.size and not (y.min() >= 0 and y.max() <= 1):
            raise ValueError(f"y: expected labels from 0 to 1, got {y.min()} to {y.max()}")
        return y


_NAMED = {"gaussian": Gaussian, "categorical": Categorical, "bernoulli": Bernoulli}


def likelihood_of(given: Any) -> Likelihood:
    """Turn a name or an object with the methods of `Likelihood` into a likelihood."""
    if isinstance(given, str):
        if given not in _NAMED:
            raise ValueError(
                f"likelihood: expected one of {list(_NAMED)} or an object, got {given!r}"
            )
        chosen: Likelihood = _NAMED[given]()
        return chosen
    if isinstance(given, Likelihood):
        return given
    raise TypeError(
        "likelihood: expected a name or an object of a subclass of "
        f"fastfisher.likelihoods.Likelihood, got {type(given).__name__}"
    )


def likelihood_at(likelihood: Likelihood, f: Host) -> Likelihood:
    """`likelihood` for outputs like `f`: one of the user's gets numpy's arrays on any device."""
    known = type(likelihood) in _NAMED.values()
    return likelihood if known or not isinstance(f, DeviceArray) else _OnHost(likelihood)


class _OnHost(Likelihood):
    """A likelihood of the user's: outputs on a device are read back, results are moved there."""

    def __init__(self, own: Likelihood) -> None:
        self.own = own

    def hessian(self, f: Host) -> Host:
        """Of the user's."""
        return np.asarray(self.own.hessian(to_numpy(f)), np.float64, like=f)

    def root(self, f: Host) -> Host:
        """Of the user's."""
        return np.asarray(self.own.root(to_numpy(f)), np.float64, like=f)

    def unrooted(self, f: Host, e: Host) -> Host:
        """Of the user's."""
        return np.asarray(self.own.unrooted(to_numpy(f), to_numpy(e)), np.float64, like=f)

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Of the user's, on the host."""
        return self.own.sample(to_numpy(f), rng)

    def gradient(self, f: Host, y: Host) -> Host:
        """Of the user's; `y` may be on the host already."""
        return np.asarray(self.own.gradient(to_numpy(f), to_numpy(y)), np.float64, like=f)

    def labels(self, y: Host, f: Host) -> Host:
        """Of the user's, on the host."""
        return self.own.labels(to_numpy(y), to_numpy(f))


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


def softmax(f: Host) -> Host:
    """Probabilities of logits (N, C)."""
    e = np.exp(f - f.max(1, keepdims=True, initial=-np.inf))
    return as_array(e / e.sum(1, keepdims=True))


def _sigmoid(f: Host) -> Host:
    e = np.exp(-np.abs(f))
    return as_array(np.where(f >= 0, 1, e) / (1 + e))


def _slope(f: Host) -> Host:
    e = np.exp(-np.abs(f))  # p (1 - p) without the cancellation in 1 - p
    return as_array(e / (1 + e) ** 2)


def _ratio(a: Host, b: Host) -> Host:
    """Divide, with zero where b underflows."""
    return as_array(np.where(b > 0, a / np.where(b > 0, b, 1), 0))


def _check_labels(y: Host, shape: tuple[int, ...], what: str) -> None:
    if y.shape != shape:
        raise ValueError(f"y: expected shape {shape}, {what}, got {y.shape}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(y))[0])
        raise NonFiniteError(f"y: expected finite numbers, got {y[where]} at index {where}")
