# SPDX-License-Identifier: Apache-2.0
"""Kernel regression and linear dynamics: closed forms against steps, limits, and hard input."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import kernels, regression
from fastfisher.errors import NotPositiveDefiniteError, NumericalError

STRUCTURES = ("full", "layer", "tridiagonal", "kfac")


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(2)
    return rng.standard_normal((8, 12)), rng.standard_normal((5, 12)), rng.standard_normal((8, 2))


def pairs(sets, depth=3, **options):
    x, z, _ = sets
    return [kernels.layer_kernels(*p, depth=depth, **options) for p in ((x,), (z, x), (z,))]


@pytest.mark.parametrize("factor", [0.5, 1.3, 2.1])
def test_curves_equal_steps(sets, factor):
    train, cross, _ = pairs(sets)
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    lr, e = factor / descent.values[-1], sets[2]
    matrix, away = (k.ntk[:, None, :, None] / 8 for k in (train, cross))

    residuals = descent.training_curve(e, lr=lr, steps=30)
    changes = descent.prediction_curve(e, lr=lr, steps=30)

    for k in range(2):
        steps = ff.ngd.training_curve(matrix, e[:, k : k + 1], lr=lr, steps=30)
        np.testing.assert_allclose(residuals[..., k], steps[..., 0], rtol=1e-11, atol=1e-12)
        moved = ff.ngd.prediction_curve(away, steps, lr=lr)
        np.testing.assert_allclose(changes[..., k], moved[..., 0], rtol=1e-11, atol=1e-12)
    few = descent.training_curve(e[:, 0], lr=lr, steps=[0, 7])
    np.testing.assert_allclose(few, residuals[[0, 7], :, 0], rtol=1e-12)
    np.testing.assert_allclose(
        descent.response(lr=lr, steps=7) @ e, -changes[7], rtol=1e-11, atol=1e-13
    )
    np.testing.assert_allclose(
        e - descent.training_response(lr=lr, steps=7) @ e, residuals[7], rtol=1e-11, atol=1e-12
    )


def test_flow_is_the_limit_of_small_steps(sets):
    train, cross, _ = pairs(sets)
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    flow = descent.prediction_curve(sets[2], time=[0.0, 0.7, 3.0])
    for index, time in enumerate((0.0, 0.7, 3.0)):
        steps = descent.response(lr=1e-7, steps=time / 1e-7) @ sets[2]
        np.testing.assert_allclose(-flow[index], steps, rtol=1e-5, atol=1e-12)
    later = descent.training_curve(sets[2], time=[math.inf])
    np.testing.assert_array_equal(later, 0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_natural_gradient_is_the_limit_of_small_damping(sets, structure, depth):
    train, cross, _ = pairs(sets, depth, activation="erf", sigma_b2=0.1)
    exact = regression.natural_gradient(train, cross, structure=structure)
    e = sets[2]
    rate = 1 / exact.values[0]
    expected = exact.response(lr=rate, steps=1)
    errors = []
    for rho in (1e-5, 1e-6):
        damped = regression.natural_gradient(
            train, cross, structure=structure, relative_damping=rho
        )
        found = damped.response(lr=rate, steps=1)
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        np.testing.assert_allclose(damped.values, exact.values, rtol=1e3 * rho)
    # the error is of first order in rho
    assert errors[1] < 1e-3
    assert 9 < errors[0] / errors[1] < 11
    np.testing.assert_allclose(exact.training_curve(e, lr=rate, steps=1)[1], 0, atol=1e-14)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("damping", [{"damping": 0.03}, {"relative_damping": 0.01}], ids=str)
def test_same_matrices_as_from_a_jacobian(sets, structure, depth, damping):
    """Kernels by layer of a network of any width go through the same algebra as its Jacobian."""
    x, z, _ = sets
    mlp = ff.models.MLP((12, *[20] * (depth - 1), 1), activation="erf", parameterization="ntk")
    jacobian, other = mlp.jacobian(x), mlp.jacobian(z)

    def measured(left, right):
        pair = zip(left.layers, right.layers, strict=True)
        products = np.array([(p.a @ q.a.T, p.g[:, 0] @ q.g[:, 0].T) for p, q in pair])
        return kernels.LayerKernels(products[:, 0], products[:, 1])

    given = {"structure": structure, **damping}
    expected = [
        ff.ngd.function_space_matrix(jacobian, other=o, **given).reshape(-1, 8)
        for o in (None, other)
    ]
    train, cross = measured(jacobian, jacobian), measured(other, jacobian)

    found = regression.natural_gradient(train, cross, **given)

    matrix = (found.vectors * found.values) @ found.vectors.T
    np.testing.assert_allclose(matrix, expected[0], rtol=1e-8, atol=1e-9)
    away = found.modes @ found.vectors.T
    np.testing.assert_allclose(away, expected[1], rtol=1e-8, atol=1e-9)


def test_tridiagonal_of_two_layers_is_exact_natural_gradient(sets):
    train, cross, _ = pairs(sets, 2)
    found = [
        regression.natural_gradient(train, cross, structure=s).response(lr=1.0, steps=1)
        for s in ("full", "tridiagonal")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-10)


def test_ridge_and_posteriors(sets):
    train, cross, prior = pairs(sets)
    y = sets[2]
    ridge = regression.kernel_regression(train.ntk, cross.ntk, y, ridge=0.3)
    law = regression.posterior(train.ntk, cross.ntk, prior.ntk, y, noise=0.3)
    inverse = np.linalg.inv(train.ntk + 0.3 * np.eye(8))

    np.testing.assert_allclose(ridge, cross.ntk @ inverse @ y, rtol=1e-11)
    np.testing.assert_allclose(law.mean, ridge, rtol=1e-12)
    np.testing.assert_allclose(
        law.covariance, prior.ntk - cross.ntk @ inverse @ cross.ntk.T, rtol=1e-11, atol=1e-11
    )
    one = regression.kernel_regression(train.ntk, cross.ntk, y[:, 0], ridge=0.3)
    np.testing.assert_allclose(one, ridge[:, 0], rtol=1e-12)
    # on the training samples the targets come back, without variance
    own = regression.posterior(train.nngp, train.nngp, train.nngp, y)
    np.testing.assert_allclose(own.mean, y, atol=1e-10)
    assert own.std.max() < 1e-6


def test_loss_of_an_ensemble(sets):
    train, cross, prior = pairs(sets, activation="erf")
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    nngp = {"kernel": train.nngp, "cross": cross.nngp, "prior": prior.nngp}
    law = regression.ensemble(descent, sets[2], **nngp, time=0.5)
    target = np.linspace(-1, 1, 10).reshape(5, 2)
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(law.covariance)
    draws = law.mean + root @ rng.standard_normal((100_000, 5, 2))
    losses = np.square(draws - target).sum((1, 2)) / 10

    mean, deviation = law.loss(target)

    assert abs(losses.mean() - mean) < 5 * losses.std() / np.sqrt(100_000)
    assert losses.std() == pytest.approx(deviation, rel=0.02)
    with pytest.raises(ValueError, match="y: expected shape"):
        law.loss(target[:, :1])


def test_ensemble_at_the_training_samples(sets):
    train, _, _ = pairs(sets)
    descent = regression.gradient_descent(train.ntk, train.ntk)
    short = regression.ensemble(descent, sets[2], kernel=train.nngp, time=0.3)
    long = regression.ensemble(
        descent, sets[2], kernel=train.nngp, cross=train.nngp, prior=train.nngp, time=0.3
    )
    np.testing.assert_allclose(short.mean, long.mean, rtol=1e-10)
    np.testing.assert_allclose(short.covariance, long.covariance, rtol=1e-9, atol=1e-12)


def test_singular_kernels(sets):
    x, z, y = sets
    twice = np.vstack([x, x[:1]])
    train, cross = (kernels.layer_kernels(*p, depth=3) for p in ((twice,), (z, twice)))
    labels = np.vstack([y, -y[:1]])
    descent = regression.gradient_descent(train.ntk, cross.ntk)

    # finite times need no inverse: the difference of the two labels is never learned
    late = descent.training_curve(labels, lr=descent.critical_learning_rate / 2, steps=[10**6])
    np.testing.assert_allclose(late[0, 0], y[0], atol=1e-6)
    np.testing.assert_allclose(late[0, -1], -y[0], atol=1e-6)
    for call in (
        lambda: descent.response(time=math.inf),
        lambda: regression.kernel_regression(train.ntk, cross.ntk, labels),
        lambda: regression.natural_gradient(train, cross),
        lambda: regression.natural_gradient(train, structure="kfac"),
    ):
        with pytest.raises(NotPositiveDefiniteError, match=r"singular.*expected"):
            call()
    # with jitter the two samples share the mean of their labels
    fitted = regression.kernel_regression(train.ntk, train.ntk, labels, jitter=1e-10)
    np.testing.assert_allclose(fitted[[0, -1]], 0, atol=1e-5)
    # more samples than inputs and no bias: kfac has no limit
    few = kernels.layer_kernels(np.random.default_rng(1).standard_normal((6, 3)), depth=3)
    with pytest.raises(NotPositiveDefiniteError, match="features of layer 1"):
        regression.natural_gradient(few, structure="kfac")


def test_divergence_and_bad_times(sets):
    train, cross, _ = pairs(sets)
    descent = regression.gradient_descent(train.ntk, cross.ntk)
    top = descent.critical_learning_rate
    cases = [
        ({"lr": 1.1 * top, "steps": math.inf}, ValueError, "lr: training does not converge"),
        ({"lr": 0.9 * top, "steps": 2.5}, ValueError, "steps: expected an integer"),
        ({"lr": 3 * top, "steps": 10**6}, NumericalError, "diverges"),
        ({"lr": top}, ValueError, "steps: expected lr and steps"),
        ({"steps": 3}, ValueError, "steps: expected lr and steps"),
        ({"lr": top, "steps": 1, "time": 1.0}, ValueError, "steps: expected lr and steps"),
        ({"time": -1.0}, ValueError, "time: expected a number >= 0"),
        ({"time": math.nan}, ValueError, "time"),
        ({"lr": -1.0, "steps": 1}, ValueError, "lr: expected"),
        ({"time": [1.0, 2.0]}, ValueError, "time: expected a number"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            descent.response(**options)
    with pytest.raises(ValueError, match="cross: these dynamics"):
        regression.gradient_descent(train.ntk).response(time=1.0)
    with pytest.raises(ValueError, match="steps: expected an integer or an array"):
        descent.training_curve(sets[2], lr=top / 2, steps=1.5)
    with pytest.raises(ValueError, match=r"residual: expected shape \(8,\)"):
        descent.training_curve(sets[2][:3], lr=top / 2, steps=1)


def test_bad_arguments(sets):
    train, cross, prior = pairs(sets)
    y = sets[2]
    skew = train.ntk + np.triu(np.ones((8, 8)))
    cases = [
        (lambda: regression.gradient_descent(skew), ValueError, "kernel: expected a symmetric"),
        (lambda: regression.gradient_descent(-train.ntk), NotPositiveDefiniteError, "kernel"),
        (lambda: regression.gradient_descent(np.eye(0)), ValueError, "kernel: expected shape"),
        (lambda: regression.gradient_descent(cross.ntk), ValueError, "kernel: expected shape"),
        (lambda: regression.gradient_descent(train.ntk, y), ValueError, "cross: expected shape"),
        (lambda: regression.gradient_descent(train.ntk, jitter=-1), ValueError, "jitter"),
        (lambda: regression.gradient_descent(train.ntk * np.nan), ValueError, "kernel: .*finite"),
        (lambda: regression.dynamics(skew), ValueError, "matrix: expected a symmetric"),
        (
            lambda: regression.kernel_regression(train.ntk, cross.ntk, y, ridge=-1),
            ValueError,
            "ridge",
        ),
        (
            lambda: regression.posterior(train.ntk, cross.ntk, train.ntk, y),
            ValueError,
            "prior: expected shape",
        ),
        (
            lambda: regression.ensemble(
                regression.gradient_descent(train.ntk, cross.ntk),
                y,
                kernel=train.nngp,
                cross=cross.nngp,
                time=1.0,
            ),
            ValueError,
            "prior: expected both",
        ),
        (lambda: regression.natural_gradient(cross), ValueError, "kernels: expected shape"),
        (lambda: regression.natural_gradient(train, prior), ValueError, "cross: expected shape"),
        (lambda: regression.natural_gradient(train.ntk), TypeError, "kernels: expected Layer"),
        (
            lambda: regression.natural_gradient(train, structure="unit"),
            ValueError,
            "structure",
        ),
        (
            lambda: regression.natural_gradient(train, damping=1.0, relative_damping=1.0),
            ValueError,
            "relative_damping",
        ),
        (lambda: regression.natural_gradient(train, damping=-1.0), ValueError, "damping"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_equal_samples_are_not_learned_by_rounding(sets):
    x, z, y = sets
    x, y = np.vstack([x, x[:2]]), np.vstack([y, -y[:2]])  # targets that contradict each other
    train, cross = (kernels.ntk(p, q, depth=3, sigma_b2=0.1) for p, q in ((x, None), (z, x)))
    descent = regression.gradient_descent(train, cross)
    w, v = np.linalg.eigh(train)
    known = v[:, w > 1e-10 * w[-1]]
    expected = cross @ known / w[w > 1e-10 * w[-1]] @ known.T
    np.testing.assert_allclose(descent.response(time=1e6), expected, atol=1e-6)
    for options in ({"time": 1e12}, {"time": 1e18}, {"lr": 0.1, "steps": 1e13}):
        for method in (descent.response, descent.training_response):
            with pytest.raises(NotPositiveDefiniteError, match="singular, curvatures down to"):
                method(**options)
    # A kernel that is zero has nothing to learn, ever.
    still = regression.gradient_descent(np.zeros((2, 2)))
    np.testing.assert_array_equal(still.training_curve([1.0, 2.0], time=[1e300])[0], [1, 2])


def test_critical_learning_rate_without_curvature():
    assert regression.gradient_descent(np.zeros((2, 2))).critical_learning_rate == math.inf
    assert regression.dynamics(-np.eye(2)).critical_learning_rate == math.inf


def test_kernels_that_are_no_covariance_together(sets):
    x, z, y = sets
    k, between, own = (kernels.nngp(*p, depth=3) for p in ((x,), (z, x), (z,)))
    with pytest.raises(NotPositiveDefiniteError, match="cross: with kernel and prior no cov"):
        regression.posterior(k, 3 * between, own, y)
    descent = regression.gradient_descent(kernels.ntk(x, depth=3), kernels.ntk(z, x, depth=3))
    with pytest.raises(NotPositiveDefiniteError, match="cross: with kernel and prior no cov"):
        regression.ensemble(descent, y, kernel=k, cross=3 * between, prior=own, time=math.inf)
    at_training = regression.posterior(k, k, k, y)  # zero but for rounding
    assert at_training.std.max() < 1e-6


def test_predicted_losses_refuse(sets):
    x, z, y = sets
    triple = pairs(sets)
    descent = regression.gradient_descent(triple[0].ntk, triple[1].ntk)
    times = {"lr": 0.1, "steps": 4}
    for target, other in ((y[:, 0], np.zeros((5, 5))), (y, np.zeros((5, 3))), (y, np.zeros(5))):
        with pytest.raises(ValueError, match="test_y: expected shape"):
            regression.predicted_losses(
                descent, target, other, **times, starts=(0 * target, 0 * other)
            )
    for cross in (None, triple[1].ntk[:0]):
        alone = regression.gradient_descent(triple[0].ntk, cross)
        with pytest.raises(ValueError, match="dynamics: expected one with test samples"):
            regression.predicted_losses(alone, y, np.zeros((0, 2)), **times, starts=(y, y[:0]))
    with pytest.raises(TypeError, match=r"kernels: expected three LayerKernels, got .'ndarray'"):
        regression.predicted_losses(descent, y, np.zeros((5, 2)), **times, kernels=(x, z, x))
    with pytest.raises(ValueError, match="lr: expected a finite number > 0, got 'a'"):
        descent.training_curve(y, lr="a", steps=2)


def test_cross_entropy_equals_plain_steps():
    rng = np.random.default_rng(4)
    j, other = rng.standard_normal((6, 3, 20)), rng.standard_normal((4, 3, 20))
    y, f = np.eye(3)[rng.integers(0, 3, 6)], rng.standard_normal((6, 3))
    kernel, cross = (np.einsum("ncp,mdp->ncmd", a, j) for a in (j, other))

    curve = regression.cross_entropy_curve(kernel, y, f, lr=0.1, steps=5, cross=cross)

    theta, start = np.zeros(20), f
    for step in range(6):
        outputs = start + j @ theta
        g = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        np.testing.assert_allclose(curve.outputs[step], outputs, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(curve.changes[step], other @ theta, rtol=1e-10, atol=1e-12)
        assert curve.losses[step] == pytest.approx(-np.log((g * y).sum(1)).mean())
        theta = theta - 0.1 / 6 * np.einsum("ncp,nc->p", j, g - y)


def test_cross_entropy_hard_input():
    eye = np.eye(2)
    sure = regression.cross_entropy_curve(eye, eye, 1e4 * eye, lr=1.0, steps=1)
    np.testing.assert_array_equal(sure.losses, 0)
    wrong = regression.cross_entropy_curve(eye, eye, -1e4 * eye, lr=1.0, steps=1)
    np.testing.assert_allclose(wrong.losses, [1e4, 1e4 - 1])
    cases = [
        ({"targets": 2 * eye}, "targets: expected probabilities"),
        ({"targets": np.ones((3, 2))}, "targets: expected shape"),
        ({"start": np.zeros((0, 2))}, "start: expected shape"),
        ({"kernel": np.ones((2, 3))}, "kernel: expected shape"),
        ({"kernel": np.full((2, 2), np.inf)}, "kernel: expected finite"),
        ({"cross": np.ones((4, 3))}, r"cross: expected shape \(m, 2\)"),
        ({"lr": 0.0}, "lr"),
        ({"steps": -1}, "steps"),
    ]
    for options, message in cases:
        given = {"kernel": eye, "targets": eye, "start": 0 * eye, "lr": 1.0, "steps": 2, **options}
        arrays = [given.pop(name) for name in ("kernel", "targets", "start")]
        with pytest.raises(ValueError, match=message):
            regression.cross_entropy_curve(*arrays, **given)
    with pytest.raises(NumericalError, match="diverges"):
        regression.cross_entropy_curve(1e300 * eye, eye, 0 * eye, lr=1e10, steps=3)
    far = np.array([[1.7e308, -1.7e308]])  # finite where it is trained, not elsewhere
    with pytest.raises(NumericalError, match="diverges"):
        regression.cross_entropy_curve(eye, eye, 0 * eye, lr=8.0, steps=2, cross=far)
