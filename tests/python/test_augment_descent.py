# SPDX-License-Identifier: Apache-2.0
"""Self-paced augmentation in the kernel regime."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import augment

INF, NAN = float("inf"), float("nan")


def descent_setting():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 8))
    copies = np.tile(x, (3, 1)) + 0.03 * rng.standard_normal((15, 8))
    z = np.vstack([x, copies, rng.standard_normal((6, 8))])
    theta = ff.kernels.ntk(z, depth=3, sigma_b2=0.1)
    w, v = np.linalg.eigh(ff.kernels.nngp(z, depth=3, sigma_b2=0.1))
    f0 = v * np.sqrt(w.clip(0)) @ rng.standard_normal((26, 2))
    return theta, f0, rng.standard_normal((5, 2))


def test_descent_at_its_ends_is_plain_descent():
    theta, f0, y = descent_setting()
    none = augment.self_paced_descent(theta[:, :20], f0, y, lr=0.3, steps=9, threshold=INF)
    copies = np.tile([[2], [0], [1]], (3, 5))
    every = augment.self_paced_descent(
        theta[:, :20], f0, y, lr=0.3, steps=9, threshold=0, copies=copies
    )
    plain = augmented = f0
    for step in range(9):
        used = 5 * (1 + copies[step]) + np.arange(5)
        np.testing.assert_array_equal(none.outputs[step], plain)
        np.testing.assert_array_equal(every.outputs[step], augmented)
        plain = plain - 0.3 / 5 * (theta[:, :5] @ (plain[:5] - y))
        augmented = augmented - 0.3 / 5 * (theta[:, used] @ (augmented[used] - y))
    assert none.counts.tolist() == [0] * 9
    assert every.fractions.tolist() == [1.0] * 9
    np.testing.assert_array_equal(every.copies, copies)
    np.testing.assert_allclose(every.loss, every.losses.mean(1))
    np.testing.assert_allclose(none.losses[3], ((none.outputs[3, :5] - y) ** 2).sum(1) / 2)


def test_descent_is_that_without_augmentation_once_no_loss_is_above():
    theta, f0, y = descent_setting()
    run = augment.self_paced_descent(theta[:, :20], f0, y, lr=0.3, steps=300, threshold=0.05)
    end = int(np.flatnonzero(run.counts)[-1]) + 1
    assert run.counts[0] > 0
    assert 0 < end < 300
    rest = augment.self_paced_descent(
        theta[:, :20], run.outputs[end], y, lr=0.3, steps=300 - end, threshold=INF
    )
    np.testing.assert_array_equal(rest.outputs, run.outputs[end:])


def test_descent_draws_copies_by_seed_and_takes_one_output():
    theta, f0, y = descent_setting()
    options = {"lr": 0.3, "steps": 4, "quantile": 0.5}
    one, two, other = (
        augment.self_paced_descent(theta[:, :20], f0[:, 0], y[:, 0], **options, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.outputs, two.outputs)
    assert not np.array_equal(one.copies, other.copies)
    assert set(np.unique(one.copies)) <= {0, 1, 2}
    assert one.outputs.shape == (5, 26, 1)
    assert one.counts.tolist() == [3] * 4
    still = augment.self_paced_descent(theta[:, :20], f0, y, lr=0.3, steps=0, threshold=1)
    assert still.outputs.shape == (1, 26, 2)
    assert still.chosen.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"lr": 0}, ValueError, "lr: expected a finite number > 0"),
        ({"lr": 1e9, "steps": 400}, ff.errors.NumericalError, "lr: the outputs overflow at step"),
        ({"steps": -1}, ValueError, "steps: expected an integer >= 0"),
        ({"threshold": None}, ValueError, "got neither"),
        ({"kernel": np.eye(26)[:, :19]}, ValueError, "kernel: expected shape"),
        ({"kernel": np.eye(26)[:, :5]}, ValueError, "kernel: .*at least 10"),
        ({"kernel": np.eye(26)[:15, :20]}, ValueError, "kernel: .*t >= k"),
        ({"kernel": np.full((26, 20), NAN)}, ValueError, "kernel: expected finite"),
        ({"kernel": np.tri(26, 20)}, ValueError, "kernel: expected a symmetric matrix"),
        ({"f0": np.zeros(26)}, ValueError, r"f0: expected shape \(26, 2\), got \(26, 1\)"),
        ({"y": np.zeros((0, 2))}, ValueError, "kernel: expected shape"),
        ({"copies": np.full((3, 5), 3)}, ValueError, "copies: expected numbers from 0 to 2"),
        ({"copies": np.zeros((3, 4), int)}, ValueError, r"copies: expected shape \(3, 5\)"),
        ({"copies": np.zeros((3, 5))}, TypeError, "copies: expected an integer dtype"),
    ],
)
def test_descent_refuses(change, error, match):
    theta, f0, y = descent_setting()
    given = {"kernel": theta[:, :20], "f0": f0, "y": y, "lr": 0.3, "steps": 3, "threshold": 1.0}
    given.update(change)
    arrays = (given.pop("kernel"), given.pop("f0"), given.pop("y"))
    with pytest.raises(error, match=match):
        augment.self_paced_descent(*arrays, **given)
