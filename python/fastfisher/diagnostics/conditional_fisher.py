# SPDX-License-Identifier: Apache-2.0
"""Fisher matrix of one sample, through its dual, which has the size of the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import Array, device_name, dtype_name, in_library, in_numpys_words, to_numpy
from fastfisher._device_array import contiguous
from fastfisher._fisher_eigsh import in_terms_of_library
from fastfisher._ntk import jacobian
from fastfisher.linalg import eigsh
from fastfisher.models import MLP
from fastfisher.models.activations import ACTIVATIONS
from fastfisher.theory import ConditionalLaw

__all__ = ["ConditionalFisher", "conditional_fisher"]

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class ConditionalFisher:
    """Dual ``H = J J^T / C`` of the Fisher matrix J^T J of one sample; by `conditional_fisher`.

    Of an `MLP` the weights, slopes and qh_l are kept, and products go through the layers; of other
    models H itself.

    Attributes
    ----------
    outputs : int
        C, the size of H.
    qh : array, shape (L,), or None
        ``|h^l|^2 / C``, plus 1 / C for trained biases, as the recursion takes them.
    """

    outputs: int
    qh: Host | None
    _weights: tuple[Host, ...]
    _slopes: tuple[Host, ...]
    _matrix: Host | None
    _like: Array
    _sigma_w2: float

    @property
    def shape(self) -> tuple[int, int]:
        """``(C, C)``."""
        return self.outputs, self.outputs

    def __matmul__(self, v: Array) -> Array:
        """``H v`` for v (C,) or (C, k): of an `MLP` at O(L M^2), without H."""
        return in_library(self._product(in_numpys_words(v, "v")), self._like)

    def dense(self) -> Array:
        """H (C, C); of an `MLP` by the recursion, at O(L M^3)."""
        return in_library(self._dense(), self._like)

    def eigenvalues(self) -> Array:
        """All C eigenvalues of H, in descending order."""
        values = np.linalg.eigvalsh(self._dense())[::-1].clip(0)
        return in_library(contiguous(values), self._like)

    def lambda_max(self, *, tol: float | None = None) -> float:
        """Largest eigenvalue of H, by Lanczos steps on products.

        `tol` bounds the residual relative to H, by default the root of the dtype's epsilon: errors
        of the eigenvalue are of its square. The largest stable learning rate of online learning
        follows through `fastfisher.theory.online_learning_rate`.
        """
        name = dtype_name(self._like)
        tol = float(np.finfo(name).eps) ** 0.5 if tol is None else tol
        product = in_terms_of_library(self._product)
        like = None if self._matrix is None else self._like
        result = eigsh(product, 1, n=self.outputs, dtype=name, tol=tol, like=like)
        return float(to_numpy(result.values)[0])

    def moments(self) -> tuple[float, float]:
        """Means of the eigenvalues and of their squares (`theory.conditional_moments`)."""
        h = self._dense()
        return float(np.trace(h)) / self.outputs, float((h * h).sum()) / self.outputs

    def law(self) -> ConditionalLaw:
        """Numbers of this network that decide its spectrum in theory for orthogonal weights.

        Raises
        ------
        ValueError
            A model other than an `MLP`, or widths of hidden layers and outputs that differ.
        """
        if self.qh is None or {len(slope) for slope in self._slopes} - {self.outputs}:
            raise ValueError("model: a law needs an MLP whose layers all have the same width")
        return ConditionalLaw.from_slopes(self.qh, self._slopes, sigma_w2=self._sigma_w2)

    def _product(self, v: Host) -> Host:
        if self._matrix is not None:
            return self._matrix @ v
        assert self.qh is not None
        back = (slice(None),) + (None,) * (v.ndim - 1)
        signals = [v]
        for weight, slope in zip(self._weights[::-1], self._slopes[::-1], strict=True):
            signals.append(slope[back] * (weight.T @ signals[-1]))
        result = self.qh[0] * signals[-1]
        layers = zip(self._weights, self._slopes, self.qh[1:], signals[-2::-1], strict=True)
        for weight, slope, qh, signal in layers:
            result = qh * signal + weight @ (slope[back] * result)
        return np.asarray(result, dtype_name(self._like))

    def _dense(self) -> Host:
        if self._matrix is not None:
            return self._matrix
        assert self.qh is not None
        first = len(self._slopes[0]) if self._slopes else self.outputs
        h = self.qh[0] * np.eye(first, dtype=dtype_name(self._like))
        for weight, slope, qh in zip(self._weights, self._slopes, self.qh[1:], strict=True):
            inner = weight * slope
            h = inner @ h @ inner.T
            h.flat[:: len(h) + 1] += qh
        result: Host = (h + h.T) / 2
        return result


def conditional_fisher(model: Any, x: Array) -> ConditionalFisher:
    """Fisher matrix ``J^T J`` of one sample, for regression, through its dual ``H = J J^T / C``.

    Parameters
    ----------
    model : fastfisher.models.MLP, torch.nn.Module or (function, parameters)
        The model, see `fastfisher.jacobian`.
    x : array, shape (M_0,) or (1, ...)
        The sample; of models other than an `MLP` with its axis of samples.

    Returns
    -------
    ConditionalFisher

    Raises
    ------
    ValueError
        More than one sample; an `MLP` with a normalisation over samples.
    TypeError, CaptureError
        As for `fastfisher.jacobian`.

    Notes
    -----
    Of an `MLP` by the recursion ``H_1 = qh_0 I``, ``H_{l+1} = qh_l I + W^{l+1} D_l H_l D_l
    (W^{l+1})^T`` with D_l = diag(phi'(u^l)), qh_l = |h^l|^2 / C. With C outputs and the mean
    squared loss ``(1/2C) |f - y|^2`` a step of online learning moves f by -eta H (f - y): it is
    stable for eta < 2 / lambda_max(H). Near dynamical isometry lambda_max grows linearly with
    depth.

    References
    ----------
    Hayase and Karakida 2021, The spectrum of Fisher information of deep networks achieving
    dynamical isometry (AISTATS; arXiv 2006.07814).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> mlp = ff.models.MLP((64,) * 9, activation="hard-tanh", sigma_w2=1.0,
    ...                     parameterization="orthogonal")
    >>> x = np.random.default_rng(0).standard_normal(64) * 0.3
    >>> h = ff.diagnostics.conditional_fisher(mlp, x)
    >>> bool(np.isclose(h.lambda_max(), h.eigenvalues()[0]))
    True
    """
    if not isinstance(model, MLP):
        j = jacobian(model, x)
        if j.samples != 1:
            raise ValueError(f"x: expected one sample, got {j.samples}")
        gram = j.gram()
        c = j.n_outputs
        matrix = in_numpys_words(gram).reshape(c, c) / c
        return ConditionalFisher(c, None, (), (), matrix, gram, 1.0)
    sample = x[None] if len(x.shape) == 1 else x
    if len(sample.shape) != 2 or sample.shape[0] != 1:
        raise ValueError(
            f"x: expected shape ({model.widths[0]},) or (1, {model.widths[0]}), "
            f"got {tuple(x.shape)}"
        )
    for name in ("normalization", "hidden_normalization"):
        if getattr(model, name) is not None:
            raise ValueError(f"model: expected {name} None, got {getattr(model, name)!r}")
    if device_name(sample) != "cpu":
        raise TypeError(
            "x: expected a sample on the CPU for fastfisher.models.MLP, whose parameters are "
            f"numpy's, got one on {device_name(sample)}; pass x.cpu()"
        )
    inputs, pre_activations, _ = model._forward(sample)
    slope = ACTIVATIONS[model.activation].slope
    pairs = zip(pre_activations, inputs[1:], strict=False)
    slopes = tuple(np.asarray(to_numpy(slope(u, h))[0], model.dtype) for u, h in pairs)
    c, qh, weights = model.widths[-1], [], []
    for index, h in enumerate(inputs):
        weight_scale, bias_scale = model._scales(index)
        square = float((to_numpy(h).astype(np.float64) ** 2).sum())
        qh.append((weight_scale**2 * square + bias_scale**2) / c)
        if index:
            weights.append(weight_scale * model.parameters[f"{index}.weight"])
    return ConditionalFisher(c, np.array(qh), tuple(weights), slopes, None, sample, model.sigma_w2)
