# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient updates: options, hard input, mistakes; theory is in test_theory_6.py."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fisher_cases import STRUCTURES

PUSHED = [s for s in STRUCTURES if s != "ekfac"]


def jacobian(n: int = 6, c: int = 2, dtype: str = "float64") -> ff.Jacobian:
    x = np.random.default_rng(0).standard_normal((n, 5)).astype(dtype)
    mlp = ff.models.MLP((5, 7, 6, c), activation="tanh", sigma_b2=0.1, dtype=dtype)  # type: ignore[arg-type]
    return mlp.jacobian(x)


def residual(n: int = 6, c: int = 2, dtype: str = "float64") -> Any:
    return np.random.default_rng(1).standard_normal((n, c)).astype(dtype)


def assert_equal(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    assert np.asarray(got).shape == np.asarray(expected).shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_damped_outputs_are_refused_where_they_cannot_be() -> None:
    J = ff.Jacobian(jacobian().layers, residual())
    F = ff.fisher(J, likelihood="categorical")
    with pytest.raises(ValueError, match="damping: expected a positive number"):
        ff.ngd.update(F, residual(), damp="outputs")
    with pytest.raises(ValueError, match="damp: 'outputs' needs"):
        ff.ngd.update(
            ff.fisher(J, likelihood="categorical", structure="ekfac"), residual(), damping=0.1,
            damp="outputs",
        )  # fmt: skip


def test_probabilities_that_underflow() -> None:
    """A label of probability zero: the residual has no root, the update is that of the gradient."""
    J = ff.Jacobian(jacobian().layers, np.tile([0.0, 2000.0], (6, 1)))
    e = np.tile([-1.0, 1.0], (6, 1))
    F = ff.fisher(J, likelihood="categorical")
    step = ff.ngd.update(F, e, damping=0.1)
    assert np.allclose(step.vector, J.T @ e.reshape(-1) / 6 / 0.1)


@pytest.mark.parametrize("structure", PUSHED, ids=str)
def test_tiny_damping_in_float32(structure: Any) -> None:
    """Where parameters are many, rho may be far below float32's rounding of G."""
    x = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    mlp = ff.models.MLP((40, 50, 1), activation="tanh", parameterization="ntk", dtype="float32")
    J, e = mlp.jacobian(x), residual(5, 1, "float32")
    step = ff.ngd.update(J, e, structure=structure, relative_damping=1e-8)
    assert step.vector.dtype == np.float32
    wide = ff.Jacobian.from_factors(
        [ff.Dense(q.a.astype(float), q.g.astype(float), bias=q.bias) for q in J.layers]
    )
    exact = ff.ngd.update(wide, e.astype(float), structure=structure, relative_damping=1e-8)
    assert_equal(step.vector, exact.vector, 1e-4)


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


def test_kfac_for_residuals_forms_no_other_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A and G of the Fisher matrix are made for gradients and conjugate gradients only."""
    J, e = jacobian(), residual()
    made = []
    module = importlib.import_module("fastfisher.structures.kfac")
    forms = module.blocks_of

    def counted(*given: Any) -> Any:
        made.append(given)
        return forms(*given)

    expected = ff.ngd.update(ff.fisher(J, structure="kfac"), e, damping=0.1)
    monkeypatch.setattr(module, "blocks_of", counted)
    step = ff.ngd.update(J, e, structure="kfac", damping=0.1)
    assert np.array_equal(step.vector, expected.vector)
    theta = ff.ngd.function_space_matrix(J, structure="kfac", damping=0.1)
    assert_equal(theta.reshape(12, 12) @ e.reshape(-1), step.function_change.reshape(-1))
    assert not made
    ff.ngd.update(J, gradient=J.T @ e.reshape(-1), structure="kfac", damping=0.1)
    assert len(made) == 1


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_kfac_of_factors_whose_squares_leave_the_range(size: float) -> None:
    """Refused where squares overflow; where they vanish the damping is all that is left."""
    J = jacobian()
    first = ff.Dense(J.layers[0].a * size, J.layers[0].g, bias=True)
    extreme = ff.Jacobian.from_factors([first, *J.layers[1:]])
    if size > 1:
        with pytest.raises(ff.errors.NonFiniteError, match="finite numbers"):
            ff.ngd.update(extreme, residual(), structure="kfac", damping=0.1)
        return
    step = ff.ngd.update(extreme, residual(), structure="kfac", damping=0.1)
    expected = ff.fisher(extreme, structure="kfac").solve(
        extreme.T @ residual().reshape(-1) / 6, damping=0.1, split="plain"
    )
    assert_equal(step.vector, expected)


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


def test_curves_at_other_samples() -> None:
    """Steps by hand, and the closed form."""
    J, other, e = jacobian(), jacobian(4), residual()
    options: Any = {"structure": "layer", "damping": 1e-3}
    matrix = ff.ngd.function_space_matrix(J, **options)
    away = ff.ngd.function_space_matrix(J, other=other, **options)
    curve = ff.ngd.training_curve(matrix, e, lr=0.3, steps=5)
    change = ff.ngd.prediction_curve(away, curve, lr=0.3)
    assert change.shape == (6, 4, 2)
    theta, r = matrix.reshape(12, 12), away.reshape(8, 12)
    power = np.linalg.matrix_power(np.eye(12) - 0.3 * theta, 5)
    closed = -r @ np.linalg.solve(theta, (np.eye(12) - power) @ e.reshape(-1))
    assert_equal(change[5].reshape(-1), closed)
    vector = sum(ff.ngd.update(J, one, **options).vector for one in curve[:5])
    assert_equal(change[5].reshape(-1), -0.3 * (other @ vector))
    with pytest.raises(ValueError, match=r"matrix: expected shape \(M, D, 6, 2\)"):
        ff.ngd.prediction_curve(away[..., :1], curve, lr=0.3)


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
    ({"space": "dual"}, ValueError, "space: expected"),
    ({"damp": "weights"}, ValueError, "damp: expected"),
    ({"damp": "outputs", "solver": "cg"}, ValueError, "damp: expected 'parameters'"),
    ({"space": "sample", "solver": "cg"}, ValueError, "space: expected 'auto'"),
    ({"residual": None, "gradient": np.ones(3)}, ValueError, "gradient: expected shape"),
    ({"residual": None, "gradient": np.full(109, np.nan)}, ValueError, "gradient: expected fin"),
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


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nystrom_conjugate_gradients(likelihood: Any, dtype: str) -> None:
    """Products only, any rank of the sketch: the update of the Cholesky factor."""
    J = ff.Jacobian(jacobian(20, 2, dtype).layers, residual(20, 2, dtype))
    F = ff.fisher(J, likelihood=likelihood)
    e = residual(20, 2, dtype)
    if likelihood == "categorical":
        e -= e.mean(1, keepdims=True)
    direct = ff.ngd.update(F, e, damping=1e-2)
    for rank in (None, 0, 5, 40):
        step = ff.ngd.update(F, e, damping=1e-2, solver="nystrom", rank=rank, tol=1e-13)
        assert (step.solver, step.space) == ("nystrom", "sample")
        assert_equal(step.vector, direct.vector, 1e-9 if dtype == "float64" else 1e-3)
    relative = ff.ngd.update(F, e, relative_damping=1e-2, solver="nystrom", tol=1e-13)
    expected = ff.ngd.update(F, e, relative_damping=1e-2)
    assert relative.damping["all"] == pytest.approx(expected.damping["all"], rel=1e-5)
    assert_equal(relative.vector, expected.vector, 1e-9 if dtype == "float64" else 1e-3)


def test_nystrom_needs_few_iterations() -> None:
    """A sketch of the large eigenvalues takes them out of the condition number."""
    from fastfisher.ngd._nystrom import nystrom

    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((200, 200)))
    k = (q * np.concatenate([np.logspace(6, 2, 20), np.full(180, 1e-2)])) @ q.T
    right, used = rng.standard_normal(200), []
    for rank in (0, 40):
        calls = 0

        def product(z: Any) -> Any:
            nonlocal calls
            calls += 1
            return k @ z

        approximate = nystrom(product, 200, 1.0, rank=rank, seed=0)
        options = {"damping": 1.0, "tol": 1e-10, "preconditioner": approximate, "n": 200}
        z = ff.linalg.cg(product, right, **options).x
        assert np.linalg.norm(k @ z + z - right) <= 1e-6 * np.linalg.norm(right)
        used.append(calls)
    assert used[1] < 12 < used[0]


def test_nystrom_mistakes() -> None:
    J, e = jacobian(), residual()
    with pytest.raises(ValueError, match=r"damping: expected a number > 0"):
        ff.ngd.update(J, e, solver="nystrom")
    with pytest.raises(ValueError, match="solver: 'nystrom' needs structure 'full'"):
        ff.ngd.update(J, e, solver="nystrom", structure="layer", damping=1.0)
    with pytest.raises(ValueError, match="rank: expected an integer from 0 to 12"):
        ff.ngd.update(J, e, solver="nystrom", rank=13, damping=1.0)
    with pytest.warns(ff.errors.ConvergenceWarning, match="cg: 1 of 1 columns did not reach"):
        ff.ngd.update(J, e, solver="nystrom", rank=0, max_iter=1, damping=1e-9)
    assert not ff.ngd.update(J, 0 * e, solver="nystrom", damping=1.0).vector.any()


@pytest.mark.parametrize("structure", ["full", "layer", "tridiagonal"])
def test_centred_updates(structure: Any) -> None:
    """Means removed from rows and residuals, by the whole matrix."""
    J, e = jacobian(), residual()
    rows = J.dense().reshape(6, 2, -1)
    rows = rows - rows.mean(0)
    ends = np.cumsum([layer.parameters for layer in J.layers])[:-1]
    parts = np.split(rows, ends, axis=2)
    centred = ff.Jacobian.from_factors([ff.Explicit(np.ascontiguousarray(q)) for q in parts])
    expected = ff.ngd.update(centred, e - e.mean(0), structure=structure, damping=0.1)
    got = ff.ngd.update(J, e, structure=structure, damping=0.1, centred=True)
    assert_equal(got.vector, expected.vector, 1e-8)
    if structure == "full":
        again = ff.ngd.update(J, e, damping=0.1, centred=True, solver="nystrom", tol=1e-13)
        assert_equal(again.vector, expected.vector, 1e-8)
    with pytest.raises(ValueError, match="centred: expected a Jacobian"):
        ff.ngd.update(ff.fisher(J), e, damping=0.1, centred=True)


@pytest.mark.parametrize("solver", ["cg", "nystrom"])
@pytest.mark.parametrize("scale", [2.0**-660, 2.0**660])
def test_iterations_do_not_depend_on_the_size_of_the_residuals(solver: Any, scale: float) -> None:
    """Their squares leave the range of float64."""
    J, e = jacobian(), residual()
    one = ff.ngd.update(J, e, damping=0.1, solver=solver)
    other = ff.ngd.update(J, scale * e, damping=0.1, solver=solver)
    assert_equal(other.vector / scale, one.vector, 1e-13)


@pytest.mark.parametrize("solver", ["cg", "nystrom"])
@pytest.mark.parametrize("tol", [-1.0, float("nan"), 1.0])
def test_tolerances_that_do_not_fit(solver: Any, tol: float) -> None:
    J, e = jacobian(), residual()
    with pytest.raises(ValueError, match="tol: expected a finite number >= 0 and < 1"):
        ff.ngd.update(J, e, damping=0.1, solver=solver, tol=tol)


def test_damped_outputs_of_singular_parameters_ask_for_something_else() -> None:
    """More outputs than parameters, and an input twice: no damping of outputs helps."""
    x = np.repeat(np.random.default_rng(0).standard_normal((10, 1)), 2, 1)
    jacobian = ff.models.MLP((2, 3), seed=0).jacobian(x)
    for damping in (0.1, 10.0):
        with pytest.raises(
            ff.errors.NotPositiveDefiniteError, match=r"damp: expected 'parameters'"
        ):
            ff.ngd.update(jacobian, np.ones((10, 3)), damping=damping, damp="outputs")
