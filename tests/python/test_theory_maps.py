# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: learning-rate maps, T1.7, T2.7, T5.6; complete under -m slow, else reduced."""

from __future__ import annotations

import numpy as np
import pytest

from fastfisher import models, theory
from fastfisher.report import _maps, _online
from fastfisher.report._descent import descend
from wide import kind

# 0.25 of a decade apart
RATES = 10.0 ** np.arange(-4, 1.01, 0.25)
# Learning rates over the critical one
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(
    ("width", "seeds"),
    [
        pytest.param(100, 1, id="reduced"),
        *(pytest.param(m, 4, id=str(m), marks=pytest.mark.slow) for m in (100, 200, 400)),
    ],
)
def test_t1_7_theory_is_the_lower_edge_of_the_transition(width, seeds, activation):
    widths, n = (width, width, width, 2), 100
    order = theory.order_parameters(widths, **kind(activation))
    spectrum = theory.fisher_spectrum(order, samples=n)
    critical = theory.critical_learning_rate(spectrum.lambda_max)
    for seed in range(seeds):
        model, x, y = _maps.teacher_task(widths, n, activation=activation, seed=seed)
        loss = _maps.descent_map(model, x, y, rates=RATES, steps=4)
        off = np.log10(_maps.first_unstable(loss, RATES) / critical)
        assert -0.15 <= off <= 0.45, (seed, off)


@pytest.mark.parametrize(
    ("activation", "width", "seeds"),
    [
        pytest.param("relu", 100, 1, id="reduced"),
        *(
            pytest.param(phi, m, 2, id=f"{phi}-{m}", marks=pytest.mark.slow)
            for phi in ("relu", "tanh")
            for m in (200, 400)
        ),
    ],
)
def test_t2_7_mean_subtraction_allows_larger_learning_rates(activation, width, seeds):
    for seed in range(seeds):
        good = {}
        for normalization in (None, "mean"):
            model, x, y = _maps.teacher_task(
                (width, width, width, 2),
                100,
                activation=activation,
                normalization=normalization,
                seed=seed,
            )
            loss = _maps.descent_map(model, x, y, rates=RATES, steps=60)
            good[normalization] = _maps.largest_good(loss, RATES)
        assert good["mean"] > 3 * good[None] > 0, (seed, good)


@pytest.mark.parametrize(
    ("depth", "width", "steps", "seeds"),
    [
        *(pytest.param(depth, 32, 200, 1, id=f"reduced-{depth}") for depth in (4, 16, 64)),
        *(
            pytest.param(depth, 64, 400, 3, id=str(depth), marks=pytest.mark.slow)
            for depth in (4, 16, 64)
        ),
    ],
)
def test_t5_6_online_learning_is_best_below_the_critical_rate(depth, width, steps, seeds):
    law = theory.conditional_law(depth, activation="hard-tanh", input_variance=0.1)
    top = theory.conditional_lambda_max(law).lambda_max
    critical = theory.online_learning_rate(top)
    for seed in range(seeds):
        weights, x, y = _online.isometric_task(
            depth, width, steps=steps, input_variance=0.1, seed=seed
        )
        loss = _online.online_map(
            weights, x, y, activation="hard-tanh", rates=critical * np.array(RATIOS)
        )
        last = loss[:, -50:].mean(axis=1)
        assert 0.3 <= RATIOS[last.argmin()] <= 0.9
        assert last[RATIOS.index(2.0)] > 2 * last[RATIOS.index(0.6)]


# --- the maps themselves ---------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_map_equals_one_descent_after_the_other(activation):
    model, x, y = _maps.teacher_task((5, 16, 12, 3), 7, activation=activation, seed=1)
    rates = [0.01, 1e6, 0.05, 0.2]
    got = _maps.descent_map(model, x, y, rates=rates, steps=6)
    for curve, eta in zip(got, rates, strict=True):
        run = descend(model, x, y, eta=eta, steps=6, direction=np.eye(21)[0])
        blown = np.isnan(run.loss)
        np.testing.assert_array_equal(np.isinf(curve), blown)
        np.testing.assert_allclose(curve[~blown], run.loss[~blown], rtol=1e-9)
    assert np.isinf(got[1, -1])
    assert np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("normalization", [None, "mean", "batch", "layer"])
def test_map_of_normalised_outputs_follows_the_jacobian(normalization):
    model, x, y = _maps.teacher_task(
        (5, 16, 12, 4), 9, activation="tanh", normalization=normalization, seed=2
    )
    eta, want = 0.1, []
    one = model
    for _ in range(3):
        residual = one(x) - y
        want.append((residual**2).sum() / 18)
        gradient = one.jacobian(x).T @ residual.reshape(-1) / 9
        flat = np.concatenate([p.reshape(-1) for p in one.parameters.values()])
        one = one.with_parameters(flat - eta * gradient)
    got = _maps.descent_map(model, x, y, rates=[eta, 2 * eta], steps=2)
    np.testing.assert_allclose(got[0], want, rtol=1e-10)


def test_many_rates_are_computed_in_parts(monkeypatch):
    model, x, y = _maps.teacher_task((5, 16, 12, 3), 7, activation="tanh", seed=1)
    whole = _maps.descent_map(model, x, y, rates=RATES, steps=5)
    monkeypatch.setattr(_maps, "_TOGETHER", 4 * 16 * 12)
    ticks = []
    got = _maps.descent_map(model, x, y, rates=RATES, steps=5, tick=ticks.append)
    np.testing.assert_allclose(got, whole, rtol=1e-9)
    assert ticks == [4] * 5 + [1]


def test_online_map_equals_steps_along_the_jacobian():
    m, depth, eta = 6, 4, 0.7
    weights, x, y = _online.isometric_task(depth, m, steps=5, input_variance=0.8, seed=3)
    one = models.MLP((m,) * (depth + 1), activation="hard-tanh", parameterization="orthogonal")
    one = one.with_parameters(
        {
            f"{k}.{part}": weights[k] if part == "weight" else np.zeros(m)
            for k in range(depth)
            for part in ("weight", "bias")
        }
    )
    want = []
    for sample, target in zip(x, y, strict=True):
        residual = (one(sample[None]) - target)[0]
        want.append((residual**2).sum() / (2 * m))
        change = one.jacobian(sample[None]).unflatten(
            one.jacobian(sample[None]).T @ (residual * eta / m)
        )
        one = one.with_parameters(
            {k: v - change[k] * k.endswith("weight") for k, v in one.parameters.items()}
        )
    got = _online.online_map(weights, x, y, activation="hard-tanh", rates=[eta, 1e12])
    np.testing.assert_allclose(got[0], want, rtol=1e-10)
    assert got[1, 0] == got[0, 0]
    assert np.isinf(got[1, -1])


def test_the_task_of_isometric_learning_is_isometric():
    weights, x, y = _online.isometric_task(3, 8, steps=4, input_variance=0.3, seed=0)
    for weight in weights:
        np.testing.assert_allclose(weight @ weight.T, np.eye(8), atol=1e-13)
    np.testing.assert_allclose((x**2).mean(1), 0.3)
    np.testing.assert_allclose((y**2).mean(1), 0.3)


def test_signs_of_stability():
    loss = np.array([[1.0, 0.5, 0.001], [1.0, 1.1, 0.001], [1.0, 2.0, np.inf]])
    assert _maps.first_unstable(loss, [1, 2, 3]) == 2
    assert _maps.largest_good(loss, [1, 2, 3]) == 2
    assert np.isnan(_maps.first_unstable(loss[:1], [1]))
    assert _maps.largest_good(loss[2:], [3]) == 0


def test_mistakes():
    model, x, y = _maps.teacher_task((5, 4, 3), 7, activation="tanh", seed=1)
    with pytest.raises(ValueError, match="y: expected shape"):
        _maps.descent_map(model, x, y[:, :2], rates=[1.0], steps=1)
    for rates in ([0.0], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="rates"):
            _maps.descent_map(model, x, y, rates=rates, steps=1)
    hidden = models.MLP((5, 4, 3), hidden_normalization="mean")
    with pytest.raises(ValueError, match="model: expected the standard"):
        _maps.descent_map(hidden, x, y, rates=[1.0], steps=1)
    with pytest.raises(ValueError, match="weights: expected matrices"):
        _online.online_map([np.eye(2), np.eye(3)], x, x, activation="tanh", rates=[1.0])
    with pytest.raises(ValueError, match="y: expected shape"):
        _online.online_map([np.eye(5)], x, y, activation="tanh", rates=[1.0])
