# SPDX-License-Identifier: Apache-2.0
"""Outputs with several axes, labels and options of the likelihoods, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.reference import fisher as ref
from fisher_cases import STRUCTURES

torch = pytest.importorskip("torch", reason="torch is not installed")

T, C, N = 4, 3, 5


def model_and_jacobian() -> tuple[Any, Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Outputs (N, T, C) with one weight a position: its Jacobian is written down by hand."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, C)).double()
    x = torch.randn(N, T, 2).double()
    f = model(x).detach().numpy()
    j = np.zeros((N, T, C, C * 2 + C))
    for c in range(C):
        j[:, :, c, 2 * c : 2 * c + 2] = x.numpy()
        j[:, :, c, 2 * C + c] = 1
    return model, x, j, f


def test_softmax_at_each_position() -> None:
    model, x, j, f = model_and_jacobian()
    y = np.random.default_rng(0).integers(0, C, (N, T))
    exact, empirical = np.zeros((2, 9, 9))
    for n in range(N):
        g = np.zeros(9)
        for t in range(T):
            exact += j[n, t].T @ ref.hessian("categorical", f[n, t]) @ j[n, t] / N
            g += j[n, t].T @ ref.gradient("categorical", f[n, t], y[n, t])
        empirical += np.outer(g, g) / N
    likelihood = ff.likelihoods.Categorical(classes=C)
    F = ff.fisher(model, x, likelihood=likelihood)
    assert np.allclose(F.dense(), exact, atol=1e-13)
    for labels in (torch.from_numpy(y), y):
        own = {"likelihood": likelihood, "kind": "empirical"}
        if labels is y:
            own |= {"select": lambda out: out.reshape(N, T, 1, C)}  # more axes
            labels = torch.from_numpy(y[:, :, None])
        assert np.allclose(ff.fisher(model, x, labels, **own).dense(), empirical, atol=1e-13)
    drawn = ff.fisher(model, x, likelihood=likelihood, kind="mc", samples=400)
    assert np.abs(drawn.dense().numpy() - exact).max() < 0.2 * np.abs(exact).max()
    e = ref.softmax(f[0, 0]) - np.eye(C)[0]
    residual = torch.from_numpy(np.tile(e, (N, T)))
    step = ff.ngd.update(F, residual, damping=0.1)
    gradient = np.tensordot(residual.numpy(), j.reshape(N, T * C, 9), 2) / N
    assert np.allclose(step.vector, np.linalg.solve(exact + 0.1 * np.eye(9), gradient), atol=1e-12)
    one = ff.likelihoods.Categorical(classes=T * C)
    flat = f.reshape(N, -1)
    assert np.array_equal(one.hessian(flat), ff.likelihoods.Categorical().hessian(flat))


def test_one_softmax_over_several_axes_is_refused() -> None:
    model, x, _, _ = model_and_jacobian()
    for kind in ("exact", "mc"):
        with pytest.raises(ValueError, match=r"expected outputs \(N, C\), got shape \(5, 4, 3\)"):
            ff.fisher(model, x, likelihood="categorical", kind=kind)
    with pytest.raises(ValueError, match=r"got shape \(2, 4, 3\)"):
        ff.fisher(model, [x[:2], x[2:]], likelihood="categorical", structure="kfac")
    with pytest.raises(ValueError, match="one softmax"):
        ff.diagnostics.input_metric(model, x, likelihood="categorical")
    flat = ff.fisher(model, x, likelihood="categorical", select=lambda out: out[:, 0])
    assert flat.jacobian.shape == (N * C, 9)
    with pytest.raises(ValueError, match="divisor of the 12 outputs"):
        ff.fisher(model, x, likelihood=ff.likelihoods.Categorical(classes=5))
    with pytest.raises(ValueError, match="classes: expected"):
        ff.likelihoods.Categorical(classes=0)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regression_of_several_axes(reduction: Any, structure: Any) -> None:
    """Outputs of a sample add up, whatever their axes: the count of the mean is N."""
    model, x, j, f = model_and_jacobian()
    y = np.random.default_rng(1).standard_normal((N, T, C))
    whole, flat = j.reshape(N, T * C, 9), (f.reshape(N, -1), y.reshape(N, -1))
    gaussian = ff.likelihoods.Gaussian(0.3)
    for kind, labels in (("exact", None), ("empirical", [flat[1]])):
        expected = ref.fisher(whole, flat[0], variance=0.3, labels=labels, reduction=reduction)
        given: list[Any] = [None] if labels is None else [y, flat[1]]
        for one in given:
            F = ff.fisher(
                model, x, None if one is None else torch.from_numpy(one),
                likelihood=gaussian, kind=kind, reduction=reduction, structure=structure,
            )  # fmt: skip
            if structure in ("full", "layer", "tridiagonal"):
                assert np.allclose(F.dense(), expected, rtol=1e-10, atol=1e-12)
            if structure != "kfac":
                assert F.trace() == pytest.approx(np.trace(expected), rel=1e-10)
                assert np.allclose(F.diagonal(), np.diag(expected), rtol=1e-9) or (
                    structure == "ekfac"
                )
    with pytest.raises(ValueError, match=r"y: expected shape \(5, 12\)"):
        ff.fisher(model, x, torch.zeros(N, C, T).double(), kind="empirical")


def test_labels_and_options_that_do_not_fit() -> None:
    model, x = torch.nn.Linear(2, 3).double(), torch.randn(4, 2).double()
    y = torch.zeros(4, dtype=torch.int64)

    def empirical(labels: Any, likelihood: Any = "categorical") -> Any:
        return ff.fisher(model, x, labels, likelihood=likelihood, kind="empirical")

    with pytest.raises(ValueError, match="not one-hot"):
        empirical(torch.eye(3, dtype=torch.int64)[y])
    for likelihood in ("gaussian", "bernoulli"):
        with pytest.raises(TypeError, match="real numbers, got dtype complex"):
            empirical(torch.zeros(4, 3, dtype=torch.complex128), likelihood)
    narrow = empirical(y.to(torch.int8)).dense()
    assert np.array_equal(narrow, empirical(y).dense())
    for seed in (-1, 1.5, None, True):
        for given in (x, [x, x]):
            with pytest.raises(ValueError, match="seed: expected an integer of at least 0"):
                ff.fisher(model, given, kind="mc", seed=seed, structure="diagonal")
    for variance in (np.ones(3), "1", np.nan, 0.0):
        with pytest.raises(ValueError, match="variance: expected a positive finite number"):
            ff.likelihoods.Gaussian(variance)  # type: ignore[arg-type]
    assert ff.likelihoods.Gaussian(np.float32(0.5)).variance == 0.5  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="select: expected a callable"):
        ff.fisher(model, x, select="logits")  # type: ignore[arg-type]
    with pytest.raises(ff.errors.CaptureError, match="the model returns dict"):
        ff.fisher((lambda p, x: {"logits": x @ p["w"]}, {"w": torch.ones(2, 1).double()}), x)


def test_numbers_of_other_libraries() -> None:
    model, x = torch.nn.Linear(2, 3).double(), torch.randn(4, 2).double()
    F = ff.fisher(model, x)
    v, e = torch.ones(9).double(), torch.ones(4, 3).double()
    for rho in (np.float32(0.5), np.array(0.5), torch.tensor(0.5)):
        assert torch.equal(F.solve(v, damping=rho), F.solve(v, damping=0.5))
        step = ff.ngd.update(F, e, damping=rho)
        assert torch.equal(step.vector, ff.ngd.update(F, e, damping=0.5).vector)
    for rho in (np.ones(2), 10**400, "1", -1.0, np.nan):
        with pytest.raises(ValueError, match="damping: expected a finite number"):
            F.solve(v, damping=rho)
        with pytest.raises(ValueError, match="damping: expected a finite number"):
            ff.ngd.update(F, e, damping=rho)
    for k in (2.5, True, "3", None):
        with pytest.raises(TypeError, match="k: expected an integer"):
            F.eigsh(k)
    with pytest.raises(ValueError, match="n: expected an integer"):
        F.sample(-1, damping=1.0)
    with pytest.raises(ValueError, match="seed: expected an integer"):
        F.sample(1, damping=1.0, seed=-1)
