# SPDX-License-Identifier: Apache-2.0
"""Metric of the input space: how far the outputs move with the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import (
    Array,
    dtype_name,
    in_library,
    in_numpys_words,
    library,
    namespace,
)
from fastfisher._device_array import contiguous
from fastfisher._fisher_rows import OutputAxes
from fastfisher.likelihoods import Categorical
from fastfisher.models import MLP
from fastfisher.models.gradients import feature_gradients

__all__ = ["Metric", "input_metric"]

Likelihood = Literal["gaussian", "categorical"]


@dataclass(frozen=True, eq=False, slots=True)
class Metric:
    """Metric ``A = (1/N) sum_t G(t)^T Q(t) G(t)``, M x M, held as its factor; by `input_metric`.

    Attributes
    ----------
    rows : array, shape (N * C, M)
        ``Q(t)^{1/2} G(t)``: gradients of the outputs, one row each.
    samples : int
        N.
    trace : float
        Sum of the eigenvalues.
    """

    rows: Array
    samples: int
    trace: float

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, M)``."""
        return int(self.rows.shape[1]), int(self.rows.shape[1])

    def __matmul__(self, v: Array) -> Array:
        """Compute ``A v`` for v (M,) or (M, k)."""
        return self.rows.T @ (self.rows @ v) / max(self.samples, 1)

    def dense(self) -> Array:
        """Form the matrix A (M, M)."""
        return self.rows.T @ self.rows / max(self.samples, 1)

    def eigenvalues(self) -> Array:
        """All M eigenvalues, in descending order; those beyond the N C-th are zero."""
        values, _ = self._decomposition()
        full = np.zeros(self.shape[0], dtype_name(self.rows), like=values)
        full[: values.size] = values
        return in_library(full, self.rows)

    def top(self, k: int) -> tuple[Array, Array]:
        """Largest eigenvalues (k,) and their eigenvectors as columns (M, k).

        Raises
        ------
        ValueError
            More than the matrix can have eigenvalues other than zero, min(N C, M).
        """
        most = min(self.rows.shape)
        if isinstance(k, bool) or int(k) != k or not 0 <= k <= most:
            raise ValueError(f"k: expected an integer from 0 to {most}, got {k!r}")
        values, vectors = self._decomposition()
        top = contiguous(vectors[:, :k])
        if self.rows.shape[0] < self.rows.shape[1]:
            top = in_numpys_words(self.rows).T @ top
            norms = np.sqrt((top * top).sum(0))
            top = top / np.where(norms > 0, norms, 1)
        return in_library(values[:k].copy(), self.rows), in_library(top, self.rows)

    def _decomposition(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Eigenvalues and eigenvectors of the smaller of A and its dual, in descending order."""
        wide = self.rows.shape[0] < self.rows.shape[1]
        product = self.rows @ self.rows.T if wide else self.rows.T @ self.rows
        values, vectors = np.linalg.eigh(in_numpys_words(product) / max(self.samples, 1))
        return values[::-1].clip(0), vectors[:, ::-1]


def input_metric(
    model: Any,
    x: Array,
    *,
    likelihood: Likelihood = "gaussian",
    space: Literal["input", "features"] = "input",
    select: Callable[[Any], Array] | None = None,
) -> Metric:
    """Metric of the input space: the Fisher matrix of the inputs in place of the parameters.

    Parameters
    ----------
    model : fastfisher.models.MLP, torch.nn.Module or (function, parameters)
        The model.
    x : array, shape (N, ...)
        Samples; axes after the first are flattened into M.
    likelihood : "gaussian" | "categorical"
        Regression of unit variance, Q = I, or classification by softmax of the outputs,
        ``Q(t) = diag(g) - g g^T``.
    space : "input" | "features"
        Gradients with respect to the input, or (`MLP` only) to the input and all activations of
        hidden layers as one vector.
    select : callable, optional
        As in `fastfisher.jacobian`.

    Returns
    -------
    Metric
        In units of loss / input^2; arrays in the library of `x`.

    Raises
    ------
    ValueError
        Names, shapes, or a model whose outputs depend on other samples (for torch a CaptureError).
    TypeError
        A model or samples of another kind.

    Notes
    -----
    ``A_x = (1/N) sum_t sum_k grad_x f_k grad_x f_k^T``. In wide networks C of its eigenvalues (with
    softmax C - 1) are of order one and the others of order 1/M, see
    `fastfisher.theory.metric_spectrum`: noise ``eps v`` of the input changes the outputs by
    ``eps^2 v^T A_x v`` on average, so their eigenvectors are the directions that matter. One
    forward pass and C backward passes.

    References
    ----------
    Karakida, Akaho and Amari 2021, Pathological spectra of the Fisher information metric and its
    variants in deep neural networks (Neural Computation; arXiv 1910.05992).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((20, 30))
    >>> metric = ff.diagnostics.input_metric(ff.models.MLP((30, 50, 2), activation="tanh"), x)
    >>> metric.eigenvalues().shape, metric.top(2)[1].shape
    ((30,), (30, 2))
    >>> bool(np.isclose(metric.trace, metric.eigenvalues().sum()))
    True
    """
    for name, value, allowed in (
        ("likelihood", likelihood, ("gaussian", "categorical")),
        ("space", space, ("input", "features")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")
    if not isinstance(model, MLP) and likelihood == "categorical":
        select = OutputAxes(Categorical(), select)
    outputs, gradients = _gradients(model, x, space, select)
    n, c, m = gradients.shape
    if likelihood == "categorical":
        gradients = _weighted(gradients, outputs)
    rows = gradients.reshape(n * c, m)
    return Metric(rows, n, float((rows * rows).sum()) / max(n, 1))


def _gradients(
    model: Any, x: Array, space: str, select: Callable[[Any], Array] | None
) -> tuple[Array, Array]:
    """Compute outputs (N, C) and their gradients (N, C, M)."""
    if isinstance(model, MLP):
        if select is not None:
            raise ValueError(f"select: expected None for fastfisher.models.MLP, got {select!r}")
        outputs, parts = feature_gradients(model, x)
        return outputs, parts[0] if space == "input" else namespace(x).concatenate(parts, -1)
    if space != "input":
        raise ValueError("space: 'features' needs a fastfisher.models.MLP")
    if library(x, "x") != "torch":
        raise TypeError(f"x: expected a torch tensor for a torch model, got {type(x).__name__}")
    from fastfisher.capture import input_gradients, torch_model

    outputs, gradients = input_gradients(torch_model(model, select=select), x)
    return outputs, gradients


def _weighted(gradients: Array, outputs: Array) -> Array:
    """``S G`` with S^T S = Q = diag(g) - g g^T: S = diag(sqrt(g)) (I - 1 g^T)."""
    f = in_numpys_words(outputs)
    g = np.exp(f - f.max(1, keepdims=True))
    g /= g.sum(1, keepdims=True)
    root = in_library(np.sqrt(g), gradients)
    mean = (in_library(g, gradients)[:, :, None] * gradients).sum(1)
    return root[:, :, None] * (gradients - mean[:, None])
