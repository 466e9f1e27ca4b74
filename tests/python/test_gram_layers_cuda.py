# SPDX-License-Identifier: Apache-2.0
"""The Gram of layers of every form on a GPU: the CPU's cases against the reference."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from cases import assert_close
from fastfisher import _arrays, _by_library, reference
from fastfisher._gram import gram_factors
from fastfisher.reference.gram import outputs_of
from layer_cases import BY_ID, LAYER_CASES
from layer_forms import C, D, E, LayerCase, S, ours
from test_gram_layers import forms, problem

MIXED = [D(17, 31, True), S(5, 9, 7, True), C(3, (8, 8), 5, (3, 3), padding=(1, 1), bias=True)]
# Rows that fill tiles, and some more; slices that are packed on the GPUs that do so.
LARGE = LayerCase("large", 90, 60, 3, (*MIXED, S(4, 40, 24, separable=True), E(50)))


@pytest.fixture(autouse=True)
def _no_library(monkeypatch):
    """Fail where the caller's library would be asked in the native op's place."""

    def refuse(*_, **__):
        raise AssertionError("the native op was not used")

    monkeypatch.setattr(_by_library, "gram", refuse)


@pytest.fixture
def to_device(cuda_device):
    torch = pytest.importorskip("torch")

    def move(host):
        if host.dtype.kind == "f":
            # numpy has no bfloat16; strides stay as they are.
            return torch.from_numpy(host).to(cuda_device)
        return host

    return move


def check(case, dtype, to_device, **options):
    left, right, expected = problem(case.id, dtype) if case.id in BY_ID else drawn(case, dtype)
    for (outputs, square), values in expected.items():
        got = gram_factors(
            ours(left, to_device),
            None if square else ours(right, to_device),
            outputs=outputs,
            **options,
        )
        assert _arrays.dtype_name(got) == dtype
        host = _arrays.to_numpy(got)
        assert_close(host, values, terms=case.terms(outputs, "S1"), dtype=dtype)
        if square and outputs == "full":
            np.testing.assert_array_equal(host, host.transpose(2, 3, 0, 1))


def drawn(case, dtype):
    rng = np.random.default_rng(20190604)
    left, right = case.draw(rng, dtype), case.draw(rng, dtype, right=True)
    full = {True: reference.gram(left), False: reference.gram(left, right)}
    expected = {
        (outputs, square): outputs_of(full[square], outputs)
        for outputs in forms(case)
        for square in (True, False)
    }
    return left, right, expected


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_gram_equals_reference(case, to_device):
    check(case, "float32", to_device)


@pytest.mark.parametrize(
    "name", ["network", "shared-blocks", "conv2d-everything", "separable-blocks", "conv3d"]
)
def test_gram_in_float64_equals_reference(name, to_device):
    check(BY_ID[name], "float64", to_device)


@pytest.mark.parametrize("limit", [None, "27MB"])
def test_large_gram_whatever_the_memory(limit, to_device):
    check(LARGE, "float32", to_device, memory_limit=limit)


def test_exact_precision_is_float64_within(to_device):
    left, _, expected = drawn(LARGE, "float32")
    got = gram_factors(ours(left, to_device), None, outputs="full", precision="exact")
    host, wide = _arrays.to_numpy(got), expected["full", True]
    assert host.dtype == np.float32
    # Rounded once: every entry, not only their norm.
    np.testing.assert_allclose(host, wide, rtol=1.2e-7, atol=1e-12 * np.abs(wide).max())


def test_scales_far_apart(to_device, rng):
    a = rng.standard_normal((9, 4, 5)).astype(np.float32)
    g = rng.standard_normal((9, 2, 4, 3)).astype(np.float32)
    expected = ff.gram(a, g)
    for power in (0.0, 50.0, -45.0):
        scale = np.float32(2.0**power)
        got = ff.gram(to_device(a * scale), to_device(g))
        host = _arrays.to_numpy(got).astype(float) / float(scale) ** 2
        np.testing.assert_allclose(host, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_networks(to_device, rng):
    a, g = rng.standard_normal((5, 6, 7)), rng.standard_normal((5, 6, 2, 3))
    got = ff.gram(to_device(a), to_device(g), batch=True)
    np.testing.assert_allclose(_arrays.to_numpy(got), ff.gram(a, g, batch=True), rtol=1e-12)


def test_bfloat16_and_float16(cuda_device, rng):
    torch = pytest.importorskip("torch")
    a, g = rng.standard_normal((140, 4, 24)), rng.standard_normal((140, 2, 4, 16))
    for dtype in (torch.bfloat16, torch.float16):
        factors = [torch.from_numpy(x).to(dtype) for x in (a, g)]
        expected = ff.gram(*(x.double() for x in factors)).numpy()
        got = ff.gram(*(x.to(cuda_device) for x in factors))
        assert got.dtype == torch.float32
        assert_close(got.cpu().numpy(), expected, terms=4 * 24 * 16, dtype="float32")


def test_bad_input_names_the_layer(to_device, rng):
    a, g = rng.standard_normal((6, 3, 4)), rng.standard_normal((6, 2, 3, 5))
    a[5, 2, 1] = np.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"a: .* at index \(5, 2, 1\)"):
        ff.gram(to_device(a), to_device(g))
    with pytest.raises(NotImplementedError, match="S0"):
        ff.gram(to_device(g[:, 0]), to_device(g), method="S3")
    with pytest.raises(MemoryError, match="memory_limit"):
        ff.gram(to_device(g[:, 0]), to_device(g), memory_limit=1000)
