# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient updates: options, hard input, mistakes; the theory is in test_theory_6.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fisher_cases import CASES, STRUCTURES, Case, N, build

PUSHED = [s for s in STRUCTURES if s != "ekfac"]


def jacobian(n: int = 6, c: int = 2, dtype: str = "float64") -> ff.Jacobian:
    x = np.random.default_rng(0).standard_normal((n, 5)).astype(dtype)
    mlp = ff.models.MLP((5, 7, 6, c), activation="tanh", sigma_b2=0.1, dtype=dtype)  # type: ignore[arg-type]
    return mlp.jacobian(x)


def residual(n: int = 6, c: int = 2, dtype: str = "float64") -> Any:
    return np.random.default_rng(1).standard_normal((n, c)).astype(dtype)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_update_solves_with_the_matrix(case: Case, structure: Any) -> None:
    """For every layer form: (G + rho) update = gradient; K-FAC's damping is on its factors."""
    J = ff.Jacobian.from_factors(build(case)[0])
    e = np.random.default_rng(2).standard_normal((N, case.c))
    gradient = J.T @ e.reshape(-1) / N
    step = ff.ngd.update(J, e, structure=structure, damping=0.1)
    F = ff.fisher(J, structure=structure)
    if structure == "kfac":
        expected = F.solve(gradient, damping=0.1, split="plain")
    else:
        expected = np.linalg.solve(F.dense() + 0.1 * np.eye(F.shape[0]), gradient)
    if structure == "kfac" and case.name in ("shared", "conv", "explicit", "separable", "lookup"):
        # Parameters without factors are one block with one damping.
        exact = [b.columns for b in F.structure.blocks if b.g.shape == (1, 1)]  # type: ignore[attr-defined]
        skip = np.concatenate([c.reshape(-1) for c in exact]) if exact else np.zeros(0, int)
        keep = np.setdiff1d(np.arange(F.shape[0]), skip)
        assert np.allclose(step.vector[keep], expected[keep], rtol=1e-9, atol=1e-12)
    else:
        assert np.allclose(step.vector, expected, rtol=1e-9, atol=1e-12)
    assert np.allclose(step.function_change.reshape(-1), J @ step.vector)
    again = ff.ngd.update(J, gradient=gradient, structure=structure, damping=0.1)
    assert again.space in ("sample", "parameter")
    if structure != "kfac":
        assert np.allclose(again.vector, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s != "tridiagonal"], ids=str)
def test_conjugate_gradients(structure: Any) -> None:
    J, e = jacobian(), residual()
    direct = ff.ngd.update(J, e, structure=structure, damping=0.05)
    iterated = ff.ngd.update(J, e, structure=structure, damping=0.05, solver="cg", tol=1e-12)
    assert iterated.solver == "cg"
    if structure == "kfac":  # its damping is on the factors, that of "cg" on the product
        F = ff.fisher(J, structure="kfac")
        gradient = J.T @ e.reshape(-1) / 6
        assert np.allclose(F @ iterated.vector + 0.05 * iterated.vector, gradient, atol=1e-9)
    else:
        assert np.allclose(direct.vector, iterated.vector, atol=1e-8)


@pytest.mark.parametrize("structure", PUSHED, ids=str)
def test_zero_jacobian_and_few_samples(structure: Any) -> None:
    zero = ff.Jacobian.from_factors([ff.Dense(np.zeros((4, 3)), np.zeros((4, 1, 5)), bias=True)])
    step = ff.ngd.update(zero, np.ones((4, 1)), structure=structure, damping=0.1)
    assert not step.vector.any()
    assert not step.function_change.any()
    for n in (0, 1):
        step = ff.ngd.update(jacobian(n), residual(n), structure=structure, damping=0.1)
        assert np.isfinite(step.vector).all()
        assert step.function_change.shape == (n, 2)


@pytest.mark.parametrize("structure", ["full", "layer", "kfac", "unit", "tridiagonal"])
def test_duplicates_without_damping_are_refused(structure: Any) -> None:
    x = np.repeat(np.random.default_rng(0).standard_normal((2, 5)), 2, 0)
    J = ff.models.MLP((5, 7, 6, 1), activation="tanh").jacobian(x)
    with pytest.raises(ff.errors.NotPositiveDefiniteError, match="damping > 0"):
        ff.ngd.update(J, np.ones((4, 1)), structure=structure)
    step = ff.ngd.update(J, np.ones((4, 1)), structure=structure, relative_damping=1e-8)
    assert np.isfinite(step.vector).all()
    assert all(value > 0 for value in step.damping.values())


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_float32_and_torch(structure: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    wide = ff.ngd.update(jacobian(), residual(), structure=structure, relative_damping=1e-4)
    narrow = ff.ngd.update(
        jacobian(dtype="float32"), residual(dtype="float32"), structure=structure,
        relative_damping=1e-4,
    )  # fmt: skip
    assert narrow.vector.dtype == np.float32
    scale = np.abs(wide.vector).max()
    assert np.abs(narrow.vector - wide.vector).max() < 2e-2 * scale
    layers = [
        ff.Dense(torch.from_numpy(x.a), torch.from_numpy(x.g.copy()), bias=x.bias)
        for x in jacobian().layers
    ]
    J = ff.Jacobian.from_factors(layers)
    step = ff.ngd.update(
        J, torch.from_numpy(residual()), structure=structure, relative_damping=1e-4
    )
    assert torch.is_tensor(step.vector)
    assert torch.is_tensor(step.predict(J))
    assert np.allclose(step.vector.numpy(), wide.vector)


def test_likelihoods_and_relative_damping() -> None:
    J, e = jacobian(), residual()
    J = ff.Jacobian(J.layers, residual())
    F = ff.fisher(J, likelihood="categorical", structure="layer")
    step = ff.ngd.update(F, e, damping=0.1)
    gradient = J.T @ e.reshape(-1) / 6
    assert np.allclose(F @ step.vector + 0.1 * step.vector, gradient)
    scaled = ff.ngd.update(ff.fisher(J, likelihood=ff.likelihoods.Gaussian(2.0)), e, damping=0.1)
    G = ff.fisher(J).dense() / 2
    assert np.allclose(scaled.vector, np.linalg.solve(G + 0.1 * np.eye(len(G)), gradient))
    total = ff.ngd.update(ff.fisher(J, reduction="sum"), e, damping=0.1)
    G = ff.fisher(J).dense() * 6
    assert np.allclose(total.vector, np.linalg.solve(G + 0.1 * np.eye(len(G)), 6 * gradient))
    relative = ff.ngd.update(J, e, relative_damping=0.3)
    k = J.gram().reshape(12, 12) / 6
    assert relative.damping["all"] == pytest.approx(0.3 * np.trace(k) / 12)


def test_training_curve() -> None:
    matrix = np.diag([1.0, 0.5]).reshape(2, 1, 2, 1)
    curve = ff.ngd.training_curve(matrix, np.ones((2, 1)), lr=1.0, steps=3)
    assert np.allclose(curve[:, :, 0], [[1, 1], [0, 0.5], [0, 0.25], [0, 0.125]])
    with pytest.raises(ValueError, match="matrix: expected shape"):
        ff.ngd.training_curve(matrix, np.ones((3, 1)), lr=1.0, steps=3)
    with pytest.raises(ValueError, match="steps"):
        ff.ngd.training_curve(matrix, np.ones((2, 1)), lr=1.0, steps=-1)


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"residual": np.ones((5, 2))}, ValueError, r"residual: expected shape \(6, 2\)"),
    ({"residual": np.full((6, 2), np.nan)}, ValueError, "residual: expected finite"),
    ({"residual": np.ones((6, 2), int)}, TypeError, "dtype"),
    ({"residual": None}, ValueError, "residual: expected it or a gradient"),
    ({"gradient": np.ones(3)}, ValueError, "not both"),
    ({"damping": -1.0}, ValueError, "damping: expected"),
    ({"damping": 1.0, "relative_damping": 1.0}, ValueError, "relative_damping: expected None"),
    ({"solver": "lu"}, ValueError, "solver: expected"),
    ({"split": "half"}, ValueError, "split: expected"),
    ({"structure": "none"}, ValueError, "structure: expected"),
]


@pytest.mark.parametrize(("options", "error", "match"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes(options: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"residual": residual(), "damping": 0.1} | options
    with pytest.raises(error, match=match):
        ff.ngd.update(jacobian(), **given)


def test_mistaken_models() -> None:
    with pytest.raises(TypeError, match=r"fastfisher\.Jacobian"):
        ff.ngd.update(np.ones(3), residual())  # type: ignore[arg-type]
    mlp = ff.models.MLP((5, 4, 2))
    F = ff.fisher(mlp, np.ones((6, 5)), kind="mc")
    with pytest.raises(ValueError, match="no Jacobian of the outputs"):
        ff.ngd.update(F, residual())
