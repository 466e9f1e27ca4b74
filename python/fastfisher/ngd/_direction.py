# SPDX-License-Identifier: Apache-2.0
"""``(G + rho I)^-1 J^T e / N`` for columns e, in sample space where there is a way."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._arrays import Array, in_library, in_numpys_words
from fastfisher._device_array import as_array, bare, contiguous
from fastfisher._fisher_eigsh import in_terms_of_library
from fastfisher._fisher_matrix import Fisher
from fastfisher._numbers import number
from fastfisher.likelihoods import Gaussian, likelihood_at
from fastfisher.ngd._damping import Damping
from fastfisher.ngd._nystrom import nystrom
from fastfisher.ngd._push import can_push, push
from fastfisher.ngd._push_layers import solve_kfac
from fastfisher.structures import make
from fastfisher.structures._rooted import in_numpy, rooted
from fastfisher.structures.ekfac import Ekfac
from fastfisher.structures.kfac import Kfac
from fastfisher.structures.unit import Unit

Host = np.ndarray[Any, Any]

_ROUNDINGS = 64
# What products in the dtype leave of a residual: 64 are met on some processors and not on others.
_ATTAINABLE = 128


def mean_weight(F: Fisher) -> float:
    """1 / N, or 1 for a Fisher matrix that is a sum."""
    if F.reduction == "sum":
        return 1.0
    return 1 / max(1, F.jacobian.samples if F.jacobian is not None else 1)


def is_plain(F: Fisher) -> bool:
    """Whether rows are those of the Jacobian, and one number says the curvature of the outputs."""
    return F.kind == "exact" and type(F.likelihood) is Gaussian


def direction(F: Fisher, e: Host, rule: Damping, rounding: float) -> Host:
    """Columns (P, k) for residuals e (N C, k); `rounding` is the relative one of `e`."""
    inner = residuals_of_rows(F, e, rounding)
    if inner is not None:
        return push(F.structure, F.rows, F.scale, inner, rule)
    if rule.space == "sample":
        raise ValueError(
            f"space: no update in sample space with kind={F.kind!r} and structure "
            f"{F.structure.name!r} for these residuals; expected 'auto' or 'parameter'"
        )
    assert F.jacobian is not None
    columns = in_library(contiguous(e * mean_weight(F), F.dtype), F.like)
    return solve(F, F.jacobian.T @ columns, rule)


def solve(F: Fisher, g: Array, rule: Damping) -> Host:
    """``(G + rho I)^-1 g`` for g (P, k), in the library of the caller."""
    if isinstance(F.structure, Kfac) and not isinstance(F.structure, Ekfac):
        rule.spaces.add("parameter")
        return solve_kfac(F.structure, F.rows, in_numpys_words(g), rule)
    whole = F.structure.name in ("full", "tridiagonal")
    rule.spaces.add(F.space if whole else "parameter")
    return in_numpys_words(F.solve(g, damping=damping_of_all(F, rule)))


def solve_by_cg(F: Fisher, g: Array, rule: Damping, tol: float, max_iter: int | None) -> Host:
    """Solve by conjugate gradients, for one g (P,)."""
    rule.spaces.add("parameter")
    found = linalg.cg(F, g, damping=damping_of_all(F, rule), tol=tol, max_iter=max_iter)
    return in_numpys_words(found.x)


def solve_by_nystrom(
    F: Fisher, e: Host, rule: Damping, tol: float, max_iter: int | None, rank: int | None, seed: int
) -> Host:
    """Columns (P, 1) for residuals e (N C, 1), by products with the rows and their transpose."""
    tol = number("tol", tol, low=0, below=1)
    inner = residuals_of_rows(F, e, float(np.finfo(F.dtype).eps))
    if inner is None and is_plain(F):
        inner = e * (mean_weight(F) / F.scale)
    if inner is None:
        raise ValueError("solver: 'nystrom' has no residuals in sample space here")
    rows = F.rows
    assert rows is not None
    rule.spaces.add("sample")
    rho = rule.of("all", F.trace() if rule.relative is not None else 0.0, rows.shape[0])
    if rho <= 0:
        raise ValueError("damping: expected a number > 0 with solver='nystrom', got 0")

    def product(z: Host) -> Host:
        v = rows.T @ contiguous(z, F.dtype)
        return as_array((rows @ v).astype(np.float64) * F.scale)

    n, rounding = rows.shape[0], float(np.finfo(F.dtype).eps)
    prepare = nystrom(product, n, rho, rank=rank, seed=seed, like=inner)
    z = linalg.cg(
        in_terms_of_library(product), bare(inner[:, :1]), damping=rho,
        tol=max(tol, _ATTAINABLE * rounding), max_iter=max_iter,
        preconditioner=in_terms_of_library(prepare), n=n,
    ).x  # fmt: skip
    found = rows.T @ contiguous(in_numpys_words(z), F.dtype)
    return as_array(found.astype(np.float64) * F.scale)


def damping_of_all(F: Fisher, rule: Damping) -> float:
    """Damping of G as a whole."""
    rows = F.rows.shape[0] if F.rows is not None else F.shape[0]
    return rule.of("all", F.trace() if rule.relative is not None else 0.0, rows)


def direction_with_damped_outputs(F: Fisher, e: Host, rule: Damping) -> Host:
    """Columns for ``G = J^T (H + rho I) J / N`` without damping of the parameters.

    With the symmetric root S of H + rho I the rows are S J, and e those of ``S^-1 e``.
    """
    j = in_numpy(F.jacobian)  # type: ignore[arg-type]
    n, c = j.samples, j.n_outputs
    if is_plain(F):
        h = np.broadcast_to(np.eye(c, like=e) / F.likelihood.variance, (n, c, c))  # type: ignore[attr-defined]
    else:
        f = as_array(j.outputs, np.float64)
        h = likelihood_at(F.likelihood, f).hessian(f)
    rho = rule.of("outputs", float(np.trace(h, axis1=1, axis2=2).sum()), n * c)
    w, q = np.linalg.eigh(h)
    gain = np.sqrt(w.clip(0) + rho)[:, None, :]
    if (gain <= np.sqrt(np.finfo(np.float64).eps * c * w.max(initial=0.0))).any():
        raise ValueError("damping: expected a positive number: outputs have no curvature of theirs")
    root, inverse = (q * gain) @ q.swapaxes(1, 2), (q / gain) @ q.swapaxes(1, 2)
    inner = (inverse @ e.reshape(n, c, e.shape[1])).reshape(n * c, e.shape[1])
    rows, scale = rooted(j, root), mean_weight(F)
    sharing = F.structure.weight_sharing if isinstance(F.structure, Kfac) else "expand"
    structure = make(structure_of(F), rows, scale, weight_sharing=sharing, deferred=True)
    if j.sample_map is not None or not can_push(structure):
        raise ValueError(
            "damp: 'outputs' needs an update in sample space, which structure "
            f"{structure.name!r} does not have for this model; expected 'parameters'"
        )
    undamped = Damping(0.0, None, rule.split, rule.space, rule.used, rule.spaces, rule.last_factor)
    return push(structure, rows, scale, inner, undamped)


def structure_of(F: Fisher) -> Any:
    """Name the structure as `fastfisher.fisher` takes it."""
    if isinstance(F.structure, Unit) and F.structure.block is not None:
        return "block", F.structure.block
    return F.structure.name


def residuals_of_rows(F: Fisher, e: Host, rounding: float) -> Host | None:
    """Residuals E (N R, k) with ``scale rows^T E = J^T e / N``, if there are any."""
    j = F.jacobian
    assert j is not None
    if F.kind != "exact" or j.sample_map is not None or not can_push(F.structure):
        return None
    # The curvature has 1 / variance, the gradient of the loss is given as it is.
    ratio = mean_weight(F) / F.scale
    if is_plain(F):
        return e * ratio
    f = in_numpys_words(j.outputs).astype(np.float64)
    right = e.astype(np.float64).reshape(j.samples, j.n_outputs, e.shape[1])
    likelihood = likelihood_at(F.likelihood, f)
    inner = likelihood.unrooted(f, right)
    error = np.linalg.norm(likelihood.root(f) @ inner - right, axis=1)
    if (error > _ROUNDINGS * rounding * np.linalg.norm(right, axis=1)).any():
        return None
    return as_array(inner.reshape(-1, e.shape[1]) * ratio)
