# SPDX-License-Identifier: Apache-2.0
"""Operators near the ends of the range, and arguments that do not fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import linalg

N = 220


def matrix(n: int = N) -> np.ndarray[Any, Any]:
    a = np.random.default_rng(0).standard_normal((n, n))
    return a @ a.T / n + np.eye(n)


def given(a: np.ndarray[Any, Any], kind: str) -> tuple[Any, dict[str, Any]]:
    return (a, {}) if kind == "dense" else ((lambda v: a @ v), {"n": len(a)})


KINDS = pytest.mark.parametrize("kind", ["dense", "function"])
SCALES = pytest.mark.parametrize("scale", [1e-300, 1e-164, 1e-40, 1e40, 1e170, 1e300])


@KINDS
@SCALES
@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("n", [30, N])
def test_eigenpairs(kind: str, scale: float, block: int | None, n: int) -> None:
    a = matrix(n)
    A, size = given(a * scale, kind)
    found = linalg.eigsh(A, 3, block=block, max_iter=200, **size)
    values = found.values / scale
    assert np.allclose(values, np.linalg.eigvalsh(a)[::-1][:3], rtol=1e-12)
    residuals = np.linalg.norm(a @ found.vectors - found.vectors * values, axis=0)
    assert (residuals <= 1e-11).all()
    assert np.allclose(found.residual_norms / scale, residuals, atol=1e-13), "as they are"
    assert found.converged.all()


@KINDS
@SCALES
def test_traces_determinants_densities(kind: str, scale: float) -> None:
    a = matrix()
    (A, size), (B, _) = given(a * scale, kind), given(a, kind)
    one, plain = linalg.trace(A, matvecs=48, **size), linalg.trace(B, matvecs=48, **size)
    assert math.isclose(one.value / scale, plain.value, rel_tol=1e-12)
    assert math.isclose(one.error / scale, plain.error, rel_tol=1e-9)
    exact = linalg.trace(A, matvecs=N, **size)
    assert math.isclose(exact.value / scale, np.trace(a), rel_tol=1e-12)
    for damping in (0.0, 0.5):
        one = linalg.logdet(A, damping=damping * scale, **size)
        plain = linalg.logdet(B, damping=damping, **size)
        assert math.isclose(one.value, plain.value + N * math.log(scale), rel_tol=1e-12)
        assert math.isclose(one.error, plain.error, rel_tol=1e-6)
    density, ordinary = linalg.spectral_density(A, **size), linalg.spectral_density(B, **size)
    assert np.allclose(density.grid / scale, ordinary.grid, atol=1e-12)
    assert np.allclose(density.density * scale, ordinary.density, atol=1e-8)
    assert math.isclose(density.mean / scale, ordinary.mean, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@KINDS
@pytest.mark.parametrize("part", [-0.97, -0.5, 0.5, 0.97])
@pytest.mark.parametrize("prepared", [False, True])
def test_conjugate_gradients(dtype: str, kind: str, part: float, prepared: bool) -> None:
    scale = float(np.finfo(dtype).max) ** part
    diagonal = np.linspace(1, 2, 50)
    A, size = given(np.diag(diagonal * scale).astype(dtype), kind)
    use = {"preconditioner": lambda r: r / diagonal[:, None] / scale} if prepared else {}
    b = np.ones(50, dtype)
    if kind == "function":
        # Functions work in float64; their products may come in any dtype.
        size["n"] = 50
    found = linalg.cg(A, b, damping=0.25 * scale, tol=1e-6, **use, **size)
    assert found.converged
    assert found.residual_norms[0] <= 1.1e-6
    x = found.x.astype(np.float64) * scale
    assert np.abs(x * (diagonal + 0.25) - 1).max() <= 3e-6
    assert found.iterations <= (40 if not prepared else 20)


def test_functions_that_begin_with_nothing() -> None:
    """A first product of zero says nothing of the scale."""
    a = np.diag(np.r_[np.zeros(110), np.arange(1.0, 111)]) * 1e-200
    start = np.eye(220)[:, :2]
    found = linalg.eigsh(lambda v: a @ v, 2, n=220, v0=start, block=2)
    assert np.allclose(found.values / 1e-200, [110, 109])
    assert found.converged.all()


def test_determinants_of_differences_that_are_rounding() -> None:
    with pytest.raises(ff.errors.NotPositiveDefiniteError, match="positive definite"):
        linalg.logdet(np.diag(np.arange(1.0, 7)), damping=-1)
    value = linalg.logdet(np.diag(np.arange(1.0, 7)), damping=-0.5).value
    assert math.isclose(value, np.log(np.arange(1, 7) - 0.5).sum(), rel_tol=1e-12)


NO_NUMBERS = [None, "a", math.nan, math.inf, [1], 1j, np.array([1.0, 2.0]), 10**400]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    "name",
    [
        *("eigsh k", "eigsh tol", "eigsh seed", "eigsh max_iter", "eigsh block"),
        *("trace matvecs", "trace seed", "logdet damping", "logdet steps", "logdet probes"),
        *("spectral_density sigma", "spectral_density points", "spectral_density seed"),
        *("cg damping", "cg tol", "cg max_iter"),
    ],
)
def test_mistakes_name_the_argument(name: str, value: Any) -> None:
    op, argument = name.split()
    if value is None and argument in ("max_iter", "block", "sigma"):
        pytest.skip("None is the default")
    if isinstance(value, int) and argument not in ("tol", "damping", "sigma"):
        pytest.skip("an integer, however large")
    a = np.eye(6)
    calls = {
        "eigsh": lambda **kw: linalg.eigsh(a, **{"k": 1, **kw}),
        "cg": lambda **kw: linalg.cg(a, np.ones(6), **kw),
    }
    call = calls.get(op, lambda **kw: getattr(linalg, op)(a, **kw))
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        call(**{argument: value})


def test_dtypes_by_class_and_functions_that_are_none() -> None:
    a = np.diag(np.arange(1.0, 7)).astype(np.float32)
    found = linalg.eigsh(lambda v: a @ v, 1, n=6, dtype=np.float32)
    assert found.values.dtype == np.float32
    with pytest.raises(TypeError, match="preconditioner: expected a function"):
        linalg.cg(np.eye(3), np.ones(3), preconditioner=3)
    with pytest.raises(ValueError, match="n: expected an integer of at least 0"):
        linalg.eigsh(lambda v: v, 1, n="a")


@KINDS
def test_small_matrices_beside_large_dampings(kind: str) -> None:
    A, size = given(np.eye(4) * 1e-300, kind)
    assert math.isclose(linalg.logdet(A, damping=1e10, **size).value, 4 * math.log(1e10))
    assert np.allclose(linalg.cg(A, np.ones(4), damping=1e150, **size).x * 1e150, 1)


@pytest.mark.parametrize("size", [1e8, 1e-60, 1e60])
def test_a_first_direction_without_a_product(size: float) -> None:
    d, m = np.array([0.0, size]), np.array([[2.0, -1.0], [-1.0, 1.0]])
    found = linalg.cg(
        lambda v: d[:, None] * v, np.ones(2), damping=size / 10, preconditioner=lambda r: m @ r, n=2
    )
    assert found.converged
    assert np.allclose(found.x * (d + size / 10), 1)
