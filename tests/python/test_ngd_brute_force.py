# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient updates of every structure, likelihood and layer form against brute force."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.likelihoods import likelihood_of
from fastfisher.reference import fisher as fisher_reference
from fastfisher.reference import ngd as ref
from fisher_cases import CASES, LIKELIHOODS, STRUCTURES, Case, N, brute, build


def outputs_of(case: Case) -> Any:
    return np.random.default_rng(9).standard_normal((N, case.c))


def residual_of(case: Case, likelihood: str) -> Any:
    """Gradients of each sample's loss, for labels of its own."""
    rng, f, chosen = np.random.default_rng(2), outputs_of(case), likelihood_of(likelihood)
    return chosen.gradient(f, chosen.sample(f, rng))


def by_kfac(F: ff.Fisher, vector: Any, rho: float, split: str = "plain") -> Any:
    """Update of K-FAC through the whole matrix of each block."""
    result = np.zeros_like(vector)
    for block in F.structure.blocks:  # type: ignore[attr-defined]
        at = block.columns
        if block.exact:
            dense = np.diag(block.a) if block.a.ndim == 1 else block.a
            result[at] = ref.kfac_update(vector[at], dense, block.g, rho, 0.0)
            continue
        a = np.diag(block.a) if block.a.ndim == 1 else block.a
        pair = (rho, rho) if split == "plain" else ref.pi_dampings(a, block.g, rho)
        result[at] = ref.kfac_update(vector[at], a, block.g, *pair)
    return result


def assert_equal(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    assert np.asarray(got).shape == np.asarray(expected).shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_update_equals_brute_force(case: Case, structure: Any, likelihood: str) -> None:
    """In every space, for every layer form: (G + rho)^-1 gradient; K-FAC's rho is on factors."""
    layers, truth = build(case)
    f, e, rho = outputs_of(case), residual_of(case, likelihood), 0.1
    J = ff.Jacobian.from_factors(layers, outputs=f)
    F = ff.fisher(J, likelihood=likelihood, structure=structure)
    dense = np.concatenate([j for j, _, _ in truth], 2)
    if structure == "kfac":
        expected = by_kfac(F, ref.gradient(dense, e), rho)
    else:
        matrix = brute(case, truth, f, structure, likelihood=likelihood)
        expected = ref.update(dense, e, matrix, rho)
    spaces = ("auto", "parameter") if structure == "ekfac" else ("auto", "sample", "parameter")
    for space in spaces:
        step = ff.ngd.update(F, e, damping=rho, space=space)  # type: ignore[arg-type]
        assert_equal(step.vector, expected)
        assert_equal(step.function_change.reshape(-1), dense.reshape(N * case.c, -1) @ expected)
        assert step.space in ("sample", "parameter", "mixed")
        if space != "auto":
            assert step.space == space
    again = ff.ngd.update(F, gradient=ref.gradient(dense, e), damping=rho)
    assert_equal(again.vector, expected)
    if likelihood == "gaussian":
        assert np.array_equal(
            ff.ngd.update(J, e, structure=structure, damping=rho).vector,
            ff.ngd.update(F, e, damping=rho).vector,
        )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_function_space_matrix_equals_updates(case: Case, structure: Any, likelihood: str) -> None:
    layers = build(case)[0]
    J = ff.Jacobian.from_factors(layers, outputs=outputs_of(case))
    other = ff.Jacobian.from_factors(
        [
            q if isinstance(q, ff.Lookup) else copy.copy(q)._replaced(q.g[::-1].copy(), q.w)  # type: ignore[attr-defined]
            for q in layers
        ]
    )
    F = ff.fisher(J, likelihood=likelihood, structure=structure)
    e = residual_of(case, likelihood)
    tried: list[dict[str, Any]] = [{"damping": 0.1}, {"damping": 0.1, "split": "pi"}]
    if likelihood == "gaussian":
        tried += [{"relative_damping": 0.1}, {"damping": 0.1, "space": "parameter"}]
    for options in tried:
        step = ff.ngd.update(F, e, **options)
        matrix = ff.ngd.function_space_matrix(F, **options)
        assert_equal(np.tensordot(matrix, e, 2), step.function_change)
        away = ff.ngd.function_space_matrix(F, other=other, **options)
        assert_equal(np.tensordot(away, e, 2), step.predict(other))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pi_split(case: Case, relative: bool) -> None:
    J = ff.Jacobian.from_factors(build(case)[0])
    F, e = ff.fisher(J, structure="kfac"), residual_of(case, "gaussian")
    gradient = J.T @ e.reshape(-1) / N
    if not relative:
        expected = by_kfac(F, gradient, 0.1, "pi")
        assert_equal(ff.ngd.update(F, e, damping=0.1, split="pi").vector, expected)
    options: Any = {"relative_damping": 0.1} if relative else {"damping": 0.1}
    pushed = [ff.ngd.update(F, e, split="pi", space=s, **options) for s in ("sample", "parameter")]  # type: ignore[arg-type]
    solved = ff.ngd.update(F, gradient=gradient, split="pi", **options)
    for step in pushed:
        assert_equal(step.vector, solved.vector)
        assert step.damping == pytest.approx(solved.damping)


def test_inputs_averaged_over_positions() -> None:
    """weight_sharing="reduce": the gradient is no combination of the averaged inputs."""
    case = next(case for case in CASES if case.name == "shared")
    J, e = ff.Jacobian.from_factors(build(case)[0]), residual_of(case, "gaussian")
    F = ff.fisher(J, structure="kfac", weight_sharing="reduce")
    step = ff.ngd.update(F, e, damping=0.1)
    assert_equal(step.vector, by_kfac(F, J.T @ e.reshape(-1) / N, 0.1))
    assert step.space == "parameter"
    with pytest.raises(ValueError, match="space: no update in sample space"):
        ff.ngd.update(F, e, damping=0.1, space="sample")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", ["full", "layer", "unit", "diagonal"])
def test_damped_outputs(structure: str, likelihood: str) -> None:
    """``J^T (H + rho) J / N`` without damping of the parameters."""
    rng = np.random.default_rng(5)
    n, c = 4, 3
    dense = rng.standard_normal((n, c, 2 * n * c))
    f, rho = rng.standard_normal((n, c)), 0.2
    parts = [ff.Explicit(dense[:, :, : n * c]), ff.Explicit(dense[:, :, n * c :])]
    J = ff.Jacobian.from_factors(parts, outputs=f)
    e = rng.standard_normal((n, c))  # need not sum to zero
    F = ff.fisher(J, likelihood=likelihood, structure=structure)
    step = ff.ngd.update(F, e, damping=rho, damp="outputs")
    whole = ref.damped_outputs(dense, f, likelihood, rho)
    half = np.arange(n * c)
    blocks = {"full": [np.arange(2 * n * c)], "layer": [half, half + n * c]}.get(
        structure, [[k] for k in range(2 * n * c)]
    )
    matrix = fisher_reference.keep(whole, blocks)
    assert_equal(step.vector, ref.limit_update(dense, e, matrix, rank_tol=1e-11), 1e-8)
    assert step.damping == {"outputs": rho} | dict.fromkeys(set(step.damping) - {"outputs"}, 0.0)
    if structure in ("full", "layer"):
        h = np.stack([fisher_reference.hessian(likelihood, one) for one in f])
        newton = np.linalg.solve(h + rho * np.eye(c), e[:, :, None])[:, :, 0]
        assert_equal(step.function_change, {"full": 1, "layer": 2}[structure] * newton)
    tied = ff.ngd.update(F, e, relative_damping=0.1, damp="outputs").damping["outputs"]
    expected = [np.trace(fisher_reference.hessian(likelihood, one)) / c for one in f]
    assert tied == pytest.approx(0.1 * np.mean(expected))


@pytest.mark.parametrize("split", ["plain", "pi"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_last_factor_over_samples(case: Case, likelihood: str, split: Any) -> None:
    """K-FAC with B / N in the last layer, through the whole matrix of each block."""
    if case.c == 1 and likelihood == "categorical" and split == "pi":
        pytest.skip("one class: B is zero, and the reference has no pi for that")
    J = ff.Jacobian.from_factors(build(case)[0], outputs=outputs_of(case))
    F, e = ff.fisher(J, likelihood=likelihood, structure="kfac"), residual_of(case, likelihood)
    changed = copy.copy(F.structure)
    changed.blocks = [  # type: ignore[attr-defined]
        dataclasses.replace(b, g=b.g / N) if b.name == J.names[-1] and not b.exact else b
        for b in F.structure.blocks  # type: ignore[attr-defined]
    ]
    gradient = J.T @ e.reshape(-1) / N
    expected = by_kfac(dataclasses.replace(F, structure=changed), gradient, 0.1, split)
    options: dict[str, Any] = {"damping": 0.1, "split": split, "last_factor": "mean"}
    for space in ("auto", "sample", "parameter"):
        step = ff.ngd.update(F, e, space=space, **options)  # type: ignore[arg-type]
        assert_equal(step.vector, expected)
    assert_equal(ff.ngd.update(F, gradient=gradient, **options).vector, expected)
    matrix = ff.ngd.function_space_matrix(F, **options)
    assert_equal(np.tensordot(matrix, e, 2), step.function_change)
    if likelihood == "gaussian":
        options["relative_damping"] = options.pop("damping")
        matrix = ff.ngd.function_space_matrix(F, **options)
        assert_equal(np.tensordot(matrix, e, 2), ff.ngd.update(F, e, **options).function_change)


def test_last_factor_is_for_kronecker_factors() -> None:
    J = ff.Jacobian.from_factors(build(CASES[0])[0])
    e = residual_of(CASES[0], "gaussian")
    for options in ({"structure": "layer"}, {"structure": "ekfac"},
                    {"structure": "kfac", "solver": "cg"}):  # fmt: skip
        with pytest.raises(ValueError, match="last_factor: expected 'identity'"):
            ff.ngd.update(J, e, damping=0.1, last_factor="mean", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="last_factor: expected one of"):
        ff.ngd.update(J, e, structure="kfac", damping=0.1, last_factor="N")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_last_factor_in_a_wide_network(depth: int) -> None:
    """alpha = N L, as the theory and the limit of infinite width say."""
    n, widths = 10, (20, *[100] * (depth - 1), 1)
    mlp = ff.models.MLP(widths, activation="tanh", parameterization="ntk")
    J = mlp.jacobian(np.random.default_rng(0).standard_normal((n, 20)))
    for factor in ("identity", "mean"):
        theta = ff.ngd.function_space_matrix(
            J,
            structure="kfac",
            relative_damping=1e-9,
            last_factor=factor,  # type: ignore[arg-type]
        )
        alpha = ff.theory.isotropic_constant("kfac", widths, samples=n, last_factor=factor)  # type: ignore[arg-type]
        assert np.allclose(theta.reshape(n, n), alpha * np.eye(n), atol=1e-6 * alpha)
