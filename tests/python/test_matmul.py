# SPDX-License-Identifier: Apache-2.0
"""`matmul`, the yardstick of the floors, and `bmm`, the same by our own kernels."""

from __future__ import annotations

import numpy as np
import pytest

from cases import assert_close
from fastfisher import _native, reference

OPS = (_native.matmul, _native.bmm)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (5, 0, 3), (0, 4, 3), (7, 300, 5), (129, 65, 257), (200, 513, 64), (97, 3, 48)],
    ids=str,
)
def test_matmul_equals_reference(shape, dtype, op, rng):
    n, k, m = shape
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((n, k), (k, m)))
    for left, right in [
        (a, b),
        (np.asfortranarray(a), np.asfortranarray(b)),
        (a[::-1], b[:, ::-1]),
    ]:
        out = np.full((n, m), np.nan, dtype)
        op(left, right, out)
        assert_close(out, reference.matmul(left, right), terms=k, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_a_product_do_not_depend_on_their_company(dtype, rng):
    a = rng.standard_normal((301, 600)).astype(dtype)
    b = rng.standard_normal((600, 70)).astype(dtype)
    whole, few, alone = (np.empty((n, 70), dtype) for n in (301, 5, 301))
    _native.bmm(a, b, whole)
    _native.bmm(a[100:105], b, few)
    _native.bmm(a, b, alone, threads=1)
    np.testing.assert_array_equal(whole[100:105], few)
    np.testing.assert_array_equal(whole, alone)


def test_bmm_writes_its_part_of_an_array_only(rng):
    a, b = rng.standard_normal((50, 20)), rng.standard_normal((20, 33))
    room = np.full((52, 40), 7.0)
    _native.bmm(a, b, room[1:51, 2:35])
    assert_close(room[1:51, 2:35], a @ b, terms=20, dtype="float64")
    room[1:51, 2:35] = 7.0
    np.testing.assert_array_equal(room, 7.0)


def test_bmm_keeps_bad_numbers_in_their_rows(rng):
    a, b = rng.standard_normal((50, 20)), rng.standard_normal((20, 33))
    a[7, 3] = np.nan
    out = np.empty((50, 33))
    _native.bmm(a, b, out)
    assert np.isnan(out[7]).all()
    assert np.isfinite(np.delete(out, 7, axis=0)).all()


@pytest.mark.parametrize("op", OPS)
def test_matmul_refuses_what_does_not_fit(op, rng):
    name = op.__name__
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((5, 2))
    with pytest.raises(ValueError, match=f"{name}: b: got shape"):
        op(a, b, np.empty((3, 2)))
    with pytest.raises(TypeError, match=f"{name}: b: expected dtype float64"):
        op(a, b[:4].astype("float32"), np.empty((3, 2)))
    with pytest.raises(ValueError, match="out: is read-only"):
        op(a, b[:4], np.broadcast_to(0.0, (3, 2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bmm_of_many_matrices(dtype, rng):
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    for a, b in [
        (draw(6, 40, 30), draw(6, 30, 20)),
        (draw(6, 30, 140).swapaxes(1, 2), draw(6, 30, 32)),
        (draw(2, 600, 101).swapaxes(1, 2), draw(2, 600, 17)),
        (draw(3, 40, 300)[:, :, ::-2], draw(3, 150, 20)[:, :, ::-1]),
        (draw(6, 40, 0), draw(6, 0, 5)),
        (draw(0, 4, 3), draw(0, 3, 5)),
    ]:
        e = len(a)
        out = np.full((e, a.shape[1], b.shape[2]), np.nan, dtype)
        _native.bmm(a, b, out)
        assert_close(out, reference.bmm(a, b), terms=a.shape[2], dtype=dtype)
        across = np.full((a.shape[1], b.shape[2], e), np.nan, dtype).transpose(2, 0, 1)
        _native.bmm(a, b, across)
        np.testing.assert_array_equal(across, out)
        alone = np.empty_like(out)
        _native.bmm(a, b, alone, threads=1)
        np.testing.assert_array_equal(alone, out)
    with pytest.raises(ValueError, match="bmm: b: got shape"):
        _native.bmm(draw(6, 4, 3), draw(4, 3, 2), np.empty((6, 4, 2), dtype))
