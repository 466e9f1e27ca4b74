# SPDX-License-Identifier: Apache-2.0
"""Classes with logits, one softmax a sample or one a group of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._device_array import as_array
from fastfisher._numbers import integer
from fastfisher.likelihoods._base import Likelihood, check_labels, ratio

Host = np.ndarray[Any, Any]


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
        self.classes = None if classes is None else integer("classes", classes, least=1)

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
        return ratio(e, np.sqrt(softmax(self._groups(f))).reshape(f.shape)[:, :, None])

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
        check_labels(y, self._shape(f), "one class a sample, not one-hot"
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


def softmax(f: Host) -> Host:
    """Probabilities of logits (N, C)."""
    e = np.exp(f - f.max(1, keepdims=True, initial=-np.inf))
    return as_array(e / e.sum(1, keepdims=True))
