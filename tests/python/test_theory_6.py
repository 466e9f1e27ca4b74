# SPDX-License-Identifier: Apache-2.0
"""Natural gradient and its approximations: acceptance tests T6.1 to T6.9."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import fastfisher as ff

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


def brute_force(J: ff.Jacobian, structure: Any, e: Any, rho: float, n: int) -> Any:
    """Update by the P x P matrix; K-FAC with damping on both factors."""
    dense = J.dense()
    gradient = dense.T @ e / n
    if structure != "kfac":
        F = ff.fisher(J, structure=structure).dense()
        return np.linalg.solve(F + rho * np.eye(len(F)), gradient)
    parts, start = [], 0
    for layer in J.layers:
        o, i = layer.out_features, layer.in_features
        own = gradient[start : start + layer.parameters]
        start += layer.parameters
        a = np.concatenate([layer.a, np.ones((len(layer.a), int(layer.bias)))], 1)
        g = layer.g.reshape(-1, o)
        matrix = np.concatenate([own[: o * i].reshape(o, i), own[o * i :].reshape(-1, 1)], 1) \
            if layer.bias else own.reshape(o, i)  # fmt: skip
        left = np.linalg.inv(g.T @ g / n + rho * np.eye(o))
        solved = left @ matrix @ np.linalg.inv(a.T @ a / n + rho * np.eye(a.shape[1]))
        parts += [solved[:, :i].reshape(-1), solved[:, i:].reshape(-1)]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "structure", ["full", "layer", "tridiagonal", "kfac", "unit", ("block", 2), "diagonal"], ids=str
)
@pytest.mark.parametrize("n", [4, 40], ids=["few samples", "many samples"])
@pytest.mark.parametrize("c", [1, 2])
def test_T6_2_dual_update_equals_parameter_update(structure: Any, n: int, c: int) -> None:
    J = network((5, 6, 4, c), "tanh").jacobian(gaussian(n, 5))
    e = np.random.default_rng(1).standard_normal((n, c))
    step = ff.ngd.update(J, e, structure=structure, damping=1e-2)
    expected = brute_force(J, structure, e.reshape(-1), 1e-2, n)
    assert np.abs(step.vector - expected).max() < 1e-9 * np.abs(expected).max()
    assert np.allclose(step.function_change.reshape(-1), J @ expected)
    matrix = ff.ngd.function_space_matrix(J, structure=structure, damping=1e-2)
    assert np.allclose(np.tensordot(matrix, e, 2), step.function_change)
    other = network((5, 6, 4, c), "tanh").jacobian(gaussian(3, 5, 7))
    away = ff.ngd.function_space_matrix(J, structure=structure, damping=1e-2, other=other)
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


def test_isotropy_tells_the_structures_apart() -> None:
    n = 20
    mlp, x = network((60, 120, 120, 1), "tanh", bias=False), gaussian(n, 60)
    found = ff.diagnostics.isotropy(
        mlp, x, structures=("full", "layer", "kfac", "unit", ("block", 5), "diagonal")
    )
    for structure in ("full", "layer", "kfac"):
        row = found[structure]
        assert row.alpha == pytest.approx(row.predicted, rel=1e-3)
        assert row.defect < 1e-3
        assert all(row.conditions.values())
    assert found["unit"].alpha == pytest.approx(found["unit"].predicted, rel=0.05)
    assert found["diagonal"].defect > 0.3 > 0.1 > found["unit"].defect
    assert found[("block", 5)].conditions["N <= b"] is False
    assert found.cheapest in ("full", "kfac")
    assert found["diagonal"].cost < found["unit"].cost
    assert "N <= b" in str(found)
    narrow = ff.diagnostics.isotropy(
        mlp.jacobian(gaussian(80, 60)), structures=("kfac",), threshold=0.01
    )
    assert narrow["kfac"].predicted is None
    assert narrow.cheapest is None
    with pytest.raises(ValueError, match="threshold"):
        ff.diagnostics.isotropy(mlp, x, threshold=-1.0)


def test_T6_5_low_input_dimension() -> None:
    n, m0 = 40, 15
    x = gaussian(n, m0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mlp = network((m0, 300, 300, 1), bias=False)
    _, before, _ = isotropy(theta(mlp.jacobian(x), "kfac", 1e-9))
    z = x
    for _ in range(2000):  # Forster
        w, q = np.linalg.eigh(z.T @ z)
        z = z @ (q / np.sqrt(w)) @ q.T
        z /= np.linalg.norm(z, axis=1, keepdims=True)
    alpha, after, _ = isotropy(theta(mlp.jacobian(z), "kfac", 1e-9))
    assert before > 1.1
    assert after - 1 < 1e-5
    assert alpha == pytest.approx(n * (3 - 2) + m0 + 1, rel=1e-5)


def softmax(f: Any) -> Any:
    e = np.exp(f - f.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_T6_8_cross_entropy() -> None:
    n, c = 6, 3
    mlp = network((20, 60, 60, c), "tanh")
    x = gaussian(n, 20)
    J, f = mlp.jacobian(x), mlp(x)
    y = np.random.default_rng(2).integers(0, c, n)
    p = softmax(f)
    r = p - np.eye(c)[y]
    lam = np.zeros((n * c, n * c))
    for t in range(n):
        at = slice(t * c, (t + 1) * c)
        lam[at, at] = np.diag(p[t]) - np.outer(p[t], p[t])
    kernel = J.gram().reshape(n * c, n * c)
    F = ff.fisher(J, likelihood="categorical")
    step = ff.ngd.update(F, r, damping=1e-4)
    dual = kernel / n @ np.linalg.solve(lam @ kernel / n + 1e-4 * np.eye(n * c), r.reshape(-1))
    size = np.abs(dual).max()
    assert np.abs(step.function_change.reshape(-1) - dual).max() < 1e-10 * size
    newton = np.stack(
        [
            np.linalg.pinv(lam[at : at + c, at : at + c], rcond=1e-10) @ r[t]
            for t, at in enumerate(range(0, n * c, c))
        ]
    )
    errors = []
    for rho in (1e-6, 1e-7):
        change = ff.ngd.update(F, r, damping=rho).function_change
        centred = change - change.mean(1, keepdims=True)
        errors.append(np.linalg.norm(centred - newton) / np.linalg.norm(newton))
    assert errors[1] < 1e-4
    assert 9 <= errors[0] / errors[1] <= 11


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
    # At L = 2 the tri-diagonal matrix is the exact one, also away from the samples.
    two = network((40, 50, 1))
    x, other = gaussian(10, 40), two.jacobian(gaussian(7, 40, 5))
    J, e = two.jacobian(x), np.random.default_rng(3).standard_normal((10, 1))
    limit = ff.ngd.update(J, e, structure="tridiagonal")
    assert limit.solver == "limit"
    full = ff.ngd.update(J, e, structure="full")
    expected = full.predict(other)
    assert np.abs(limit.predict(other) - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("structure", "bar"), [("full", 0.03), ("layer", 0.04)])
def test_training_follows_the_curve(structure: str, bar: float) -> None:
    """T6.6 at a width that tests can afford: the loss after four steps."""
    n, width = 20, 1024
    x = gaussian(n, 50)
    mlp = network((50, width, width, 1), bias=False)
    y = np.sin(x[:, :1])
    alpha = 1 if structure == "full" else 3
    e0 = mlp(x) - y
    for _ in range(4):
        J, f = mlp.jacobian(x), mlp(x)
        step = ff.ngd.update(J, f - y, structure=structure, relative_damping=1e-9)
        vector = J.flatten(mlp.parameters) - 0.5 / alpha * step.vector
        mlp = mlp.with_parameters(vector)
    loss = float(((mlp(x) - y) ** 2).sum())
    theory = float((e0**2).sum()) * 0.5**8
    assert abs(math.sqrt(loss / theory) - 1) < 6 * bar
