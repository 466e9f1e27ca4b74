# SPDX-License-Identifier: Apache-2.0
"""The native steps of an eigenvalue iteration against their references."""

from __future__ import annotations

import numpy as np
import pytest

from cases import assert_close
from fastfisher import _native, reference
from test_linalg import symmetric


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 5, 33, 700, 1100])
def test_symm_equals_reference(n, dtype, rng):
    a = symmetric(rng, n, dtype, 2)
    x, scale = rng.standard_normal((2, 11, n)).astype(dtype), np.array([0.5, 4.0])
    a[:, *np.triu_indices(n, 1)] = np.nan  # never read
    for given in (a, np.repeat(a, 2, axis=2)[:, :, ::2]):
        out = np.empty_like(x)
        _native.symm(given, x, scale, out)
        assert_close(out, reference.symm(np.nan_to_num(a), x, scale), terms=n, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 31, 600])
def test_symmetry_equals_reference(n, dtype, rng):
    a = rng.standard_normal((3, n, n)).astype(dtype)
    out = np.empty((3, 2))
    for given in (a, a.transpose(0, 2, 1), a[:, ::-1, ::-1]):
        _native.symmetry(given, out)
        assert_close(out, reference.symmetry(given), terms=1, dtype=dtype)
    a[1, 0, n - 1] = np.nan
    _native.symmetry(a, out)
    assert list(np.isfinite(out[:, 0])) == [True, False, True]


@pytest.mark.parametrize("n", [1, 2, 17, 90])
def test_small_eigh_equals_reference(n, rng):
    a = symmetric(rng, n, batch=4)
    a[1], a[2], a[3] = 0, np.eye(n), np.diag(np.arange(n)) + a[3] * 1e-14
    values, rows = np.empty((4, n)), np.empty((4, n, n))
    _native.small_eigh(a, values, rows)
    exact, _ = reference.small_eigh(a)
    bound = 4 * n * np.finfo(float).eps * max(1, np.abs(exact).max())
    np.testing.assert_allclose(values, exact, atol=bound)
    np.testing.assert_allclose(rows @ a, values[:, :, None] * rows, atol=4 * bound)
    np.testing.assert_allclose(
        rows @ rows.transpose(0, 2, 1), np.broadcast_to(np.eye(n), a.shape), atol=bound + 1e-14
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 511, 1300])
def test_panel_steps_equal_reference(n, dtype, rng):
    x, y = (rng.standard_normal((2, m, n)).astype(dtype) for m in (7, 3))
    out, weights = np.empty((2, 3, 7)), rng.standard_normal((2, 3, 7))
    _native.panel_dots(x, y, out)
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    assert_close(out, reference.panel_dots(x, y), terms=n, dtype=dtype, scale=scale)
    for keep in (True, False):
        got = y.copy()
        _native.panel_combine(weights, x, got, keep=keep)
        assert_close(got, reference.panel_combine(weights, x, keep, y), terms=8, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("i", [0, 1, 9])
def test_panel_remove_equals_reference(i, dtype, rng):
    q = [np.linalg.qr(rng.standard_normal((1300, i)))[0].T for _ in range(2)]
    x, y = np.stack(q).astype(dtype, "C"), rng.standard_normal((2, 4, 1300)).astype(dtype)
    rest, small = y.copy(), np.empty((2, 4, i + 4))
    _native.panel_remove(x, rest, small)
    expected, expected_small = reference.panel_remove(x, y)
    assert_close(rest, expected, terms=1300, dtype=dtype)
    assert_close(small, expected_small, terms=1300, dtype=dtype)
    overlap = np.abs(reference.panel_dots(x, rest)).max(initial=0)
    assert overlap <= 40 * np.finfo(dtype).eps
    with pytest.raises(ValueError, match="small"):
        _native.panel_remove(x, rest, np.empty((2, 4, i + 3)))
