# SPDX-License-Identifier: Apache-2.0
"""The Fisher information matrix of a model, of any kind, likelihood and structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, result_dtype
from fastfisher._fisher_batches import STREAMED, gathered, is_batches, streamed
from fastfisher._fisher_matrix import Fisher
from fastfisher._fisher_rows import OutputAxes, Recipe, rows_of
from fastfisher._jacobian import Jacobian
from fastfisher._ntk import Params, Samples, expect_model
from fastfisher._numbers import integer
from fastfisher.likelihoods import Likelihood, likelihood_of
from fastfisher.models import MLP
from fastfisher.structures import make

__all__ = ["Fisher", "fisher"]

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
        Samples; none with a Jacobian. Batches such as those of a DataLoader: "kfac" and "diagonal"
        see one at a time, for other structures they are put together.
    y : array, optional
        Labels, for ``kind="empirical"``: (N, C) targets, or of the shape of the outputs; (N,)
        classes for "categorical". With batches ``(x, y)`` they are taken from there.
    likelihood : "gaussian" | "categorical" | "bernoulli" | Likelihood
        p(y | f); see `fastfisher.likelihoods`. "gaussian" has variance 1. Outputs with further
        axes count as C outputs of one sample, whose losses add up, in every likelihood;
        "categorical" refuses them: ``Categorical(classes=...)`` has one softmax a position.
    kind : "exact" | "mc" | "empirical"
        ``exact``: the expectation over labels y of the model, H_n in closed form; equal to the
        generalised Gauss-Newton matrix for these likelihoods. ``mc``: its estimate from labels
        drawn from the model. ``empirical``: sums of outer products of the gradients for the given
        `y`, which is another matrix.
    structure : str or ("block", b)
        ``full``: all of F, never formed. ``layer``: diagonal blocks, one a module, weight and bias
        together: all parameters that it owns itself, the model's own too. For a function those
        whose names agree up to the last dot; a name without a dot is a block of its own.
        ``tridiagonal``: also those of neighbours; indefinite. ``kfac``, ``ekfac``:
        Kronecker factors of each layer. ``unit``: blocks of the incoming weights of each unit.
        ``("block", b)``: of b of these each. ``diagonal``.
    reduction : "mean" | "sum"
        With or without the 1 / N.
    weight_sharing : "expand" | "reduce"
        How "kfac" and "ekfac" treat weights used at several positions; tables of embeddings have
        one input a position and are the same either way. Of "ekfac" with "reduce" and fewer
        samples than inputs the eigenbasis, and with it the matrix, is not unique: it depends on
        the order of the samples.
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
    structure is made from those. On a GPU (torch tensors) they stay there: it is waited for to read
    whether factors are finite, what inverses say of themselves, and a few norms of a refinement.
    On the CPU memory of dead Kronecker factors and inverses, up to 256 MB each, is kept for others.
    Labels of "mc" are drawn by numpy's generator; outputs are copied to the host for a likelihood
    of your own. Amari 1998; for the kinds see Kunstner, Balles and Hennig 2019.

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
    if kind == "mc":
        samples, seed = integer("samples", samples, least=1), integer("seed", seed, least=0)

    if select is not None and not callable(select):
        raise TypeError(f"select: expected a callable, got {type(select).__name__}")
    axes = OutputAxes(chosen, select)
    watched = select if isinstance(model, (Jacobian, MLP)) else axes
    recipe = Recipe(chosen, kind, samples, seed, watched, params, verify, axes)
    from_model = not isinstance(model, Jacobian)
    if not isinstance(model, (Jacobian, MLP)):
        expect_model(model)
    if from_model and is_batches(x) and structure in STREAMED:
        return streamed(
            model, x, y, recipe,
            structure=structure, reduction=reduction, weight_sharing=weight_sharing,
        )  # fmt: skip
    if from_model and is_batches(x):
        x, y = gathered(x, y, labelled=kind == "empirical")
    if (y is None) == (kind == "empirical"):
        what = "labels" if y is None else "None"
        raise ValueError(f"y: expected {what} with kind={kind!r}")
    made = rows_of(model, x, y, recipe)
    scale = made.weight / (max(1, made.rows.samples) if reduction == "mean" else 1)
    return Fisher(
        jacobian=made.jacobian,
        rows=made.rows,
        scale=scale,
        structure=make(structure, made.rows, scale, weight_sharing=weight_sharing),
        likelihood=chosen,
        kind=kind,
        like=made.like,
        dtype=np.dtype(result_dtype(made.like)),
        reduction=reduction,
    )
