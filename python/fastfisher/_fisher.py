# SPDX-License-Identifier: Apache-2.0
"""The Fisher information matrix of a model, of any kind, likelihood and structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, from_numpy, library, result_dtype, to_numpy
from fastfisher._fisher_matrix import Fisher
from fastfisher._jacobian import Jacobian
from fastfisher._ntk import Params, Samples, jacobian
from fastfisher._ntk import rows as sampled_rows
from fastfisher.errors import NonFiniteError
from fastfisher.factors import Explicit
from fastfisher.likelihoods import Gaussian, Likelihood, likelihood_of
from fastfisher.structures import make
from fastfisher.structures._rooted import on_host, rooted

__all__ = ["Fisher", "fisher"]

Host = np.ndarray[Any, Any]
Kind = Literal["exact", "mc", "empirical"]
StructureName = (
    Literal["full", "layer", "tridiagonal", "kfac", "ekfac", "unit", "diagonal"] | tuple[str, int]
)


def fisher(
    model: Any,
    x: Samples | None = None,
    y: Array | None = None,
    *,
    likelihood: str | Likelihood = "gaussian",
    kind: Kind = "exact",
    structure: StructureName = "full",
    reduction: Literal["mean", "sum"] = "mean",
    weight_sharing: Literal["expand", "reduce"] = "expand",
    samples: int = 1,
    seed: int = 0,
    select: Callable[[Any], Array] | None = None,
    params: Params = None,
    verify: bool = True,
) -> Fisher:
    """Fisher information matrix ``F = sum_n J_n^T H_n J_n / N`` of the parameters of a model.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters), fastfisher.models.MLP or Jacobian
        The model, see `fastfisher.jacobian`. A Jacobian needs `outputs` for every likelihood but
        the Gaussian one with ``kind="exact"``.
    x : array, mapping or iterable of batches, optional
        Samples; none with a Jacobian.
    y : array, optional
        Labels, for ``kind="empirical"``: (N, C) targets, (N,) classes for "categorical".
    likelihood : "gaussian" | "categorical" | "bernoulli" | Likelihood
        p(y | f); see `fastfisher.likelihoods`. "gaussian" has variance 1.
    kind : "exact" | "mc" | "empirical"
        ``exact``: the expectation over labels y of the model, H_n in closed form; equal to the
        generalised Gauss-Newton matrix for these likelihoods. ``mc``: its estimate from labels
        drawn from the model. ``empirical``: sums of outer products of the gradients for the given
        `y`, which is another matrix.
    structure : str or ("block", b)
        ``full``: all of F, never formed. ``layer``: diagonal blocks, one a module, weight and bias
        together. ``tridiagonal``: also those of neighbours; indefinite. ``kfac``, ``ekfac``:
        Kronecker factors of each layer. ``unit``: blocks of the incoming weights of each unit.
        ``("block", b)``: of b of these each. ``diagonal``.
    reduction : "mean" | "sum"
        With or without the 1 / N.
    weight_sharing : "expand" | "reduce"
        How "kfac" and "ekfac" treat weights used at several positions.
    samples, seed : int
        Labels drawn for each sample, and the seed, for ``kind="mc"``.
    select, params, verify
        As in `fastfisher.jacobian`.

    Returns
    -------
    Fisher

    Raises
    ------
    ValueError, TypeError
        Arguments that do not fit; the message names them.
    NonFiniteError
        Factors, outputs or labels hold NaN or infinity.

    Notes
    -----
    Rows ``S_n^T J_n`` with ``S_n S_n^T = H_n`` are formed at the cotangents of each layer; every
    structure is made from those. Amari 1998; for the kinds see Kunstner, Balles and Hennig 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((6, 3))
    >>> mlp = ff.models.MLP((3, 8, 2), activation="tanh")
    >>> F = ff.fisher(mlp, x, likelihood="categorical")
    >>> F.shape
    (50, 50)
    >>> step = F.solve(np.ones(50), damping=0.1)
    >>> bool(np.allclose(F @ step + 0.1 * step, 1))
    True
    >>> ff.fisher(mlp, x, structure="kfac").trace() > 0
    True
    """
    chosen = likelihood_of(likelihood)
    if kind not in ("exact", "mc", "empirical"):
        raise ValueError(f"kind: expected 'exact', 'mc' or 'empirical', got {kind!r}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    if (y is None) == (kind == "empirical"):
        what = "labels" if y is None else "None"
        raise ValueError(f"y: expected {what} with kind={kind!r}")
    if kind == "mc" and (isinstance(samples, bool) or int(samples) != samples or samples < 1):
        raise ValueError(f"samples: expected an integer of at least 1, got {samples!r}")

    def root_of(f: Host) -> Host:
        return _root(f, y, chosen, kind, samples, seed)

    captured: Jacobian | None = None
    if isinstance(model, Jacobian):
        for name, value in (("x", x), ("select", select), ("params", params)):
            if value is not None:
                raise ValueError(f"{name}: expected None with a Jacobian, got one")
        captured = model
    elif x is None:
        raise ValueError("x: expected samples for a model, got None")
    elif kind == "exact" or getattr(model, "normalization", None) in ("mean", "batch"):
        captured = jacobian(model, x, select=select, params=params, verify=verify)
    if captured is not None:
        host = on_host(captured)
        like = captured.layers[0].g
        plain = kind == "exact" and type(chosen) is Gaussian
        root = None if plain else root_of(_outputs(host, chosen, kind))
        rows = _rows(host, root)
    else:
        # Rows are made at the outputs: R backward passes, not C.
        def in_library(f: Array) -> Array:
            root = root_of(to_numpy(f).astype(np.float64))
            return from_numpy(root.astype(result_dtype(f)), f)

        given = sampled_rows(model, x, in_library, select=select, params=params, verify=verify)
        rows, like = on_host(given), given.layers[0].g
    weight = 1 / chosen.variance if kind == "exact" and isinstance(chosen, Gaussian) else 1.0
    if kind == "mc":
        weight = 1 / samples
    scale = weight / (max(1, rows.samples) if reduction == "mean" else 1)
    return Fisher(
        jacobian=captured,
        rows=rows,
        scale=scale,
        structure=make(structure, rows, scale, weight_sharing=weight_sharing),
        likelihood=chosen,
        kind=kind,
        like=like,
        dtype=np.dtype(result_dtype(like)),
    )


def _outputs(j: Jacobian, likelihood: Likelihood, kind: str) -> Host:
    """Take the outputs (N, C) of the model, float64."""
    if j.outputs is None:
        raise ValueError(
            f"model: the Jacobian has no outputs, which likelihood "
            f"{type(likelihood).__name__.lower()} with kind={kind!r} needs; expected "
            "Jacobian.from_factors(..., outputs=...)"
        )
    f = np.asarray(j.outputs, np.float64)
    if not np.isfinite(f).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(f))[0])
        raise NonFiniteError(f"outputs: expected finite numbers, got {f[where]} at index {where}")
    return f


def _root(
    f: Host, y: Array | None, likelihood: Likelihood, kind: str, samples: int, seed: int
) -> Host:
    """Root S (N, C, R) of the curvature of each sample, up to the number of draws."""
    if kind == "exact":
        return likelihood.root(f)
    if kind == "empirical":
        library(y, "y")
        labels = likelihood.labels(to_numpy(y), f)
        return likelihood.gradient(f, labels)[:, :, None]
    rng = np.random.default_rng(seed)
    draws = [likelihood.gradient(f, likelihood.sample(f, rng)) for _ in range(samples)]
    return np.stack(draws, -1)


def _rows(j: Jacobian, root: Host | None) -> Jacobian:
    """Rows of the Fisher matrix; of outputs normalised over the batch written out."""
    if root is None or j.sample_map is None:
        return rooted(j, root)
    dense = j.dense().reshape(j.samples, j.n_outputs, -1)
    part = Jacobian((Explicit(dense, label="normalised"),), None, None, None)
    return rooted(part, root)
