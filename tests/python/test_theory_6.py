# SPDX-License-Identifier: Apache-2.0
"""Natural gradient and its approximations: acceptance tests T6.1 to T6.5, T6.8 and T6.9."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.reference import fisher as fisher_reference
from fastfisher.reference import ngd as ref

VARIANCES = {"relu": (2.0, 0.1), "tanh": (3.0, 0.64)}


def network(
    widths: tuple[int, ...], activation: str = "relu", *, bias: bool = True, seed: int = 0
) -> ff.models.MLP:
    sigma_w2, sigma_b2 = VARIANCES[activation]
    return ff.models.MLP(
        widths, activation=activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2 if bias else 0.0,
        parameterization="ntk", seed=seed,
    )  # type: ignore[arg-type]  # fmt: skip


def gaussian(n: int, m: int, seed: int = 100) -> Any:
    return np.random.default_rng(seed).standard_normal((n, m))


def theta(J: ff.Jacobian, structure: Any, relative: float) -> Any:
    size = J.shape[0]
    return ff.ngd.function_space_matrix(J, structure=structure, relative_damping=relative).reshape(
        size, size
    )


def isotropy(matrix: Any) -> tuple[float, float, float]:
    """alpha, condition number, defect."""
    symmetric = (matrix + matrix.T) / 2
    w = np.linalg.eigvalsh(symmetric)
    alpha = np.trace(matrix) / len(matrix)
    defect = np.linalg.norm(matrix - alpha * np.eye(len(matrix))) / np.linalg.norm(matrix)
    return float(alpha), float(w[-1] / w[0]), float(defect)


def alpha_of(structure: str, depth: int, n: int) -> float:
    return {
        "full": 1, "layer": depth, "tridiagonal": (depth + 2) // 3, "kfac": n * (depth - 1) + 1
    }[structure]  # fmt: skip


@pytest.mark.parametrize("structure", ["full", "layer", "tridiagonal", "kfac"])
@pytest.mark.parametrize(("depth", "n", "c"), [(3, 30, 1), (4, 30, 1), (3, 12, 3)])
def test_T6_1_isotropic_condition(depth: int, n: int, c: int, structure: str) -> None:
    widths = (300,) * depth + (c,)
    J = network(widths).jacobian(gaussian(n, 300))
    expected = alpha_of(structure, depth, n)
    got = theta(J, structure, 1e-9)
    assert np.abs(got / expected - np.eye(n * c)).max() < 1e-6


def brute_force(J: ff.Jacobian, structure: Any, e: Any, rho: float) -> Any:
    """Update by matrices over all parameters, by definition; K-FAC with rho on both factors."""
    n, c = e.shape
    dense = J.dense().reshape(n, c, -1)
    whole = fisher_reference.fisher(dense, np.zeros((n, c)))
    layers, start = [], 0  # positions (o, i) of each weight, the bias last
    for layer in J.layers:
        o, i = layer.out_features, layer.in_features
        table = start + np.arange(o * i).reshape(o, i)
        start += layer.parameters
        layers.append(np.c_[table, np.arange(start - o, start)] if layer.bias else table)
    if structure == "kfac":
        gradient = ref.gradient(dense, e)
        result = np.zeros_like(gradient)
        for layer, at in zip(J.layers, layers, strict=True):
            a = np.c_[layer.a, np.ones((n, int(layer.bias)))]
            factors = fisher_reference.kfac(a[:, None], layer.g[:, :, None], scale=1 / n)
            result[at] = ref.kfac_update(gradient[at], *factors, rho, rho)
        return result
    if structure in ("layer", "tridiagonal"):
        near = structure == "tridiagonal"
        whole = fisher_reference.keep(whole, [at.reshape(-1) for at in layers], neighbours=near)
    elif structure != "full":
        size = {"unit": 10**6, "diagonal": 1}.get(str(structure)) or structure[1]
        parts = [u[k : k + size] for at in layers for u in at for k in range(0, len(u), size)]
        whole = fisher_reference.keep(whole, parts)
    return ref.update(dense, e, whole, rho)


@pytest.mark.parametrize(
    "structure", ["full", "layer", "tridiagonal", "kfac", "unit", ("block", 2), "diagonal"], ids=str
)
@pytest.mark.parametrize("n", [4, 40], ids=["few samples", "many samples"])
@pytest.mark.parametrize("c", [1, 2])
def test_T6_2_dual_update_equals_parameter_update(structure: Any, n: int, c: int) -> None:
    mlp = network((5, 6, 4, c), "tanh")
    J, other = mlp.jacobian(gaussian(n, 5)), mlp.jacobian(gaussian(3, 5, 7))
    e = np.random.default_rng(1).standard_normal((n, c))
    expected = brute_force(J, structure, e, 1e-2)
    options: dict[str, Any] = {"structure": structure, "damping": 1e-2}
    for space in ("sample", "parameter", "auto"):
        step = ff.ngd.update(J, e, space=space, **options)  # type: ignore[arg-type]
        assert np.abs(step.vector - expected).max() < 1e-9 * np.abs(expected).max()
    assert np.allclose(step.function_change.reshape(-1), J @ expected)
    matrix = ff.ngd.function_space_matrix(J, **options)
    assert np.allclose(np.tensordot(matrix, e, 2), step.function_change)
    away = ff.ngd.function_space_matrix(J, other=other, **options)
    assert np.allclose(np.tensordot(away, e, 2), step.predict(other))


@pytest.mark.parametrize(("activation", "gamma"), [("relu", 0.5), ("tanh", 1.0)])
@pytest.mark.parametrize("c", [1, 3])
def test_T6_3_unit_wise(activation: str, gamma: float, c: int) -> None:
    n = 30 if c == 1 else 10
    widths = (300, 300, 300, c)
    J = network(widths, activation, bias=False).jacobian(gaussian(n, 300))
    alpha, condition, _ = isotropy(theta(J, "unit", 1e-6))
    assert alpha == pytest.approx(gamma * sum(widths[1:-1]) / c + 1, rel=0.04)
    if c == 1:
        assert condition < 1.3


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_T6_4_over_coarse(activation: str) -> None:
    n = 60
    J = network((120, 240, 240, 1), activation, bias=False).jacobian(gaussian(n, 120))
    defects = [isotropy(theta(J, ("block", b), 1e-6))[2] for b in (n, n // 2, n // 4, n // 10, 1)]
    assert all(x < y for x, y in itertools.pairwise(defects))
    assert defects[0] < 0.06
    assert isotropy(theta(J, "unit", 1e-6))[2] < 0.06
    assert isotropy(theta(J, ("block", 120), 1e-6))[2] < 0.06


def test_T6_5_low_input_dimension() -> None:
    n, m0 = 40, 15
    x = gaussian(n, m0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mlp = network((m0, 300, 300, 1), bias=False)
    _, before, _ = isotropy(theta(mlp.jacobian(x), "kfac", 1e-9))
    z = ff.theory.forster_transform(x)
    alpha, after, _ = isotropy(theta(mlp.jacobian(z), "kfac", 1e-9))
    assert before > 1.1
    assert after - 1 < 1e-5
    assert alpha == pytest.approx(n * (3 - 2) + m0 + 1, rel=1e-5)


def test_T6_8_cross_entropy() -> None:
    n, c = 6, 3
    mlp = network((20, 60, 60, c), "tanh")
    x = gaussian(n, 20)
    J, f = mlp.jacobian(x), mlp(x)
    y = np.random.default_rng(2).integers(0, c, n)
    r = np.stack([fisher_reference.softmax(one) for one in f]) - np.eye(c)[y]
    kernel = J.gram().reshape(n * c, n * c)
    F = ff.fisher(J, likelihood="categorical")
    step = ff.ngd.update(F, r, damping=1e-4)
    dual = ref.dual_change(kernel, f, "categorical", r, 1e-4)
    assert np.abs(step.function_change - dual).max() < 1e-10 * np.abs(dual).max()
    assert step.space == "sample"
    hessians = [fisher_reference.hessian("categorical", one) for one in f]
    newton = np.stack(
        [np.linalg.pinv(h, rcond=1e-10) @ e for h, e in zip(hessians, r, strict=True)]
    )
    errors = []
    for rho in (1e-6, 1e-7):
        change = ff.ngd.update(F, r, damping=rho).function_change
        centred = change - change.mean(1, keepdims=True)
        errors.append(np.linalg.norm(centred - newton) / np.linalg.norm(newton))
    assert errors[1] < 1e-4
    assert 9 <= errors[0] / errors[1] <= 11
    # Damped outputs ("exact + MSE"): (H + rho)^-1 r.
    change = ff.ngd.update(F, r, damping=1e-2, damp="outputs").function_change
    damped = np.stack(
        [np.linalg.solve(h + 1e-2 * np.eye(c), e) for h, e in zip(hessians, r, strict=True)]
    )
    assert np.abs(change - damped).max() < 1e-8 * np.abs(damped).max()


def test_T6_9_tridiagonal() -> None:
    n = 30
    x = gaussian(n, 300)
    J = network((300,) * 5 + (1,)).jacobian(x)
    got = theta(J, "tridiagonal", 1e-6)
    assert np.abs(got - 2 * np.eye(n)).max() < 1e-4 * 2
    exact = ff.ngd.function_space_matrix(J, structure="tridiagonal").reshape(n, n)
    assert np.abs(exact - 2 * np.eye(n)).max() < 1e-6
    small = network((4, 5, 6, 1), "tanh").jacobian(gaussian(8, 4))
    F = ff.fisher(small, structure="tridiagonal")
    w = np.linalg.eigvalsh(F.dense())
    assert w[0] < -1e-3 * w[-1]
    v = np.random.default_rng(0).standard_normal(F.shape[0])
    rho = 0.5 * abs(w[0])  # Cholesky would fail: F + rho is indefinite
    residual = F.dense() @ F.solve(v, damping=rho) + rho * F.solve(v, damping=rho) - v
    assert np.abs(residual).max() < 1e-10 * np.abs(v).max()
    assert (
        ff.ngd.update(small, np.ones((8, 1)), structure="tridiagonal", damping=rho).solver == "lu"
    )
    for raising in (
        lambda: F.solve(v, damping=-w[0]),
        lambda: ff.ngd.update(F, np.ones((8, 1)), damping=-w[0], space="sample"),
        lambda: ff.ngd.update(F, np.ones((8, 1)), damping=-w[0], space="parameter"),
    ):
        with pytest.raises(ff.errors.NumericalError, match="negative of an eigenvalue"):
            raising()
    # At L = 2 the tri-diagonal matrix is the exact one, also away from the samples.
    two = network((40, 50, 1))
    x, other = gaussian(10, 40), two.jacobian(gaussian(7, 40, 5))
    J, e = two.jacobian(x), np.random.default_rng(3).standard_normal((10, 1))
    limit = ff.ngd.update(J, e, structure="tridiagonal")
    assert limit.solver == "limit"
    full = ff.ngd.update(J, e, structure="full")
    expected = full.predict(other)
    assert np.abs(limit.predict(other) - expected).max() < 1e-6 * np.abs(expected).max()
