# SPDX-License-Identifier: Apache-2.0
"""Learning-rate bounds, scores of a kernel, and both along training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastfisher as ff


def network(widths: tuple[int, ...] = (5, 40, 30, 2), n: int = 12) -> tuple[ff.models.MLP, Any]:
    x = np.random.default_rng(0).standard_normal((n, widths[0]))
    return ff.models.MLP(widths, activation="tanh", sigma_b2=0.1), x


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_lr_bound(likelihood: str, momentum: float) -> None:
    mlp, x = network()
    top = np.linalg.eigvalsh(ff.fisher(mlp, x, likelihood=likelihood).dense())[-1]
    bound = ff.diagnostics.lr_bound(mlp, x, likelihood=likelihood, momentum=momentum)
    assert np.isclose(bound.lr, 2 * (1 + momentum) / top, rtol=1e-10)
    assert bound.certified
    assert bound.residual_norm < 1e-12
    assert bound.safe_lr <= bound.lr
    F = ff.fisher(mlp, x, likelihood=likelihood)
    assert ff.diagnostics.lr_bound(F, momentum=momentum).lr == pytest.approx(bound.lr)
    J = mlp.jacobian(x)
    same = ff.diagnostics.lr_bound(J, likelihood=likelihood, momentum=momentum)
    assert same.lr == pytest.approx(bound.lr)
    assert np.allclose(F @ bound.vector, top * bound.vector, atol=1e-10)


def test_gradient_descent_turns_at_the_bound() -> None:
    mlp, x = network((5, 200, 1))
    bound = ff.diagnostics.lr_bound(mlp, x)
    f, J = mlp(x), mlp.jacobian(x)
    mode = J @ bound.vector
    y = f - 1e-4 * (mode / np.linalg.norm(mode))[:, None]
    for factor in (0.9, 1.1):
        vector = J.flatten(mlp.parameters) - factor * bound.lr * (J.T @ (f - y)[:, 0]) / len(x)
        after = np.linalg.norm(mlp.with_parameters(vector)(x) - y) / np.linalg.norm(f - y)
        assert np.isclose(after, abs(1 - 2 * factor), rtol=1e-2)


def test_lr_bound_refuses() -> None:
    mlp, x = network()
    with pytest.raises(ValueError, match="momentum"):
        ff.diagnostics.lr_bound(mlp, x, momentum=1.0)
    F = ff.fisher(mlp, x)
    given: list[dict[str, Any]] = [{"x": x}, {"likelihood": "categorical"}, {"structure": "kfac"}]
    for options in given:
        with pytest.raises(ValueError, match="expected none with a Fisher matrix"):
            ff.diagnostics.lr_bound(F, **options)
    zero = ff.Jacobian.from_factors([ff.Dense(np.zeros((3, 2)), np.zeros((3, 1, 4)))])
    with pytest.raises(ff.errors.NumericalError, match="zero"):
        ff.diagnostics.lr_bound(zero)


def test_scores() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal(6)
    one = ff.diagnostics.scores(np.outer(y, y), y=y)
    assert one.alignment == pytest.approx(1)
    assert one.effective_rank == pytest.approx(1)
    assert one.condition_number == np.inf
    identity = ff.diagnostics.scores(np.eye(6))
    assert identity.effective_rank == pytest.approx(6)
    assert identity.entropy_rank == pytest.approx(6)
    assert identity.condition_number == 1
    assert identity.alignment is None
    mlp, x = network(n=7)
    labels = rng.integers(0, 2, 7)
    kernel = ff.ntk(mlp, x)
    got = ff.diagnostics.scores(mlp, x, labels)
    flat, target = kernel.reshape(14, 14), np.eye(2)[labels].reshape(14)
    expected = target @ flat @ target / np.linalg.norm(flat) / (target @ target)
    assert got.alignment == pytest.approx(expected)
    assert got.condition_number == pytest.approx(np.linalg.cond(flat))
    middle = np.kron(np.eye(7) - 1 / 7, np.eye(2))
    flat, target = middle @ flat @ middle, middle @ target
    expected = target @ flat @ target / np.linalg.norm(flat) / (target @ target)
    assert got.centred_alignment == pytest.approx(expected)
    assert ff.diagnostics.scores(mlp.jacobian(x), y=np.eye(2)[labels]).alignment == got.alignment
    assert ff.diagnostics.scores(np.zeros((3, 3)), y=np.ones(3)).alignment == 0
    assert ff.diagnostics.scores(np.zeros((0, 0))).trace == 0
    with pytest.raises(ValueError, match=r"y: expected shape \(7, 2\)"):
        ff.diagnostics.scores(mlp, x, np.ones((7, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        ff.diagnostics.scores(np.array([[1.0, 5.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="x2"):
        ff.diagnostics.scores(mlp, x, x2=x)
    singular = ff.diagnostics.scores(np.ones((3, 3), np.float32) + 1e-7 * np.eye(3, dtype="f4"))
    assert singular.condition_number == np.inf
    with pytest.raises(ff.errors.NonFiniteError, match="model: expected finite"):
        ff.diagnostics.scores(np.full((2, 2), np.nan))


def test_tracking_and_the_schedule() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    x = torch.randn(30, 6)
    y = x[:, :1].sin()
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    tracker = ff.diagnostics.track(model, x)
    schedule = ff.optim.CriticalLR(optimizer, tracker, fraction=0.5, every=5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert len(tracker.history) == 7
    assert losses[-1] < 0.2 * losses[0]
    fresh = ff.diagnostics.lr_bound(model, x)
    assert tracker().lr == pytest.approx(fresh.lr, rel=1e-4)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    state = schedule.state_dict()
    assert "tracker" not in state
    again = ff.optim.CriticalLR(optimizer, ff.diagnostics.track(model, x), every=5)
    mine = again.tracker
    again.load_state_dict(state)
    assert again.tracker is mine
    assert again.fraction == 0.5
    with pytest.raises(ValueError, match="fraction"):
        ff.optim.CriticalLR(optimizer, tracker, fraction=2.0)
    with pytest.raises(ValueError, match="every"):
        ff.optim.CriticalLR(optimizer, tracker, every=0)
    with pytest.raises(AttributeError, match="nothing"):
        ff.nothing  # noqa: B018


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("structure", ["full", "kfac", "diagonal"])
@pytest.mark.parametrize("exponent", [-120, -100, -66, -40, 0, 40, 60, 66, 100, 120])
def test_curvature_near_the_ends_of_the_dtype(exponent: int, structure: str, dtype: str) -> None:
    """Powers of two: the same bound up to the square, however small or large the factors."""
    rng = np.random.default_rng(0)
    a, g = rng.standard_normal((6, 3)), rng.standard_normal((6, 2, 4))
    own = 2.0**exponent * (1 if dtype == "float32" else 2.0 ** (3 * exponent))

    def bound(factor: float, v0: Any = None) -> Any:
        layer = ff.Dense(a.astype(dtype), (g * factor).astype(dtype), bias=True)
        J = ff.Jacobian.from_factors([layer])
        return ff.diagnostics.lr_bound(J, structure=structure, v0=v0)

    one, scaled = bound(1.0), bound(own)
    assert scaled.lambda_max / own / own == pytest.approx(one.lambda_max, rel=1e-5)
    assert scaled.lr * own * own == pytest.approx(one.lr, rel=1e-5)
    assert scaled.safe_lr <= scaled.lr
    assert scaled.certified
    assert scaled.vector.dtype == dtype
    assert np.linalg.norm(scaled.vector) == pytest.approx(1, rel=1e-5)
    assert bound(own, scaled.vector).lr == pytest.approx(scaled.lr, rel=1e-5)


def test_bounds_out_of_range_are_refused() -> None:
    def bound(g: float) -> Any:
        return ff.diagnostics.lr_bound(
            ff.Jacobian.from_factors([ff.Dense(np.ones((2, 1)), np.full((2, 1, 1), g))])
        )

    with pytest.raises(ff.errors.NumericalError, match="learning rate overflows"):
        bound(1e-160)
    with pytest.raises(ff.errors.NumericalError, match="eigenvalue overflows"):
        bound(1e160)


def test_scores_do_not_depend_on_the_scale() -> None:
    rng = np.random.default_rng(0)
    root, y = rng.standard_normal((5, 5)), rng.standard_normal(5)
    kernel = root @ root.T
    expected = ff.diagnostics.scores(kernel, y=y)
    for factor in (2.0**-600, 2.0**600):
        got = ff.diagnostics.scores(kernel * factor, y=y * factor)
        for name in ("condition_number", "effective_rank", "entropy_rank", "alignment",
                     "centred_alignment"):  # fmt: skip
            assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-12)
        for name in ("trace", "largest", "smallest"):
            assert getattr(got, name) == pytest.approx(getattr(expected, name) * factor)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-22, 1e-10, 1e10, 1e18])
def test_schedule_where_the_curvature_vanishes_or_explodes(scale: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = torch.nn.Linear(3, 1, bias=False)
    x = torch.ones(2, 3) * scale
    rates = []
    for max_lr in (np.inf, 5.0):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
        tracker = ff.diagnostics.track(model, x)
        ff.optim.CriticalLR(optimizer, tracker, max_lr=max_lr)
        rates.append(optimizer.param_groups[0]["lr"])
    curvature = 3 * float(x[0, 0]) ** 2
    if curvature * 3e38 < 1:  # no float32 is as large: the rate stays
        assert rates == [0.7, 5.0]
    else:
        assert rates[0] == pytest.approx(1 / curvature, rel=1e-5)
        assert rates[1] == pytest.approx(min(5.0, 1 / curvature), rel=1e-5)


def test_schedule_refuses() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
    tracker = ff.diagnostics.track(model, torch.ones(2, 3))
    with pytest.raises(TypeError, match="tracker: expected one of"):
        ff.optim.CriticalLR(optimizer, None)  # type: ignore[arg-type]
    for options in ({"max_lr": 0.0}, {"max_lr": np.nan}, {"every": "2"}, {"fraction": "1"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ff.optim.CriticalLR(optimizer, tracker, **options)
