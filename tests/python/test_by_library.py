# SPDX-License-Identifier: Apache-2.0
"""Grams and products by the caller's library (what other devices use), run on CPU arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastfisher as ff
from conftest import ArrayLibrary
from fastfisher import _by_library
from layer_cases import LAYER_CASES
from layer_forms import ours

SMALL = [case for case in LAYER_CASES if case.n * case.c <= 50 and "many" not in case.id]


@pytest.fixture(params=["numpy", "torch"])  # those whose arrays can be written
def xp(request):
    pytest.importorskip(request.param)
    return ArrayLibrary(request.param)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gram_by_library_equals_gram(case, xp, rng) -> None:
    left = ours(case.draw(rng, "float64"), xp.array)
    right = ours(case.draw(rng, "float64", right=True), xp.array)
    for other, outputs, limit in itertools.product(
        (None, right), ("full", "trace", "diagonal"), (1 << 30, 20_000)
    ):
        expected = ff.Jacobian.from_factors(left).gram(
            None if other is None else ff.Jacobian.from_factors(other), outputs=outputs
        )
        out = xp.array(np.full(tuple(expected.shape), np.nan))
        _by_library.gram(left, other, out, outputs=outputs, memory_limit=limit)
        np.testing.assert_allclose(np.asarray(out), np.asarray(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_products_by_library_equal_products(case, rng, xp, monkeypatch) -> None:
    monkeypatch.setattr(_by_library, "_PIECE", 20_000)
    layers = ours(case.draw(rng, "float64"), xp.array)
    jacobian = ff.Jacobian.from_factors(layers)
    v = xp.array(rng.normal(size=(jacobian.shape[1], 2)))
    u = xp.array(rng.normal(size=(jacobian.shape[0], 2)))
    n, c = jacobian.samples, jacobian.n_outputs
    got = np.asarray(_by_library.jvp(layers, v)).reshape(n * c, 2)
    np.testing.assert_allclose(got, np.asarray(jacobian @ v), rtol=1e-9, atol=1e-9)
    got = np.asarray(_by_library.vjp(layers, u.reshape(n, c, 2)))
    np.testing.assert_allclose(got, np.asarray(jacobian.T @ u), rtol=1e-9, atol=1e-9)


def test_by_library_refuses_nan() -> None:
    layer = ff.Explicit(np.array([[[np.nan]]]))
    with pytest.raises(ff.errors.NonFiniteError, match="layer 0, j"):
        _by_library.gram([layer], None, np.empty((1, 1)), outputs="trace", memory_limit=1)


def test_captured_models_on_a_gpu(cuda_device) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    ).double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    expected = ff.ntk(model, x)
    got, info = ff.ntk(model.to(cuda_device), x.to(cuda_device), return_info=True)
    assert got.device.type == "cuda"
    assert {layer.method for layer in info.layers} == {"S0", "S1"}
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-9)
