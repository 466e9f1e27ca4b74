# SPDX-License-Identifier: Apache-2.0
"""The isotropic constant alpha of a network at hand, where theory gives one."""

from __future__ import annotations

import itertools

import numpy as np

from fastfisher._arrays import in_numpys_words
from fastfisher._jacobian import Jacobian
from fastfisher.factors import Dense
from fastfisher.likelihoods import Gaussian, Likelihood
from fastfisher.optim._rows import Rows
from fastfisher.theory import isotropic_constant


def alpha_of(structure: str, rows: Rows, likelihood: Likelihood) -> float:
    """Alpha with ``J (G + rho)^-1 J^T / N -> alpha I``, so that a step of 1 / alpha is Newton's.

    Raises
    ------
    ValueError
        No such constant for this structure and network; the message says why.
    """
    if structure == "full":
        return 1.0
    j = rows.jacobian
    assert j is not None
    count = j.shape[0]
    if structure in ("layer", "tridiagonal"):
        sizes = {name: part.shape[1] for name, part in j.split().items()}
        few = [name for name, size in sizes.items() if size < count]
        if few:
            raise _undefined(
                structure, f"layer {few[0]!r} has {sizes[few[0]]} parameters for {count} residuals"
            )
        # Sums of projectors: any widths do.
        depth = len(sizes)
        return float(depth if structure == "layer" else (depth + 2) // 3)
    if type(likelihood) is not Gaussian:
        raise _undefined(structure, "the likelihood is not Gaussian")
    widths = _widths(structure, j)
    n = j.samples
    inputs = [layer.in_features + layer.bias for layer in j.layers]
    if min(inputs) < n:
        raise _undefined(structure, f"a layer has {min(inputs)} inputs for {n} samples")
    if structure == "kfac":
        try:
            return isotropic_constant("kfac", (max(n, widths[0]), *widths[1:]), samples=n)
        except ValueError as error:
            raise _undefined(structure, str(error)) from None
    active = sum(
        float((np.abs(in_numpys_words(layer.g)).max(1) > 0).sum(1).mean())
        for layer in j.layers[:-1]
    )
    return active / widths[-1] + 1


def _widths(structure: str, j: Jacobian) -> tuple[int, ...]:
    """Widths of a chain of dense layers."""
    layers = j.layers
    chain = all(type(layer) is Dense for layer in layers) and all(
        x.out_features == y.in_features for x, y in itertools.pairwise(layers)
    )
    if not chain or layers[-1].out_features != j.n_outputs:
        raise _undefined(structure, "the model is no chain of dense layers")
    return (layers[0].in_features, *(layer.out_features for layer in layers))


def _undefined(structure: str, why: str) -> ValueError:
    return ValueError(
        f"lr: expected a number, got None: structure {structure!r} has no isotropic constant here, "
        f"{why}"
    )
