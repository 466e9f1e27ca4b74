# SPDX-License-Identifier: Apache-2.0
"""Hard input and faults of the Gram: each gives the stated error, or the right numbers."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import fastfisher as ff
from cases import as_float64, assert_close
from fastfisher import reference
from fastfisher._gram import gram_factors, memory_bytes


@pytest.fixture
def factors(rng):
    return rng.standard_normal((6, 5)), rng.standard_normal((6, 3, 4))


MISTAKES = {
    "a of rank 1": (lambda a, g: ff.gram(a[0], g), ValueError, r"a: expected shape \(n, i\)"),
    "g of rank 2": (lambda a, g: ff.gram(a, g[0]), ValueError, r"g: expected shape \(n, c, o\)"),
    "samples differ": (lambda a, g: ff.gram(a[:4], g), ValueError, "a has 4 samples and g has 6"),
    "integers": (lambda a, g: ff.gram(a.astype(int), g), TypeError, "a: expected dtype"),
    "booleans": (lambda a, g: ff.gram(a > 0, g > 0), TypeError, "a: expected dtype"),
    "complex": (lambda a, g: ff.gram(a + 0j, g + 0j), TypeError, "a: expected dtype"),
    "byte order": (lambda a, g: ff.gram(a.astype(">f8"), g.astype(">f8")), TypeError, "dtype >f8"),
    "mixed dtypes": (lambda a, g: ff.gram(a, g.astype("float32")), TypeError, "same dtype"),
    "a list": (lambda a, g: ff.gram(a.tolist(), g), TypeError, "a: expected a numpy"),
    "masked": (lambda a, g: ff.gram(np.ma.array(a), g), TypeError, "mask"),
    "no g": (lambda a, g: ff.gram(a), TypeError, "expected a Jacobian, or arrays a and g"),
    "other is one array": (
        lambda a, g: ff.gram(a, g, other=a),
        TypeError,
        "other: expected a tuple",
    ),
    "other too narrow": (
        lambda a, g: ff.gram(a, g, other=(a[:, :3], g)),
        ValueError,
        r"other: layer 0 has \(i, o, bias\) = \(3, 4, False\), expected \(5, 4, False\)",
    ),
    "other of another dtype": (
        lambda a, g: ff.gram(a, g, other=(a.astype("float32"), g.astype("float32"))),
        TypeError,
        "other: expected dtype float64",
    ),
    "outputs differ": (
        lambda a, g: ff.gram(a, g, other=(a, g[:, :2]), outputs="trace"),
        ValueError,
        "other: has 2 outputs, expected 3",
    ),
    "outputs unknown": (lambda a, g: ff.gram(a, g, outputs="all"), ValueError, "outputs: expected"),
    "outputs bool": (lambda a, g: ff.gram(a, g, outputs=True), ValueError, "outputs: expected"),
    "outputs too large": (lambda a, g: ff.gram(a, g, outputs=3), ValueError, "out of range for 3"),
    "precision": (lambda a, g: ff.gram(a, g, precision="low"), ValueError, "precision: expected"),
    "bias": (lambda a, g: ff.gram(a, g, bias=1), TypeError, "bias: expected True or False"),
    "threads": (lambda a, g: ff.gram(a, g, threads=-1), ValueError, "threads: expected"),
    "memory text": (lambda a, g: ff.gram(a, g, memory_limit="lots"), ValueError, "memory_limit"),
    "memory sign": (lambda a, g: ff.gram(a, g, memory_limit=-5), ValueError, "memory_limit"),
    "no memory": (
        lambda a, g: ff.gram(a, g, memory_limit=100),
        MemoryError,
        r"memory_limit: needs about \d+ bytes of workspace, got 100",
    ),
    "out of another shape": (
        lambda a, g: ff.gram(a, g, out=np.empty((6, 6))),
        ValueError,
        r"out: expected shape \(6, 3, 6, 3\), got \(6, 6\)",
    ),
    "out of another dtype": (
        lambda a, g: ff.gram(a, g, out=np.empty((6, 3, 6, 3), "float32")),
        TypeError,
        "out: expected dtype float64, got dtype float32",
    ),
    "out read-only": (
        lambda a, g: ff.gram(a, g, out=np.broadcast_to(0.0, (6, 3, 6, 3))),
        ValueError,
        "out: is read-only",
    ),
    "out overlaps itself": (
        lambda a, g: ff.gram(
            a, g, out=np.lib.stride_tricks.as_strided(np.empty(18), (6, 3, 6, 3), (0, 0, 24, 8))
        ),
        ValueError,
        "out: has entries that share memory",
    ),
    "out overlaps an input": (
        lambda a, g: ff.gram(a, g, outputs="trace", out=g.reshape(-1)[:36].reshape(6, 6)),
        ValueError,
        "out: overlaps",
    ),
    "layers of other samples": (
        lambda a, g: gram_factors([ff.Dense(a, g), ff.Dense(a[:4], g[:4])]),
        ValueError,
        r"layers\[1\]: g has",
    ),
    "layers mixed": (
        lambda a, g: gram_factors(
            [ff.Dense(a, g), ff.Dense(a.astype("float32"), g.astype("float32"))]
        ),
        TypeError,
        r"layers\[1\] and layers\[0\] must have the same dtype",
    ),
    "no layers": (lambda a, g: gram_factors([]), ValueError, "at least one layer"),
    "not a layer": (lambda a, g: gram_factors([(a, g)]), TypeError, r"layers\[0\]: expected"),
    "bad environment": (
        lambda a, g: _with_environment("FASTFISHER_NUM_THREADS", "many"),
        ValueError,
        "FASTFISHER_NUM_THREADS: expected a number from 1 to 4096, got 'many'",
    ),
}


def _with_environment(name, value):
    rng = np.random.default_rng(0)
    os.environ[name] = value
    try:
        return ff.gram(rng.standard_normal((200, 200)), rng.standard_normal((200, 1, 200)))
    finally:
        del os.environ[name]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_argument(name, factors):
    call, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        call(*factors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_non_finite_input_names_argument_and_first_index(bad, dtype, rng):
    a = rng.standard_normal((7, 5)).astype(dtype)
    g = rng.standard_normal((7, 3, 4)).astype(dtype)
    spoiled = g.copy()
    spoiled[4, 2, 1] = spoiled[5, 0, 0] = bad
    with pytest.raises(
        ff.errors.NonFiniteError, match=r"^g: expected finite numbers, got .*\(4, 2, 1\)"
    ):
        ff.gram(a, spoiled)
    with pytest.raises(ff.errors.NonFiniteError, match=r"\(1, 0, 0\)"):
        ff.gram(a, spoiled[::-1])  # the first in the order of the view, not of the memory
    with pytest.raises(ff.errors.NonFiniteError, match=r"other.*g: .*\(4, 2, 1\)"):
        ff.gram(a, g, other=(a, spoiled))
    spoiled_a = a.copy(order="F")
    spoiled_a[3, 4] = bad
    with pytest.raises(ff.errors.NonFiniteError, match=r"layers\[1\], a: .*\(3, 4\)"):
        gram_factors([ff.Dense(a, g), ff.Dense(spoiled_a, g)])
    with pytest.raises(ValueError, match="layer 'conv1'"):
        gram_factors([ff.Dense(spoiled_a, g, label="conv1")])


def test_an_object_that_no_library_owns_is_refused(factors):
    class Fake:
        shape = (6, 5)
        dtype = np.dtype(float)

        def __dlpack__(self, **_):
            raise AssertionError("must not be asked")

    with pytest.raises(TypeError, match="a: expected a numpy, torch, cupy or jax array, got Fake"):
        ff.gram(Fake(), factors[1])


def test_torch_tensors_that_require_grad_say_what_to_do(factors):
    torch = pytest.importorskip("torch")
    a, g = (torch.from_numpy(x) for x in factors)
    with pytest.raises(TypeError, match=r"a: cannot be borrowed: .*grad.*x.detach\(\)"):
        ff.gram(a.requires_grad_(), g)


def test_mixed_libraries_are_refused(factors):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="same array library, got numpy and torch"):
        ff.gram(factors[0], torch.from_numpy(factors[1]))


def test_jax_arrays_cannot_be_out(factors):
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match="out: jax arrays cannot be written"):
        ff.gram(*factors, outputs="trace", out=jax.numpy.zeros((6, 6)))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_float32_products_near_the_ends_of_the_range(scale, rng):
    a = (rng.standard_normal((9, 20)) * scale).astype("float32")
    g = (rng.standard_normal((9, 2, 30)) / scale).astype("float32")
    left = [(as_float64(a), as_float64(g), False)]
    assert_close(ff.gram(a, g), reference.gram(left), terms=50, dtype="float32")
    with_bias = ff.gram(a, g * np.float32(min(scale, 1)), bias=True)
    left = [(as_float64(a), as_float64(g * np.float32(min(scale, 1))), True)]
    assert_close(with_bias, reference.gram(left), terms=50, dtype="float32")


@pytest.mark.parametrize("scale", [1e-160, 1e160, 1e300, 1e-300])
def test_float64_products_beyond_the_range(scale, rng):
    a = rng.standard_normal((9, 20))
    g = rng.standard_normal((9, 2, 30))
    expected = reference.gram([(a, g, False)])
    assert_close(ff.gram(a * scale, g / scale), expected, terms=50, dtype="float64")


def test_denormal_float32_input_is_not_lost(rng):
    a = (rng.standard_normal((5, 8)) * 1e-42).astype("float32")
    g = (rng.standard_normal((5, 1, 6)) * 1e30).astype("float32")
    left = [(as_float64(a), as_float64(g), False)]
    assert_close(ff.gram(a, g), reference.gram(left), terms=14, dtype="float32")


def test_overflow_of_the_result_is_an_error_not_infinity(rng):
    a = (rng.standard_normal((4, 3)) * 1e15).astype("float32")
    g = (rng.standard_normal((4, 1, 3)) * 1e15).astype("float32")
    with pytest.raises(ff.errors.NumericalError, match="overflows float32"):
        ff.gram(a, g)
    with pytest.raises(ff.errors.NumericalError, match="overflows float64"):
        ff.gram(a.astype(float) * 1e150, g.astype(float) * 1e150)


def test_zero_factors_give_zero():
    assert not ff.gram(np.zeros((4, 3)), np.zeros((4, 2, 5))).any()


@pytest.mark.slow
def test_more_than_2_to_the_31_entries_through_zero_strides():
    # Features of one sample, all the same number in memory.
    features = 2**31 + 256
    a = np.full((1, 1), 2.0, "float32")
    one = np.array([0.5], "float32")
    g = np.lib.stride_tricks.as_strided(one, (1, 1, features), (0, 0, 0))
    # Partial sums are multiples of 64 below 2^30: exact in float32.
    # The list of stretches of the depth alone is about 1 GB.
    trace = ff.gram(a, g, outputs="trace", memory_limit="4GB")
    assert trace[0, 0] == np.float32(features)


def test_rows_more_than_2_to_the_31_entries_apart(rng):
    try:
        memory = np.zeros(
            2**32 + 64, "float32"
        )  # 16 GiB of address space, of which a few pages are touched
    except MemoryError:
        pytest.skip("this system hands out no 16 GiB of address space")
    a = np.lib.stride_tricks.as_strided(memory, (3, 8), (4 * 2**31, 4))
    a[...] = rng.standard_normal((3, 8))
    g = rng.standard_normal((3, 1, 2)).astype("float32")
    assert np.array_equal(ff.gram(a, g), ff.gram(a.copy(), g))
    assert np.array_equal(ff.gram(a[::-1], g), ff.gram(a[::-1].copy(), g))


def test_memory_limit_bounds_the_scratch_memory(rng):
    layers = [ff.Dense(rng.standard_normal((500, 400)), rng.standard_normal((500, 4, 400)))]
    expected = gram_factors(layers)
    for limit in ("20MB", "3MB", "400 KB"):
        assert np.array_equal(gram_factors(layers, memory_limit=limit), expected)


def test_memory_text():
    assert memory_bytes("512MB") == 512_000_000
    assert memory_bytes("1.5 GiB") == 3 * 2**29
    assert memory_bytes(None) == 48 * 2**20
    assert memory_bytes("7") == memory_bytes(7) == 7


def test_the_bridge_gives_arrays_back(rng):
    a, g = rng.standard_normal((6, 5)), rng.standard_normal((6, 3, 4))
    before = sys.getrefcount(a), sys.getrefcount(g)
    for _ in range(10):
        ff.gram(a, g)
        with pytest.raises(MemoryError):
            ff.gram(a, g, memory_limit=1)
    assert (sys.getrefcount(a), sys.getrefcount(g)) == before


def test_an_index_of_outputs_means_the_same_on_both_sides(factors):
    a, g = factors
    with pytest.raises(ValueError, match="other: has 2 outputs, expected 3"):
        ff.gram(a, g, other=(a, g[:, :2]), outputs=2)


def test_the_memory_that_an_error_asks_for_is_enough():
    a, g = np.ones((40, 30)), np.ones((40, 6, 20))
    with pytest.raises(MemoryError, match="needs about") as raised:
        ff.gram(a, g, outputs="trace", memory_limit=1000)
    needed = int(str(raised.value).split("about ")[1].split()[0])
    assert ff.gram(a, g, outputs="trace", memory_limit=needed)[0, 0] == 30 * 120


def test_numbers_of_numpy_serve_as_options(factors):
    expected = ff.gram(*factors, bias=True)
    got = ff.gram(
        *factors,
        bias=np.True_,
        threads=np.int64(2),
        memory_limit=np.int64(10**7),
        precision="exact",
    )
    assert np.array_equal(got, expected)
    assert np.array_equal(ff.gram(*factors, bias=True, memory_limit=1e30), expected)


def test_torch_tensors_with_the_negative_bit_are_refused(factors):
    torch = pytest.importorskip("torch")
    a = torch.randn(6, 5, dtype=torch.complex128).conj().imag
    with pytest.raises(TypeError, match="a: has torch's negative bit"):
        ff.gram(a, torch.from_numpy(factors[1]))


def test_deep_underflow_is_zero_not_a_small_number():
    assert not ff.gram(np.full((2, 1), 1e-200), np.full((2, 1, 1), 1e-200)).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_of_opposite_scales_keep_their_products(dtype):
    s = 1e12 if dtype == "float32" else 1e140
    a = np.array([[s], [1 / s]], dtype)
    g = np.array([[[1 / s]], [[s]]], dtype)
    np.testing.assert_allclose(ff.gram(a, g, outputs="trace"), 1, rtol=1e-6)


def test_non_finite_index_is_that_of_the_argument_also_for_one_output(factors):
    a, g = factors
    g[2, 1, 3] = np.inf
    for outputs in ("sum", 1):
        with pytest.raises(ff.errors.NonFiniteError, match=r"g: .*\(2, 1, 3\)"):
            ff.gram(a, g, outputs=outputs)
