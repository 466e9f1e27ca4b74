# SPDX-License-Identifier: Apache-2.0
"""One natural-gradient update, and the change of the function that it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastfisher import linalg
from fastfisher._arrays import Array, from_numpy, library, to_numpy
from fastfisher._fisher import Fisher, fisher
from fastfisher._jacobian import Jacobian
from fastfisher.errors import NonFiniteError
from fastfisher.likelihoods import Gaussian
from fastfisher.ngd._damping import Damping, damping_of
from fastfisher.ngd._push import push
from fastfisher.structures.ekfac import Ekfac
from fastfisher.structures.kfac import Kfac

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Update:
    """Update of the parameters; subtract it times the learning rate.

    Attributes
    ----------
    vector : array, shape (P,)
        ``(G + rho I)^-1 J^T e / N``.
    function_change : array, shape (N, C)
        ``J vector``: what the outputs lose for a learning rate of one, to first order.
    damping : dict of str to float
        What each inverted matrix really got on its diagonal (the most of a layer's units).
    space : "sample" | "parameter"
        Where the matrices were inverted.
    solver : "cholesky" | "lu" | "limit" | "cg"
    """

    vector: Array
    function_change: Array
    damping: dict[str, float]
    space: str
    solver: str

    def predict(self, other: Jacobian) -> Array:
        """Change ``J' vector`` (M, C) of the outputs for other samples."""
        return (other @ self.vector).reshape(other.samples, other.n_outputs)


def update(
    model: Jacobian | Fisher,
    residual: Array | None = None,
    *,
    gradient: Array | None = None,
    structure: Any = "full",
    damping: float | None = None,
    relative_damping: float | None = None,
    split: Literal["plain", "pi"] = "plain",
    solver: Literal["cholesky", "cg"] = "cholesky",
    tol: float = 1e-8,
    max_iter: int | None = None,
) -> Update:
    """Natural-gradient update ``(G + rho I)^-1 g``.

    Parameters
    ----------
    model : Jacobian or Fisher
        A Jacobian stands for a regression with ``loss = sum ||f - y||^2 / (2 N)``. A Fisher matrix
        brings its likelihood, kind and structure.
    residual : array, shape (N, C), for C = 1 also (N,)
        Gradient of each sample's loss in its outputs: f - y, softmax(f) - one_hot(y), ....
    gradient : array, shape (P,), optional
        Gradient of the mean loss, in place of `residual`.
    structure : as in `fastfisher.fisher`
        G, with a Jacobian.
    damping : float, optional
        rho; 0 by default. K-FAC puts it on both factors.
    relative_damping : float, optional
        rho as a part of the mean eigenvalue of each matrix of sample space that is inverted.
    split : "plain" | "pi"
        For K-FAC: rho on both factors, or its root with the factor pi of Martens and Grosse.
    solver : "cholesky" | "cg"
        Factorisations, or conjugate gradients on G (a positive semi-definite one).
    tol, max_iter
        Of "cg".

    Returns
    -------
    Update

    Raises
    ------
    NotPositiveDefiniteError
        A singular matrix without damping.
    NumericalError
        A damping that makes the indefinite tri-diagonal matrix singular.
    ValueError, TypeError
        Shapes, dtypes or options that do not fit.

    Notes
    -----
    For regressions ``J_l^T (K_l + rho)^-1 e / N`` with the Gram matrix K_l = J_l J_l^T / N of each
    block; tri-diagonal ones solve ``(T o K + rho) v = 1 (x) e`` by LU, at zero damping by its
    limit; K-FAC applies the identity to both factors (Karakida and Osawa 2020, section 3). With
    other likelihoods, or a gradient, the Fisher matrix itself is solved with.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((6, 10))
    >>> mlp = ff.models.MLP((10, 60, 60, 1), activation="tanh", parameterization="ntk")
    >>> e = mlp(x) - 1
    >>> step = ff.ngd.update(mlp.jacobian(x), e, structure="layer")
    >>> bool(np.allclose(step.function_change, 3 * e))
    True
    """
    rule = damping_of(damping, relative_damping)
    if solver not in ("cholesky", "cg"):
        raise ValueError(f"solver: expected 'cholesky' or 'cg', got {solver!r}")
    if (residual is None) == (gradient is None):
        raise ValueError("residual: expected it or a gradient, and not both")
    F = model if isinstance(model, Fisher) else _regression(model, structure)
    j = F.jacobian
    if j is None:
        raise ValueError(
            "model: a sampled or empirical Fisher matrix has no Jacobian of the outputs; make it "
            "from a Jacobian: fastfisher.fisher(jacobian, ...)"
        )
    if split not in ("plain", "pi"):
        raise ValueError(f"split: expected 'plain' or 'pi', got {split!r}")
    exact = F.kind == "exact" and type(F.likelihood) is Gaussian
    pushes = (
        gradient is None
        and exact
        and solver == "cholesky"
        and j.sample_map is None
        and not isinstance(F.structure, Ekfac)
        and not (isinstance(F.structure, Kfac) and split == "pi")
    )
    if pushes:
        e = _columns(residual, "residual", j, F.like)
        # The curvature has 1 / variance, the gradient of the loss is given as it is.
        e *= _mean(F, j) / F.scale
        vector = push(F.structure, F.rows, F.scale, e, rule)[:, 0]
        how = "cholesky"
        if F.structure.name == "tridiagonal":
            how = "lu" if max(rule.used.values(), default=0.0) > 0 else "limit"
        space = "sample"
    else:
        if gradient is None:
            e = _columns(residual, "residual", j, F.like)
            g = to_numpy(j.T @ from_numpy(e[:, 0].astype(F.dtype), F.like)) * _mean(F, j)
        else:
            g = to_numpy(gradient)
        g = from_numpy(np.ascontiguousarray(g, F.dtype) if gradient is None else g, F.like)
        vector, how = _solved(F, g, rule, solver, split, tol, max_iter)
        space = F.space if F.structure.name == "full" else "parameter"
    result = from_numpy(np.ascontiguousarray(vector.astype(F.dtype)), F.like)
    change = (j @ result).reshape(j.samples, j.n_outputs)
    return Update(result, change, rule.used, space, how)


def _regression(model: Any, structure: Any) -> Fisher:
    if not isinstance(model, Jacobian):
        raise TypeError(
            "model: expected a fastfisher.Jacobian or fastfisher.Fisher, got "
            f"{type(model).__name__}"
        )
    return fisher(model, structure=structure)


def _mean(F: Fisher, j: Jacobian) -> float:
    """1 / N, or 1 for a Fisher matrix that is a sum."""
    variance = F.likelihood.variance if isinstance(F.likelihood, Gaussian) else 1.0
    return F.scale * variance if F.kind == "exact" else 1 / max(1, j.samples)


def _columns(residual: Any, name: str, j: Jacobian, like: Array) -> Host:
    """Residuals as one column (N C, 1), float64."""
    if library(residual, name) != library(like):
        raise TypeError(f"{name}: expected library {library(like)}, got {library(residual)}")
    host = to_numpy(residual)
    expected = (j.samples, j.n_outputs)
    if host.shape != expected and not (j.n_outputs == 1 and host.shape == expected[:1]):
        raise ValueError(f"{name}: expected shape {expected}, got {host.shape}")
    if host.dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype, got dtype {host.dtype}")
    if not np.isfinite(host).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"{name}: expected finite numbers, got {host[where]} at index {where}")
    return host.astype(np.float64).reshape(-1, 1)


def _solved(
    F: Fisher, g: Array, rule: Damping, solver: str, split: str, tol: float, max_iter: int | None
) -> tuple[Host, str]:
    """``(G + rho I)^-1 g`` in parameter space."""
    rows = F.rows.shape[0] if F.rows is not None else F.shape[0]
    rho = rule.of("all", F.trace() if rule.relative is not None else 0.0, rows)
    if solver == "cg":
        found = linalg.cg(F, g, damping=rho, tol=tol, max_iter=max_iter)
        return to_numpy(found.x), "cg"
    factored = isinstance(F.structure, Kfac) and not isinstance(F.structure, Ekfac)
    x = F.solve(g, damping=rho, split=split if factored else None)
    return to_numpy(x), "lu" if F.structure.name == "tridiagonal" else "cholesky"
