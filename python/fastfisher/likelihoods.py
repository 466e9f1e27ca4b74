# SPDX-License-Identifier: Apache-2.0
"""Likelihoods p(y | f) of a model's outputs f (N, C): what turns a Jacobian into a Fisher matrix.

The Fisher matrix of the parameters is ``sum_n J_n^T H_n J_n / N`` with the Fisher matrix H_n (C, C)
of the outputs, which for these likelihoods is also the Hessian of -log p. All arrays are numpy's,
float64. Those defined here also run where a model's outputs are, on a device; labels are drawn by
numpy's generator in any case. Outputs are read back for likelihoods of your own.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
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
        if not (_is_number(variance) and variance > 0 and math.isfinite(variance)):
            raise ValueError(
                "variance: expected a positive finite number, the same for all outputs (else write "
                f"a fastfisher.likelihoods.Likelihood), got {variance!r}"
            )
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
        _check_real(y)
        return y.astype(np.float64)


class Categorical(Likelihood):
    """Classes with logits f: softmax and cross-entropy.

    Parameters
    ----------
    classes : int, optional
        Number of classes, where a sample has several labels: the C outputs are C / classes groups
        that follow each other, each with a softmax and a label (N, C / classes) of its own, and
        -log p is the sum over them. For outputs (N, T, classes); those of shape (N, classes, ...)
        need a ``select`` that moves the axis. By default one group of all C, of outputs (N, C).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> h = ff.likelihoods.Categorical(classes=2).hessian(np.zeros((1, 4)))
    >>> h[0]
    array([[ 0.25, -0.25,  0.  ,  0.  ],
           [-0.25,  0.25,  0.  ,  0.  ],
           [ 0.  ,  0.  ,  0.25, -0.25],
           [ 0.  ,  0.  , -0.25,  0.25]])
    """

    def __init__(self, classes: int | None = None) -> None:
        if classes is not None and (
            isinstance(classes, bool) or not isinstance(classes, Integral) or classes < 1
        ):
            raise ValueError(f"classes: expected an integer of at least 1, got {classes!r}")
        self.classes = None if classes is None else int(classes)

    def hessian(self, f: Host) -> Host:
        """``diag(p) - p p^T`` of each group."""
        s = self.root(f)  # p (1 - p) would cancel where one class is sure
        return as_array(s @ s.swapaxes(1, 2))

    def root(self, f: Host) -> Host:
        """``diag(sqrt p) - p sqrt(p)^T`` of each group."""
        p = softmax(self._groups(f))
        s = np.sqrt(p)
        roots = as_array(s[:, :, None] * np.eye(p.shape[1], like=f) - p[:, :, None] * s[:, None, :])
        if self.classes is None:
            return roots
        n, c = f.shape
        t, k = c // self.classes, self.classes
        apart = np.eye(t, like=f)[None, :, None, :, None]
        return as_array(roots.reshape(n, t, k, 1, k) * apart).reshape(n, c, c)

    def unrooted(self, f: Host, e: Host) -> Host:
        """``e / sqrt p``, if e sums to zero over the classes of each group."""
        return _ratio(e, np.sqrt(softmax(self._groups(f))).reshape(f.shape)[:, :, None])

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Draw classes (N,), or (N, C / classes)."""
        shape = self._shape(f)
        if f.size == 0:
            return np.zeros(shape, np.int64, like=f)
        edges = softmax(self._groups(f)).cumsum(1)
        # The last edge may round to less than 1.
        draws = rng.random((len(edges), 1)) * edges[:, -1:]
        return as_array((draws >= edges).sum(1).clip(0, edges.shape[1] - 1)).reshape(shape)

    def gradient(self, f: Host, y: Host) -> Host:
        """``p - one_hot(y)`` of each group."""
        p = softmax(self._groups(f))
        p[np.arange(len(p)), y.reshape(-1)] -= 1
        return p.reshape(f.shape)

    def labels(self, y: Host, f: Host) -> Host:
        """Classes (N,), or (N, C / classes), integers from 0 to the number of classes less 1."""
        _check_labels(y, self._shape(f), "one class a sample, not one-hot"
                      if self.classes is None else "one class a group")  # fmt: skip
        if y.dtype.kind not in "iu":
            raise TypeError(f"y: expected classes of an integer dtype, got dtype {y.dtype}")
        classes = self.classes or f.shape[1]
        if y.size and not (y.min() >= 0 and y.max() < classes):
            raise ValueError(
                f"y: expected classes from 0 to {classes - 1}, got {y.min()} to {y.max()}"
            )
        return y

    def _groups(self, f: Host) -> Host:
        """Logits (groups, classes)."""
        if self.classes is None:
            return f
        if f.shape[1] % self.classes:
            raise ValueError(
                f"classes: expected a divisor of the {f.shape[1]} outputs, got {self.classes}"
            )
        return f.reshape(-1, self.classes)

    def _shape(self, f: Host) -> tuple[int, ...]:
        """Shape of labels."""
        return (len(f),) if self.classes is None else (len(f), f.shape[1] // self.classes)


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
        _check_real(y)
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


def _check_real(y: Host) -> None:
    if y.dtype.kind not in "biuf":
        raise TypeError(f"y: expected real numbers, got dtype {y.dtype}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)
