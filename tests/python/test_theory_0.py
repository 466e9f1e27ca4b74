# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 0 (order parameters, Gaussian averages)."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss

from fastfisher import theory

ERF = np.vectorize(math.erf, otypes=[float])
PHI = {
    "relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0) * 1.0),
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "erf": (ERF, lambda u: 2 / math.sqrt(math.pi) * np.exp(-u * u)),
    "erf-sqrt2": (
        lambda u: ERF(u / math.sqrt(2)),
        lambda u: math.sqrt(2 / math.pi) * np.exp(-u * u / 2),
    ),
    "linear": (lambda u: u, np.ones_like),
    "hard-tanh": (lambda u: np.clip(u, -1, 1), lambda u: (np.abs(u) < 1) * 1.0),
}
CORRELATIONS = [-0.9, -0.3, 0.0, 0.5, 0.99, 1.0]
VARIANCES = [(0.7, 0.7), (1.3, 0.4)]

# activation, L, sigma_w2, sigma_b2: q_1^L, q_2^L, qt_1^1, qt_2^1, kappa_1, kappa_2
TABLE = [
    ("tanh", 3, 3, 0.64, 2.31683384, 1.18285203, 0.76226805, 0.26571424, 0.95552190, 0.11861537),
    ("relu", 3, 2, 0.1, 2.30000000, 1.25902174, 1.00000000, 0.32015029, 1.57500000, 0.40149422),
    ("linear", 3, 1, 0.1, 1.30000000, 0.30000000, 1.00000000, 1.00000000, 1.65000000, 0.15000000),
    ("erf", 3, 2, 0.3, 1.38628315, 0.57642379, 0.76150188, 0.29415067, 0.94535586, 0.09108244),
    ("tanh", 6, 3, 0.64, 2.26614962, 1.66436243, 0.73706119, 0.09334300, 0.69304446, 0.15578389),
    ("relu", 6, 2, 0.1, 2.60000000, 2.02971045, 1.00000000, 0.12118063, 1.35000000, 0.46619365),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_t0_1_order_parameters(row):
    activation, depth, sigma_w2, sigma_b2, *expected = row
    order = theory.order_parameters(
        (50,) * depth + (1,), activation=activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2
    )

    got = (order.q1[-1], order.q2[-1], order.qt1[0], order.qt2[0], order.kappa1, order.kappa2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7)
    assert order.alpha == depth - 1
    assert pytest.approx(order.alpha * order.width * order.kappa1) == order.K1


def quadrature(activation, a1, a2, c, *, slope):
    """E[g(u) g(v)] by 200 x 200 Gauss-Hermite nodes."""
    g = PHI[activation][slope]
    z, w = hermegauss(200)
    w = w / w.sum()
    u = math.sqrt(a1) * z
    v = math.sqrt(a2) * (c * z[:, None] + math.sqrt(1 - c * c) * z)
    return w @ (g(u) * (g(v) @ w))


@pytest.mark.parametrize("a", VARIANCES, ids=str)
@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("activation", ["erf", "erf-sqrt2"])
def test_t0_2_erf_equals_quadrature(activation, c, a):
    got = theory.pair_overlap(activation, *a, c * math.sqrt(a[0] * a[1]))

    for slope, value in enumerate(got):
        assert value == pytest.approx(quadrature(activation, *a, c, slope=slope), abs=1e-10)


@pytest.mark.parametrize("a", VARIANCES, ids=str)
@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_t0_2_closed_forms_equal_monte_carlo(activation, c, a):
    rng = np.random.default_rng(VARIANCES.index(a) * 10 + CORRELATIONS.index(c))
    z1, z2 = rng.standard_normal((2, 1_000_000))
    u = math.sqrt(a[0]) * z1
    v = math.sqrt(a[1]) * (c * z1 + math.sqrt(1 - c * c) * z2)

    got = theory.pair_overlap(activation, *a, c * math.sqrt(a[0] * a[1]))

    for g, value in zip(PHI[activation], got, strict=True):
        draws = g(u) * g(v)
        assert abs(draws.mean() - value) <= 5 * draws.std() / 1000 + 1e-15


@pytest.mark.parametrize("a", [0.3, 1.0, 3.6])
@pytest.mark.parametrize("activation", PHI)
def test_t0_2_one_sample_equals_monte_carlo(activation, a):
    u = math.sqrt(a) * np.random.default_rng(5).standard_normal(1_000_000)
    value, slope = (g(u) for g in PHI[activation])

    moments = [
        (value**2, theory.same_overlap(activation, a)[0]),
        (slope**2, theory.same_overlap(activation, a)[1]),
        (slope**4, theory.slope_fourth_moment(activation, a)),
        ((slope != 0) * 1.0, theory.active_fraction(activation, a)),
        (value, theory.mean_activation(activation, a)),
    ]
    for draws, expected in moments:
        assert abs(draws.mean() - expected) <= 5 * draws.std() / 1000 + 1e-15


def trapezoid(a1, a2, c, *, slope, step=0.02):
    """E[g(u) g(v)] of tanh by nodes in both directions: exact to rounding for a <= 40."""
    g = PHI["tanh"][slope]
    z = np.arange(-10, 10 + step / 2, step)
    w = np.exp(-z * z / 2)
    w /= w.sum()
    v = math.sqrt(a2) * (c * z[:, None] + math.sqrt(1 - c * c) * z)
    return w @ (g(math.sqrt(a1) * z) * (g(v) @ w))


@pytest.mark.parametrize("a", [(0.01, 0.02), (1.3, 0.4), (8, 8), (8, 0.1), (30, 40)], ids=str)
def test_t0_2_tanh_pairs_equal_quadrature(a):
    c = np.array([-1, *CORRELATIONS, 1 - 1e-7])

    bulk = theory.pair_overlap("tanh", *a, c * math.sqrt(a[0] * a[1]))

    for slope, values in enumerate(bulk):
        for index, correlation in enumerate(c):
            expected = trapezoid(*a, correlation, slope=slope)
            assert values[index] == pytest.approx(expected, abs=1e-12)
            pair = theory.pair_overlap("tanh", *a, correlation * math.sqrt(a[0] * a[1]))
            assert float(pair[slope]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("a", [0, 1e-30, 0.3, 24.9, 25.1, 900, 1e8])
def test_one_sample_of_tanh_at_all_variances(a):
    value, slope = theory.same_overlap("tanh", a)

    s = math.sqrt(a)
    step = min(0.05, 0.2 / max(s, 1e-9))
    z = np.arange(0, 10, step) if s < 1e3 else np.arange(0, 30 / s, step)
    w = np.exp(-z * z / 2) * 2 * step / math.sqrt(2 * math.pi)
    w[0] /= 2
    t = 1 / np.cosh(s * z) ** 2
    assert value == pytest.approx(1 - w @ t, rel=1e-12, abs=1e-15)
    assert slope == pytest.approx(w @ t**2, rel=1e-12)


def test_averages_of_erf_keep_their_digits_at_large_variances():
    # E[phi'^2] = (4 / pi) / sqrt(1 + 4 a), where (1 + 2 a)^2 - 4 a^2 would cancel
    for a in (1.0, 1e8, 1e15):
        assert theory.same_overlap("erf", a)[1] == pytest.approx(
            4 / math.pi / math.sqrt(1 + 4 * a), rel=1e-14
        )


def sweep_of(activation, **options):
    w, b = np.meshgrid(np.linspace(0.5, 4, 40), np.linspace(0, 1, 25))
    return theory.order_parameter_sweep(
        (100,) * 100 + (1,), activation=activation, sigma_w2=w, sigma_b2=b, **options
    )


@pytest.mark.parametrize("activation", ["tanh", "relu", "erf", "linear"])
def test_sweep_of_a_thousand_networks_takes_under_a_second(activation):
    best = math.inf
    for _ in range(2):
        start = time.process_time()
        sweep = sweep_of(activation)
        best = min(best, time.process_time() - start)

    assert sweep.K1.shape == (25, 40)
    for index in ((0, 3), (12, 20), (24, 39)):
        order = theory.order_parameters(
            sweep.widths,
            activation=activation,
            sigma_w2=sweep.sigma_w2[index],
            sigma_b2=sweep.sigma_b2[index],
        )
        for name in ("qh1", "qh2", "q1", "q2", "qt1", "qt2"):
            got, expected = getattr(sweep, name)[index], getattr(order, name)
            # 1e-13 a layer, over 100 layers
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-300, err_msg=name)
        assert sweep.K1[index] == pytest.approx(order.K1, rel=1e-10)
        expected = (49 * order.K2 + order.K1) / 50
        assert sweep.lambda_max(samples=50)[index] == pytest.approx(expected, rel=1e-10)
    assert best < 1


def test_hard_sweeps():
    widths = (4, 4, 1)
    assert theory.order_parameter_sweep(widths, sigma_w2=np.ones((0, 3))).K1.shape == (0, 3)
    assert theory.order_parameter_sweep(widths, sigma_w2=2, activation="tanh").K1.shape == ()
    for options, message in (
        ({"sigma_w2": [1.0, 0.0]}, "sigma_w2: expected numbers > 0"),
        ({"sigma_w2": [1.0, math.nan]}, "sigma_w2: expected finite"),
        ({"sigma_w2": 1.0, "sigma_b2": [-1.0]}, "sigma_b2"),
        ({"sigma_w2": [1.0, 2.0], "sigma_b2": [0.0] * 3}, "broadcast"),
        ({"sigma_w2": 1.0, "activation": "hard-tanh"}, "activation"),
    ):
        with pytest.raises(ValueError, match=message):
            theory.order_parameter_sweep(widths, **options)
    with pytest.raises(ValueError, match="overflow"):
        theory.order_parameter_sweep((4,) * 2000 + (1,), sigma_w2=[8.0], activation="relu")
    for activation in ("relu", "linear"):
        with pytest.raises(ValueError, match="overflow"):
            theory.order_parameters((4,) * 2000 + (1,), sigma_w2=8.0, activation=activation)
    with pytest.raises(TypeError, match="sigma_b2: expected real numbers"):
        theory.order_parameter_sweep(widths, sigma_w2=2.0, sigma_b2=np.array([1j]))


@pytest.mark.parametrize("activation", ["tanh", "relu", "erf", "erf-sqrt2", "linear"])
@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_t0_3_kernel_diagonal_equals_the_recursion_of_one_sample(activation, parameterization):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 40))
    x *= math.sqrt(40) / np.linalg.norm(x, axis=1, keepdims=True)
    widths, options = (40, 60, 30, 50, 1), {"sigma_w2": 1.8, "sigma_b2": 0.2}
    order = theory.order_parameters(widths, activation=activation, biases=True, **options)

    kernel = theory.mean_field_kernel(
        x, widths, activation=activation, parameterization=parameterization, **options
    )

    expected = order.K1 if parameterization == "standard" else order.q1 @ order.qt1
    np.testing.assert_allclose(np.diagonal(kernel), expected, rtol=1e-13)
    # and two orthogonal samples take the recursion of two
    pair = np.zeros((2, 40))
    pair[0, 0] = pair[1, 1] = math.sqrt(40)
    kernel = theory.mean_field_kernel(
        pair, widths, activation=activation, parameterization=parameterization, **options
    )
    expected = order.K2 if parameterization == "standard" else order.q2 @ order.qt2
    np.testing.assert_allclose(kernel[0, 1], expected, rtol=1e-10)


def test_one_layer_and_equal_samples():
    order = theory.order_parameters((7, 3), sigma_w2=1.5, sigma_b2=0.5, biases=True)
    assert (order.K1, order.K2, order.q1[0]) == (8.0, 1.0, 2.0)
    with pytest.raises(ValueError, match="widths: alpha"):
        _ = order.alpha
    same = theory.order_parameters((9, 9, 9, 1), activation="relu", input_covariance=1.0)
    assert same.K1 == same.K2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (5,)}, "widths"),
        ({"widths": (5, 2.5)}, "widths"),
        ({"activation": "gelu"}, "activation"),
        ({"activation": "hard-tanh"}, "activation.*conditional_law"),
        ({"sigma_w2": 0}, "sigma_w2"),
        ({"sigma_b2": -1}, "sigma_b2"),
        ({"sigma_b2": math.nan}, "sigma_b2"),
        ({"hidden_normalization": "layer"}, "hidden_normalization"),
        ({"input_variance": 0}, "input_variance"),
        ({"input_covariance": 2}, "input_covariance"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.order_parameters(**{"widths": (5, 4, 1), **arguments})


def test_bad_arguments_of_averages():
    with pytest.raises(ValueError, match="activation"):
        theory.pair_overlap("hard-tanh", 1, 1, 0)
    with pytest.raises(ValueError, match="a1: expected variances"):
        theory.pair_overlap("relu", -1, 1, 0)
    with pytest.raises(ValueError, match="b: expected finite"):
        theory.pair_overlap("relu", 1, 1, math.nan)
    with pytest.raises(ValueError, match="a: "):
        theory.same_overlap("relu", -1)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 3\)"):
        theory.mean_field_kernel(np.ones((4, 2)), (3, 2))
