# SPDX-License-Identifier: Apache-2.0
"""Choosing samples to augment and mixing them in: every array library, and mistakes."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import augment

INF, NAN = float("inf"), float("nan")

# --- select ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_select_takes_losses_of_any_library(xp, dtype):
    losses = xp.array(np.array([3, 1, 2, 0], dtype))
    picked = augment.select(losses, threshold=2)
    assert picked.chosen.tolist() == [True, False, True, False]
    assert (picked.count, picked.fraction, picked.threshold) == (2, 0.5, 2.0)
    others = augment.select(losses, threshold=2, mode="below")
    np.testing.assert_array_equal(others.chosen, ~picked.chosen)


def test_select_takes_lists_slices_and_16_bits():
    torch = pytest.importorskip("torch")
    assert augment.select([0.5, 1.0], threshold=1.0).count == 1
    assert augment.select(np.arange(12.0)[::-3], threshold=6).chosen.tolist() == [1, 1, 0, 0]
    narrow = torch.tensor([0.5, 1.0, 2.0], dtype=torch.bfloat16)
    assert augment.select(narrow, threshold=1).count == 2
    # A gradient is no obstacle, and 2^-24 above the threshold is above it.
    near = torch.tensor([1.0, 1.0 + 2**-23], requires_grad=True)
    assert augment.select(near, threshold=1 + 2**-24).chosen.tolist() == [False, True]


@pytest.mark.parametrize(
    ("quantile", "mode", "count"),
    [(0, "above", 8), (0.75, "above", 2), (1, "above", 1), (0, "below", 0), (0.75, "below", 6)],
)
def test_quantiles(quantile, mode, count):
    losses = np.random.default_rng(0).permutation(8) + 0.5
    picked = augment.select(losses, quantile=quantile, mode=mode)
    assert picked.count == count
    assert picked.threshold == np.quantile(losses, quantile)


def test_quantiles_of_the_largest_numbers():
    assert augment.select([1e308, -1e308], quantile=0.5).threshold == 0
    found = augment.select([1.7e308, -1.7e308, 1.0], quantile=1.0)
    assert found.threshold == 1.7e308
    assert found.chosen.tolist() == [True, False, False]


def test_one_sample_and_negative_losses():
    assert augment.select([0.0], threshold=0.0).fraction == 1.0
    assert augment.select([0.0], quantile=0.5).fraction == 1.0
    assert augment.select([-1.0, 1.0], threshold=0.0).count == 1
    assert augment.select([-1.0, 1.0], threshold=-INF).count == 2


@pytest.mark.parametrize(
    ("losses", "options", "error", "match"),
    [
        ([1.0], {}, ValueError, "either a threshold or a quantile, got neither"),
        ([1.0], {"threshold": 1, "quantile": 0.5}, ValueError, "got both"),
        ([1.0], {"threshold": NAN}, ValueError, "threshold: expected a number, got nan"),
        ([1.0], {"threshold": "high"}, ValueError, "threshold: expected a number, got 'high'"),
        ([1.0], {"quantile": 1.5}, ValueError, "quantile: expected a number from 0 to 1"),
        ([1.0], {"quantile": NAN}, ValueError, "quantile: expected a number"),
        ([1.0], {"threshold": 1, "mode": "over"}, ValueError, "mode: expected one of"),
        ([], {"threshold": 1}, ValueError, r"losses: .*n >= 1, got shape \(0,\)"),
        ([[1.0]], {"threshold": 1}, ValueError, r"losses: .*got shape \(1, 1\)"),
        ([[1.0], [1.0, 2.0]], {"threshold": 1}, ValueError, "losses: expected one number"),
        ([1.0, NAN], {"threshold": 0}, ff.errors.NonFiniteError, r"got nan at \[1\]"),
        ([INF], {"threshold": INF}, ff.errors.NonFiniteError, r"got inf at \[0\]"),
        ([1j], {"threshold": 0}, TypeError, "losses: .*dtype complex128"),
        ([True], {"threshold": 0}, TypeError, "losses: .*dtype bool"),
        ("words", {"threshold": 0}, TypeError, "expected a numpy"),
    ],
)
def test_select_refuses(losses, options, error, match):
    with pytest.raises(error, match=match):
        augment.select(losses, **options)


# --- mix ------------------------------------------------------------------------------------------


def test_mix_changes_the_chosen_samples_only(xp):
    x = xp.array(np.arange(24.0).reshape(4, 3, 2))
    before = xp.host(x).copy()
    mixed = augment.mix(x, np.array([True, False, True, False]), lambda part: -part)
    assert isinstance(mixed, xp.kind())
    np.testing.assert_array_equal(xp.host(mixed)[[0, 2]], -before[[0, 2]])
    np.testing.assert_array_equal(xp.host(mixed)[[1, 3]], before[[1, 3]])
    np.testing.assert_array_equal(xp.host(x), before)


def test_mix_of_none_and_of_all():
    x = np.arange(6).reshape(3, 2)  # any dtype
    calls = []

    def augmented(part):
        calls.append(part)
        return part + 1

    assert augment.mix(x, np.zeros(3, bool), augmented) is x
    assert calls == []
    np.testing.assert_array_equal(augment.mix(x, [True] * 3, augmented), x + 1)
    assert calls[0] is x
    empty = np.zeros((0, 2))
    assert augment.mix(empty, np.zeros(0, bool), augmented) is empty
    sliced = np.arange(12.0).reshape(6, 2)[::2]
    got = augment.mix(sliced, np.array([False, False, True]), augmented)
    np.testing.assert_array_equal(got, np.array([[0, 1], [4, 5], [9, 10]]))


def test_mix_keeps_the_memory_format_of_images():
    torch = pytest.importorskip("torch")
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    mixed = augment.mix(x, np.array([True, False, False, False]), lambda part: part.flip(3))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed[1:], x[1:])
    assert torch.equal(mixed[0], x[0].flip(2))


@pytest.mark.parametrize(
    ("chosen", "change", "error", "match"),
    [
        ([1, 0], lambda x: x, TypeError, "chosen: expected dtype bool, got int64"),
        ([True], lambda x: x, ValueError, r"chosen: .*shape \(2,\), got \(1,\)"),
        ([True, False], lambda x: x[0], ValueError, r"augment: expected shape \(1, 3\), got \(3,"),
        ([True, True], lambda x: x[:1], ValueError, r"augment: expected shape \(2, 3\)"),
        ([True, False], lambda x: x.astype("float32"), TypeError, "augment: .*dtype float64"),
        ([True, True], lambda x: x.tolist(), TypeError, "augment: expected a numpy"),
        ([True, True], lambda x: None, TypeError, "augment: expected a numpy"),
    ],
)
def test_mix_refuses(chosen, change, error, match):
    with pytest.raises(error, match=match):
        augment.mix(np.ones((2, 3)), chosen, change)


def test_mix_refuses_a_change_of_library():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="augment: expected an array of torch, got one of numpy"):
        augment.mix(torch.ones(2, 3), [True, False], lambda x: x.numpy())
    with pytest.raises(TypeError, match="x: expected a numpy"):
        augment.mix([[1.0]], [True], lambda x: x)
