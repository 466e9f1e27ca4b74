# SPDX-License-Identifier: Apache-2.0
"""Random wide networks for the tests of theory: fixed seeds, means over networks."""

from __future__ import annotations

import numpy as np

import fastfisher as ff

# Variances of weights and biases at which theory is tested, by activation.
VARIANCES = {
    "tanh": {"sigma_w2": 3.0, "sigma_b2": 0.64},
    "relu": {"sigma_w2": 2.0, "sigma_b2": 0.1},
    "linear": {"sigma_w2": 1.0, "sigma_b2": 0.1},
    "erf": {"sigma_w2": 2.0, "sigma_b2": 0.3},
}


def kind(activation, **options):
    """Options of MLP and of order_parameters for an activation."""
    return {"activation": activation, **VARIANCES[activation], **options}


def networks(widths, samples, *, seeds, dtype="float64", **options):
    """One Jacobian for each seed: new weights and new Gaussian samples."""
    for seed in range(seeds):
        yield network(widths, samples, seed=seed, dtype=dtype, **options)


def network(widths, samples, *, seed, dtype="float64", **options):
    # Data and weights have seeds of their own.
    x = gaussian(samples, widths[0], 7000 + seed, dtype)
    return ff.jacobian(ff.models.MLP(widths, seed=seed, dtype=dtype, **options), x)


def gaussian(n, width, seed, dtype="float64"):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(dtype)


def dual(jacobian):
    """F* = J J^T / N, (NC) x (NC)."""
    rows = jacobian.shape[0]
    return np.asarray(jacobian.gram(), np.float64).reshape(rows, rows) / jacobian.samples


def eigenvalues(matrix):
    """In descending order."""
    return np.linalg.eigvalsh(matrix)[::-1]


def off(measured, theory):
    """Relative deviation of the mean of `measured` from `theory`."""
    return abs(np.mean(measured) / theory - 1)
