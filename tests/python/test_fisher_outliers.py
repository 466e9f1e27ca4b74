# SPDX-License-Identifier: Apache-2.0
"""Fisher eigenvalues that stand out: found by few products, proved, and what happens if none do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _fisher_eigsh, _fisher_outliers
from fastfisher._dual_products import Dual, Likeness

N, C = 150, 8
Host = np.ndarray[Any, Any]


def mlp_jacobian(dtype: str = "float32", *, seed: int = 0, n: int = N, width: int = 300) -> Any:
    """Wide ReLU network with biases: C outliers."""
    x = np.random.default_rng(seed).standard_normal((n, 300)).astype(dtype)
    mlp = ff.models.MLP((300, width, width, C), activation="relu", sigma_b2=1.0, dtype=dtype)
    return ff.jacobian(mlp, x)


def wide(j: Any) -> Any:
    return ff.Jacobian.from_factors(
        [ff.Dense(x.a.astype(float), x.g.astype(float), bias=x.bias) for x in j.layers]
    )


def truth_matrix(j: Any, scale: float) -> Host:
    """``scale J J^T`` in float64."""
    rows = j.shape[0]
    return np.asarray(wide(j).gram().reshape(rows, rows) * scale)


def truth(j: Any, scale: float) -> Host:
    """All eigenvalues, descending, in float64."""
    return np.linalg.eigvalsh(truth_matrix(j, scale))[::-1]


def residuals(j: Any, scale: float, found: Any) -> Host:
    """Of the pairs as they are, in float64."""
    wider, v = wide(j), found.vectors.astype(float)
    return np.linalg.norm(wider.T @ (wider @ v) * scale - v * found.values.astype(float), axis=0)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the looks for outliers of this test found."""
    found: list[Any] = []

    def watched(*args: Any, **options: Any) -> Any:
        found.append(_fisher_outliers.outliers(*args, **options))
        return found[-1]

    monkeypatch.setattr(_fisher_eigsh, "outliers", watched)
    return found


def check(F: Any, k: int, *, tol: float = 0, digits: float = 4e-6, **options: Any) -> Any:
    """Pairs against the whole spectrum; residual norms are no smaller than they say."""
    found = F.eigsh(k, tol=tol, **options)
    expected = truth(F.rows, F.scale)
    np.testing.assert_allclose(found.values, expected[:k], rtol=0, atol=digits * expected[0])
    v = found.vectors.astype(float)
    assert np.abs(v.T @ v - np.eye(k)).max() < 2e-6
    real = residuals(F.rows, F.scale, found)
    assert (real <= found.residual_norms + 2e-7 * expected[0]).all()
    assert (real <= max(tol, 4e-6) * expected[0]).all()
    return found


@pytest.mark.parametrize("which", ["LA", "LM"])
@pytest.mark.parametrize("k", [1, 5, C])
def test_outliers_equal_the_spectrum(k: int, which: str, looks: list[Any]) -> None:
    found = check(ff.fisher(mlp_jacobian()), k, which=which)
    assert looks == [looks[0]]
    assert looks[0] is not None
    assert found.converged.all()
    assert found.certified
    assert found.matvecs < 60


@pytest.mark.parametrize("tiny", [1.0, 1e-13])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0])
def test_what_the_likeness_lacks_is_bounded(spread: float, dtype: str, tiny: float) -> None:
    rng = np.random.default_rng(0)
    n, c = 40, 3
    layers = []
    for i, o in ((7, 30), (90, 3), (20, 20)):
        sizes = np.exp(spread * rng.standard_normal((n, 1)))
        g = sizes[:, None] * (1 + rng.standard_normal((n, c, o)))
        a = tiny * (1 + rng.standard_normal((n, i)))
        layers.append(ff.Dense(a.astype(dtype), (g / tiny).astype(dtype)))
    dual = Dual(layers, 0.1)
    likeness, every = dual.likeness(), np.eye(n * c)
    exact = truth_matrix(ff.Jacobian.from_factors(layers), 0.1)
    lacks = np.linalg.norm(exact - likeness.product(every), 2)
    assert lacks <= likeness.missing()
    if spread < 1:  # norms of Frobenius for n samples and blocks of c rows
        assert likeness.missing() <= 2 * np.sqrt(n) * c * lacks + 1e-6 * np.linalg.norm(exact)


def test_the_proof_falls_back_to_the_matrix(
    looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    j = mlp_jacobian()
    few = ff.fisher(j).eigsh(C)
    monkeypatch.setattr(Likeness, "missing", lambda self: np.inf)
    more = check(ff.fisher(j), C)
    assert None not in looks
    assert few.matvecs < more.matvecs


def test_residual_norms_bound_the_real_ones(looks: list[Any]) -> None:
    for seed in range(3):
        F = ff.fisher(mlp_jacobian(seed=seed), reduction="sum")
        found = F.eigsh(C, seed=seed)
        assert (residuals(F.rows, F.scale, found) <= found.residual_norms).all()
    assert None not in looks


def graded(orders: int, seed: int, dev: float = 1e-4) -> Any:
    """Cotangents of few levels that overlap: outliers over some orders of magnitude."""
    rng = np.random.default_rng(seed)
    w = np.zeros((C, 256))
    w[0] = 1
    for k in range(1, C):
        first, size = (0, 64) if k == 1 else (32 * (k - 2), 24 + 4 * k)
        w[k, first : first + size] = 1
        w[k, first + size : first + 2 * size] = -1
    w *= (np.logspace(0, -orders / 2, C) / np.linalg.norm(w, axis=1))[:, None]
    g = w * (1 + dev * rng.standard_normal((N, C, 1)))
    g += 1e-2 * dev * rng.standard_normal((N, C, 256)) * np.linalg.norm(w, axis=1)[:, None]
    a = 0.7 + dev * rng.standard_normal((N, 300))
    return ff.Jacobian.from_factors([ff.Dense(a.astype("float32"), g.astype("float32"))])


@pytest.mark.parametrize("orders", [2, 3, 4])
def test_residual_norms_of_small_outliers(orders: int, looks: list[Any]) -> None:
    for seed in range(2):
        F = ff.fisher(graded(orders, seed))
        found = check(F, C)
        assert (residuals(F.rows, F.scale, found) <= found.residual_norms).all()
    assert None not in looks


def test_a_layer_whose_inputs_are_zero(looks: list[Any]) -> None:
    j = mlp_jacobian()
    added = ff.Dense(np.zeros((N, 20), "float32"), j.layers[0].g, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(ff.fisher(ff.Jacobian.from_factors([*j.layers, added])), C)
    assert looks[-1] is not None


def test_rows_whose_squares_vanish_are_left_to_others(looks: list[Any]) -> None:
    rng = np.random.default_rng(0)
    a = 1e-3 * (1 + 1e-3 * rng.standard_normal((N, 300)))
    g = np.zeros((N, C, C * 40))
    for c in range(C):
        g[:, c, 40 * c : 40 * c + 40] = 1e-6 * (0.3 + 3e-4 * rng.standard_normal((N, 40)))
    a[140:] = g[140:] = 0
    tiny, vast = np.zeros((N, 40)), np.zeros((N, C, 16))
    tiny[140:, 1:] = 1e-24 * rng.standard_normal((10, 39))
    tiny[0, 0] = 1e-9
    vast[140:] = 3e16 * rng.standard_normal((10, C, 16))
    layers = [ff.Dense(x.astype("float32"), y.astype("float32")) for x, y in ((a, g), (tiny, vast))]
    F = ff.fisher(ff.Jacobian.from_factors(layers), reduction="sum")
    expected = truth(F.rows, F.scale)[:C]
    np.testing.assert_allclose(F.eigsh(C).values, expected, rtol=1e-4)
    assert not looks


@pytest.mark.parametrize("k", [C + 1, 20])
def test_nothing_stands_out_after_the_last_wanted_one(k: int, looks: list[Any]) -> None:
    check(ff.fisher(mlp_jacobian()), k)
    assert all(x is None for x in looks)


def test_softmax_has_one_outlier_less(looks: list[Any]) -> None:
    j = mlp_jacobian()
    nearly_uniform = ff.Jacobian.from_factors(j.layers, outputs=0.05 * j.outputs)
    F = ff.fisher(nearly_uniform, likelihood="categorical")
    check(F, C - 1)
    assert looks[-1] is not None
    check(F, C)
    assert looks[-1] is None


def test_tolerances_in_float64(looks: list[Any]) -> None:
    F = ff.fisher(mlp_jacobian("float64"))
    check(F, 4, digits=1e-12)
    assert not looks  # to all digits the Gram matrix is cheaper
    found = check(F, 4, tol=1e-7, digits=1e-12)
    assert looks[0] is not None
    assert (found.residual_norms <= 1e-7 * found.values[0]).all()
    for tol in (-1.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="tol: expected a finite number >= 0 and < 1"):
            F.eigsh(4, tol=tol)


@pytest.mark.parametrize("misses", [0, C - 1])
def test_a_start_orthogonal_to_an_eigenvector(
    misses: int, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    F = ff.fisher(mlp_jacobian())
    dual = F.rows.gram().reshape(N * C, N * C).astype(float)
    vectors = np.linalg.eigh(dual)[1][:, ::-1]
    kept = np.delete(vectors[:, : C + 1], misses, axis=1)
    monkeypatch.setattr(_fisher_outliers, "_start", lambda *_: (kept, np.inf))
    check(F, C)
    assert looks == [None]


def test_one_sample_holds_all_the_curvature(
    looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    j = mlp_jacobian()
    layers = []
    for layer in j.layers:
        g = layer.g.copy()
        g[17] *= 300
        layers.append(ff.Dense(layer.a, g, bias=layer.bias))
    F = ff.fisher(ff.Jacobian.from_factors(layers))
    found = check(F, C)
    assert found.certified
    # And with a start that knows the other samples only.
    others = np.zeros((N * C, C))
    others[np.arange(16 * C), np.tile(np.arange(C), 16)] = 0.25
    monkeypatch.setattr(_fisher_outliers, "_start", lambda *_: (others, np.inf))
    check(F, C)
    assert looks[-1] is None


def test_equal_outliers_are_all_found(looks: list[Any]) -> None:
    rng = np.random.default_rng(0)
    a = (0.05 * rng.standard_normal((N, 300)) + 1).astype("float32")
    g = np.zeros((N, C, C * 40), "float32")
    own = (0.05 * rng.standard_normal((N, 40)) + 0.3).astype("float32")
    for c in range(C):
        g[:, c, 40 * c : 40 * (c + 1)] = own
    F = ff.fisher(ff.Jacobian.from_factors([ff.Dense(a, g)]))
    found = check(F, C)
    assert looks[-1] is not None
    assert np.ptp(found.values) < 1e-5 * found.values[0]
    check(F, 3)


def test_ranks_that_are_small(looks: list[Any]) -> None:
    j = mlp_jacobian()
    same = [
        ff.Dense(x.a[:1].repeat(N, 0), x.g[:1].repeat(N, 0), bias=x.bias) for x in j.layers
    ]  # one sample, N times: rank C
    F = ff.fisher(ff.Jacobian.from_factors(same))
    check(F, C)
    check(F, 2)
    nothing = [ff.Dense(x.a * 0, x.g * 0) for x in j.layers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero = ff.fisher(ff.Jacobian.from_factors(nothing)).eigsh(3)
    assert not zero.values.any()
    assert not zero.residual_norms.any()


def test_extreme_factors_and_strides(looks: list[Any]) -> None:
    j = mlp_jacobian()
    huge = [ff.Dense(x.a * 1e10, x.g * 1e10, bias=False) for x in j.layers]
    with pytest.raises(ff.errors.FastfisherError):
        ff.fisher(ff.Jacobian.from_factors(huge)).eigsh(3)
    strided = [
        ff.Dense(np.asfortranarray(x.a), np.repeat(x.g, 2, 2)[:, :, ::2], bias=x.bias)
        for x in j.layers
    ]
    check(ff.fisher(ff.Jacobian.from_factors(strided)), C)
    assert looks[-1] is not None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_without_parameters(dtype: str, rng: np.random.Generator) -> None:
    j = mlp_jacobian(dtype, n=30, width=50)
    layers = [ff.Dense(x.a, x.g, bias=i != 1) for i, x in enumerate(j.layers)]
    j = ff.Jacobian.from_factors(layers)
    u = rng.standard_normal((30 * C, 3))
    expected = 0.5 * wide(j).gram().reshape(30 * C, -1) @ u
    error = np.abs(Dual(layers, 0.5).product(u) - expected).max()
    assert error < 20 * np.finfo(dtype).eps * np.abs(expected).max()
    # The likeness is the matrix itself if cotangents do not change between the samples.
    layers = [ff.Dense(x.a, x.g[:1].repeat(30, 0), bias=x.bias) for x in layers]
    expected = 0.5 * wide(ff.Jacobian.from_factors(layers)).gram().reshape(30 * C, -1) @ u
    error = np.abs(Dual(layers, 0.5).likeness().product(u) - expected).max()
    assert error < 60 * np.finfo(dtype).eps * np.abs(expected).max()
