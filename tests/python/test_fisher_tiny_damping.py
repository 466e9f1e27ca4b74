# SPDX-License-Identifier: Apache-2.0
"""Dampings far below rounding: the right solution by backward error, or a refusal, never less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.structures._kronecker import split_dampings
from fisher_cases import STRUCTURES
from test_fisher_hard import backward_error, jacobian

TINY = [1e-13, 1e-14, 1e-16, 1e-20, 1e-30, 1e-60, 1e-100]


@pytest.mark.parametrize("relative", TINY)
@pytest.mark.parametrize("n", [4, 60], ids=["sample space", "parameter space"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_solves_by_backward_error(structure: Any, n: int, relative: float) -> None:
    J = jacobian(n)
    F = ff.fisher(J, structure=structure)
    truth = F.dense()
    rho = float(relative * np.trace(truth) / len(truth))
    rng = np.random.default_rng(1)
    gradient = (J.T @ rng.standard_normal(J.shape[0])) / J.samples
    values, vectors = np.linalg.eigh(truth)
    null = vectors[:, np.abs(values) <= 1e-13 * values.max()]
    for v in (rng.standard_normal(len(truth)), gradient):
        x = F.solve(v, damping=rho)
        assert backward_error(truth, x, v, rho) <= 1e-14
    # What the matrix does not reach is divided by the damping and by nothing else.
    v = rng.standard_normal(len(truth))
    outside = np.linalg.norm(null.T @ v)
    if outside > 1e-3 and n == 4:
        assert rho * np.linalg.norm(F.solve(v, damping=rho)) == pytest.approx(outside, rel=1e-2)


@pytest.mark.parametrize("relative", [1e-3, 1e-9, 1e-12, *TINY[:-1]])
@pytest.mark.parametrize("split", ["plain", "pi"])
def test_dampings_of_both_factors(split: str, relative: float) -> None:
    x = np.random.default_rng(0).standard_normal((4, 4))
    J = ff.models.MLP((4, 20, 20, 3), activation="tanh", sigma_b2=0.1).jacobian(x)
    F = ff.fisher(J, structure="kfac")
    blocks = F.structure.blocks  # type: ignore[attr-defined]
    rho, rng = relative * F.trace() / J.shape[1], np.random.default_rng(1)
    dampings = split_dampings([(b.a, b.g) for b in blocks], rho, split)
    for v in (rng.standard_normal(J.shape[1]), J.T @ rng.standard_normal(12)):
        found = [F.solve(v, damping=rho, split=split)]
        if split == "plain":
            found.append(ff.ngd.update(J, gradient=v, structure="kfac", damping=rho).vector)
        for x in found:
            for block, (on_a, on_g) in zip(blocks, dampings, strict=True):
                own, right = x[block.columns], v[block.columns]
                a = block.a + on_a * np.eye(len(block.a))
                g = block.g + on_g * np.eye(len(block.g))
                size = np.linalg.norm(g, 2) * np.linalg.norm(a, 2) * np.linalg.norm(own)
                error = np.linalg.norm(g @ own @ a - right) / (size + np.linalg.norm(right))
                assert error < 1e-13


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_solutions_out_of_range_are_refused(structure: Any) -> None:
    F = ff.fisher(jacobian(4), structure=structure)
    v = np.ones(F.shape[0])
    try:
        x = F.solve(v, damping=1e-320)
    except ff.errors.NumericalError as error:
        assert "damping" in str(error)  # noqa: PT017
    else:
        assert structure in (("block", 2), "diagonal")  # regular without
        assert np.allclose(F @ x, v)


def test_rounding_in_the_basis_is_no_curvature() -> None:
    F = ff.fisher(jacobian(4), structure="ekfac")
    values = F.structure.spectrum()
    assert (values > 0).sum() < len(values)
    assert values[values > 0].min() > 1e-28 * values.max()
    assert F.effective_dimension(damping=1e-60) == (values > 0).sum()
