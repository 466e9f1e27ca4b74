# SPDX-License-Identifier: Apache-2.0
"""Hard input of the Fisher matrix: singular, zero, empty, tiny damping, mistakes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.structures import make
from fisher_cases import STRUCTURES

DAMPINGS = [1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e2]


def jacobian(
    n: int, widths: tuple[int, ...] = (4, 6, 5, 3), dtype: str = "float64", seed: int = 0
) -> ff.Jacobian:
    x = np.random.default_rng(seed).standard_normal((n, widths[0])).astype(dtype)
    mlp = ff.models.MLP(widths, activation="tanh", sigma_b2=0.1, seed=seed, dtype=dtype)  # type: ignore[arg-type]
    return mlp.jacobian(x)


def backward_error(matrix: Any, x: Any, v: Any, rho: float) -> float:
    residual = matrix @ x + rho * x - v
    size = (np.linalg.norm(matrix, 2) + rho) * np.linalg.norm(x) + np.linalg.norm(v)
    return float(np.linalg.norm(residual) / size)


@pytest.mark.parametrize("relative", DAMPINGS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n", [3, 60], ids=["sample space", "parameter space"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_solves_by_backward_error(structure: Any, n: int, dtype: str, relative: float) -> None:
    J = jacobian(n, dtype=dtype)
    wide = ff.Jacobian.from_factors(
        [
            ff.Dense(layer.a.astype(float), layer.g.astype(float), bias=layer.bias)
            for layer in J.layers
        ]
    )
    F, truth = ff.fisher(J, structure=structure), ff.fisher(wide, structure=structure).dense()
    size = len(truth)
    assert F.space == ("sample" if n == 3 else "parameter")
    rho = float(relative * np.trace(truth) / size)
    rng = np.random.default_rng(1)
    anything = rng.standard_normal(size).astype(dtype)
    gradient = (J.T @ rng.standard_normal(J.shape[0]).astype(dtype)) / J.samples
    for v in (anything, gradient):
        x = F.solve(v, damping=rho)
        error = backward_error(truth, x.astype(float), v.astype(float), rho)
        assert error <= 40 * np.finfo(dtype).eps, error


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_zero_fisher(structure: Any) -> None:
    J = ff.Jacobian.from_factors([ff.Dense(np.zeros((4, 3)), np.zeros((4, 2, 5)), bias=True)])
    F = ff.fisher(J, structure=structure)
    v = np.arange(20.0)
    assert not (F @ v).any()
    assert np.allclose(F.solve(v, damping=0.5), 2 * v, rtol=1e-14)
    assert F.trace() == F.frobenius_norm() == F.effective_dimension(damping=1.0) == 0
    assert np.isclose(F.logdet(damping=2.0), 20 * np.log(2.0))
    assert F.logdet(damping=0.0) == -np.inf
    with pytest.raises(ff.errors.NotPositiveDefiniteError, match="damping > 0"):
        F.solve(v, damping=0.0)
    assert not F.eigsh(2).values.any()


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_rank_deficient_without_damping_is_refused(structure: Any) -> None:
    x = np.repeat(np.random.default_rng(0).standard_normal((2, 4)), 10, 0)  # duplicates
    F = ff.fisher(ff.models.MLP((4, 6, 5, 3), activation="tanh"), x, structure=structure)
    if structure in ("diagonal", ("block", 2)):
        return  # regular: two samples span blocks of two
    with pytest.raises(ff.errors.NumericalError, match="damping"):
        F.solve(np.ones(F.shape[0]), damping=0.0)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_regular_without_damping(structure: Any) -> None:
    if structure == "tridiagonal":
        pytest.skip("indefinite: without damping regular by luck only")
    J = ff.Jacobian.from_factors(
        [
            ff.Explicit(np.random.default_rng(3).standard_normal((30, 2, 6))),
            ff.Dense(*np.split(np.random.default_rng(4).standard_normal((30, 5)), [3], 1)[:1],
                     np.random.default_rng(5).standard_normal((30, 2, 2)), bias=True),
        ]
    )  # fmt: skip
    F = ff.fisher(J, structure=structure)
    v = np.ones(F.shape[0])
    assert backward_error(F.dense(), F.solve(v, damping=0.0), v, 0.0) < 1e-14


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("n", [0, 1])
def test_few_samples(n: int, structure: Any) -> None:
    F = ff.fisher(jacobian(n), structure=structure)
    v = np.ones(F.shape[0])
    assert np.isfinite(F @ v).all()
    assert np.isfinite(F.solve(v, damping=0.1)).all()
    assert np.isfinite(F.trace())
    if n == 0:
        assert not (F @ v).any()
        assert F.dual().shape == (0, 0)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_scaled_factors(structure: Any) -> None:
    """Far from 1 in scale, where squares do not overflow: the same up to the factor."""
    J = jacobian(5)
    factor = 2.0**200
    big = ff.Jacobian.from_factors(
        [ff.Dense(layer.a, layer.g * factor, bias=layer.bias) for layer in J.layers]
    )
    small, large = ff.fisher(J, structure=structure), ff.fisher(big, structure=structure)
    v = np.ones(small.shape[0])
    assert np.allclose(large @ v, (small @ v) * factor**2, rtol=1e-12)
    rho = 1e-3 * small.trace() / small.shape[0]
    assert np.allclose(
        large.solve(v, damping=rho * factor**2) * factor**2, small.solve(v, damping=rho), rtol=1e-6
    )


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_non_finite_is_named(structure: Any) -> None:
    a = np.ones((4, 3))
    a[2, 1] = np.nan
    J = ff.Jacobian.from_factors([ff.Dense(a, np.ones((4, 2, 5)))])
    with pytest.raises(ff.errors.NonFiniteError, match=r"layer '0', a: .* nan at index \(2, 1\)"):
        ff.fisher(J, structure=structure)


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_infinity_in_kfac_is_refused_for_every_scale(scale: float) -> None:
    a, g = np.ones((4, 3)), np.ones((4, 2, 5))
    g[1, 0, 2] = np.inf
    with pytest.raises(ff.errors.NonFiniteError, match=r"layer '0', g: .* inf at index"):
        make("kfac", ff.Jacobian.from_factors([ff.Dense(a, g)]), scale)


def test_kfac_makes_factors_once_where_a_layer_is_zero(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Sums of zero do not tell the range: the scan does, and what was made is kept."""
    module = sys.modules["fastfisher.structures.kfac"]
    calls, real = [], module.blocks_of
    monkeypatch.setattr(module, "blocks_of", lambda *given: calls.append(0) or real(*given))
    a, g = rng.standard_normal((6, 3)), rng.standard_normal((6, 2, 5))
    layers = [ff.Dense(a, g), ff.Dense(a, np.zeros_like(g))]
    blocks = make("kfac", ff.Jacobian.from_factors(layers), 0.5).blocks
    assert len(calls) == 1
    rows = g.reshape(-1, 5)
    np.testing.assert_allclose(blocks[0].g, 0.5 * rows.T @ rows, rtol=1e-13)
    assert not blocks[1].g.any()


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"structure": "kronecker"}, ValueError, "structure: expected one of"),
    ({"structure": ("block", 0)}, ValueError, "integer b >= 1"),
    ({"kind": "true"}, ValueError, "kind: expected"),
    ({"likelihood": "poisson"}, ValueError, "likelihood: expected one of"),
    ({"likelihood": 3}, TypeError, "likelihood: expected a name"),
    ({"reduction": "none"}, ValueError, "reduction: expected"),
    ({"kind": "empirical"}, ValueError, "y: expected labels"),
    ({"y": np.zeros((5, 3))}, ValueError, "y: expected None"),
    ({"kind": "empirical", "y": np.zeros((4, 3))}, ValueError, r"y: expected shape \(5, 3\)"),
    ({"kind": "empirical", "y": np.full((5, 3), np.nan)}, ValueError, "y: expected finite"),
    (
        {"kind": "empirical", "likelihood": "categorical", "y": np.zeros(5)},
        TypeError,
        "integer dtype",
    ),
    (
        {"kind": "empirical", "likelihood": "categorical", "y": np.full(5, 3)},
        ValueError,
        "classes from 0 to 2",
    ),
    (
        {"kind": "empirical", "likelihood": "bernoulli", "y": np.full((5, 3), 2.0)},
        ValueError,
        "labels from 0 to 1",
    ),
    ({"kind": "mc", "samples": 0}, ValueError, "samples: expected"),
    ({"kind": "mc", "samples": 2.0}, ValueError, "samples: expected"),
    ({"structure": ("block", "2")}, ValueError, "with an integer b >= 1"),
    ({"structure": "kfac", "weight_sharing": "none"}, ValueError, "weight_sharing: expected"),
    ({"x": np.zeros((5, 4))}, ValueError, "x: expected None with a Jacobian"),
]


@pytest.mark.parametrize(("options", "error", "match"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ff.fisher(jacobian(5), **options)


def test_mistakes_of_methods() -> None:
    F = ff.fisher(jacobian(5))
    v = np.ones(F.shape[0])
    with pytest.raises(ValueError, match="v: expected shape"):
        F @ v[1:]
    with pytest.raises(ValueError, match="v0: expected shape"):
        F.eigsh(2, v0=v[1:])
    with pytest.raises(TypeError, match="dtype float64"):
        F @ v.astype(np.float32)
    with pytest.raises(ff.errors.NonFiniteError, match=r"v: expected finite .* index \(3,\)"):
        F @ np.where(np.arange(len(v)) == 3, np.inf, v)
    for damping in (-1.0, np.nan, "auto"):
        with pytest.raises(ValueError, match="damping: expected"):
            F.solve(v, damping=damping)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split: expected None"):
        F.solve(v, damping=1.0, split="pi")
    with pytest.raises(ValueError, match="outputs"):
        ff.fisher(ff.Jacobian.from_factors([ff.Explicit(np.ones((2, 1, 3)))]), kind="mc")
    with pytest.raises(ValueError, match="x: expected samples"):
        ff.fisher(ff.models.MLP((2, 2)))
    batch = ff.Dense(np.ones((2, 3, 4)), np.ones((2, 3, 1, 5)), batch=True)
    with pytest.raises(ValueError, match="batch of networks"):
        ff.fisher(ff.Jacobian.from_factors([batch]))


@pytest.mark.parametrize("normalization", ["mean", "batch", "layer"])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_normalised_outputs(normalization: Any, likelihood: str) -> None:
    mlp = ff.models.MLP((4, 6, 3), activation="tanh", normalization=normalization, seed=1)
    x = np.random.default_rng(0).standard_normal((7, 4))
    J = mlp.jacobian(x)
    dense, f = J.dense().reshape(7, 3, -1), mlp(x)
    expected = ff.reference.fisher.fisher(dense, f, likelihood=likelihood)
    for structure in ("full", "layer", "tridiagonal"):
        F = ff.fisher(mlp, x, likelihood=likelihood, structure=structure)
        kept = F.dense()
        if structure == "full":
            assert np.allclose(kept, expected, atol=1e-12)
            assert np.isclose(F.trace(), np.trace(expected))
            assert np.allclose(np.linalg.eigvalsh(F.dual())[-3:], np.linalg.eigvalsh(expected)[-3:])
        assert np.allclose(F.diagonal(), np.diag(expected))
    if normalization == "layer":
        assert ff.fisher(mlp, x, structure="kfac").trace() > 0
        return
    with pytest.raises(ValueError, match="normalised over the batch"):
        ff.fisher(mlp, x, structure="kfac")


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_vectors_of_any_strides(structure: Any) -> None:
    F = ff.fisher(jacobian(5), structure=structure)
    v = np.random.default_rng(0).standard_normal((F.shape[0], 3))
    wide = np.repeat(np.repeat(v, 2, 0), 2, 1)
    for same in (np.asfortranarray(v), wide[::2, ::2], v[::-1][::-1]):
        assert np.allclose(F @ same, F @ v, rtol=1e-12)
        assert np.allclose(F.solve(same, damping=0.1), F.solve(v, damping=0.1), rtol=1e-9)
    if structure == "kfac":
        for split in ("plain", "pi"):
            got = F.solve(np.asfortranarray(v), damping=0.1, split=split)
            assert np.allclose(got, F.solve(v, damping=0.1, split=split), rtol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_as_many_rows_as_parameters(structure: Any) -> None:
    rng = np.random.default_rng(0)
    layer = ff.Dense(rng.standard_normal((6, 6)), rng.standard_normal((6, 1, 1)))
    F = ff.fisher(ff.Jacobian.from_factors([layer]), structure=structure)
    truth, v = F.dense(), np.ones(6)
    if structure != "tridiagonal":
        assert np.allclose(truth @ F.solve(v, damping=0.0), v, atol=1e-8)
        root = F.inverse_sqrt(np.eye(6), damping=0.0)
        assert np.allclose(root @ truth @ root, np.eye(6), atol=1e-7)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize(("a", "g"), [(1e20, 1e-20), (1e15, 1e-24), (1e25, 1e-25)])
def test_squares_beyond_float32(a: float, g: float, structure: Any) -> None:
    layer = ff.Dense(np.float32([[a]]), np.float32([[[g]]]))
    F = ff.fisher(ff.Jacobian.from_factors([layer]), structure=structure)
    truth = (float(np.float32(a)) * float(np.float32(g))) ** 2
    for value in (F.trace(), F.dense()[0, 0], F.diagonal()[0], F.eigsh(1).values[0]):
        assert value == pytest.approx(truth, rel=1e-5)
    assert F.dense().dtype == F.diagonal().dtype == np.float32


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_null_directions_of_float32_factors(structure: Any) -> None:
    """Fewer samples than inputs: rounding leaves eigenvalues that must count as zero."""
    x = np.random.default_rng(0).standard_normal((32, 100))
    sizes = []
    for dtype in ("float32", "float64"):
        mlp = ff.models.MLP((100, 40, 5), activation="tanh", dtype=dtype)  # type: ignore[arg-type]
        F = ff.fisher(mlp, x.astype(dtype), structure=structure)
        sizes.append(F.effective_dimension(damping=1e-8))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)


def test_no_pairs_and_sure_classes() -> None:
    F = ff.fisher(jacobian(5))
    assert F.eigsh(0).values.shape == (0,)
    layer = ff.Dense(np.ones((1, 2)), np.ones((1, 2, 3)))
    sure = ff.Jacobian.from_factors([layer], outputs=np.array([[40.0, 0.0]]))
    assert np.isfinite(ff.fisher(sure, likelihood="categorical").dual()).all()
    J = ff.Jacobian.from_factors([ff.Explicit(np.zeros((2, 1, 3), np.float32))])
    with pytest.raises(ff.errors.NumericalError, match="overflow"), np.errstate(all="ignore"):
        ff.fisher(J, structure="layer").solve(np.ones(3, np.float32), damping=1e-44)


class Wrong(ff.likelihoods.Likelihood):
    """Hands back what it was given."""

    def __init__(self, h: Any) -> None:
        self.h = h

    def hessian(self, f: Any) -> Any:
        return self.h

    def gradient(self, f: Any, y: Any) -> Any:
        return y


def test_likelihoods_of_users_are_checked() -> None:
    J = ff.Jacobian(jacobian(5).layers, np.zeros((5, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        ff.fisher(J, likelihood=Wrong(np.broadcast_to(np.triu(np.ones((3, 3))), (5, 3, 3))))
    with pytest.raises(ValueError, match="hessian: expected shape"):
        ff.fisher(J, likelihood=Wrong(np.eye(3)))
    with pytest.raises(ValueError, match="gradient: expected shape"):
        ff.fisher(J, None, np.ones((5, 1)), kind="empirical", likelihood=Wrong(None))
    with pytest.raises(ValueError, match="y: expected 5 labels"):
        ff.fisher(J, None, np.ones((1, 3)), kind="empirical", likelihood=Wrong(None))


def test_sums_of_empirical_matrices_in_updates() -> None:
    J, rng = jacobian(5), np.random.default_rng(0)
    e, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    F = ff.fisher(J, None, y, kind="empirical", reduction="sum")
    expected = F.solve(J.T @ e.reshape(-1), damping=0.1)
    assert np.allclose(ff.ngd.update(F, e, damping=0.1).vector, expected)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_no_samples(structure: Any) -> None:
    rng = np.random.default_rng(0)
    shared = ff.Shared(rng.standard_normal((0, 3, 4)), rng.standard_normal((0, 2, 3, 5)), bias=True)
    layers = [shared, ff.Dense(rng.standard_normal((0, 5)), rng.standard_normal((0, 2, 2)))]
    F = ff.fisher(ff.Jacobian.from_factors(layers), structure=structure)
    v = np.ones(F.shape[0])
    assert np.allclose(F.solve(v, damping=0.5), 2)
    assert np.isclose(F.logdet(damping=0.5), len(v) * np.log(0.5))
    assert not (F @ v).any()
    if structure != "tridiagonal":
        assert F.frobenius_norm() == F.effective_dimension(damping=0.5) == 0


@pytest.mark.parametrize("size", [1e-90, 1e85])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_norms_near_the_ends_of_the_range(structure: Any, size: float) -> None:
    """The square of an entry is not in range."""
    J = jacobian(5)
    small = ff.Jacobian.from_factors(
        [ff.Dense(layer.a, layer.g * size, bias=layer.bias) for layer in J.layers]
    )
    if structure == "tridiagonal":
        pytest.skip("has no eigenvalues here")
    one = ff.fisher(J, structure=structure).frobenius_norm()
    other = ff.fisher(small, structure=structure).frobenius_norm()
    assert np.isclose(other / size / size, one, rtol=1e-10)


def test_indefinite_structures_have_no_roots_and_say_so() -> None:
    F = ff.fisher(jacobian(6), structure="tridiagonal")
    for call in (
        lambda: F.sample(1, damping=1e3),
        lambda: F.inverse_sqrt(np.ones(F.shape[0]), damping=1e3),
    ):
        with pytest.raises(ff.errors.NotPositiveDefiniteError, match="whatever the damping"):
            call()
