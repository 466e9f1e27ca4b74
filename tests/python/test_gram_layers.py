# SPDX-License-Identifier: Apache-2.0
"""The Gram of layers of every form against the reference, method by method, and its laws.

Storage, batches and hard input are in test_gram_layers_hard.py and test_gram_layers_batch.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfisher as ff
from cases import assert_close
from fastfisher import reference
from fastfisher._gram import gram_factors
from fastfisher.reference.gram import outputs_of
from layer_cases import BY_ID, LAYER_CASES
from layer_forms import C, D, E, LayerCase, S, mapped, ours

METHODS = ["S0", "S1", "S2", "S3", "S4"]
DTYPES = ["float32", "float64"]
LARGE = ["network", "shared-blocks", "conv2d-blocks", "separable-blocks", "explicit-blocks"]


def forms(case):
    """Outputs to ask for, an index among them."""
    return ["full", "trace", "diagonal", "sum", *([case.c // 2] if case.c else [])]


@lru_cache(maxsize=4)
def problem(name: str, dtype: str):
    """Layers on both sides and the reference of every form of outputs, square and cross."""
    case = BY_ID[name]
    rng = np.random.default_rng(20190604)
    left, right = case.draw(rng, dtype), case.draw(rng, dtype, right=True)
    full = {True: reference.gram(left), False: reference.gram(left, right)}
    expected = {
        (outputs, square): outputs_of(full[square], outputs)
        for outputs in forms(case)
        for square in (True, False)
    }
    return left, right, expected


def check(case, dtype, method, **options):
    left, right, expected = problem(case.id, dtype)
    for (outputs, square), values in expected.items():
        got = gram_factors(
            ours(left),
            None if square else ours(right),
            outputs=outputs,
            method=method,
            **options,
        )
        assert got.dtype == dtype
        assert_close(got, values, terms=case.terms(outputs, method), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_gram_equals_reference(case, dtype):
    check(case, dtype, "auto")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("case", "method"),
    [(case, method) for case in LAYER_CASES for method in case.methods],
    ids=str,
)
def test_every_method_equals_reference(case, method, dtype):
    check(case, dtype, method)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["S0", "S1", "S3"])
@pytest.mark.parametrize("c", [1, 7, 130])
def test_every_method_of_a_dense_layer_equals_reference(c, method, dtype, rng):
    case = LayerCase("dense", 23, 9, c, (D(17, 31, True), D(40, 5)))
    left, right = case.draw(rng, dtype), case.draw(rng, dtype, right=True)
    for other in (None, right):
        full = reference.gram(left, other)
        for outputs in forms(case):
            got = gram_factors(ours(left), other and ours(other), outputs=outputs, method=method)
            expected = outputs_of(full, outputs)
            assert_close(got, expected, terms=23 + 17 * 31 * c, dtype=dtype)


LACKING = [
    (spec, method)
    for spec in (
        D(3, 4),
        S(5, 3, 4),
        S(5, 3, 4, separable=True),
        C(3, (5, 5), 2, (2, 2)),
        C(3, (5, 5), 2, (2, 2), separable=True),
        E(9),
    )
    for method in METHODS
    if method not in spec.methods
]


@pytest.mark.parametrize(("spec", "method"), LACKING, ids=str)
def test_a_method_that_a_layer_lacks_is_an_error(spec, method, rng):
    layers = ours(LayerCase("", 4, 4, 2, (spec,)).draw(rng, "float32"))
    for right in (None, layers):
        with pytest.raises(ValueError, match="method"):
            gram_factors(layers, right, method=method)
    # Also as one layer of several, the others having it.
    other = S(2, 3, 3, separable=True) if method != "S0" else D(3, 3)
    layers = ours(LayerCase("", 4, 4, 2, (other, spec)).draw(rng, "float32"))
    with pytest.raises(ValueError, match="method"):
        gram_factors(layers, method=method)


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_info_reports_what_was_chosen(case):
    left, right, _ = problem(case.id, "float32")
    for other in (None, ours(right)):
        layers = ours(left)
        got, info = gram_factors(layers, other, return_info=True)
        assert np.array_equal(got, gram_factors(layers, other))
        assert isinstance(info, ff.GramInfo)
        assert [x.form for x in info.layers] == [type(x).__name__ for x in layers]
        assert [x.name for x in info.layers] == [str(k) for k in range(len(layers))]
        for spec, chosen in zip(case.layers, info.layers, strict=True):
            assert chosen.method in spec.methods
            assert chosen.multiply_adds >= 0
            assert chosen.predicted_seconds >= 0
        assert info.workspace_bytes >= 0
        assert info.seconds >= 0
        for method in case.methods:
            _, info = gram_factors(layers, other, method=method, return_info=True)
            assert {x.method for x in info.layers} == {method}


# Laws


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_square_is_symmetric_bit_for_bit_with_a_diagonal_that_is_not_negative(case, dtype):
    layers = ours(problem(case.id, dtype)[0])
    size = case.n * case.c
    for method in ("auto", *case.methods):
        full = gram_factors(layers, method=method).reshape(size, size)
        assert np.array_equal(full, full.T), method
        assert (np.diag(full) >= 0).all(), method
        trace = gram_factors(layers, outputs="trace", method=method)
        assert np.array_equal(trace, trace.T), method
        assert (np.diag(trace) >= 0).all(), method
        diagonal = gram_factors(layers, outputs="diagonal", method=method)
        assert np.array_equal(diagonal, diagonal.swapaxes(0, 1)), method
        assert (np.einsum("nnc->nc", diagonal) >= 0).all(), method


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal", "sum"])
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in LARGE for method in ("auto", *BY_ID[name].methods)],
)
def test_bits_do_not_depend_on_threads_or_memory(name, method, outputs):
    left, right, _ = problem(name, "float32")
    for other in (None, ours(right)):

        def gram(threads, limit, other=other):
            return gram_factors(
                ours(left),
                other,
                outputs=outputs,
                method=method,
                threads=threads,
                memory_limit=limit,
            )

        one = gram(1, None)
        for threads, limit in [(2, None), (3, "2MB"), (1, "600KB"), (2, 1)]:
            try:
                again = gram(threads, limit)
            except MemoryError as error:
                # The figure that the message asks for must do.
                again = gram(threads, int(str(error).split("about ")[1].split()[0]))
            assert np.array_equal(one, again), (threads, limit)


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_scratch_memory_stays_below_the_limit(case):
    layers = ours(problem(case.id, "float32")[0])
    pairs = max(spec.positions for spec in case.layers) ** 2
    for method in ("auto", *case.methods):
        # S2 and S3 hold all positions of some samples, S3 their pairs.
        limit = 3_000_000 + (16 * pairs if method in ("S2", "S3") else 0)
        _, info = gram_factors(layers, method=method, memory_limit=limit, return_info=True)
        assert info.workspace_bytes <= limit


@pytest.mark.parametrize("groups", [1, 3])
def test_conv_equals_shared_on_its_patches(groups, rng):
    case = LayerCase(
        "",
        5,
        4,
        3,
        (C(6, (7, 6), 9, (3, 2), (2, 1), (1, 2), (1, 2), groups=groups, bias=True),),
    )
    layer = ours(case.draw(rng, "float64"))[0]
    patches = layer.patches()
    g = layer.g.reshape(5, 3, groups, 9 // groups, -1).swapaxes(3, 4)
    shared = [ff.Shared(patches[:, q], g[:, :, q], bias=True) for q in range(groups)]
    np.testing.assert_allclose(
        gram_factors([layer]), gram_factors(shared), rtol=1e-12, atol=1e-12 * 500
    )


def test_shared_at_one_position_equals_dense(rng):
    a, g = rng.standard_normal((9, 1, 7)), rng.standard_normal((9, 3, 1, 5))
    for outputs in ("full", "trace", "diagonal"):
        shared = ff.gram(a, g, bias=True, outputs=outputs)
        dense = ff.gram(a[:, 0], g[:, :, 0], bias=True, outputs=outputs)
        np.testing.assert_allclose(shared, dense, rtol=1e-12, atol=1e-12 * 30)


def test_a_weight_used_twice_has_the_jacobian_of_the_sum(rng):
    a, b = rng.standard_normal((2, 6, 5))
    g, h = rng.standard_normal((2, 6, 3, 4))
    shared = ff.Shared(np.stack([a, b], 1), np.stack([g, h], 2), bias=True)
    total = ff.Dense(a, g, bias=True).block() + ff.Dense(b, h, bias=True).block()
    for method in ("auto", "S1", "S2", "S3"):
        got = gram_factors([shared], method=method)
        np.testing.assert_allclose(got, gram_factors([ff.Explicit(total)]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["network", "shared-and-dense", "conv-and-shared"])
def test_explicit_of_the_dense_jacobian_equals_the_gram(name):
    left, right, expected = problem(name, "float64")
    j, k = (ff.Jacobian.from_factors(ours(side)) for side in (left, right))
    shape = (j.samples, j.n_outputs, j.shape[1])
    written_out = ff.Jacobian.from_factors([ff.Explicit(j.dense().reshape(shape))])
    for outputs in ("full", "trace", "diagonal", "sum", 0):
        got, other = written_out.gram(outputs=outputs), j.gram(outputs=outputs)
        assert np.linalg.norm(got - other) <= 1e-13 * np.linalg.norm(other)
    got = j.gram(k)
    assert np.linalg.norm(got - expected["full", False]) <= 1e-13 * np.linalg.norm(got)
    each = sum(part.gram() for part in j.split().values())
    assert np.linalg.norm(each - j.gram()) <= 1e-13 * np.linalg.norm(each)


def test_separable_equals_its_product_written_out(rng):
    a, m, w = (rng.standard_normal(shape) for shape in ((6, 5, 7), (6, 5, 4), (3, 4)))
    g = m[:, None] * w[None, :, None]
    for outputs in ("full", "trace", "diagonal", "sum", 2):
        got = ff.gram(a, ff.Separable(m, w), bias=True, outputs=outputs)
        expected = ff.gram(a, g, bias=True, outputs=outputs)
        assert np.linalg.norm(got - expected) <= 1e-13 * np.linalg.norm(expected)
    other = (a[:4, :3], ff.Separable(m[:4, :3], w[:2]))
    got = ff.gram(a, ff.Separable(m, w), other=other)
    expected = ff.gram(a, g, other=(a[:4, :3], g[:4, :2, :3]))
    assert np.linalg.norm(got - expected) <= 1e-13 * np.linalg.norm(expected)


def test_exact_precision_is_float64_within():
    for name in ("network", "shared-five-positions", "separable-conv2d", "explicit-wide"):
        left, right, expected = problem(name, "float32")
        for (outputs, square), values in expected.items():
            if outputs == "sum":
                continue  # outputs are summed in the dtype of the factors
            for method in ("auto", *BY_ID[name].methods):
                got = gram_factors(
                    ours(left),
                    None if square else ours(right),
                    outputs=outputs,
                    method=method,
                    precision="exact",
                )
                assert got.dtype == np.float32
                assert np.array_equal(got, values.astype("float32")), (name, outputs, method)


# Anything else


@st.composite
def specs(draw):
    size, bias, separable = st.integers(1, 12), st.booleans(), st.booleans()
    form = draw(st.sampled_from("DSSCCCE"))
    if form == "D":
        return D(draw(size), draw(size), draw(bias))
    if form == "E":
        return E(draw(st.integers(0, 40)))
    if form == "S":
        s, t = draw(st.integers(0, 9)), draw(st.integers(0, 9))
        return S(s, draw(size), draw(size), draw(bias), draw(separable), t)
    rank = draw(st.integers(1, 3))
    extent = st.integers(1, (20, 8, 4)[rank - 1])

    def each(numbers):
        return tuple(draw(numbers) for _ in range(rank))

    groups = draw(st.integers(1, 3))
    return C(
        groups * draw(st.integers(1, 4)),
        each(extent),
        groups * draw(st.integers(1, 4)),
        each(st.integers(1, 3)),
        each(st.integers(1, 3)),
        each(st.integers(0, 3)),
        each(st.integers(1, 3)),
        groups,
        draw(bias),
        draw(separable),
        each(extent),
    )


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_layers_methods_and_strides(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    sizes = (data.draw(st.integers(1, 20)), data.draw(st.integers(0, 9)))
    c = data.draw(st.integers(1, 8))
    case = LayerCase("", *sizes, c, tuple(data.draw(st.lists(specs(), min_size=1, max_size=3))))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    outputs = data.draw(st.sampled_from(["full", "trace", "diagonal", "sum", 0, -1]))
    method = data.draw(st.sampled_from(["auto", *case.methods]))
    threads = data.draw(st.integers(1, 3))

    def strided(x):
        """The numbers of `x` in memory of another order, with steps and directions."""
        order = data.draw(st.permutations(range(x.ndim)))
        steps = [data.draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in x.shape]
        memory = np.full([x.shape[k] * abs(steps[k]) for k in order], np.nan, x.dtype)
        view = memory.transpose(np.argsort(order))
        view = view[tuple(slice(None, None, step) for step in steps)]
        view[...] = x
        return view

    left, right = case.draw(rng, dtype), case.draw(rng, dtype, right=True)
    our_left, our_right = ours(left, strided), ours(right, strided)
    for other, our_other in ((None, None), (right, our_right)):
        got = gram_factors(our_left, our_other, outputs=outputs, method=method, threads=threads)
        # A Gram of few numbers may all but cancel: its scale is that of its terms.
        sizes = [side and [mapped(x, np.abs) for x in side] for side in (left, other)]
        assert_close(
            got,
            reference.gram(left, other, outputs),
            scale=np.linalg.norm(reference.gram(*sizes, outputs)),
            terms=case.terms(outputs, method),
            dtype=dtype,
        )


def test_every_library_gives_the_same_bits_in_its_own_arrays(xp):
    for name in ("network", "shared-and-dense", "conv3d"):
        left, right, _ = problem(name, "float64")
        for outputs in forms(BY_ID[name]):
            if outputs == "sum":
                continue  # outputs are summed by the library
            expected = gram_factors(ours(left), ours(right), outputs=outputs)
            got = gram_factors(ours(left, xp.array), ours(right, xp.array), outputs=outputs)
            assert type(got) is xp.kind()
            xp.assert_same(got, expected)


@pytest.mark.parametrize("method", ["auto", "S1", "S2", "S3"])
@pytest.mark.parametrize(("c", "d"), [(1, 10), (3, 40), (10, 1)])
def test_numbers_of_outputs_may_differ(c, d, method, rng):
    def layers(n, outputs):
        shared = reference.Shared(
            rng.standard_normal((n, 9, 14)), rng.standard_normal((n, outputs, 9, 12)), True
        )
        conv = reference.Conv(
            rng.standard_normal((n, 4, 6, 5)),
            rng.standard_normal((n, outputs, 6, 4, 3)),
            *((3, 3), (1, 1), (0, 0), (1, 1)),
        )
        return [shared, conv]

    left, right = layers(5, c), layers(8, d)
    got = gram_factors(ours(left), ours(right), method=method)
    assert_close(got, reference.gram(left, right), terms=14 * 12 * 81, dtype="float64")


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_layers_of_a_transformer_fit_the_default_memory(outputs):
    a = np.ones((2, 197, 768), "float32")
    g = np.ones((2, 10, 197, 3072), "float32")
    kernel, info = ff.gram(a, g, outputs=outputs, return_info=True)
    entry = 768 * 3072 * 197.0**2
    np.testing.assert_allclose(kernel, entry * (10 if outputs == "trace" else 1), rtol=1e-5)
    assert info.workspace_bytes <= 48 << 20
