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
