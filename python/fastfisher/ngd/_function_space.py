# SPDX-License-Identifier: Apache-2.0
"""What natural-gradient descent does in function space: its matrix, and closed-form curves."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, in_library, in_numpys_words
from fastfisher._device_array import contiguous
from fastfisher._fisher import Fisher
from fastfisher._jacobian import Jacobian
from fastfisher.ngd._contract import contract
from fastfisher.ngd._damping import damping_of
from fastfisher.ngd._direction import direction, is_plain, residuals_of_rows
from fastfisher.ngd._update import _fisher_of, check_last_factor
from fastfisher.structures._rooted import in_numpy, rooted

Host = np.ndarray[Any, Any]

_BYTES = 1 << 28


def function_space_matrix(
    model: Jacobian | Fisher,
    *,
    structure: Any = "full",
    damping: float | None = None,
    relative_damping: float | None = None,
    split: Literal["plain", "pi"] = "plain",
    last_factor: Literal["identity", "mean"] = "identity",
    space: Literal["auto", "sample", "parameter"] = "auto",
    other: Jacobian | None = None,
) -> Array:
    """``Theta_G = J (G + rho I)^-1 J^T / N``, or ``R_G = J' (G + rho I)^-1 J^T / N``.

    Parameters
    ----------
    model : Jacobian or Fisher
        Of the training samples.
    structure, damping, relative_damping, split, last_factor, space
        As in `update`.
    other : Jacobian, optional
        J', of other samples.

    Returns
    -------
    array, shape (N, C, N, C), or (M, D, N, C) with `other`
        In the library and dtype of the factors.

    Raises
    ------
    NotPositiveDefiniteError, NumericalError, ValueError, TypeError
        As `update`.

    Notes
    -----
    An update with the learning rate eta changes the outputs by ``-eta Theta_G (f - y)``, to first
    order. Regressions need no vector of parameters: blocks, Kronecker factors and dense layers'
    units go through Gram matrices, at about the cost of the tangent kernel and of the inverses.
    For "ekfac", weights used at several positions and class probabilities some (P, k) at a time.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((4, 10))
    >>> mlp = ff.models.MLP((10, 60, 60, 1), activation="tanh", parameterization="ntk")
    >>> theta = ff.ngd.function_space_matrix(mlp.jacobian(x), structure="kfac")
    >>> bool(np.allclose(theta.reshape(4, 4), 9 * np.eye(4)))
    True
    """
    F = _fisher_of(model, structure)
    jacobian = F.jacobian
    assert jacobian is not None
    rule = damping_of(damping, relative_damping, split, space, last_factor)
    check_last_factor(F, last_factor)
    target = jacobian if other is None else other
    rows = jacobian.shape[0]
    shape = (target.samples, target.n_outputs, jacobian.samples, jacobian.n_outputs)
    rounding = float(np.finfo(F.dtype).eps)
    inner = residuals_of_rows(F, np.eye(rows, like=F._kind), rounding)
    if inner is not None and target.sample_map is None:
        assert F.rows is not None
        host = in_numpy(target)
        if not is_plain(F):  # rows went through a root: separable cotangents are so no longer
            host = rooted(
                host, np.broadcast_to(np.eye(shape[1], like=inner), (*shape[:2], shape[1]))
            )
        found = contract(F.structure, host, F.rows, F.scale, inner, rule)
        return in_library(found.astype(F.dtype).reshape(shape), F.like)
    result = np.empty((target.shape[0], rows), F.dtype, like=F._kind)
    step = max(1, _BYTES // max(1, 8 * jacobian.shape[1]))
    for start in range(0, rows, step):
        e = np.eye(rows, like=F._kind)[:, start : start + step]
        columns = in_library(contiguous(direction(F, e, rule, rounding), F.dtype), F.like)
        result[:, start : start + step] = in_numpys_words(target @ columns)
    return in_library(result.reshape(shape), F.like)


def training_curve(matrix: Array, residual: Array, *, lr: float, steps: int) -> Array:
    """Residuals ``(I - lr Theta_G)^t e`` for t = 0, ..., `steps`.

    Parameters
    ----------
    matrix : array, shape (N, C, N, C)
        Of `function_space_matrix`; for gradient descent the tangent kernel over N.
    residual : array, shape (N, C)
        f - y at the start.
    lr : float
    steps : int

    Returns
    -------
    array, shape (steps + 1, N, C)

    Notes
    -----
    Exact while Jacobian and G stay what they are, in the limit of wide networks.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> matrix = 2 * np.eye(3).reshape(3, 1, 3, 1)
    >>> ff.ngd.training_curve(matrix, np.ones((3, 1)), lr=0.25, steps=2)[:, 0, 0]
    array([1.  , 0.5 , 0.25])
    """
    n, c = residual.shape
    if tuple(matrix.shape) != (n, c, n, c):
        raise ValueError(f"matrix: expected shape {(n, c, n, c)}, got {tuple(matrix.shape)}")
    if isinstance(steps, bool) or int(steps) != steps or steps < 0:
        raise ValueError(f"steps: expected an integer >= 0, got {steps!r}")
    flat = in_numpys_words(matrix).reshape(n * c, n * c)
    e = in_numpys_words(residual).reshape(n * c)
    kind = np.result_type(flat.dtype, e.dtype, np.float32)
    curve = np.empty((steps + 1, n * c), kind, like=e)
    curve[0] = e
    for t in range(steps):
        curve[t + 1] = curve[t] - lr * (flat @ curve[t])
    return in_library(curve.reshape(steps + 1, n, c), residual)


def prediction_curve(matrix: Array, curve: Array, *, lr: float) -> Array:
    """Change ``f_t - f_0 = -lr R_G (e_0 + ... + e_{t-1})`` of the outputs at other samples.

    Parameters
    ----------
    matrix : array, shape (M, D, N, C)
        R_G, of `function_space_matrix` with `other`.
    curve : array, shape (steps + 1, N, C)
        Of `training_curve`, with the same damping and learning rate.
    lr : float

    Returns
    -------
    array, shape (steps + 1, M, D)

    Notes
    -----
    Equal to ``-R_G Theta_G^-1 (I - (I - lr Theta_G)^t) e_0`` where Theta_G is regular.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> curve = np.array([1.0, 0.5, 0.25]).reshape(3, 1, 1)
    >>> ff.ngd.prediction_curve(np.full((1, 1, 1, 1), 2.0), curve, lr=0.25)[1:, 0, 0]
    array([-0.5 , -0.75])
    """
    steps, n, c = curve.shape
    if len(matrix.shape) != 4 or tuple(matrix.shape[2:]) != (n, c):
        raise ValueError(f"matrix: expected shape (M, D, {n}, {c}), got {tuple(matrix.shape)}")
    m, d = matrix.shape[:2]
    flat = in_numpys_words(matrix).reshape(m * d, n * c)
    e = in_numpys_words(curve).reshape(steps, n * c)
    sums = np.zeros_like(e)
    sums[1:] = e[:-1].cumsum(0)
    return in_library((-lr * (sums @ flat.T)).reshape(steps, m, d), curve)
