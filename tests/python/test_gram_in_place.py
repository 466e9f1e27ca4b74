# SPDX-License-Identifier: Apache-2.0
"""Grams of few rows, whose gradients meet where they lie: strides, scales, bad numbers, memory."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _gram
from fastfisher._gram import gram_factors
from fastfisher.errors import NonFiniteError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
@pytest.mark.parametrize(("n", "m", "c"), [(1, None, 3), (5, 70, 1), (17, None, 3), (257, 3, 1)])
def test_few_long_rows_meet_where_they_lie(n, m, c, outputs, dtype, rng):
    eps = np.finfo(dtype).eps
    for width, scale in [(255, 1), (256, 1e-16), (1111, 1e15), (2048, 1)]:

        def draw(count, width=width, scale=scale):
            wide = scale * rng.standard_normal((count, c, 2 * width + 1))
            return wide.astype(dtype)

        # Contiguous ones against ones apart, and both against float64.
        left = draw(n)[:, :, 1::2]
        right = left if m is None else np.ascontiguousarray(draw(m)[:, :, 1::2])
        a, b = (x.astype(np.float64).reshape(-1, width) for x in (left, right))
        full = (a @ b.T).reshape(n, c, -1, c)
        spec = {"full": "ncmd->ncmd", "trace": "ncmc->nm", "diagonal": "ncmc->nmc"}[outputs]
        expected = np.einsum(spec, full)
        size = np.linalg.norm(a, axis=1).max() * np.linalg.norm(b, axis=1).max()
        results = [
            gram_factors(
                [ff.Explicit(x)],
                None if m is None else [ff.Explicit(right)],
                outputs=outputs,
                threads=threads,
                memory_limit=limit,
            )
            for x in (left, np.ascontiguousarray(left))
            for threads, limit in [(1, None), (2, "400KB")]
        ]
        assert abs(results[0] - expected).max() <= 20 * c * eps * size
        assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "m"), [(9, None), (130, None), (5, 70)])
@pytest.mark.parametrize(("i", "o"), [(100, 100), (520, 40), (33, 7), (256, 19)])
def test_traces_of_formed_gradients_with_any_memory(i, o, n, m, bias, rng):
    """Whole units and micro tiles or parts of them, as memory has it: the numbers stay."""

    def draw(count):
        a = rng.standard_normal((count, 5, i), dtype="float32")
        return ff.Shared(a, rng.standard_normal((count, 3, 5, o), dtype="float32"), bias=bias)

    left, right = draw(n), None if m is None else draw(m)
    x = left.block().astype(np.float64).reshape(n, -1)
    y = x if right is None else right.block().astype(np.float64).reshape(m, -1)
    expected, size = x @ y.T, np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    first, *others = (
        gram_factors(
            [left],
            None if right is None else [right],
            outputs="trace",
            method="S1",
            threads=threads,
            memory_limit=limit,
        )
        for limit in (None, "9MB", "2MB", "800KB")
        for threads in (1, 2)
    )
    assert (abs(first - expected) <= 1e-6 * size).all()
    assert all(np.array_equal(first, other) for other in others)


def test_traces_of_many_outputs_need_no_more_memory_than_a_unit_of_each(rng):
    a = rng.standard_normal((8, 3, 256), dtype="float32")
    g = rng.standard_normal((8, 500, 3, 4), dtype="float32")
    layer = ff.Shared(a, g, bias=True)
    expected = np.einsum("ncmc->nm", gram_factors([layer], outputs="full", method="S1"))
    got = gram_factors([layer], outputs="trace", method="S1", memory_limit="10MB")
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_in_long_rows_are_named(bad, dtype, rng):
    j = rng.standard_normal((9, 2, 700)).astype(dtype)
    j[4, 1, 333] = bad
    for outputs in ("full", "trace", "diagonal"):
        with pytest.raises(NonFiniteError, match=r"\(4, 1, 333\)|\[4, 1, 333\]"):
            gram_factors([ff.Explicit(j)], outputs=outputs)


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-22])
def test_small_long_rows_beside_others_lose_nothing(scale, rng):
    """Squares below the range of float32, of some rows only: the larger ones do not hide them."""
    j = rng.standard_normal((6, 1, 800), dtype="float32")
    j[2] *= np.float32(scale)
    got = gram_factors([ff.Explicit(j)], outputs="full")[:, 0, :, 0].astype(np.float64)
    wide = j[:, 0].astype(np.float64)
    expected, norms = wide @ wide.T, np.linalg.norm(wide, axis=1)
    kept = abs(expected) > 1e-36  # what float32 can hold
    assert (abs(got - expected)[kept] <= (1e-6 * np.outer(norms, norms))[kept]).all()
    exact = gram_factors([ff.Explicit(1e19 * j[2:3])], outputs="full")
    assert abs(exact.item() / 1e38 - norms[2] ** 2) <= 1e-6 * norms[2] ** 2 + 1e-45


def test_long_rows_are_multiplied_in_parts(monkeypatch):
    """Between which progress is told, and an interrupt answered, however long the rows are."""
    numbers = np.zeros(2, np.int64)
    monkeypatch.setattr(_gram, "progress_numbers", lambda *given: nullcontext(numbers))
    parts = []
    for chunks in (48, 400):
        j = np.ones((171, 1, 1024 * chunks), np.float32)
        assert (gram_factors([ff.Explicit(j)], outputs="trace", progress=True) == j.shape[2]).all()
        assert numbers[0] == numbers[1]
        parts.append(numbers[1])
    assert parts[1] >= 4 * parts[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_sums_of_what_is_packed_and_of_what_is_not(threads, rng):
    """Dense layers and biases beside rows in place: the same bits from any number of threads."""
    layers = (
        ff.Dense(rng.standard_normal((100, 60)), rng.standard_normal((100, 3, 70))),
        ff.Explicit(rng.standard_normal((100, 3, 3000))),
        ff.Shared(
            rng.standard_normal((100, 9, 64)), rng.standard_normal((100, 3, 9, 50)), bias=True
        ),
    )
    expected = sum(layer.block()[:, 0] @ layer.block()[:, 0].T for layer in layers)
    got = gram_factors(layers, outputs=0, threads=threads)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * abs(expected).max())
    assert np.array_equal(got, gram_factors(layers, outputs=0, threads=4))
    assert np.array_equal(got, gram_factors(layers, outputs=0, memory_limit="4MB"))
