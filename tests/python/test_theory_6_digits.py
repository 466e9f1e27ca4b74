# SPDX-License-Identifier: Apache-2.0
"""Theory sheet, section 6.7: exact natural gradient on real digits 0 and 1 against infinite width.

Published (Karakida and Osawa 2020, public code; other images, width 4096), losses after 0, 1, 2
steps: train .1343, 2.03e-4, 1.35e-7; test .1284, .00423, .00402; prediction after one step .00437.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import fastfisher as ff
from fastfisher._extras import MissingExtraError
from fastfisher.report.binary import load_binary


@cache
def predicted(name, train, test):
    """Images, kernels and dynamics."""
    try:
        data = load_binary(name, train=train, test=test, seed=1)
    except MissingExtraError as error:
        pytest.skip(str(error))
    pairs = ((data.x,), (data.test_x, data.x), (data.test_x,))
    kernels = tuple(ff.kernels.layer_kernels(*pair, depth=3) for pair in pairs)
    return data, kernels, ff.regression.natural_gradient(*kernels[:2])


def descend(data, width, steps):
    """Outputs at the start, and losses, of one network trained by exact natural gradient."""
    mlp = ff.models.MLP((data.x.shape[1], width, width, 1), parameterization="ntk", seed=1)
    starts = mlp(data.x), mlp(data.test_x)
    losses = []
    for step in range(steps + 1):
        pairs = ((data.x, data.y), (data.test_x, data.test_y))
        losses.append([np.square(mlp(x) - y).mean() / 2 for x, y in pairs])
        if step < steps:
            jacobian = mlp.jacobian(data.x)
            update = ff.ngd.update(jacobian, jacobian.outputs - data.y)
            mlp = mlp.with_parameters(jacobian.flatten(mlp.parameters) - update.vector)
    return starts, np.array(losses).T


def check(name, train, test, width, tolerance):
    data, kernels, natural = predicted(name, train, test)
    starts, (train_losses, test_losses) = descend(data, width, steps=2)
    options = {"lr": 1.0, "steps": 2}
    law = ff.regression.predicted_losses(natural, data.y, data.test_y, kernels=kernels, **options)
    own = ff.regression.predicted_losses(natural, data.y, data.test_y, starts=starts, **options)

    left = np.array([0, 1, 1])
    # within the scatter of single networks of infinite width
    assert (np.abs(test_losses - law.test) < 3 * law.test_std).all()
    assert abs(train_losses[0] - law.train[0]) < 3 * law.train_std[0]
    assert law.train[1] < 1e-20
    # The network's own start leaves the error of finite width only; after a step, what is left on
    # the training images is what that step was off by, there as elsewhere.
    assert (np.abs(test_losses - own.test) < tolerance * own.test + 3 * train_losses * left).all()
    return train_losses, test_losses


def test_exact_natural_gradient_on_small_digits():
    check("digits", train=40, test=30, width=1024, tolerance=0.15)


@pytest.mark.slow
def test_exact_natural_gradient_on_mnist():
    train, test = check("mnist", train=100, test=50, width=4096, tolerance=0.1)

    # the orders of the published numbers
    assert 0.08 < train[0] < 0.2
    assert 0.08 < test[0] < 0.2
    assert 2e-5 < train[1] < 2e-3
    assert train[2] < 1e-5
    assert (test[1:] > 1e-3).all()
    assert (test[1:] < 2e-2).all()
