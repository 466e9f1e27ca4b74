# SPDX-License-Identifier: Apache-2.0
"""Theory sheet: section 6.2, constants of natural gradient and its approximations."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import theory


def projector(rows):
    """Onto the column space of rows (n, m)."""
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    u = u[:, s > 1e-10 * s[0]]
    return u @ u.T


def kfac_kernel(jacobian):
    """Theta_G of K-FAC without damping, for one output: N sum_l (projector o projector), + last."""
    n = jacobian.samples
    *hidden, last = jacobian.layers
    total = projector(last.a)
    for layer in hidden:
        total = total + n * projector(layer.g[:, 0]) * projector(layer.a)
    return total


@pytest.mark.parametrize("depth", range(1, 11))
def test_tridiagonal(depth):
    t, c = theory.tridiagonal_matrix(depth), theory.tridiagonal_coefficients(depth)

    np.testing.assert_array_equal(t @ c, np.ones(depth))
    alpha = theory.isotropic_constant("tridiagonal", (5,) * (depth + 1))
    assert alpha == c.sum() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4][depth - 1]
    if depth % 3 == 2:
        null = np.resize([1.0, -1.0, 0.0], depth)
        assert not (t @ null).any()
        assert null.sum() == 0  # alpha does not depend on the solution


@pytest.mark.parametrize("depth", [3, 4])
def test_kfac_constant_of_a_network(depth):
    widths, n = (300,) * depth + (1,), 30
    mlp = ff.models.MLP(widths, parameterization="ntk", seed=1)
    x = np.random.default_rng(2).standard_normal((n, 300))

    theta = kfac_kernel(mlp.jacobian(x))

    alpha = theory.isotropic_constant("kfac", widths, samples=n)
    assert alpha == n * (depth - 1) + 1
    np.testing.assert_allclose(theta, alpha * np.eye(n), atol=1e-8 * alpha)


def test_kfac_constant_with_few_inputs_after_forster():
    widths, n = (15, 300, 300, 1), 40
    mlp = ff.models.MLP(widths, parameterization="ntk", seed=1)
    x = np.random.default_rng(2).standard_normal((n, 15))

    raw = np.linalg.eigvalsh(kfac_kernel(mlp.jacobian(x)))
    values = np.linalg.eigvalsh(kfac_kernel(mlp.jacobian(theory.forster_transform(x))))

    alpha = theory.isotropic_constant("kfac", widths, samples=n)
    assert alpha == n + 15 + 1
    np.testing.assert_allclose(values, alpha, rtol=1e-5)
    assert raw[-1] / raw[0] > 1.1


def test_unit_constant_counts_active_units():
    widths, n = (300, 300, 300, 1), 30
    mlp = ff.models.MLP(widths, parameterization="ntk", seed=1)
    x = np.random.default_rng(2).standard_normal((n, 300))
    layers = mlp.jacobian(x).layers
    active = sum((layer.g[:, 0] != 0).sum(1) for layer in layers)

    fraction = theory.active_fraction("relu", 1.0)
    alpha = theory.isotropic_constant("unit", widths, active_fraction=fraction)
    assert alpha == 301
    assert abs(active.mean() / alpha - 1) < 0.04
    assert theory.isotropic_constant("unit", (300, 300, 300, 3)) == 201


def test_other_constants():
    assert theory.isotropic_constant("full", (5, 5, 1)) == 1
    assert theory.isotropic_constant("layer", (5, 5, 1)) == 2
    assert theory.isotropic_constant("kfac", (9, 9, 9, 1), samples=4, last_factor="mean") == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "diagonal"}, "structure"),
        ({"structure": "kfac"}, "samples: 'kfac' needs"),
        ({"structure": "kfac", "samples": 9}, "widths: 'kfac' needs M_1 >= N C = 9"),
        ({"structure": "unit", "active_fraction": 1.5}, "active_fraction"),
        ({"structure": "full", "widths": (3,)}, "widths"),
        ({"structure": "kfac", "samples": 2, "last_factor": "I"}, "last_factor"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.isotropic_constant(**{"widths": (5, 5, 1), **arguments})


def test_bad_samples_of_forster():
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match="more samples than inputs"):
        theory.forster_transform(rng.standard_normal((4, 4)))
    with pytest.raises(ValueError, match="sample 2 is zero"):
        theory.forster_transform(np.eye(5)[:, :3][[0, 1, 3, 2, 0]])
    flat = np.c_[rng.standard_normal((9, 2)), np.zeros(9)]
    with pytest.raises(ValueError, match="span the input space"):
        theory.forster_transform(flat)
