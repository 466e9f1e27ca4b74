# SPDX-License-Identifier: Apache-2.0
"""Cotangents that a square Gram multiplies before it looks at them: its diagonal has to tell."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher._gram import gram_factors
from fastfisher.errors import NonFiniteError, NumericalError

N, C = 12, 3
KINDS = ("shared", "dense", "conv", "grouped", "explicit", "wide")


def layer(
    kind: str, rng: np.random.Generator, bias: bool = True, dtype: str = "float32"
) -> ff.Layer:
    """One layer whose gram reads its cotangents once."""
    n = N

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    if kind == "shared":
        return ff.Shared(draw(n, 5, 8), draw(n, C, 5, 7), bias=bias)
    if kind == "dense":
        return ff.Dense(draw(n, 8), draw(n, C, 7), bias=bias)
    if kind == "conv":
        return ff.Conv(draw(n, 2, 6, 6), draw(n, C, 4, 4, 4), kernel=3, bias=bias)
    if kind == "grouped":
        g = draw(n, C, 4, 3, 3)
        return ff.Conv(draw(n, 4, 6, 6), g, kernel=2, stride=2, padding=0, groups=2, bias=bias)
    return ff.Explicit(draw(n, C, 50 if kind == "explicit" else 1200))


def truth(one: ff.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Jacobian (n, C, p) and its Gram, in float64."""
    j = one.converted(lambda x: x.astype(np.float64)).block()
    return j, np.tensordot(j, j, axes=(2, 2))


def method_of(kind: str) -> str:
    return "auto" if kind in ("explicit", "wide") else "S1"


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_bad_number_is_named(kind, outputs, bad, dtype, rng):
    one = layer(kind, rng, dtype=dtype)
    for _ in range(8):
        at = tuple(int(rng.integers(extent)) for extent in one.g.shape)
        kept = one.g[at]
        one.g[at] = bad
        with pytest.raises(NonFiniteError) as caught:
            gram_factors([one], outputs=outputs, method=method_of(kind))
        assert str(at)[1:-1] in str(caught.value)
        one.g[at] = kept


def test_a_bad_number_beside_other_layers_is_named(rng):
    layers = [ff.Dense(rng.standard_normal((N, 4)), rng.standard_normal((N, C, 5)))]
    layers += [ff.Shared(rng.standard_normal((N, 3, 6)), rng.standard_normal((N, C, 3, 4)))]
    layers[1].g[9, 2, 1, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"9, 2, 1, 3"):
        gram_factors(layers)
    # The first one of several, whichever is looked at first.
    layers.append(ff.Dense(rng.standard_normal((N, 4)), rng.standard_normal((N, C, 5))))
    layers[2].a[1, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"9, 2, 1, 3"):
        gram_factors(layers, method="auto")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bad_numbers_of_16_bits(dtype, bad):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    a, g = torch.randn(N, 5, 8).to(kind), torch.randn(N, C, 5, 7).to(kind)
    g[6, 1, 2, 3] = bad
    for outputs in ("full", "trace", 1):
        with pytest.raises(NonFiniteError, match=r"6, 1, 2, 3"):
            gram_factors([ff.Shared(a, g)], outputs=outputs, method="S1")
        with pytest.raises(NonFiniteError):
            gram_factors([ff.Explicit(g.reshape(N, C, 35))], outputs=outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1e-19, 1e-22, 1e-30, 1e-38, 1e12])
def test_samples_of_any_scale_beside_ordinary_ones(kind, scale, rng):
    one = layer(kind, rng, bias=False)
    one.g[5] *= np.float32(scale)
    j, expected = truth(one)
    norms = np.linalg.norm(j, axis=2)
    got = gram_factors([one], method=method_of(kind))
    allowed = 1e-6 * np.multiply.outer(norms, norms) + 1e-37  # what float32 holds in full
    assert (abs(got - expected) <= allowed).all()
    got = gram_factors([one], outputs="trace", method=method_of(kind))
    allowed = np.trace(allowed, axis1=1, axis2=3)
    assert (abs(got - np.trace(expected, axis1=1, axis2=3)) <= allowed).all()
    if scale == 0:
        assert not got[5].any()


def test_positions_that_cancel_are_no_wrong_number(rng):
    """Where they go beyond the range of float32 on the way, an error."""
    one = layer("shared", rng, bias=False)
    one.a[7, 0] = one.a[7, 1] = 3
    one.a[7, 2:] = 0
    one.g[7, :, 0], one.g[7, :, 1] = 1e20, -1e20
    j, expected = truth(one)
    norms = np.linalg.norm(j, axis=2)
    got = gram_factors([one], method="S1")
    assert (abs(got - expected) <= 1e-6 * np.multiply.outer(norms, norms)).all()
    assert not got[7].any()
    one.g[7, :, 0], one.g[7, :, 1] = 2e38, -2e38
    with pytest.raises(NumericalError, match="overflows"):
        gram_factors([one], method="S1")


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_is_told(kind, rng):
    one = layer(kind, rng)
    one.g[3] *= np.float32(1e25)
    with pytest.raises(NumericalError, match="overflows"):
        gram_factors([one], method=method_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-15, 1e-25])
def test_everything_small(kind, scale, rng):
    """Products that the range holds, and such that it does not."""
    one = layer(kind, rng, bias=False)
    one.g[...] *= np.float32(scale)
    _, expected = truth(one)
    got = gram_factors([one], method=method_of(kind))
    assert abs(got - expected).max() <= 1e-6 * abs(expected).max() + 1e-44


@pytest.mark.parametrize("n", [1, 3, 12])
@pytest.mark.parametrize("huge", [1e15, 1e30])
def test_huge_numbers_that_meet_zeros_hide_nothing(n, huge, rng):
    """Padding, masked tokens: what is never part of a gradient must not set the scale."""

    def draw(*shape):
        return rng.standard_normal(shape, dtype="float32")

    conv = ff.Conv(draw(n, 2, 2, 2), draw(n, C, 4, 8, 8), kernel=1, padding=3)
    conv.g[:, :, :, 0] = huge
    masked = ff.Shared(draw(n, 5, 8), draw(n, C, 5, 7))
    masked.a[:, 2], masked.g[:, :, 2] = 0, huge
    silent = ff.Shared(draw(n, 5, 8), draw(n, C, 5, 7))
    silent.g[:, :, 2], silent.a[:, 2] = 0, huge
    for one in (conv, masked, silent):
        j, expected = truth(one)
        norms = np.linalg.norm(j, axis=2)
        got = gram_factors([one], method="S1")
        assert (abs(got - expected) <= 1e-6 * np.multiply.outer(norms, norms)).all()


def padded(kind: str, huge: str, big: float, rng: np.random.Generator, n: int = N) -> ff.Layer:
    """Float32 factors of which `huge` has entries of `big` where the other has zeros."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((n, *shape)).astype("float32")

    if kind == "conv":
        x, g = draw(2, 6, 6), draw(C, 4, 4, 4)
        if huge == "g":
            x[..., :3] = 0
            g[..., 0] *= big
        else:
            g[..., :3] = 0
            x[..., 0] *= big
        return ff.Conv(x, g, kernel=3, padding=0)
    a = draw(5, 8)
    g = draw(5, 7) if kind == "separable" else draw(C, 5, 7)
    zero, large = (a[:, 2], g[..., 2, :]) if huge == "g" else (g[..., 2, :], a[:, 2])
    zero[...] = 0
    large *= big
    if kind == "separable":
        w = rng.standard_normal((C, 7)).astype("float32")
        return ff.Shared(a, ff.Separable(g, w))
    return ff.Shared(a, g)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("big", [1e10, 1e15, 1e25, 1e36])
@pytest.mark.parametrize("huge", ["a", "g"])
@pytest.mark.parametrize("kind", ["shared", "conv", "separable"])
def test_huge_numbers_that_meet_zeros_hide_nothing_by_any_method(kind, huge, big, cross, rng):
    methods = ("auto", "S1", "S2", "S3") + ("S4",) * (kind == "separable")
    left = padded(kind, huge, big, rng)
    right = padded(kind, huge, big, rng, 5) if cross else None
    j = truth(left)[0]
    k = j if right is None else truth(right)[0]
    full = np.einsum("ncp,mdp->ncmd", j, k)
    expected = {
        "full": full,
        "trace": np.einsum("ncmc->nm", full),
        "diagonal": np.einsum("ncmc->nmc", full),
        "sum": full.sum((1, 3)),
    }
    for method in methods:
        for outputs, value in expected.items():
            others = None if right is None else [right]
            found = gram_factors([left], others, outputs=outputs, method=method)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, value, rtol=0, atol=3e-6 * np.abs(value).max())


def test_huge_numbers_beside_samples_without_gradient(rng):
    left, right = (padded("shared", "g", 1e30, rng) for _ in range(2))
    left.a[3] = 0
    others = np.einsum("ncp,mdp->ncmd", truth(left)[0], truth(right)[0])
    out = np.full(others.shape, np.nan, "float32")
    found, info = gram_factors([left], [right], out=out, return_info=True)
    assert found is out
    assert info.layers[0].form == "Shared"
    assert not out[3].any()
    np.testing.assert_allclose(out, others, rtol=0, atol=3e-6 * np.abs(others).max())
    # Of bad numbers the first one is told as ever.
    right.g[1, 0, 1, 1] = np.inf
    with pytest.raises(NonFiniteError, match="1, 0, 1, 1"):
        gram_factors([left], [right])


@pytest.mark.parametrize("method", ["S1", "S2", "S3"])
def test_huge_numbers_that_meet_zeros_beside_samples_of_opposed_scale(method, rng):
    left, right = (padded("shared", "g", 1.0, rng) for _ in range(2))
    for one in (left, right):
        one.g[:, :, 2] = 1e23
        one.a[::2] *= 1e-15
        one.g[::2] *= 1e15
    full = np.einsum("ncp,mdp->ncmd", truth(left)[0], truth(right)[0])
    found = gram_factors([left], [right], method=method)
    np.testing.assert_allclose(found, full, rtol=0, atol=3e-6 * np.abs(full).max())


def test_huge_numbers_in_a_batch_of_networks(rng):
    layers = [padded("shared", "g", big, rng) for big in (1.0, 1e30, 1e12)]
    batch = ff.Shared(np.stack([x.a for x in layers]), np.stack([x.g for x in layers]), batch=True)
    found = gram_factors([batch], method="S3")
    for one, layer_ in zip(found, layers, strict=True):
        expected = truth(layer_)[1]
        np.testing.assert_allclose(one, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_products_with_a_jacobian_take_huge_numbers_that_meet_zeros(rng):
    layer_ = padded("shared", "g", 1e30, rng)
    dense = truth(layer_)[0].reshape(N * C, -1)
    jacobian = ff.Jacobian([layer_])
    v, u = rng.standard_normal(dense.shape[1]), rng.standard_normal(dense.shape[0])
    for found, expected in [
        (jacobian @ v.astype("float32"), dense @ v),
        (jacobian.T @ u.astype("float32"), dense.T @ u),
    ]:
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
