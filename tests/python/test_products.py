# SPDX-License-Identifier: Apache-2.0
"""Products with a Jacobian, `jvp` and `vjp`: every layer, dtype and shape against the reference."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfisher as ff
from cases import assert_close
from fastfisher import _native, reference
from product_cases import CASES, PARTS, SMALL, Case, Spec, check, conv


@pytest.mark.parametrize("columns", [(), (1,), (3,), (17,), (0,)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_equal_reference(case, dtype, columns, rng):
    arrays = case.draw(rng, lambda x: x.astype(dtype))
    check(case.jacobian(arrays), case.plain(arrays), rng, columns, dtype)


# How lines of J^T u reach the result depends on their number: whole vectors or not, and passes.
@pytest.mark.parametrize("features", [1, 5, 67, 300])
@pytest.mark.parametrize("columns", [1, 2, 4, 7, 8, 32, 33, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_columns(dtype, columns, features, rng):
    a, g = rng.standard_normal((3, features)), rng.standard_normal((3, 2, 13))
    arrays = [x.astype(dtype) for x in (a, g)]
    jacobian = ff.Jacobian.from_factors([ff.Dense(*arrays, bias=True)])
    u = rng.standard_normal((6, columns)).astype(dtype)
    product, dense = jacobian.T @ u, jacobian.dense().astype(float)
    assert_close(product, dense.T @ u, terms=6, dtype=dtype)
    for k in (0, columns - 1):
        assert_close(jacobian.T @ u[:, k], product[:, k].astype(float), terms=6, dtype=dtype)


@pytest.mark.parametrize("columns", [(), (3,)], ids=str)
def test_rows_in_several_slabs_add_up(columns, rng):
    # W too large for parts of rows, and more rows than a slab has (1024).
    a, g = (rng.standard_normal((2500, size), dtype="float32") for size in (1500, 1200))
    jacobian = ff.Jacobian.from_factors([ff.Dense(a, g[:, None])])
    u = rng.standard_normal((2500, *columns), dtype="float32")
    sides = [(g * v[:, None]).astype(float).T @ a for v in u.reshape(2500, -1).T]
    expected = np.stack(sides, -1).reshape(1200, 1500, *columns)
    product = (jacobian.T @ u).reshape(expected.shape)
    assert_close(product, expected, terms=2500, dtype="float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_16_bit_factors_are_widened(case, dtype, rng):
    torch = pytest.importorskip("torch")
    arrays = case.draw(rng, lambda x: torch.from_numpy(x).to(getattr(torch, dtype)))
    for columns in ((), (3,)):
        check(case.jacobian(arrays), case.plain(arrays), rng, columns, "float32", torch.from_numpy)


def test_float16_is_widened_exactly(rng):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    jacobian = ff.Jacobian.from_factors([ff.Explicit(every[:, None, None])])
    np.testing.assert_array_equal(jacobian @ np.ones(1, "float32"), every.astype("float32"))


def strided(x: np.ndarray, how: str) -> np.ndarray:
    if how == "fortran":
        return np.asfortranarray(x)
    if how == "reversed":
        flip = (slice(None, None, -1),) * x.ndim
        return np.ascontiguousarray(x[flip])[flip]
    if how == "slice":
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    assert how == "last-first"
    return (
        np.ascontiguousarray(np.moveaxis(x, 0, -1))
        if x.ndim == 1
        else np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0)
    )


@pytest.mark.parametrize("how", ["fortran", "reversed", "slice", "last-first"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_strides(case, dtype, how, rng):
    arrays = case.draw(rng, lambda x: strided(x.astype(dtype), how))
    jacobian, plain = case.jacobian(arrays), case.plain(arrays)
    wide = "float32" if dtype == "float16" else dtype
    check(jacobian, plain, rng, (3,), wide, lambda x: strided(x, how))


def test_zero_strides(rng):
    a, g = np.broadcast_to(2.0, (4, 5)), np.broadcast_to(rng.standard_normal(3), (4, 2, 3))
    jacobian = ff.Jacobian.from_factors([ff.Dense(a, g, bias=True)])
    plain = [("dense", a, g, True)]
    check(jacobian, plain, rng, (3,), "float64")
    v = np.broadcast_to(1.5, (18, 3))
    assert_close(
        (jacobian @ v).reshape(4, 2, 3), reference.jvp(plain, v), terms=18, dtype="float64"
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_outputs_of_any_strides(order, rng):
    case = next(case for case in CASES if case.id == "all-forms")
    arrays = case.draw(rng)
    layers = [layer.native() for layer in case.jacobian(arrays).layers]
    p = case.jacobian(arrays).shape[1]
    v, u = rng.standard_normal((p, 3)), rng.standard_normal((case.n, case.c, 3))
    out, back = (
        np.full((case.n, case.c, 6), np.nan, order=order),
        np.full((2 * p, 3), np.nan, order=order),
    )
    _native.jvp(layers, v, out[..., ::-2])
    _native.vjp(layers, u, back[::2])
    assert_close(out[..., ::-2], reference.jvp(case.plain(arrays), v), terms=p, dtype="float64")
    assert_close(back[::2], reference.vjp(case.plain(arrays), u), terms=15, dtype="float64")
    assert np.isnan(out[..., ::2]).all()
    assert np.isnan(back[1::2]).all()


@st.composite
def problems(draw):
    def one(least, most):
        return draw(st.integers(least, most))

    kind = draw(st.sampled_from(["dense", "shared", "explicit", "conv"]))
    common = {"bias": draw(st.booleans()), "separable": draw(st.booleans())}
    if kind == "conv":
        groups, rank = one(1, 3), one(1, 3)

        def each(least, most):
            return tuple(one(least, most) for _ in range(rank))

        spec = Spec(
            kind,
            i=groups * one(1, 4),
            o=groups * one(1, 9),
            space=each(1, 7),
            kernel=each(1, 3),
            stride=each(1, 3),
            padding=each(0, 3),
            dilation=each(1, 2),
            groups=groups,
            **common,
        )
    elif kind == "shared":
        spec = Spec(kind, one(0, 20), one(0, 20), t=one(0, 9), **common)
    else:
        spec = Spec(kind, one(0, 70), one(0, 70), bias=common["bias"])
    return Case("drawn", (spec,), n=one(0, 9), c=one(0, 18)), one(0, 40), one(0, 2**32)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_drawn_products(problem):
    case, columns, seed = problem
    rng = np.random.default_rng(seed)
    arrays = case.draw(rng)
    check(case.jacobian(arrays), case.plain(arrays), rng, (columns,), "float64", drawn=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_are_adjoint_and_equal_dense(case, rng):
    arrays = case.draw(rng)
    jacobian = case.jacobian(arrays)
    v, u = rng.standard_normal(jacobian.shape[1]), rng.standard_normal(jacobian.shape[0])
    image = jacobian @ v
    scale = np.linalg.norm(u) * np.linalg.norm(image)
    assert abs(u @ image - (jacobian.T @ u) @ v) <= 1e-12 * scale
    matrix = jacobian.dense()
    assert_close(image, matrix @ v, terms=len(v), dtype="float64")
    assert_close(jacobian.T @ u, matrix.T @ u, terms=len(u), dtype="float64")


LARGE = [
    Case("dense", (Spec("dense", 300, 200, bias=True),), n=150, c=4),
    Case("shared", (Spec("shared", 64, 50, t=40, bias=True),), n=30, c=4),
    Case("shared-long", (Spec("shared", 64, 50, t=1000, bias=True),), n=3, c=4),
    Case("conv", (conv(16, 16, i=8, o=24, kernel=3, padding=1, bias=True),), n=12, c=4),
    Case("conv-small-images", (conv(4, 4, i=8, o=24, kernel=3, padding=1),), n=90, c=4),
    Case("conv-channels", (conv(20, 20, i=32, o=25, kernel=3, padding=1, bias=True),), n=7, c=3),
    Case("explicit", (Spec("explicit", 9000),), n=40, c=4),
]


@pytest.mark.parametrize("columns", [(), (3,), (17,)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", PARTS, ids=str)
def test_parts_equal_reference(case, dtype, columns, rng):
    arrays = case.draw(rng, lambda x: strided(x.astype(dtype), "slice") if columns else x)
    arrays = [{name: x.astype(dtype, copy=False) for name, x in given.items()} for given in arrays]
    positions = max(max(s.t, int(np.prod(s.output() if s.space else 1))) for s in case.specs)
    check(case.jacobian(arrays), case.plain(arrays), rng, columns, dtype, positions=positions)


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_the_same_bits_for_any_number_of_threads(case, dtype, columns, rng):
    arrays = case.draw(rng, lambda x: x.astype(dtype))
    jacobian = case.jacobian(arrays)
    layers, p = [layer.native() for layer in jacobian.layers], jacobian.shape[1]
    v = rng.standard_normal((p, columns)).astype(dtype)
    u = rng.standard_normal((case.n, case.c, columns)).astype(dtype)
    results = []
    for threads in (1, 2, 3, 7):
        out, back = np.empty_like(u), np.empty_like(v)
        _native.jvp(layers, v, out, threads=threads)
        _native.vjp(layers, u, back, threads=threads)
        results.append(out.tobytes() + back.tobytes())
    assert len(set(results)) == 1


def test_the_environment_sets_the_threads_not_the_bits():
    code = (
        "import numpy as np, fastfisher as ff, hashlib; r = np.random.default_rng(0)\n"
        "a, g = r.standard_normal((90, 200)), r.standard_normal((90, 3, 150))\n"
        "J = ff.Jacobian.from_factors([ff.Dense(a, g)])\n"
        "u = J @ np.ones(J.shape[1]); v = J.T @ u\n"
        "print('hash', hashlib.sha256(u.tobytes() + v.tobytes()).hexdigest())"
    )
    found = set()
    for threads in ("1", "2", "5"):
        environment = os.environ | {"FASTFISHER_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.splitlines()[-1])
    assert len(found) == 1


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_array_libraries(case, xp, rng):
    arrays = case.draw(rng, xp.array)
    check(case.jacobian(arrays), case.plain(arrays), rng, (2,), "float64", xp.array)
    check(case.jacobian(arrays), case.plain(arrays), rng, (), "float64", xp.array)


# Hard input ----------------------------------------


@pytest.fixture
def jacobian(rng):
    layers = [
        ff.Dense(rng.standard_normal((4, 5)), rng.standard_normal((4, 3, 6)), bias=True),
        ff.Conv(
            rng.standard_normal((4, 2, 5)), rng.standard_normal((4, 3, 3, 5)), kernel=3, padding=1
        ),
    ]
    return ff.Jacobian.from_factors(layers)


def test_a_batch_of_networks_has_no_products(rng):
    layer = ff.Dense(rng.standard_normal((2, 4, 5)), rng.standard_normal((2, 4, 3, 6)), batch=True)
    jacobian = ff.Jacobian.from_factors([layer])
    with pytest.raises(ValueError, match="batch of networks"):
        jacobian @ np.ones(30)
    with pytest.raises(ValueError, match="batch of networks"):
        jacobian.T @ np.ones(12)


def test_mistakes_name_the_argument(jacobian):
    rows, parameters = jacobian.shape
    with pytest.raises(ValueError, match=rf"v: expected shape \({parameters},\)"):
        jacobian @ np.ones(parameters + 1)
    with pytest.raises(ValueError, match=rf"u: expected shape \({rows},\)"):
        jacobian.T @ np.ones((rows, 1, 1))
    with pytest.raises(TypeError, match=r"v: expected dtype float64 .* got dtype float32"):
        jacobian @ np.ones(parameters, "float32")
    with pytest.raises(TypeError, match="u: expected a numpy"):
        jacobian.T @ [1.0] * rows


def test_16_bit_factors_want_float32_vectors(rng):
    layer = ff.Dense(np.ones((2, 3), "float16"), np.ones((2, 1, 4), "float16"))
    jacobian = ff.Jacobian.from_factors([layer])
    with pytest.raises(TypeError, match="v: expected dtype float32 for layers of dtype float16"):
        jacobian @ np.ones(12, "float16")


def test_torch_vectors(jacobian):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="v: expected library numpy"):
        jacobian @ torch.ones(jacobian.shape[1], dtype=torch.float64)
    ours = ff.Jacobian.from_factors([ff.Dense(torch.ones(2, 3), torch.ones(2, 1, 4))])
    with pytest.raises(TypeError, match=r"v: cannot be borrowed: .*x.detach\(\)"):
        ours @ torch.ones(12, requires_grad=True)
    with pytest.raises(TypeError, match="v: has torch's negative bit"):
        ours @ torch.complex(torch.ones(12), torch.ones(12)).conj().imag


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_is_named(jacobian, bad):
    rows, parameters = jacobian.shape
    v, u = np.ones(parameters), np.ones((rows, 2))
    v[7] = v[9] = bad
    u[5, 1] = bad
    with pytest.raises(ff.errors.NonFiniteError, match=r"^v: expected finite .* index \(7,\)"):
        jacobian @ v
    with pytest.raises(ff.errors.NonFiniteError, match=r"^u: expected finite .* index \(5, 1\)"):
        jacobian.T @ u
    v[:], u[:] = 1, 1
    jacobian.layers[1].a[2, 1, 3] = bad
    with pytest.raises(ff.errors.NonFiniteError, match=r"^layers\[1\], x: .* index \(2, 1, 3\)"):
        jacobian @ v
    with pytest.raises(ff.errors.NonFiniteError, match=r"^layers\[1\], x: .* index \(2, 1, 3\)"):
        jacobian.T @ u
    jacobian.layers[0].g[1, 2, 3] = bad
    with pytest.raises(ff.errors.NonFiniteError, match=r"^layers\[0\], g: .* index \(1, 2, 3\)"):
        jacobian @ v


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_non_finite_16_bit_factors_are_named(dtype):
    torch = pytest.importorskip("torch")
    w = torch.ones(2, 3, dtype=getattr(torch, dtype))
    w[1, 2] = float("inf")
    g = ff.Separable(torch.ones(4, 5, 3, dtype=w.dtype), w)
    layer = ff.Shared(torch.ones(4, 5, 2, dtype=w.dtype), g, label="head")
    with pytest.raises(ff.errors.NonFiniteError, match=r"layer 'head', w: .* index \(1, 2\)"):
        ff.Jacobian.from_factors([layer]) @ torch.ones(6)


def test_overflow_is_reported():
    jacobian = ff.Jacobian.from_factors(
        [ff.Dense(np.full((2, 3), 1e30, "float32"), np.full((2, 1, 4), 1e30, "float32"))]
    )
    with pytest.raises(ff.errors.NumericalError, match="J @ v: the result overflows float32"):
        jacobian @ np.ones(12, "float32")
    with pytest.raises(ff.errors.NumericalError, match=r"J.T @ u: the result overflows float32"):
        jacobian.T @ np.ones(2, "float32")


def test_native_checks(jacobian, rng):
    layers = [layer.native() for layer in jacobian.layers]
    p = jacobian.shape[1]
    v, out = np.ones((p, 2)), np.empty((4, 3, 2))
    with pytest.raises(ValueError, match=r"jvp: v: expected shape \(54, 2\), got \(53, 2\)"):
        _native.jvp(layers, v[1:], out)
    with pytest.raises(ValueError, match=r"jvp: out: expected shape \(4, 3, 3\), got \(4, 4, 3\)"):
        _native.jvp(layers, np.ones((p, 3)), np.empty((4, 4, 3)))
    with pytest.raises(ValueError, match=r"vjp: u: expected shape \(4, 3, 1\)"):
        _native.vjp(layers, out[:3, :, :1], v[:, :1])
    with pytest.raises(TypeError, match="vjp: u: expected dtype float64"):
        _native.vjp(layers, out.astype("float32"), v)
    with pytest.raises(ValueError, match="out: is read-only"):
        _native.vjp(layers, out, np.broadcast_to(0.0, (p, 2)))
    with pytest.raises(ValueError, match="jvp: out: has entries that share memory"):
        _native.jvp(layers, v, np.lib.stride_tricks.as_strided(out, out.shape, (24, 8, 8)))
    both = np.ones(12 * 2 + p * 2)
    with pytest.raises(ValueError, match="vjp: out: overlaps the memory of an input"):
        _native.vjp(layers, both[:24].reshape(4, 3, 2), both[10 : 10 + 2 * p].reshape(p, 2))
