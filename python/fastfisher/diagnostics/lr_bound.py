# SPDX-License-Identifier: Apache-2.0
"""The largest stable learning rate, from the largest eigenvalue of the Fisher matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from fastfisher._arrays import Array, dtype_name, in_library, in_numpys_words, to_numpy
from fastfisher._device_array import contiguous
from fastfisher._fisher import Fisher, fisher
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._lookup import Lookup
from fastfisher.errors import NumericalError
from fastfisher.ngd._direction import structure_of
from fastfisher.structures import make
from fastfisher.structures._rooted import widened
from fastfisher.structures.kfac import Kfac

__all__ = ["LrBound", "ZeroCurvatureError", "largest", "lr_bound"]

Host = np.ndarray[Any, Any]


class ZeroCurvatureError(NumericalError):
    """The Fisher matrix is zero: no learning rate is too large."""


@dataclass(frozen=True, slots=True)
class LrBound:
    """Largest stable learning rate.

    Attributes
    ----------
    lr : float
        ``2 (1 + momentum) / lambda_max``.
    safe_lr : float
        The same with the upper end of the interval that is sure to hold the eigenvalue.
    lambda_max : float
        Largest eigenvalue.
    residual_norm : float
        An eigenvalue lies within that distance of `lambda_max`.
    certified : bool
        Whether a search for a larger eigenvalue found none.
    vector : array, shape (P,)
        Eigenvector.
    """

    lr: float
    safe_lr: float
    lambda_max: float
    residual_norm: float
    certified: bool
    vector: Array


def lr_bound(
    model: Any,
    x: Any = None,
    *,
    momentum: float = 0.0,
    likelihood: Any = "gaussian",
    v0: Array | None = None,
    seed: int = 0,
    **options: Any,
) -> LrBound:
    """Learning rate at which gradient descent on the mean loss ceases to be stable.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters), fastfisher.models.MLP, Jacobian or Fisher
        A Fisher matrix is taken as it is.
    x : array, mapping or iterable of batches, optional
        Samples; none with a Jacobian or a Fisher matrix.
    momentum : float
        Of heavy-ball momentum, 0 <= momentum < 1.
    likelihood : str or Likelihood
        Of the loss: "gaussian" for ``sum ||f - y||^2 / (2 N)``, "categorical" for the mean
        cross-entropy, where the bound changes along training.
    v0 : array, shape (P,), optional
        A guess of the eigenvector, for instance the last one.
    seed : int
        Of the search for a larger eigenvalue.
    **options
        Of `fastfisher.fisher`.

    Returns
    -------
    LrBound

    Raises
    ------
    NumericalError
        The Fisher matrix is zero: every learning rate is stable.
    ValueError, TypeError
        As in `fastfisher.fisher`; a momentum outside of [0, 1).

    Notes
    -----
    ``eta_c = 2 / lambda_max(F)`` of Karakida, Akaho and Amari 2019 (for cross-entropy the same
    paper's conditions with the softmax Fisher matrix). Above it a wide network may still recover
    at a smaller curvature. Cost: one `Fisher.eigsh` with k = 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((20, 5))
    >>> bound = ff.diagnostics.lr_bound(ff.models.MLP((5, 50, 2)), x)
    >>> bool(0 < bound.safe_lr <= bound.lr < 2)
    True
    """
    if not (isinstance(momentum, Real) and 0 <= momentum < 1):
        raise ValueError(f"momentum: expected a number from 0 to less than 1, got {momentum!r}")
    value, residual, certified, vector = largest(
        model, x, likelihood=likelihood, v0=v0, seed=seed, **options
    )
    if not value > 0:
        raise ZeroCurvatureError(
            "lr_bound: the Fisher matrix is zero, every learning rate is stable"
        )
    top = 2 * (1 + float(momentum))
    if not math.isfinite(top / value):
        raise NumericalError(f"lr_bound: the learning rate overflows, lambda_max is {value:.3e}")
    return LrBound(top / value, top / (value + residual), value, residual, certified, vector)


def largest(
    model: Any, x: Any, *, v0: Array | None, seed: int, **options: Any
) -> tuple[float, float, bool, Array]:
    """Largest eigenvalue, the norm of its residual, its certificate and its eigenvector."""
    if isinstance(model, Fisher):
        plain = options.pop("likelihood", "gaussian") == "gaussian"
        if x is not None or options or not plain:
            given = ["x"] * (x is not None) + ["likelihood"] * (not plain) + list(options)
            raise ValueError(f"{given[0]}: expected none with a Fisher matrix, which has its own")
        F = model
    else:
        F = fisher(model, x, **options)
    wide, factor = in_range(F)
    if wide is not F and v0 is not None:
        v0 = _as(v0, wide)
    found = wide.eigsh(1, v0=v0, seed=seed)
    if F.shape[0] == 0:
        return 0.0, 0.0, True, found.vectors.reshape(-1)
    value = float(to_numpy(found.values)[0]) * factor
    residual = float(to_numpy(found.residual_norms)[0]) * factor
    if not math.isfinite(value):
        raise NumericalError("lr_bound: the largest eigenvalue overflows")
    return value, residual, bool(found.certified), _as(found.vectors[:, 0], F)


def in_range(F: Fisher) -> tuple[Fisher, float]:
    """Give a multiple of F whose eigenvalues are far from the ends of the dtype, and F over it.

    F itself, unless its trace is extreme. Otherwise rows are scaled by a power of two in float64;
    vectors are of F's dtype as before.
    """
    if F.rows is None or F.rows.sample_map is not None or F.shape[0] == 0:
        return F, 1.0
    far = 1e25 if F.dtype == np.float32 else 1e100
    sizes = [
        2 * sum(_log2(array, layer) for array in (layer.a, layer.g, layer.w) if array is not None)
        for layer in F.rows.layers
    ]
    size = max(sizes) + math.log2(F.scale)
    if size == -math.inf or abs(size) < math.log2(far):
        return F, 1.0
    rows = widened(F.rows)
    exponent = -round(size / 2)
    layers = [_scaled(layer, exponent) for layer in rows.layers]
    rows = Jacobian(tuple(layers), None, None, rows.parameters)
    sharing = F.structure.weight_sharing if isinstance(F.structure, Kfac) else "expand"
    structure = make(structure_of(F), rows, F.scale, weight_sharing=sharing)
    like = in_library(np.zeros(0, like=in_numpys_words(F.like)), F.like)
    wide = replace(F, rows=rows, structure=structure, like=like, dtype=np.dtype(np.float64))
    if -2 * exponent >= 1024:
        raise NumericalError("lr_bound: the largest eigenvalue overflows")
    return wide, math.ldexp(1.0, -2 * exponent)


def _log2(array: Host, layer: Layer) -> float:
    """Of the largest entry of a factor; a bias has inputs of 1, a table has no others."""
    top = float(np.maximum(array.max(), -array.min())) if math.prod(array.shape) else 0.0
    if array is layer.a and (layer.bias or isinstance(layer, Lookup)):
        top = 1.0 if isinstance(layer, Lookup) else max(top, 1.0)
    return math.log2(top) if top > 0 else -math.inf


def _scaled(layer: Layer, exponent: int) -> Layer:
    """Layer with cotangents times a power of two, in two steps that stay in range."""
    half = exponent // 2
    g = layer.g * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)
    return layer._replaced(g, layer.w)


def _as(v: Array, F: Fisher) -> Array:
    """`v` in the dtype of F."""
    return v if dtype_name(v) == str(F.dtype) else in_library(
        contiguous(in_numpys_words(v).astype(F.dtype)), F.like)  # fmt: skip
