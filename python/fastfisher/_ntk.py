# SPDX-License-Identifier: Apache-2.0
"""From a model and samples to its Jacobian and its empirical neural tangent kernel ``J J^T``."""

from __future__ import annotations

from typing import Any, Literal

from fastfisher._arrays import Array
from fastfisher._gram import Method, Outputs, Precision
from fastfisher._jacobian import Jacobian
from fastfisher.models import MLP


def jacobian(model: MLP, x: Array) -> Jacobian:
    """Jacobian of all outputs of `model` for the samples `x`, as factors.

    Parameters
    ----------
    model : fastfisher.models.MLP
        The model.
    x : array, shape (N, i), dtype of the model
        Samples, one a row.

    Returns
    -------
    Jacobian
        (N*C) x P, in the library and on the device of `x`.

    Raises
    ------
    TypeError
        A model of another kind, or samples of another dtype.
    ValueError
        Samples of another shape; NonFiniteError where samples or parameters hold NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.jacobian(ff.models.MLP((3, 8, 2)), np.ones((5, 3))).shape
    (10, 50)
    """
    if not isinstance(model, MLP):
        raise TypeError(
            f"model: this version accepts fastfisher.models.MLP, got {type(model).__name__}; "
            "factors of other models enter through fastfisher.Jacobian.from_factors"
        )
    return model.jacobian(x)


def ntk(
    model: MLP,
    x: Array,
    x2: Array | None = None,
    *,
    outputs: Outputs = "full",
    layers: Literal["sum", "each"] = "sum",
    method: Method = "auto",
    precision: Precision = "highest",
    memory_limit: int | str | None = None,
    out: Array | None = None,
    threads: int = 0,
    progress: bool = False,
    return_info: bool = False,
) -> Any:
    """Empirical neural tangent kernel ``J(x) J(x2)^T`` of a model, without 1/N.

    Parameters
    ----------
    model : fastfisher.models.MLP
        The model.
    x : array, shape (N, i), dtype of the model
        Samples, one a row.
    x2 : array, shape (M, i), optional
        Other samples; without them the kernel of `x` with itself. Outputs that are normalised over
        the batch use the statistics of `x` for `x` and of `x2` for `x2`.
    outputs : "full" | "trace" | "diagonal" | "sum" | int
        ``full`` (N, C, M, C), so that ``.reshape(N*C, M*C)`` is J J2^T; ``trace`` (N, M), the sum
        over c of full[n, c, m, c]; ``diagonal`` (N, M, C); an int c (N, M); ``sum`` (N, M), of the
        summed outputs.
    layers : "sum" | "each"
        One kernel of all parameters, or a dict with the kernel of each layer by the layer's name.
    method, precision, memory_limit, threads, progress
        As in `fastfisher.gram`.
    out : array, optional
        Array that takes the result; with ``layers="sum"`` only.
    return_info : bool
        Whether to return ``(array, GramInfo)``; with ``layers="each"`` a pair of dicts.

    Returns
    -------
    array or dict of str to array
        In the library, dtype and device of `x`.

    Raises
    ------
    TypeError, ValueError
        Arguments that do not fit, by name; NonFiniteError where inputs hold NaN or infinity.

    Notes
    -----
    Cost: one forward pass, one backward pass to each layer for the C outputs, and the Gram of the
    factors, N^2/2 (i + C^2 o) multiply-adds a layer. The Jacobian is never formed.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((5, 3))
    >>> mlp = ff.models.MLP((3, 8, 2), parameterization="ntk", sigma_b2=0.1)
    >>> ff.ntk(mlp, x).shape
    (5, 2, 5, 2)
    >>> sorted(ff.ntk(mlp, x, x[:2], outputs="trace", layers="each"))
    ['0', '1']
    """
    if layers not in ("sum", "each"):
        raise ValueError(f"layers: expected 'sum' or 'each', got {layers!r}")
    if layers == "each" and out is not None:
        raise ValueError("out: expected None with layers='each', which gives one array a layer")
    left = jacobian(model, x)
    right = None if x2 is None else jacobian(model, x2)
    options: dict[str, Any] = {
        "outputs": outputs,
        "method": method,
        "precision": precision,
        "memory_limit": memory_limit,
        "threads": threads,
        "progress": progress,
    }
    if layers == "sum":
        return left.gram(right, out=out, return_info=return_info, **options)
    others = None if right is None else right.split()
    pairs = {
        name: part.gram(None if others is None else others[name], return_info=True, **options)
        for name, part in left.split().items()
    }
    kernels = {name: kernel for name, (kernel, _) in pairs.items()}
    return (kernels, {name: info for name, (_, info) in pairs.items()}) if return_info else kernels
