# SPDX-License-Identifier: Apache-2.0
"""Analytic kernels of wide networks: laws, and hard input."""

from __future__ import annotations

import numpy as np
import pytest

from fastfisher import kernels, theory

ACTIVATIONS = ["relu", "tanh", "erf", "erf-sqrt2", "linear"]


def samples(n, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width))


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_forms_agree(activation, depth):
    x, y = samples(7), samples(4, seed=1)
    options = {"depth": depth, "activation": activation, "sigma_w2": 1.7, "sigma_b2": 0.2}

    both = kernels.layer_kernels(np.vstack([x, y]), **options)
    found = kernels.layer_kernels(x, y, **options)

    np.testing.assert_allclose(both.forward[:, :7, 7:], found.forward, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(both.backward[:, :7, 7:], found.backward, rtol=1e-11, atol=1e-12)
    for kernel in (both.forward, both.backward):
        np.testing.assert_allclose(kernel, kernel.swapaxes(1, 2), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(kernels.nngp(x, y, **options), found.nngp)
    np.testing.assert_array_equal(kernels.ntk(x, y, **options), found.ntk)
    each = kernels.ntk(x, y, layers="each", **options)
    np.testing.assert_allclose(each.sum(0), found.ntk, rtol=1e-14)
    assert found.depth == len(each) == depth
    assert np.linalg.eigvalsh(both.ntk)[0] > -1e-10
    for kernel in (kernels.nngp, kernels.ntk):
        whole, diagonal = kernel(x, **options), kernel(x, diagonal=True, **options)
        np.testing.assert_allclose(np.diagonal(whole), diagonal, rtol=1e-13)
    np.testing.assert_allclose(
        kernels.ntk(x, **options),
        theory.mean_field_kernel(
            x,
            (6, *[9] * (depth - 1), 1),
            parameterization="ntk",
            activation=activation,
            sigma_w2=1.7,
            sigma_b2=0.2,
        ),
        rtol=1e-13,
        atol=1e-13,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_t0_3_diagonal_equals_the_recursion_of_one_sample(activation):
    x = samples(6, 40)
    x *= np.sqrt(40) / np.linalg.norm(x, axis=1, keepdims=True)
    options = {"activation": activation, "sigma_w2": 1.8, "sigma_b2": 0.2}
    order = theory.order_parameters((40, 60, 30, 50, 1), **options)

    kernel = kernels.ntk(x, depth=4, **options)

    np.testing.assert_allclose(np.diagonal(kernel), order.q1 @ order.qt1, rtol=1e-13)


@pytest.mark.parametrize("sigma_b2", [0.0, 0.3])
def test_relu_is_exact_for_samples_in_both_sets(sigma_b2):
    x = samples(30)
    options = {"depth": 4, "sigma_b2": sigma_b2}
    own = kernels.ntk(x, **options)

    np.testing.assert_allclose(kernels.ntk(x[::-1], x, **options), own[::-1], rtol=1e-13)
    if sigma_b2 == 0:  # homogeneous: multiples of a sample too
        scaled = kernels.ntk(1e3 * x, x, **options)
        np.testing.assert_allclose(scaled, 1e3 * own, rtol=1e-12)
        opposite = kernels.layer_kernels(-x, x, depth=2)
        np.testing.assert_allclose(np.diagonal(opposite.nngp), 0, atol=1e-13)


def test_relu_of_nearly_equal_samples():
    # 1 - cos is 5e-17, which no rounded cosine can tell from 0; slopes are 1/2 - angle / (2 pi)
    angle = 1e-8
    x, y = np.array([[1.0, 0.0]]), np.array([[1.0, angle]])

    found = kernels.layer_kernels(x, y, depth=3, sigma_w2=2.0)

    slope = found.backward[1] / 2
    assert float(0.5 - slope[0, 0]) == pytest.approx(angle / (2 * np.pi), rel=1e-6)
    # the next layer's angle is the same to first order: 1 - cos' = (1 - cos)(1 + O(angle))
    slope = found.backward[0] / found.backward[1] / 2
    assert float(0.5 - slope[0, 0]) == pytest.approx(angle / (2 * np.pi), rel=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hard_input(activation):
    options = {"depth": 3, "activation": activation}
    x = samples(5)
    expected = kernels.ntk(x, **options)

    assert kernels.ntk(x[:1], **options).shape == (1, 1)
    assert kernels.ntk(x[:0], x, **options).shape == (0, 5)
    assert kernels.ntk(x[:0], **options).shape == (0, 0)
    np.testing.assert_array_equal(kernels.ntk(x, x, **options), expected)
    strided = np.zeros((10, 12))
    strided[::2, ::2] = x
    np.testing.assert_allclose(kernels.ntk(strided[::2, ::2], **options), expected, rtol=1e-13)
    whole = (10 * x).astype(np.int64)
    np.testing.assert_array_equal(
        kernels.nngp(whole / 10, **options), kernels.nngp((whole / 10).tolist(), **options)
    )
    single = kernels.nngp(x.astype(np.float32), **options)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, kernels.nngp(x, **options), rtol=1e-5, atol=1e-6)
    # samples of zeros: the recursion of one sample, and orthogonal to others
    zeros = np.vstack([np.zeros((2, 6)), x])
    found = kernels.layer_kernels(zeros, **options)
    assert np.isfinite(found.ntk).all()
    np.testing.assert_allclose(found.nngp[:2], 0, atol=1e-15)
    np.testing.assert_allclose(found.backward[:, 0, 0], found.backward[:, 0, 1], rtol=1e-13)
    np.testing.assert_allclose(found.ntk[2:, 2:], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones(3)}, ValueError, "x: expected 2 axes"),
        ({"x": np.ones((3, 0))}, ValueError, "x: expected at least one input"),
        ({"x": [[np.nan, 1.0]]}, ValueError, "x: expected finite"),
        ({"x": [[1e200, 1.0]]}, ValueError, "x: sample 0 is too large"),
        ({"x": np.ones((2, 2)) * 1j}, TypeError, "x: .*dtype"),
        ({"x": "abc"}, ValueError, "x: expected an array"),
        ({"y": np.ones((2, 3))}, ValueError, r"y: expected shape \(m, 2\)"),
        ({"y": np.ones((2, 2)), "diagonal": True}, ValueError, "y: diagonal"),
        ({"depth": 0}, ValueError, "depth"),
        ({"depth": 2.5}, ValueError, "depth"),
        ({"activation": "hard-tanh"}, ValueError, "activation"),
        ({"sigma_w2": 0}, ValueError, "sigma_w2"),
        ({"sigma_b2": -1}, ValueError, "sigma_b2"),
        ({"layers": "all"}, ValueError, "layers"),
        ({"depth": 600, "sigma_w2": 8}, ValueError, "depth: kernels of 600 layers overflow"),
        (
            {"depth": 600, "sigma_w2": 8, "diagonal": True},
            ValueError,
            "depth: kernels of 600 layers overflow",
        ),
        (
            {"depth": 400, "sigma_w2": 8, "activation": "linear"},
            ValueError,
            "depth: kernels of 400 layers overflow",
        ),
        (
            {"x": [[1e80, 1.0]], "depth": 3, "activation": "erf", "diagonal": True},
            ValueError,
            "depth: kernels of 3 layers overflow",
        ),
        ({"x": [[1e3, 1.0]], "activation": "tanh"}, ValueError, "x: 'tanh' takes pre"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments(arguments, error, message):
    given = {"x": np.ones((2, 2)), "depth": 2, **arguments}
    with pytest.raises(error, match=message):
        kernels.ntk(given.pop("x"), given.pop("y", None), **given)


@pytest.mark.parametrize("options", [{}, {"diagonal": True}, {"activation": "linear"}])
def test_overflow_of_deep_networks_is_an_error(options):
    x = samples(2)
    for kernel in (kernels.nngp, kernels.ntk, kernels.layer_kernels):
        with pytest.raises(ValueError, match="depth: kernels of 1100 layers overflow"):
            kernel(x, depth=1100, sigma_w2=8, **options)
    # Covariances stay bounded, gradients do not.
    chaotic = {"depth": 1500, "activation": "erf", "sigma_w2": 8}
    assert np.isfinite(kernels.nngp(x, **chaotic)).all()
    with pytest.raises(ValueError, match="depth: kernels of 1500 layers overflow"):
        kernels.ntk(x, **chaotic)


def test_samples_that_tanh_does_not_take_are_named():
    pixels = np.array([[200.0, 255.0, 1.0]])
    with pytest.raises(ValueError, match=r"x: 'tanh' takes pre-activations of variance up to 1000"):
        kernels.ntk(pixels, depth=2, activation="tanh")
    with pytest.raises(ValueError, match=r"y: 'tanh' takes"):
        kernels.nngp(pixels / 255, pixels, depth=3, activation="tanh")
    assert kernels.nngp(pixels, depth=1, activation="tanh").shape == (1, 1)


def test_tensors_that_numpy_does_not_take():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"x: expected an array of numbers, got a Tensor .*detach"):
        kernels.ntk(torch.ones(2, 3, requires_grad=True), depth=2)
    with pytest.raises(ValueError, match=r"x: expected an array of numbers, got a Tensor"):
        kernels.ntk(torch.ones(2, 3, dtype=torch.bfloat16), depth=2)
