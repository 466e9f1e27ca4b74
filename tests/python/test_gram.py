# SPDX-License-Identifier: Apache-2.0
"""The Gram against its reference and its laws. Hard input is in test_gram_hard.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfisher as ff
from cases import GRAM_CASES, as_float64, assert_close
from fastfisher import reference
from fastfisher._gram import gram_factors

OUTPUTS = ["full", "trace", "diagonal"]
DTYPES = ["float32", "float64"]


def dense(layers, xp=None):
    array = xp.array if xp else (lambda x: x)
    return [ff.Dense(array(a), array(g), bias=bias) for a, g, bias in layers]


def exact(layers):
    return [(as_float64(a), as_float64(g), bias) for a, g, bias in layers]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("case", GRAM_CASES, ids=str)
def test_gram_equals_reference(case, outputs, dtype, rng):
    left = case.factors(rng, case.n, dtype)
    right = case.factors(rng, case.m, dtype)
    square = gram_factors(dense(left), outputs=outputs)
    cross = gram_factors(dense(left), dense(right), outputs=outputs)
    assert square.dtype == cross.dtype == dtype
    expected = reference.gram(exact(left), None, outputs)
    assert_close(square, expected, terms=case.terms, dtype=dtype)
    expected = reference.gram(exact(left), exact(right), outputs)
    assert_close(cross, expected, terms=case.terms, dtype=dtype)


def test_two_by_two_by_hand():
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    g = np.array([[[1.0]], [[2.0]]])
    # <a, a'> = 5, 11, 25; <g, g'> = 1, 2, 4; with a bias 1 is added to the former.
    assert ff.gram(a, g, outputs="trace").tolist() == [[5, 22], [22, 100]]
    assert ff.gram(a, g, bias=True, outputs="trace").tolist() == [[6, 24], [24, 104]]
    assert ff.gram(a, g, other=(a[:1], g[:1]), outputs="trace").tolist() == [[5], [22]]


@pytest.mark.parametrize("outputs", [*OUTPUTS, "sum", 1])
def test_every_library_gives_the_same_bits_in_its_own_arrays(xp, outputs, rng):
    layers = [(rng.standard_normal((9, 5)), rng.standard_normal((9, 3, 4)), True)]
    expected = gram_factors(dense(layers), outputs=outputs)
    got = gram_factors(dense(layers, xp), outputs=outputs)
    assert type(got) is xp.kind()
    xp.assert_same(got, expected)


@pytest.mark.parametrize("outputs", [*OUTPUTS, "sum", 0, 2, -1])
def test_outputs_are_slices_of_full(outputs, rng):
    a, g = rng.standard_normal((8, 5)), rng.standard_normal((8, 3, 6))
    full = ff.gram(a, g)
    expected = {
        "full": lambda: full,
        "trace": lambda: np.einsum("ncmc->nm", full),
        "diagonal": lambda: np.einsum("ncmc->nmc", full),
        "sum": lambda: full.sum(axis=(1, 3)),
    }.get(outputs, lambda: full[:, outputs, :, outputs])()
    np.testing.assert_allclose(ff.gram(a, g, outputs=outputs), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GRAM_CASES, ids=str)
def test_square_is_symmetric_bit_for_bit_with_a_diagonal_that_is_not_negative(case, dtype, rng):
    layers = dense(case.factors(rng, case.n, dtype))
    size = case.n * case.c
    full = gram_factors(layers).reshape(size, size)
    assert np.array_equal(full, full.T)
    assert (np.diag(full) >= 0).all()
    trace = gram_factors(layers, outputs="trace")
    assert np.array_equal(trace, trace.T)
    diagonal = gram_factors(layers, outputs="diagonal")
    assert np.array_equal(diagonal, diagonal.swapaxes(0, 1))


def test_square_equals_cross_with_itself_bit_for_bit(rng):
    a, g = rng.standard_normal((150, 70)), rng.standard_normal((150, 2, 50))
    for outputs in OUTPUTS:
        cross = ff.gram(a, g, other=(a.copy(), g.copy()), outputs=outputs)
        assert np.array_equal(ff.gram(a, g, outputs=outputs), cross)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads_or_memory(outputs, dtype, rng):
    layers = [
        ff.Dense(
            rng.standard_normal((240, i)).astype(dtype),
            rng.standard_normal((240, 5, o)).astype(dtype),
        )
        for i, o in [(300, 530), (530, 40)]
    ]
    one = gram_factors(layers, outputs=outputs, threads=1)
    for threads, limit in [(2, None), (3, "2MB"), (1, "700KB"), (2, "300KB"), (2, "200KB")]:
        again = gram_factors(layers, outputs=outputs, threads=threads, memory_limit=limit)
        assert np.array_equal(one, again)


def test_a_block_of_a_larger_gram_has_the_same_bits(rng):
    a, g = rng.standard_normal((90, 31)), rng.standard_normal((90, 4, 27))
    part = ff.gram(a[17:60], g[17:60])
    assert np.array_equal(part, ff.gram(a, g)[17:60, :, 17:60])


@pytest.mark.parametrize("rank", [1, 3])
def test_positive_semidefinite_also_when_rank_deficient(rank, rng):
    a = rng.standard_normal((20, rank)) @ rng.standard_normal((rank, 30))
    g = np.repeat(rng.standard_normal((1, 1, 8)), 20, axis=0)
    eigenvalues = np.linalg.eigvalsh(ff.gram(a, g, outputs="trace"))
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
    assert eigenvalues[-rank - 1] < 1e-12 * eigenvalues[-1]


def test_exact_precision_is_float64_within(rng):
    a = rng.standard_normal((30, 4000)).astype("float32")
    g = rng.standard_normal((30, 2, 500)).astype("float32")
    expected = reference.gram(exact([(a, g, True)]))
    got = ff.gram(a, g, bias=True, precision="exact")
    assert got.dtype == np.float32
    assert np.array_equal(got, expected.astype("float32"))


def test_layers_of_very_different_scale_lose_nothing(rng):
    small = ff.Dense(*(rng.standard_normal(s).astype("float32") for s in ((40, 30), (40, 2, 20))))
    layers = [small, ff.Dense(small.a * np.float32(1e6), small.g), small, small]
    each = [gram_factors([layer]).astype(float) for layer in layers]
    got = gram_factors(layers).astype(float)
    eps = np.finfo("float32").eps
    assert np.abs(got - sum(each)).max() <= 2 * eps * np.abs(sum(each)).max()


def test_out_is_written_and_returned(xp, rng):
    a, g = rng.standard_normal((6, 5)), rng.standard_normal((6, 3, 4))
    expected = ff.gram(a, g)
    host = np.full((6, 3, 6, 3), np.nan)
    out = host if xp.name == "jax" else xp.array(host)
    assert ff.gram(xp.array(a), xp.array(g), out=out) is out
    xp.assert_same(out, expected)
    assert xp.on_device or np.array_equal(host, expected)


def test_out_may_be_strided_or_a_memmap(tmp_path, rng):
    a, g = rng.standard_normal((40, 5)), rng.standard_normal((40, 3, 4))
    expected = ff.gram(a, g)
    memory = np.full((3, 40, 3, 80), np.nan)
    views = {
        "transposed": memory.transpose(1, 2, 3, 0)[:, :, ::2, :],
        "reversed": np.full((40, 3, 40, 3), np.nan)[::-1, :, ::-1, ::-1],
        "memmap": np.memmap(tmp_path / "k", dtype=float, mode="w+", shape=expected.shape),
    }
    for name, out in views.items():
        ff.gram(a, g, out=out)
        assert np.array_equal(out, expected), name
    assert np.isnan(memory[:, :, :, 1::2]).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sizes_and_strides(data):
    size = st.integers(1, 40)
    n, m, c, i, o = (data.draw(size) for _ in range(5))
    c = min(c, 12)
    dtype = data.draw(st.sampled_from(DTYPES))
    outputs = data.draw(st.sampled_from(OUTPUTS))
    bias = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))

    def strided(*shape):
        """A view with drawn axis order, steps and directions."""
        order = data.draw(st.permutations(range(len(shape))))
        steps = [data.draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in shape]
        memory = rng.standard_normal([shape[k] * abs(steps[k]) for k in order]).astype(dtype)
        view = memory.transpose(np.argsort(order))
        return view[tuple(slice(None, None, step) for step in steps)]

    limit = data.draw(st.sampled_from([None, 60_000, 150_000, 400_000]))
    left = [(strided(n, i), strided(n, c, o), bias)]
    right = [(strided(m, i), strided(m, c, o), bias)]
    for other in (None, right):
        right_layers = other and dense(other)
        got = gram_factors(dense(left), right_layers, outputs=outputs, memory_limit=limit)
        expected = reference.gram(exact(left), other and exact(other), outputs)
        # A Gram of few numbers may all but cancel: its scale is that of its terms.
        sizes = [
            side and [(np.abs(a), np.abs(g), bias) for a, g, bias in side] for side in (left, other)
        ]
        scale = np.linalg.norm(reference.gram(*sizes, outputs))
        assert_close(got, expected, terms=i + c * o, dtype=dtype, scale=scale)
