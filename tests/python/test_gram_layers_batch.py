# SPDX-License-Identifier: Apache-2.0
"""Batches of networks, 16-bit storage and where the result goes, for layers of every form."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from cases import as_float64, assert_close
from fastfisher import reference
from fastfisher._gram import gram_factors
from layer_cases import BY_ID
from layer_forms import D, LayerCase, arrays, mapped, ours

OUTPUTS = ["full", "trace", "diagonal", "sum", 1]
DENSE = LayerCase("dense", 6, 4, 3, (D(7, 5, True), D(5, 3)))
CASES = [
    DENSE,
    LayerCase("dense-blocks", 120, 9, 3, (D(9, 8, True),)),
    *(
        BY_ID[name]
        for name in (
            "shared-five-positions",
            "shared-other-positions",
            "conv1d-strided",
            "conv2d-everything",
            "conv2d-other-extents",
            "conv2d-depthwise",
            "conv3d",
            "explicit",
            "separable-shared",
            "separable-conv2d-one-output",
            "network",
            "conv-and-explicit",
            "one-sample",
            "no-samples",
            "no-positions-beside-others",
        )
    ),
]


def stacked(networks: list) -> list:
    """Layers whose arrays have the networks as their leading axis."""
    result = []
    for layers in zip(*networks, strict=True):
        each = [iter(arrays(layer).values()) for layer in layers]
        result.append(mapped(layers[0], lambda _, each=each: np.stack([next(x) for x in each])))
    return result


def outputs_for(case):
    return [x for x in OUTPUTS if isinstance(x, str) or x < case.c]


# Batches


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_batch_equals_a_loop_over_networks_bit_for_bit(case, dtype, rng):
    left = [case.draw(rng, dtype) for _ in range(5)]
    right = [case.draw(rng, dtype, right=True) for _ in range(5)]
    for method in ("auto", *case.methods):
        for outputs in outputs_for(case):
            options = {"outputs": outputs, "method": method}
            square = gram_factors(ours(stacked(left), batch=True), **options)
            cross = gram_factors(
                ours(stacked(left), batch=True), ours(stacked(right), batch=True), **options
            )
            assert square.dtype == cross.dtype == dtype
            assert len(square) == len(cross) == 5
            for k in range(5):
                assert np.array_equal(square[k], gram_factors(ours(left[k]), **options))
                expected = gram_factors(ours(left[k]), ours(right[k]), **options)
                assert np.array_equal(cross[k], expected)


def test_batch_of_arrays(xp, rng):
    if xp.on_device:
        pytest.skip("batches of networks run on the CPU")
    a, g = rng.standard_normal((4, 6, 5)), rng.standard_normal((4, 6, 3, 2))
    got = ff.gram(xp.array(a), xp.array(g), bias=True, batch=True)
    assert type(got) is xp.kind()
    for k in range(4):
        assert np.array_equal(as_float64(got)[k], ff.gram(a[k], g[k], bias=True))
    a, g = rng.standard_normal((4, 6, 7, 5)), rng.standard_normal((4, 6, 3, 7, 2))
    other = (a[:, :4, :5], g[:, :4, :, :5])
    got = ff.gram(
        xp.array(a), xp.array(g), other=tuple(xp.array(x) for x in other), batch=True, outputs=1
    )
    for k in range(4):
        expected = ff.gram(a[k], g[k], other=(a[k, :4, :5], g[k, :4, :, :5]), outputs=1)
        assert np.array_equal(as_float64(got)[k], expected)
    m, w = g[:, :, 0], rng.standard_normal((4, 3, 2))
    got = ff.gram(a, ff.Separable(m, w), batch=True, outputs="sum")
    for k in range(4):
        expected = ff.gram(a[k], ff.Separable(m[k], w[k]), outputs="sum")
        assert np.array_equal(got[k], expected)


@pytest.mark.parametrize("case", [DENSE, BY_ID["network"]], ids=str)
def test_batch_of_no_network(case, rng):
    empty = [mapped(layer, lambda x: np.empty((0, *x.shape))) for layer in case.draw(rng, "f8")]
    n, c = case.n, case.c
    shapes = {
        "full": (n, c, n, c),
        "trace": (n, n),
        "diagonal": (n, n, c),
        "sum": (n, n),
        1: (n, n),
    }
    for outputs in OUTPUTS:
        for right in (None, ours(empty, batch=True)):
            got = gram_factors(ours(empty, batch=True), right, outputs=outputs)
            assert got.shape == (0, *shapes[outputs])


def test_batch_of_many_small_networks(rng):
    networks = [DENSE.draw(rng, "float32") for _ in range(300)]
    got = gram_factors(ours(stacked(networks), batch=True), outputs="trace")
    for k in (0, 1, 150, 299):
        assert np.array_equal(got[k], gram_factors(ours(networks[k]), outputs="trace"))
    for threads, limit in [(1, None), (3, "2MB"), (2, "600KB")]:
        again = gram_factors(
            ours(stacked(networks), batch=True),
            outputs="trace",
            threads=threads,
            memory_limit=limit,
        )
        assert np.array_equal(again, got)


def test_networks_of_different_scale_do_not_disturb_each_other(rng):
    networks = [DENSE.draw(rng, "float32"), BY_ID["network"].draw(rng, "float32")]
    for layers in networks:
        scales = [1e-5, 1.0, 1e5]
        each = [[mapped(x, lambda v, s=s: v * np.float32(s)) for x in layers] for s in scales]
        got = gram_factors(ours(stacked(each), batch=True), outputs="trace")
        for k in range(3):
            assert np.array_equal(got[k], gram_factors(ours(each[k]), outputs="trace"))


@pytest.mark.parametrize("case", [DENSE, BY_ID["network"]], ids=str)
def test_non_finite_number_in_one_network_is_named(case, rng):
    networks = [case.draw(rng, "float32") for _ in range(5)]
    layers = stacked(networks)
    for position, layer in enumerate(layers):
        for name, x in arrays(layer).items():
            index = (3, *(extent - 1 for extent in x.shape[1:]))
            kept, x[index] = x[index], np.nan
            message = rf"layers\[{position}\], {name}: .*\({', '.join(map(str, index))}\)"
            with pytest.raises(ff.errors.NonFiniteError, match=message):
                gram_factors(ours(layers, batch=True))
            good = ours(stacked(networks), batch=True)
            with pytest.raises(ff.errors.NonFiniteError, match="other, " + name):
                gram_factors(good, ours(layers, batch=True))
            x[index] = kept


def test_batch_into_strided_out(rng):
    networks = [BY_ID["conv-and-shared"].draw(rng, "float64") for _ in range(4)]
    layers = ours(stacked(networks), batch=True)
    expected = gram_factors(layers)
    memory = np.full(tuple(2 * k for k in expected.shape), np.nan)
    out = memory[::-2, ::2, 1::2, ::-2, ::2]
    assert gram_factors(layers, out=out) is out
    assert np.array_equal(out, expected)
    assert np.isnan(memory).sum() == memory.size - out.size


BATCH_MISTAKES = {
    "numbers of networks differ": (
        lambda a, g: ff.gram(a[:2], g, batch=True),
        ValueError,
        r"expected a \(e, n, i\) and g \(e, n, c, o\) with the same n and e",
    ),
    "no axis of networks": (
        lambda a, g: ff.gram(a[0], g[0], batch=True),
        ValueError,
        "a: expected",
    ),
    "w of other networks": (
        lambda a, g: ff.gram(
            np.ones((4, 6, 7, 5)),
            ff.Separable(np.ones((4, 6, 7, 2)), np.ones((3, 3, 2))),
            batch=True,
        ),
        ValueError,
        r"w: expected shape \(4, c, 2\)",
    ),
    "other without networks": (
        lambda a, g: gram_factors([ff.Dense(a, g, batch=True)], [ff.Dense(a[0], g[0])]),
        ValueError,
        "other: batch",
    ),
    "other of other networks": (
        lambda a, g: ff.gram(a, g, other=(a[:2], g[:2]), batch=True),
        ValueError,
        "other: batch is 2, expected 4",
    ),
    "layers of other networks": (
        lambda a, g: gram_factors([ff.Dense(a, g, batch=True), ff.Dense(a[:2], g[:2], batch=True)]),
        ValueError,
        r"layers\[1\]: batch is 2, layers\[0\] has 4",
    ),
    "out without networks": (
        lambda a, g: ff.gram(a, g, batch=True, outputs="trace", out=np.empty((6, 6))),
        ValueError,
        r"out: expected shape \(4, 6, 6\)",
    ),
    "with a Jacobian": (
        lambda a, g: ff.gram(ff.Jacobian.from_factors([ff.Dense(a[0], g[0])]), batch=True),
        ValueError,
        "batch: not with a Jacobian",
    ),
}


@pytest.mark.parametrize("name", BATCH_MISTAKES)
def test_mistakes_in_a_batch_name_the_argument(name):
    call, error, message = BATCH_MISTAKES[name]
    with pytest.raises(error, match=message):
        call(np.ones((4, 6, 5)), np.ones((4, 6, 3, 2)))


# 16-bit storage

STORED = [("numpy", "float16")] + [
    (library, dtype) for library in ("torch", "jax") for dtype in ("float16", "bfloat16")
]
STORED_CASES = [
    DENSE,
    *(
        BY_ID[name]
        for name in (
            "shared-five-positions",
            "conv2d-everything",
            "explicit",
            "separable-shared",
            "separable-conv2d",
            "network",
            "conv2d-blocks",
            "no-samples",
        )
    ),
]


def narrow(library: str, dtype: str):
    """Functions that store a float32 array of numpy in `dtype`, and that widen it again."""
    if library == "numpy":
        return lambda x: x.astype(dtype), lambda x: x.astype("float32")
    if library == "torch":
        torch = pytest.importorskip("torch")
        kind = getattr(torch, dtype)
        return lambda x: torch.from_numpy(x).to(kind), lambda x: x.float().numpy()
    jnp = pytest.importorskip("jax.numpy")
    return lambda x: jnp.asarray(x, dtype), lambda x: np.asarray(x.astype("float32"))


@pytest.mark.parametrize(
    ("case", "library", "dtype"),
    [
        (case, *stored)
        for stored in STORED
        # jax compiles each shape anew.
        for case in (STORED_CASES[:3] if stored[0] == "jax" else STORED_CASES)
    ],
    ids=str,
)
def test_16_bit_factors_equal_their_widened_ones(case, library, dtype, rng):
    store, widen = narrow(library, dtype)
    left = [mapped(layer, store) for layer in case.draw(rng, "float32")]
    right = [mapped(layer, store) for layer in case.draw(rng, "float32", right=True)]
    wide = [[mapped(layer, widen) for layer in side] for side in (left, right)]
    for outputs in outputs_for(case):
        if outputs == "sum":
            continue
        got = gram_factors(ours(left), ours(right), outputs=outputs)
        assert str(got.dtype).endswith("float32")
        assert type(got) is type(next(iter(arrays(left[0]).values())))
        expected = reference.gram(*wide, outputs)
        assert_close(got, expected, terms=case.terms(outputs), dtype="float32")
    for method in case.methods:
        for other, wide_other in ((None, None), (ours(right), ours(wide[1]))):
            got = gram_factors(ours(left), other, method=method)
            expected = gram_factors(ours(wide[0]), wide_other, method=method)
            assert np.array_equal(np.asarray(got), expected), method


@pytest.mark.parametrize(("library", "dtype"), STORED)
@pytest.mark.parametrize("case", [DENSE, BY_ID["network"]], ids=str)
def test_16_bit_outputs_are_summed_in_float32(case, library, dtype, rng):
    store, widen = narrow(library, dtype)
    layers = [mapped(layer, store) for layer in case.draw(rng, "float32")]
    expected = reference.gram([mapped(layer, widen) for layer in layers], None, "sum")
    got = gram_factors(ours(layers), outputs="sum")
    assert_close(got, expected, terms=case.terms("sum"), dtype="float32")


def test_16_bit_factors_of_the_whole_range(rng):
    a = np.float16([[65504, 6e-8, 1.0], [6e-8, 1e-4, -65504]])
    g = np.float16([[[1.0, 6e-8]], [[65504, -2.0]]])
    expected = reference.gram([(a, g, True)])
    assert_close(ff.gram(a, g, bias=True), expected, terms=5, dtype="float32")
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1e18, 1.0], [1e-18, -3.0]], dtype=torch.bfloat16)
    y = torch.tensor([[[1e-17]], [[1e-12]]], dtype=torch.bfloat16)
    expected = reference.gram([(x.double().numpy(), y.double().numpy(), False)])
    assert_close(ff.gram(x, y).numpy(), expected, terms=3, dtype="float32")


def test_16_bit_precision_exact_batch_and_out(rng):
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(rng.standard_normal((3, 5, 4, 7))).bfloat16()
    g = torch.from_numpy(rng.standard_normal((3, 5, 2, 4, 6))).bfloat16()
    got = ff.gram(a, g, bias=True, batch=True, precision="exact")
    for k in range(3):
        layer = reference.Shared(a[k].double().numpy(), g[k].double().numpy(), True)
        assert np.array_equal(got[k].numpy(), reference.gram([layer]).astype("float32"))
    out = torch.empty(3, 5, 5)
    assert ff.gram(a, g, bias=True, batch=True, outputs="trace", out=out) is out
    wide = ff.gram(a.float(), g.float(), bias=True, batch=True, outputs="trace")
    np.testing.assert_allclose(out, wide, rtol=1e-5, atol=1e-4)
    with pytest.raises(TypeError, match="out: expected dtype float32, got dtype bfloat16"):
        ff.gram(a, g, batch=True, outputs="trace", out=out.bfloat16())
    with pytest.raises(TypeError, match="same dtype"):
        ff.gram(a, g.half(), batch=True)
    a[2, 1, 3, 4] = torch.inf
    with pytest.raises(ff.errors.NonFiniteError, match=r"^a: .*inf at index \(2, 1, 3, 4\)"):
        ff.gram(a, g, batch=True)
