# SPDX-License-Identifier: Apache-2.0
"""`sandwich`, what Kronecker factors do to a weight and its bias."""

from __future__ import annotations

import numpy as np
import pytest

from cases import LAYOUTS, assert_close
from fastfisher import _native, reference

NONE = {kind: np.empty(0, kind) for kind in ("float32", "float64")}


def draw(rng: np.random.Generator, o: int, i: int, *, bias: bool, dtype: str) -> list[np.ndarray]:
    shapes = ((o, o), (o, i), (o if bias else 0,), (i + bias, i + bias))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def item_of(left, w, b, right) -> _native.SandwichItem:
    return _native.SandwichItem(
        left, w, b, right, np.full(w.shape, np.nan, w.dtype), np.full(b.shape, np.nan, w.dtype)
    )


def check(item: _native.SandwichItem) -> None:
    bias = item.b if len(item.right) > item.w.shape[1] else None
    out, out_b = reference.sandwich(item.left, item.w, bias, item.right)
    # The sum of the magnitudes of all terms bounds what rounding does.
    size, size_b = reference.sandwich(
        *(None if x is None else np.abs(x) for x in (item.left, item.w, bias, item.right))
    )
    eps = np.finfo(item.out.dtype).eps * (sum(item.w.shape) + 8)
    assert (np.abs(item.out - out) <= eps * size).all()
    if bias is not None:
        assert (np.abs(item.out_b - out_b) <= eps * size_b).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 40), (40, 1), (7, 16), (48, 15), (49, 287), (288, 95), (289, 33), (600, 600)],
    ids=str,
)
def test_sandwich_equals_reference(shape, bias, dtype, rng):
    arrays = draw(rng, *shape, bias=bias, dtype=dtype)
    for layout in LAYOUTS.values():
        left, w, right = (layout(x) for x in (arrays[0], arrays[1], arrays[3]))
        items = [item_of(left, w, arrays[2], right) for _ in range(2)]
        for threads, item in zip((1, 2), items, strict=True):
            _native.sandwich([item], threads=threads)
            check(item)
        assert (items[0].out == items[1].out).all(), "the bits depend on the threads"
        assert (items[0].out_b == items[1].out_b).all(), "the bits depend on the threads"


def test_sandwich_by_hand():
    left, right = np.array([[0.0, 1], [2, 0]]), np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 3]])
    item = item_of(left, np.array([[1.0, 2], [3, 4]]), np.array([5.0, 6]), right)
    _native.sandwich([item])
    assert (item.out == [[3, 4], [2, 4]]).all()
    assert (item.out_b == [21, 32]).all()


def test_sandwich_of_a_list(rng):
    shapes = [(40, 5, True), (0, 3, True), (3, 0, True), (130, 70, False), (4, 0, False)]
    lists = [draw(rng, o, i, bias=bias, dtype="float64") for o, i, bias in shapes]
    items, alone = ([item_of(*arrays) for arrays in lists] for _ in range(2))
    _native.sandwich(items)
    for item, one in zip(items, alone, strict=True):
        _native.sandwich([one])
        assert (item.out == one.out).all(), "a neighbour changes the bits"
        assert (item.out_b == one.out_b).all(), "a neighbour changes the bits"
        check(item)


def test_sandwich_writes_where_it_is_told(rng):
    left, w, b, right = draw(rng, 50, 20, bias=True, dtype="float32")
    whole, vector = np.full((20, 101), np.nan, "float32"), np.full(150, np.nan, "float32")
    out, out_b = whole[:, 1::2].T, vector[::3]
    _native.sandwich([_native.SandwichItem(left, w, b, right, out, out_b)])
    expected, expected_b = reference.sandwich(left, w, b, right)
    assert_close(out, expected, terms=500, dtype="float32")
    assert_close(out_b, expected_b, terms=500, dtype="float32")
    assert np.isnan(whole[:, ::2]).all()
    assert np.isnan(vector[1::3]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad, rng):
    left, w, b, right = draw(rng, 60, 30, bias=True, dtype="float32")
    w[57, 29] = bad
    item = item_of(left, w, b, right)
    _native.sandwich([item])
    assert not np.isfinite(item.out).any()
    assert not np.isfinite(item.out_b).any()


def test_sandwich_refuses_what_does_not_fit(rng):
    left, w, b, right = draw(rng, 4, 3, bias=True, dtype="float64")
    good = item_of(left, w, b, right)
    for name, wrong in [
        ("left", left[:3]), ("left", left[:, :3]), ("b", b[:3]), ("b", NONE["float64"]),
        ("right", right[:2, :2]), ("right", right[:, :3]), ("out", good.out.T),
        ("out_b", good.out_b[:0]),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=rf"sandwich: {name}\[0\]: got shape"):
            _native.sandwich([good._replace(**{name: wrong})])
    for name in ("left", "w", "b", "right", "out", "out_b"):
        wrong = getattr(good, name).astype("float32")
        with pytest.raises(TypeError, match=r"\[0\]: expected dtype"):
            _native.sandwich([good._replace(**{name: wrong})])
    half = [x.astype("float16") for x in (left, w, b, right)]
    with pytest.raises(TypeError, match="expected dtype float32 or float64"):
        _native.sandwich([item_of(*half)])
    with pytest.raises(ValueError, match=r"out\[0\]: overlaps"):
        _native.sandwich([good._replace(out=w)])
    shared = np.lib.stride_tricks.as_strided(np.zeros(4), (4, 3), (8, 0))
    with pytest.raises(ValueError, match=r"out\[0\]: has entries that share memory"):
        _native.sandwich([good._replace(out=shared)])
