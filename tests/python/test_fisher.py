# SPDX-License-Identifier: Apache-2.0
"""Every kind, likelihood, structure and reduction of the Fisher matrix against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.likelihoods import likelihood_of
from fisher_cases import CASES, LIKELIHOODS, STRUCTURES, Case, N, brute, build

TOLERANCE = 1e-9
RHO = 0.07


def outputs_of(case: Case) -> np.ndarray[Any, Any]:
    return np.random.default_rng(9).standard_normal((N, case.c))


def labels_of(case: Case, likelihood: str, count: int = 1) -> list[Any]:
    """Labels as `fastfisher.fisher` draws them."""
    rng = np.random.default_rng(3)
    return [likelihood_of(likelihood).sample(outputs_of(case), rng) for _ in range(count)]


def fisher_of(case: Case, likelihood: str, kind: str, **options: Any) -> ff.Fisher:
    J = ff.Jacobian.from_factors(build(case)[0], outputs=outputs_of(case))
    if kind == "empirical":
        options["y"] = labels_of(case, likelihood)[0]
    if kind == "mc":
        options |= {"seed": 3, "samples": 4}
    return ff.fisher(J, likelihood=likelihood, kind=kind, **options)


def truth_of(case: Case, likelihood: str, kind: str, structure: Any, **options: Any) -> Any:
    labels = None if kind == "exact" else labels_of(case, likelihood, 4 if kind == "mc" else 1)
    return brute(
        case, build(case)[1], outputs_of(case), structure, likelihood=likelihood, labels=labels,
        **options,
    )  # fmt: skip


def assert_equal(got: Any, expected: Any, size: float | None = None) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    scale = np.abs(expected).max() if size is None else size
    assert np.abs(got - expected).max() <= TOLERANCE * max(scale, 1e-300)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_brute_force(
    case: Case, structure: Any, likelihood: str, kind: str, reduction: str
) -> None:
    F = fisher_of(case, likelihood, kind, structure=structure, reduction=reduction)
    expected = truth_of(case, likelihood, kind, structure, reduction=reduction)
    assert_equal(F.dense(), expected)
    v = np.random.default_rng(1).standard_normal((F.shape[0], 2))
    assert_equal(F @ v, expected @ v)
    assert_equal(F @ v[:, 0], expected @ v[:, 0])
    assert_equal(F.diagonal(), np.diag(expected))
    assert_equal(F.trace(), np.trace(expected))
    assert_equal(F.frobenius_norm(), np.linalg.norm(expected))
    rho = RHO * np.abs(np.diag(expected)).mean() + 1e-3
    damped = expected + rho * np.eye(len(expected))
    x = F.solve(v, damping=rho)
    backward = np.abs(damped @ x - v).max() / (np.linalg.norm(damped, 2) * np.abs(x).max() + 1)
    assert backward < 1e-13
    assert_equal(
        F.effective_dimension(damping=rho), np.trace(np.linalg.solve(damped, expected)),
        max(1.0, float(np.linalg.cond(damped))),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s != "tridiagonal"], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_functions_of_the_matrix(case: Case, structure: Any, kind: str) -> None:
    F = fisher_of(case, "categorical", kind, structure=structure)
    expected = truth_of(case, "categorical", kind, structure)
    damped = expected + RHO * np.eye(len(expected))
    assert_equal(F.logdet(damping=RHO), np.linalg.slogdet(damped)[1])
    root = F.inverse_sqrt(np.eye(len(expected)), damping=RHO)
    assert_equal(root @ root, np.linalg.inv(damped))
    assert_equal(root, root.T)
    k = min(3, len(expected))
    found = F.eigsh(k)
    assert_equal(found.values, np.linalg.eigvalsh(expected)[::-1][:k])
    assert found.residual_norms.max() <= 1e-10 * np.linalg.norm(expected, 2)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_sample_has_the_inverse_as_covariance(structure: Any) -> None:
    case = CASES[0]
    F = fisher_of(case, "gaussian", "exact", structure=structure)
    if structure == "tridiagonal":
        with pytest.raises(ff.errors.NotPositiveDefiniteError, match="damping"):
            F.sample(damping=1e-3)
        return
    draws = F.sample(40_000, damping=0.5, seed=2)
    assert draws.shape == (40_000, F.shape[0])
    covariance = np.linalg.inv(F.dense() + 0.5 * np.eye(F.shape[0]))
    assert np.abs(draws.T @ draws / 40_000 - covariance).max() < 0.06
    assert np.array_equal(draws[:1], F.sample(40_000, damping=0.5, seed=2)[:1])


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", ["shared", "conv", "separable", "dense"])
def test_weight_sharing(name: str, structure: str, weight_sharing: str) -> None:
    case = next(case for case in CASES if case.name == name)
    F = fisher_of(case, "categorical", "exact", structure=structure, weight_sharing=weight_sharing)
    options = {"weight_sharing": weight_sharing}
    assert_equal(F.dense(), truth_of(case, "categorical", "exact", structure, **options))


@pytest.mark.parametrize("split", ["plain", "pi"])
def test_split_damping_of_kfac(split: str) -> None:
    case, rho = CASES[0], 0.3
    F = fisher_of(case, "gaussian", "exact", structure="kfac")
    v = np.random.default_rng(1).standard_normal(F.shape[0])
    got = F.solve(v, damping=rho, split=split)
    for block in F.structure.blocks:  # type: ignore[attr-defined]
        o, i = block.columns.shape
        on_a, on_g = rho, rho
        if split == "pi":
            pi = np.sqrt((np.trace(block.a) / i) / (np.trace(block.g) / o))
            on_a, on_g = np.sqrt(rho) * pi, np.sqrt(rho) / pi
        a = np.linalg.inv(block.a + on_a * np.eye(i))
        g = np.linalg.inv(block.g + on_g * np.eye(o))
        assert_equal(got[block.columns], g @ v[block.columns] @ a)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_dual_has_the_same_spectrum(likelihood: str) -> None:
    case = CASES[0]
    F = fisher_of(case, likelihood, "exact")
    dual = F.dual()
    assert dual.shape == (N * case.c, N * case.c)
    ours = np.linalg.eigvalsh(dual)[::-1]
    truth = np.linalg.eigvalsh(F.dense())[::-1]
    size = min(len(ours), len(truth))
    assert_equal(ours[:size], truth[:size], truth[0])


def test_mc_tends_to_exact() -> None:
    case = CASES[0]
    exact = fisher_of(case, "categorical", "exact").dense()
    J = ff.Jacobian.from_factors(build(case)[0], outputs=outputs_of(case))
    errors = [
        np.linalg.norm(
            ff.fisher(J, likelihood="categorical", kind="mc", samples=s, seed=5).dense() - exact
        )
        for s in (10, 4000)
    ]
    assert errors[1] < 0.05 * np.linalg.norm(exact)
    assert errors[1] < 0.2 * errors[0]


def test_variance_and_own_likelihood() -> None:
    case = CASES[0]
    J = ff.Jacobian.from_factors(build(case)[0], outputs=outputs_of(case))
    plain = ff.fisher(J).dense()
    assert_equal(ff.fisher(J, likelihood=ff.likelihoods.Gaussian(4.0)).dense(), plain / 4)

    class Coupled(ff.likelihoods.Likelihood):
        def hessian(self, f: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            c = f.shape[1]
            return np.broadcast_to(np.ones((c, c)), (len(f), c, c))

    dense = J.dense().reshape(N, case.c, -1).sum(1)
    assert_equal(ff.fisher(J, likelihood=Coupled()).dense(), dense.T @ dense / N)
    with pytest.raises(NotImplementedError, match="kind='mc' needs it"):
        ff.fisher(J, likelihood=Coupled(), kind="mc")


def test_torch_and_float32() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3)
    )
    model.unused = torch.nn.Parameter(torch.ones(2))
    x = torch.randn(7, 4)
    for structure in STRUCTURES:
        F = ff.fisher(model, x, likelihood="categorical", structure=structure)
        size = F.shape[0]
        assert size == sum(p.numel() for p in model.parameters())
        v = torch.randn(size, dtype=torch.float32)
        assert torch.is_tensor(F @ v)
        wide = ff.fisher(model.double(), x.double(), likelihood="categorical", structure=structure)
        model.float()
        truth = wide.dense()
        assert (F.dense() - truth).norm() <= 1e-5 * truth.norm()
        got, rho = F.solve(v, damping=1e-3).double(), 1e-3
        residual = truth @ got + rho * got - v.double()
        bound = torch.linalg.matrix_norm(truth, 2) * got.norm() + v.norm()
        assert residual.norm() <= 1e-6 * bound
        assert F.unflatten(v)["0.weight"].shape == (6, 4)


def test_scipy_takes_it_as_an_operator() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="scipy is not installed")
    F = fisher_of(CASES[0], "gaussian", "exact")
    values = linalg.eigsh(F, 2, return_eigenvectors=False)
    assert_equal(np.sort(values), np.linalg.eigvalsh(F.dense())[-2:])
    assert_equal(ff.linalg.eigsh(F, 2).values, np.sort(values)[::-1])
    assert F.density(points=16).density.shape == (16,)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_batches(kind: str, structure: Any) -> None:
    """Batches give what all samples at once give, also from the labels of the batches."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((11, 4)), rng.integers(0, 3, 11)
    mlp = ff.models.MLP((4, 6, 3), activation="tanh", sigma_b2=0.1)
    options: dict[str, Any] = {
        "likelihood": "categorical", "structure": structure, "kind": kind
    }  # fmt: skip
    labels = y if kind == "empirical" else None
    for reduction in ("mean", "sum"):
        whole = ff.fisher(mlp, x, labels, reduction=reduction, **options)
        parts = [slice(0, 5), slice(5, 6), slice(6, 11)]
        given = ff.fisher(mlp, [x[k] for k in parts], labels, reduction=reduction, **options)
        assert_equal(given.dense(), whole.dense())
        from_loader = ff.fisher(mlp, ((x[k], y[k]) for k in parts), reduction=reduction, **options)
        assert_equal(from_loader.dense(), whole.dense())
        assert given.unflatten(given.diagonal()).keys() == mlp.parameters.keys()
    with pytest.raises(ValueError, match="at least one batch"):
        ff.fisher(mlp, [], **options)
    if kind == "empirical":
        with pytest.raises(ValueError, match=r"labels|expected shape"):
            ff.fisher(mlp, [x[:5], x[5:]], y[:9], **options)
        with pytest.raises(ValueError, match="y: expected labels"):
            ff.fisher(mlp, [x[:5], x[5:]], **options)


def test_batches_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)
    ).double()
    x, y = torch.randn(10, 1, 4, 4).double(), torch.randint(0, 3, (10,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    for structure in STRUCTURES:
        options: dict[str, Any] = {"likelihood": "categorical", "structure": structure}
        whole = ff.fisher(model, x, **options)
        assert_equal(ff.fisher(model, loader, **options).dense(), whole.dense())
        whole = ff.fisher(model, x, y, kind="empirical", **options)
        parts = ff.fisher(model, loader, kind="empirical", **options)
        assert_equal(parts.dense(), whole.dense())
        if structure in ("kfac", "diagonal"):
            drawn = ff.fisher(model, loader, kind="mc", samples=300, **options)
            exact = ff.fisher(model, x, **options).dense()
            assert (drawn.dense() - exact).norm() < 0.2 * exact.norm()


def test_batches_of_sequences_of_any_length() -> None:
    """Every position counts as a sample of its own, whatever the batch it came in."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    long, short = torch.randn(4, 6, 3).double(), torch.randn(2, 2, 3).double()
    F = ff.fisher(model, [long, short], structure="kfac", select=lambda y: y.sum(1))
    block = F.structure.blocks[0]  # type: ignore[attr-defined]
    rows = torch.cat([long.reshape(-1, 3), short.reshape(-1, 3)])
    rows = torch.cat([rows, torch.ones(len(rows), 1).double()], 1)
    assert_equal(block.a, (rows.T @ rows / len(rows)).numpy())
