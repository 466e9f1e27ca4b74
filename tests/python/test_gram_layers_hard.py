# SPDX-License-Identifier: Apache-2.0
"""Hard input and faults of the Gram of layers that are shared, convolved, explicit, separable."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import fastfisher as ff
from cases import assert_close
from fastfisher import reference
from fastfisher._gram import gram_factors
from layer_cases import BY_ID
from layer_forms import C, D, E, LayerCase, S, arrays, mapped, ours

SPECS = {
    "dense": D(7, 5, True),
    "shared": S(6, 7, 5, True),
    "shared separable": S(6, 7, 5, True, separable=True),
    "conv": C(4, (6, 5), 6, (3, 2), (2, 1), (1, 1), (1, 2), groups=2, bias=True),
    "conv separable": C(3, (6, 5), 6, (3, 2), (1, 1), (1, 0), bias=True, separable=True),
    "explicit": E(41),
}
CASES = [LayerCase(name, 6, 5, 3, (spec,)) for name, spec in SPECS.items()]
ALL = LayerCase("all", 6, 5, 3, tuple(SPECS.values()))
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def plain(case):
    """The case without biases: an input of another scale then scales the whole Jacobian."""
    specs = (spec if isinstance(spec, E) else replace(spec, bias=False) for spec in case.layers)
    return LayerCase(case.id, case.n, case.m, case.c, tuple(specs))


# Scale


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_factors_near_the_ends_of_the_range(case, sign, dtype, rng):
    case = plain(case)
    left, right = case.draw(rng, dtype), case.draw(rng, dtype, right=True)
    scale = np.dtype(dtype).type(10.0) ** (sign * (30 if dtype == "float32" else 290))

    def scaled(layer):
        """The same Jacobian: the first array times the scale, the last over it."""
        if isinstance(layer, reference.Explicit):
            return layer
        factors = iter([scale, *[1] * (len(arrays(layer)) - 2), 1 / scale])
        return mapped(layer, lambda x: x * np.dtype(dtype).type(next(factors)))

    left, right = [scaled(x) for x in left], [scaled(x) for x in right]
    cross, square = reference.gram(left, right), reference.gram(left)
    for method in ("auto", *case.methods):
        got = gram_factors(ours(left), ours(right), method=method)
        assert_close(got, cross, terms=case.terms("full", method), dtype=dtype)
        got = gram_factors(ours(left), method=method)
        assert_close(got, square, terms=case.terms("full", method), dtype=dtype)


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e17])
@each_case
def test_jacobians_of_extreme_scale(case, scale, rng):
    layers = plain(case).draw(rng, "float32")
    count = len(arrays(layers[0]))
    layers = [mapped(x, lambda v: v * np.float32(scale ** (1 / count))) for x in layers]
    expected = reference.gram(layers)
    for method in ("auto", *case.methods):
        got = gram_factors(ours(layers), method=method)
        assert_close(got, expected, terms=case.terms("full", method), dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_case
def test_overflow_of_the_result_is_an_error_not_infinity(case, dtype, rng):
    scale = np.dtype(dtype).type(1e25 if dtype == "float32" else 1e200)
    layers = [mapped(x, lambda v: v * scale) for x in plain(case).draw(rng, dtype)]
    for method in ("auto", *case.methods):
        with pytest.raises(ff.errors.NumericalError, match=f"overflows {dtype}"):
            gram_factors(ours(layers), method=method)


def opposed(layer, exponent):
    """The same Jacobian: a up and g down for even samples, the other way round for odd ones."""

    def scaled(x, sign):
        power = np.where(np.arange(len(x)) % 2, exponent, -exponent) * sign
        return np.ldexp(x, power.reshape(-1, *[1] * (x.ndim - 1))).astype(x.dtype)

    if isinstance(layer, reference.Explicit):
        return layer
    signs = iter([1, -1, 0])
    return mapped(layer, lambda x: scaled(x, s) if (s := next(signs)) else x)


@each_case
@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", 40), ("float32", 70), ("float64", 480)]
)
def test_samples_of_opposed_scale_within_a_layer(case, dtype, exponent, rng):
    case = plain(case)
    left = [opposed(x, exponent) for x in case.draw(rng, dtype)]
    right = [opposed(x, exponent) for x in case.draw(rng, dtype, right=True)]
    for method in ("auto", *case.methods):
        for outputs in ("full", "trace", "diagonal"):
            got = gram_factors(ours(left), outputs=outputs, method=method, threads=1)
            expected = reference.gram(left, outputs=outputs)
            assert_close(got, expected, terms=case.terms(outputs, method), dtype=dtype)
            again = gram_factors(ours(left), outputs=outputs, method=method, threads=2)
            assert np.array_equal(got, again)
        got = gram_factors(ours(left), ours(right), method=method)
        expected = reference.gram(left, right)
        assert_close(got, expected, terms=case.terms("full", method), dtype=dtype)


def test_opposed_scales_beside_a_bias_are_right_or_an_error(rng):
    for case in CASES[:-1]:
        (layer,) = case.draw(rng, "float32")
        huge = iter([2.0**80, 2.0**-80])
        x, g = list(arrays(layer).values())[:2]
        x[0] *= np.float32(next(huge))
        g[0] *= np.float32(next(huge))
        expected = reference.gram([layer])
        for method in case.methods:
            if method in ("S1", "S4"):
                got = gram_factors(ours([layer]), method=method)
                assert_close(got, expected, terms=case.terms("full", method), dtype="float32")
            else:
                with pytest.raises(ValueError, match="layer 0 has a bias and samples"):
                    gram_factors(ours([layer]), method=method)
            got = gram_factors(ours([layer]), method=method, precision="exact")
            assert_close(got, expected, terms=case.terms("full", method), dtype="float32")


def test_layers_of_very_different_scale_lose_nothing(rng):
    layers = [
        mapped(x, lambda v, k=k: v * np.float32(1e3 if k % 2 else 1e-3))
        for k, x in enumerate(ALL.draw(rng, "float32"))
    ]
    each = [gram_factors([layer]).astype(float) for layer in ours(layers)]
    got = gram_factors(ours(layers)).astype(float)
    eps = np.finfo("float32").eps
    assert np.abs(got - sum(each)).max() <= 2 * eps * np.abs(sum(each)).max()
    expected = reference.gram(layers)
    assert_close(got, expected, terms=ALL.terms("full"), dtype="float32")


@each_case
def test_zero_factors_give_zero(case, rng):
    (layer,) = case.draw(rng, "float32")
    for name in arrays(layer):
        zero = mapped(layer, np.copy)
        arrays(zero)[name][...] = 0
        expected = reference.gram([zero])
        if name not in ("a", "x"):  # a bias does not see the input
            assert not expected.any()
        for method in ("auto", *case.methods):
            got = gram_factors(ours([zero]), method=method)
            assert_close(got, expected, terms=case.terms("full", method), dtype="float32")


@each_case
def test_zero_samples_among_others(case, rng):
    (layer,) = plain(case).draw(rng, "float32")
    next(iter(arrays(layer).values()))[2] = 0
    for method in ("auto", *case.methods):
        got = gram_factors(ours([layer]), method=method)
        assert not got[2].any()
        assert_close(
            got, reference.gram([layer]), terms=case.terms("full", method), dtype="float32"
        )


@each_case
def test_duplicate_samples_give_a_singular_gram(case, rng):
    half = LayerCase(case.id, 3, 0, 2, case.layers).draw(rng, "float64")
    twice = mapped(half[0], lambda x: np.concatenate([x, x]) if len(x) == 3 else x)
    for method in ("auto", *case.methods):
        full = gram_factors(ours([twice]), method=method).reshape(12, 12)
        assert np.abs(full[:6] - full[6:]).max() <= 1e-13 * np.abs(full).max()
        eigenvalues = np.linalg.eigvalsh(full)
        assert np.abs(eigenvalues[:6]).max() < 1e-12 * eigenvalues[-1]


# NaN and infinity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_case
def test_non_finite_input_names_argument_and_first_index(case, bad, rng):
    layers, good = case.draw(rng, "float32"), case.draw(rng, "float32", right=True)
    dense = LayerCase("", 6, 5, 3, (D(3, 3),))
    for name, x in arrays(layers[0]).items():
        index = tuple(extent - 1 for extent in x.shape)
        earlier = (*index[:-1], 0)
        where = (
            rf"{name}: expected finite numbers, got .* at index \({', '.join(map(str, earlier))}"
        )
        kept = x.copy()
        x[index] = x[earlier] = bad
        for method in ("auto", *case.methods):
            with pytest.raises(ff.errors.NonFiniteError, match="^" + where):
                gram_factors(ours(layers), method=method)
            with pytest.raises(ff.errors.NonFiniteError, match="^other, " + where):
                gram_factors(ours(good), ours(layers), method=method)
        for outputs in ("trace", "sum", -1):
            with pytest.raises(ff.errors.NonFiniteError, match="^" + where):
                gram_factors(ours(layers), outputs=outputs)
        with pytest.raises(ff.errors.NonFiniteError, match=r"^layers\[1\], " + where):
            gram_factors(ours([*dense.draw(rng, "float32"), *layers]))
        with pytest.raises(ff.errors.NonFiniteError, match="^layer 'block.2', " + where):
            gram_factors(ours(layers, label="block.2"))
        x[...] = kept


def test_an_input_that_no_patch_sees_must_be_finite_too(rng):
    x, g = rng.standard_normal((2, 1, 6)), rng.standard_normal((2, 1, 1, 2))
    x[1, 0, 5] = np.nan  # kernel 2, stride 3: the last one is left over
    with pytest.raises(ff.errors.NonFiniteError, match=r"^x: .*nan at index \(1, 0, 5\)"):
        gram_factors([ff.Conv(x, g, kernel=2, stride=3)])


# Memory layout


def reverse(x):
    return np.ascontiguousarray(x[(slice(None, None, -1),) * x.ndim])[
        (slice(None, None, -1),) * x.ndim
    ]


def spaced(x):
    memory = np.full([2 * extent for extent in x.shape], np.nan, x.dtype)
    memory[(slice(None, None, 2),) * x.ndim] = x
    return memory[(slice(None, None, 2),) * x.ndim]


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = [np.asfortranarray, reverse, spaced, channels_last, read_only]


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case
def test_any_layout_gives_the_same_bits(case, layout, rng):
    left, right = case.draw(rng, "float32"), case.draw(rng, "float32", right=True)
    for method in ("auto", *case.methods):
        for other, strided in ((None, None), (ours(right), ours(right, layout))):
            expected = gram_factors(ours(left), other, method=method)
            got = gram_factors(ours(left, layout), strided, method=method)
            assert np.array_equal(got, expected)


@each_case
def test_zero_strides_give_the_same_bits(case, rng):
    layers = case.draw(rng, "float32")
    rank = max(x.ndim for x in arrays(layers[0]).values())
    for axis in range(rank):

        def repeated(x, axis=axis):
            k = min(axis, x.ndim - 1)
            return np.broadcast_to(np.take(x, [0], k), x.shape)

        written_out = [mapped(layer, lambda x: repeated(x).copy()) for layer in layers]
        for method in ("auto", *case.methods):
            got = gram_factors(ours(layers, repeated), method=method)
            assert np.array_equal(got, gram_factors(ours(written_out), method=method))


def test_torch_channels_last_and_expanded(rng):
    torch = pytest.importorskip("torch")
    x, g = rng.standard_normal((4, 3, 6, 5)), rng.standard_normal((4, 3, 2, 6, 5))
    expected = gram_factors([ff.Conv(x, g, kernel=3, padding=1, bias=True)])
    last = torch.from_numpy(x).to(memory_format=torch.channels_last)
    got = gram_factors([ff.Conv(last, torch.from_numpy(g), kernel=3, padding=1, bias=True)])
    assert np.array_equal(got, expected)
    # What autograd gives below an average: one number for all pixels.
    pooled = torch.from_numpy(g[..., :1, :1].copy()).expand(4, 3, 2, 6, 5)
    got = gram_factors([ff.Conv(last, pooled, kernel=3, padding=1)])
    expected = gram_factors([ff.Conv(x, pooled.numpy().copy(), kernel=3, padding=1)])
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("case", [*CASES, ALL], ids=str)
def test_out_may_be_strided_or_a_memmap(case, outputs, tmp_path, rng):
    layers = ours(case.draw(rng, "float64"))
    expected = gram_factors(layers, outputs=outputs)
    memory = np.full([2 * extent for extent in expected.shape[::-1]], np.nan).T
    steps = (slice(None, None, 2), slice(None, None, -2)) * 2
    out = memory[steps[: expected.ndim]]
    mapped_file = np.memmap(tmp_path / "k", dtype=float, mode="w+", shape=expected.shape)
    for target in (out, mapped_file):
        assert gram_factors(layers, outputs=outputs, out=target) is target
        assert np.array_equal(target, expected)
    assert np.isnan(memory).sum() == memory.size - expected.size


# Progress, interrupts


def test_progress_is_drawn_on_standard_error(capsys):
    layers = ours(BY_ID["network"].draw(np.random.default_rng(0), "float32"))
    expected = gram_factors(layers)
    assert np.array_equal(gram_factors(layers, progress=True), expected)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Gram" in shown.err
    assert "100%" in shown.err
    for case in CASES:
        layers = ours(case.draw(np.random.default_rng(0), "float32"))
        assert np.array_equal(gram_factors(layers, progress=True), gram_factors(layers))
        assert "100%" in capsys.readouterr().err


INTERRUPTED = """
import os, signal, threading, time
import numpy as np, fastfisher as ff
from fastfisher._gram import gram_factors
x = np.random.default_rng(0).standard_normal((2, 32, 12, 12)).astype("float32")
g = np.ones((2, 1, 32, 12, 12), "float32")
small = ff.Conv(x, g, kernel=3, padding=1)
# Many samples that are one in memory.
many = [np.broadcast_to(y[:1], (4000, *y.shape[1:])) for y in (x, g)]
layer = ff.Conv(*many, kernel=3, padding=1)
gram_factors([small])
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    for _ in range(1000):
        gram_factors([layer], method=METHOD)
except KeyboardInterrupt:
    took = time.perf_counter() - start
    assert gram_factors([small]).shape == (2, 1, 2, 1)
    print("interrupted", took)
"""


@pytest.mark.parametrize("method", ["S1", "S2", "S3"])
def test_interrupt_stops_within_a_tile(method):
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("METHOD", repr(method))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = (run.stdout.splitlines() or [""])[-1]
    assert last.startswith("interrupted"), run.stdout + run.stderr
    assert float(last.split()[1]) < 2.0  # a whole call takes much longer on these cores


# Memory


@pytest.mark.parametrize("case", [*CASES, ALL], ids=str)
def test_the_memory_that_an_error_asks_for_is_enough(case, rng):
    layers = ours(case.draw(rng, "float32"))
    for method in ("auto", *case.methods):
        with pytest.raises(MemoryError, match="needs about") as raised:
            gram_factors(layers, method=method, memory_limit=100)
        needed = int(re.search(r"about (\d+)", str(raised.value))[1])
        got, info = gram_factors(layers, method=method, memory_limit=needed, return_info=True)
        assert info.workspace_bytes <= needed
        assert np.array_equal(got, gram_factors(layers, method=method))
