# SPDX-License-Identifier: Apache-2.0
"""Passes that are queued on a device, shown on CPU tensors that pass for one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.errors import ConvergenceWarning
from fastfisher.linalg._queued import Queued
from test_linalg import assert_pairs, rotated

torch = pytest.importorskip("torch")
pretend_device = pytest.importorskip("pretend_device")


@pytest.fixture
def device():
    with pretend_device.pretend():
        yield pretend_device


@pytest.fixture
def seen(monkeypatch):
    """What every probe that was queued ahead said, None where it did not fit."""
    said = []
    plain = Queued.looked_ahead

    def spy(self, before, slack):
        said.append(plain(self, before, slack))
        return said[-1]

    monkeypatch.setattr(Queued, "looked_ahead", spy)
    return said


def found_on(device, a, k, **options):
    found = ff.linalg.eigsh(device.moved(a), k, **options)
    arrays = map(device.host, (found.values, found.vectors, found.residual_norms))
    return ff.linalg.EigshResult(*arrays, found.converged, found.certified, found.matvecs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_probe_ahead_certifies(which, dtype, rng, device, seen):
    slow = np.arange(1, 301) ** -0.6  # not found before the first look
    values = np.concatenate([10 * slow, -8 * slow, np.zeros(400)])
    a = rotated(rng, values, dtype)
    device.reads.clear()
    found = found_on(device, a, 5, which=which)
    assert len(seen) == 1
    assert seen[0] is not None
    assert not seen[0].any()
    assert found.certified is True
    assert found.converged.all()
    assert_pairs(a, found)
    expected = ff.linalg.eigsh(a, 5, which=which)
    np.testing.assert_allclose(found.values, expected.values, atol=100 * np.finfo(dtype).eps)
    # Looks, a probe, the check of the matrix and the residuals: not each pass.
    assert sum(device.reads.values()) < 16 < found.matvecs / 4


@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_what_the_start_lacks_is_found_by_the_probe(tol, rng, device, seen):
    # Start vectors without the first eigenvector: the iteration settles on the others.
    values = np.concatenate([[12.0], 10 * np.arange(1, 1500) ** -0.6])
    a, basis = np.diag(values), np.zeros((1500, 8))
    basis[1:] = rng.standard_normal((1499, 8))
    found = found_on(device, a, 4, v0=basis, tol=tol, max_iter=500)
    assert any(one is not None and one.all() for one in seen)
    np.testing.assert_allclose(found.values, values[:4], atol=20 * tol)
    assert found.certified is True


def test_wide_blocks_are_not_queued(rng, device, seen):
    a = rotated(rng, rng.standard_normal(1200) ** 3)
    expected = ff.linalg.eigsh(a, 6)
    for block in (1, 8, 9):
        seen.clear()
        found = found_on(device, a, 6, block=block, max_iter=1000)
        np.testing.assert_allclose(found.values, expected.values, atol=1e-11)
        assert found.certified is True
        assert (len(seen) > 0) == (block == 8)  # one vector certifies nothing ahead


@pytest.mark.parametrize("most", [1, 3, 9, 10, 12, 17])
def test_passes_are_bounded(most, rng, device):
    a = rotated(rng, rng.standard_normal(1300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = found_on(device, a, 8, max_iter=most)
    assert found.matvecs <= 8 * most + 8  # and the product that checks
    assert np.isfinite(found.values).all()
    assert not found.certified


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_start_vectors_of_any_size(scale, dtype, device):
    # All of them count: one pass from eigenvectors, and the rest of the block is what it will.
    a = np.diag(np.arange(1, 1001.0) ** -0.3).astype(dtype)
    options = {"v0": scale * np.eye(1000)[:, :3], "max_iter": 1, "tol": 1e-4}
    for found in (found_on(device, a, 3, **options), ff.linalg.eigsh(a, 3, **options)):
        np.testing.assert_allclose(found.values, np.arange(1, 4.0) ** -0.3, rtol=1e-5)
        assert found.converged.all()


def test_same_bits_again(rng, device):
    a = rotated(rng, rng.standard_normal(1000) ** 3, "float32")
    first, again = (found_on(device, a, 7, max_iter=500) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, again.vectors)
    other = found_on(device, a, 7, max_iter=500, seed=1)
    assert (first.vectors != other.vectors).any()


@pytest.mark.parametrize("most", [1, 2, 5, 9, 12])
def test_few_passes_give_all_pairs(most, rng, device):
    twins = rng.standard_normal((700, 1)).repeat(8, 1)
    for a, k, options in (
        (np.eye(700), 15, {}),
        (np.diag(np.r_[np.full(3, 3.0), np.ones(697)]), 15, {}),
        (np.diag(np.arange(1, 701.0) ** -0.5), 20, {"v0": twins}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = found_on(device, a, k, max_iter=most, **options)
            expected = ff.linalg.eigsh(a, k, max_iter=most, **options)
        assert found.values.shape == expected.values.shape == (k,)
        overlap = found.vectors.T @ found.vectors
        np.testing.assert_allclose(overlap, np.eye(k), atol=1e-12)


def test_a_probe_cut_short_certifies_nothing(rng, device):
    # Start vectors without the first eigenvector, and too few passes to see that.
    a, v0 = np.diag(np.r_[12.0, 10 * np.arange(1, 1000) ** -0.6]), np.zeros((1000, 8))
    v0[1:] = rng.standard_normal((999, 8))
    for most in range(6, 24):
        options = {"v0": v0, "tol": 1e-6, "max_iter": most}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for found in (found_on(device, a, 4, **options), ff.linalg.eigsh(a, 4, **options)):
                assert not found.certified or abs(found.values[0] - 12) < 1e-5
                assert found.matvecs <= 8 * most + 4


def test_warm_start_is_kept(rng, device):
    # Eigenvectors and one of them again: the block is singular, its directions are not lost.
    a = np.diag(np.arange(1, 1001.0) ** -0.3)
    v0 = np.eye(1000)[:, [0, 1, 2, 3, 4, 5, 6, 6]]
    found = found_on(device, a, 5, v0=v0, tol=1e-8, max_iter=500)
    np.testing.assert_allclose(found.values, np.arange(1, 6.0) ** -0.3, atol=1e-12)
    assert found.certified is True
    assert found.matvecs <= 8 * 25
