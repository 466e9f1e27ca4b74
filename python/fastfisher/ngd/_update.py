# SPDX-License-Identifier: Apache-2.0
"""One natural-gradient update, and the change of the function that it predicts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, device_name, in_library, in_numpys_words, library, zeros
from fastfisher._device_array import contiguous
from fastfisher._fisher import Fisher, fisher
from fastfisher._jacobian import Jacobian
from fastfisher._sample_map import SampleMap
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError
from fastfisher.ngd._damping import Damping, damping_of
from fastfisher.ngd._direction import (
    direction,
    direction_with_damped_outputs,
    mean_weight,
    solve,
    solve_by_cg,
    solve_by_nystrom,
)
from fastfisher.structures import make

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
    space : "sample" | "parameter" | "mixed"
        Where the matrices were inverted.
    solver : "cholesky" | "lu" | "limit" | "cg" | "nystrom"
    """

    vector: Array
    function_change: Array
    damping: dict[str, float]
    space: str
    solver: str

    def predict(self, other: Jacobian) -> Array:
        """Change ``J' vector`` (M, D) of the outputs for other samples."""
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
    last_factor: Literal["identity", "mean"] = "identity",
    damp: Literal["parameters", "outputs"] = "parameters",
    space: Literal["auto", "sample", "parameter"] = "auto",
    solver: Literal["cholesky", "cg", "nystrom"] = "cholesky",
    tol: float = 1e-8,
    max_iter: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    centred: bool = False,
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
        Gradient of the mean loss, in place of `residual`; solved with the Fisher matrix as it
        stands, for "full" by Woodbury in sample space.
    structure : as in `fastfisher.fisher`
        G, with a Jacobian.
    damping : float, optional
        rho, in units of the curvature, loss / parameter^2; 0 by default. K-FAC puts it on both
        factors.
    relative_damping : float, optional
        rho as a part of the mean eigenvalue of each matrix of sample space that is inverted. With
        a `gradient`, "cg" or "ekfac" a part of that of G as a whole.
    split : "plain" | "pi"
        For K-FAC: rho on both factors, or its root with the factor pi of Martens and Grosse.
    last_factor : "identity" | "mean"
        For K-FAC: gradient factor B of the last layer as it is, for a regression the identity, or
        divided by N (alpha is N L then, and N (L - 1) + 1 otherwise).
    damp : "parameters" | "outputs"
        ``G + rho I``, or ``J^T (H + rho I) J / N`` with rho in units of loss / output^2, for a
        `residual`: on the training set it moves the outputs by ``(H + rho I)^-1`` times the
        residual where "full" and the pseudo-inverse are meant.
    space : "auto" | "sample" | "parameter"
        Where matrices are inverted: for each the smaller one, or as said.
    solver : "cholesky" | "cg" | "nystrom"
        Factorisations; conjugate gradients on G (a positive semi-definite one); or conjugate
        gradients in sample space, preconditioned by a randomised Nystrom approximation, for "full"
        with damping: products with J and J^T only, no Gram matrix.
    tol, max_iter
        Of "cg" and "nystrom": relative residual, at best some eps of the dtype (64 with
        "nystrom"), and iterations.
    rank, seed : int
        Of "nystrom": columns of the sketch, by default a tenth of the rows, and its seed.
    centred : bool
        Remove the means over the samples from the Jacobian and from the residuals; with a Jacobian
        and structure "full", "layer" or "tridiagonal".

    Returns
    -------
    Update
        Arrays in the library and dtype of the factors.

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
    another likelihood J stands for S^T J, with S S^T = H, and e for the E of S E = e; so

        J vector = (K / N) (H K / N + rho)^-1 e,   K = J J^T,

    for "full". Residuals without such an E (class probabilities that underflow) and gradients are
    solved for with the Fisher matrix itself. In float64 inside, up to products with float32
    factors.

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
    rule = damping_of(damping, relative_damping, split, space, last_factor)
    for name, value, allowed in (
        ("solver", solver, ("cholesky", "cg", "nystrom")), ("damp", damp, ("parameters", "outputs"))
    ):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")
    if (residual is None) == (gradient is None):
        raise ValueError("residual: expected it or a gradient, and not both")
    direct = residual is not None and solver == "cholesky"
    if not direct and (damp != "parameters" or space == "sample"):
        what = f"damp: expected 'parameters', got {damp!r}," if damp != "parameters" else ""
        what = what or "space: expected 'auto' or 'parameter', got 'sample',"
        raise ValueError(f"{what} with a gradient or solver='cg'")
    if centred:
        model = _centred(model, residual)
    F = _fisher_of(model, structure)
    check_last_factor(F, last_factor, solver)
    j = F.jacobian
    assert j is not None
    how = "cholesky"
    if residual is not None:
        e, rounding = _columns(residual, j, F.like)
        if centred:
            e = (e.reshape(j.samples, -1) - e.reshape(j.samples, -1).mean(0)).reshape(e.shape)
    if solver == "nystrom":
        if residual is None or F.structure.name != "full":
            raise ValueError("solver: 'nystrom' needs structure 'full' and a residual")
        vector, how = solve_by_nystrom(F, e, rule, tol, max_iter, rank, seed)[:, 0], solver
    elif direct and damp == "outputs":
        try:
            vector = direction_with_damped_outputs(F, e, rule)[:, 0]
        except NotPositiveDefiniteError as error:
            raise NotPositiveDefiniteError(
                "damp: expected 'parameters', got 'outputs', which adds nothing to what is "
                f"singular: {str(error).partition(';')[0]}"
            ) from error
    elif direct:
        vector = direction(F, e, rule, rounding)[:, 0]
    else:
        g = _gradient(gradient, j, F) if residual is None else _through(F, j, e)
        if solver == "cg":
            vector, how = solve_by_cg(F, g, rule, tol, max_iter), "cg"
        else:
            vector = solve(F, g, rule)
    if F.structure.name == "tridiagonal" and how != "cg":
        how = "lu" if any(rule.used.values()) and damp == "parameters" else "limit"
    result = in_library(contiguous(vector.astype(F.dtype)), F.like)
    change = (j @ result).reshape(j.samples, j.n_outputs)
    return Update(result, change, rule.used, _space(rule), how)


def check_last_factor(F: Fisher, last_factor: str, solver: str = "cholesky") -> None:
    """Refuse what has no factors to divide."""
    if last_factor != "identity" and (F.structure.name != "kfac" or solver != "cholesky"):
        raise ValueError(
            f"last_factor: expected 'identity' with structure {F.structure.name!r} and solver "
            f"{solver!r}, got {last_factor!r}"
        )


def centred_rows(jacobian: Jacobian) -> Jacobian:
    """Rows of a Jacobian with their mean over the samples removed."""
    if jacobian.sample_map is not None:
        raise ValueError("centred: outputs that are normalised over the batch have no mean")
    like = zeros((jacobian.samples, jacobian.n_outputs), jacobian.layers[0].g)
    return Jacobian(jacobian.layers, jacobian.outputs, SampleMap.mean(like), jacobian.parameters)


def _centred(model: Any, residual: Any) -> Jacobian:
    if not isinstance(model, Jacobian) or residual is None:
        raise ValueError("centred: expected a Jacobian and a residual with centred=True")
    return centred_rows(model)


def _fisher_of(model: Any, structure: Any) -> Fisher:
    """Fisher matrix with a Jacobian; of a Jacobian that of a regression."""
    if not isinstance(model, (Jacobian, Fisher)):
        raise TypeError(
            "model: expected a fastfisher.Jacobian or fastfisher.Fisher, got "
            f"{type(model).__name__}"
        )
    F = model if isinstance(model, Fisher) else matrix_for_updates(model, structure)
    if F.jacobian is None:
        raise ValueError(
            "model: a sampled or empirical Fisher matrix has no Jacobian of the outputs; make it "
            "from a Jacobian: fastfisher.fisher(jacobian, ...)"
        )
    return F


def matrix_for_updates(jacobian: Jacobian, structure: Any, **options: Any) -> Fisher:
    """Fisher matrix whose factors of K-FAC are made when something asks for them.

    Updates for residuals make the matrices they invert themselves, some in sample space. The arrays
    of the Jacobian must stay as they are.
    """
    if not (isinstance(structure, str) and structure == "kfac"):
        return fisher(jacobian, structure=structure, **options)
    F = fisher(jacobian, **options)
    assert F.rows is not None
    return replace(F, structure=make("kfac", F.rows, F.scale, deferred=True))


def _space(rule: Damping) -> str:
    """One word for all matrices."""
    return next(iter(rule.spaces)) if len(rule.spaces) == 1 else "mixed"


def _through(F: Fisher, j: Jacobian, e: Host) -> Array:
    """``J^T e / N`` (P,)."""
    return j.T @ in_library(contiguous(e[:, 0] * mean_weight(F), F.dtype), F.like)


def _gradient(gradient: Any, j: Jacobian, F: Fisher) -> Array:
    """Check the gradient (P,)."""
    host = _floats(gradient, "gradient", F.like)
    if host.shape != (j.shape[1],):
        raise ValueError(f"gradient: expected shape {(j.shape[1],)}, got {host.shape}")
    return in_library(contiguous(host, F.dtype), F.like)


def _columns(residual: Any, j: Jacobian, like: Array) -> tuple[Host, float]:
    """Residuals as one column (N C, 1), float64, and the rounding of their dtype."""
    host = _floats(residual, "residual", like)
    expected = (j.samples, j.n_outputs)
    if host.shape != expected and not (j.n_outputs == 1 and host.shape == expected[:1]):
        raise ValueError(f"residual: expected shape {expected}, got {host.shape}")
    return host.astype(np.float64).reshape(-1, 1), float(np.finfo(host.dtype).eps)


def _floats(array: Any, name: str, like: Array) -> Host:
    """Finite numbers of a floating dtype, in the library of the factors."""
    if library(array, name) != library(like):
        raise TypeError(f"{name}: expected library {library(like)}, got {library(array)}")
    if device_name(array) != device_name(like):
        raise TypeError(f"{name}: expected device {device_name(like)}, got {device_name(array)}")
    host = in_numpys_words(array, name)
    if host.dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype, got dtype {host.dtype}")
    if not np.isfinite(host).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
        raise NonFiniteError(f"{name}: expected finite numbers, got {host[where]} at index {where}")
    return host
