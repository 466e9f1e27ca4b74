# SPDX-License-Identifier: Apache-2.0
"""Solutions of matrices that are factored in panels: blocks of 96 columns, then 192, then 384.

Normwise backward errors are asked for, as LAPACK's are: for any condition number.
"""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError, NumericalError

norm = np.linalg.norm
# The first size that is made in panels, edges of blocks and of panels.
SIZES = [129, 192, 193, 301, 640, 1280, 1281, 1344, 1345, 1531]
ROUNDINGS = 8


def kernel(n, condition, rng):
    """Gaussian kernel of sorted points: neighbours are nearly the same, blocks nearly singular."""
    x = np.sort(rng.uniform(0, 1, n))
    a = np.exp(-(((x[:, None] - x) / 0.1) ** 2))
    return a + np.eye(n) * (n / condition)


def clusters(n, condition, rng):
    """Half of the eigenvalues at 1, half at their inverse condition."""
    half = rng.standard_normal((n, n // 2)) / np.sqrt(n)
    q = np.linalg.qr(half)[0]
    return q @ q.T * (1 - 1 / condition) + np.eye(n) / condition


def backward_error(a, x, b):
    """Residual in roundings of the matrix."""
    wide = a.astype("float64")
    residual = norm(wide @ x.astype("float64") - b)
    return residual / (np.linalg.norm(wide, 2) * norm(x)) / np.finfo(a.dtype).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_one_and_many_sides(n, dtype, rng):
    x = rng.standard_normal((n, 2 * n))
    a, b = (x @ x.T / n).astype(dtype), rng.standard_normal((n, 37)).astype(dtype)
    together = ff.psd.solve(a, b).value
    assert backward_error(a, together, b) < ROUNDINGS
    for j in (0, 15, 16, 36):
        alone = ff.psd.solve(a, b[:, j]).value
        np.testing.assert_array_equal(alone, together[:, j])


@pytest.mark.parametrize("make", [kernel, clusters])
@pytest.mark.parametrize(
    ("dtype", "condition"), [("float32", 1e4), ("float32", 1e6), ("float64", 1e12)]
)
@pytest.mark.parametrize("n", [130, 500, 1400])
def test_as_accurate_as_lapack_for_any_condition(n, make, dtype, condition, rng):
    a = make(n, condition, rng).astype(dtype)
    b = rng.standard_normal((n, 3)).astype(dtype)
    result = ff.psd.solve(a, b)
    assert result.status == "ok"
    assert backward_error(a, result.value, b) < ROUNDINGS


def test_the_widest_blocks(rng):
    n = 6145 + 384
    x = rng.standard_normal((n, 64), dtype="float32")
    a, b = x @ x.T + np.eye(n, dtype="float32"), rng.standard_normal(n, dtype="float32")
    got = ff.psd.solve(a, b).value
    # (I + X X^T)^-1 b by the small matrix, in float64
    wide = x.astype("float64")
    want = b - wide @ np.linalg.solve(np.eye(64) + wide.T @ wide, wide.T @ b)
    # Condition 1e4; errors of single entries of the matrix count, not of its norm.
    assert norm(got - want) < 1e-3 * norm(want)
    residual = got + wide @ (wide.T @ got) - b
    assert norm(residual) < ROUNDINGS * np.finfo("float32").eps * norm(wide, 2) ** 2 * norm(got)


def test_bits_depend_on_the_matrix_alone(monkeypatch, rng):
    n = 1500
    x = rng.standard_normal((n, n + 9), dtype="float32")
    a, b = x @ x.T / n, rng.standard_normal((n, 20), dtype="float32")
    found = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("FASTFISHER_NUM_THREADS", threads)
        found.append(ff.psd.solve(a, b).value)
        found.append(ff.psd.solve([a, a[:40, :40], a], [b, b[:40], b])[2].value)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize(("n", "row"), [(150, 149), (1300, 0), (1300, 191), (1300, 192)])
def test_what_is_no_such_matrix_is_told(n, row):
    a = np.eye(n) + 0.1 * np.ones((n, n))
    cases = (
        (-3.0, NotPositiveDefiniteError, "not positive definite"),
        (np.nan, NonFiniteError, rf"a: .* at index \({row}, {row}\)"),
    )
    for bad, error, message in cases:
        broken = a.copy()
        broken[row, row] = bad
        with pytest.raises(error, match=message):
            ff.psd.solve(broken, np.ones(n))
    side = np.ones(n)
    side[row] = np.inf
    with pytest.raises(NonFiniteError, match=rf"b: .* at index \({row}"):
        ff.psd.solve(a, side)


@pytest.mark.parametrize("n", [200, 1300])
def test_automatic_damping_and_scales(n, rng):
    x = rng.standard_normal((n, 50))
    a, b = x @ x.T, rng.standard_normal(n)
    result = ff.psd.solve(a, b, damping="auto")
    assert result.status == "damped"
    damped = a + result.damping * np.eye(n)
    assert backward_error(damped, result.value, b) < ROUNDINGS
    # Rows of sizes from 1e-12 to 1e12 are brought to one another's.
    size = np.geomspace(1e-12, 1e12, n)
    y = rng.standard_normal((n, 2 * n))
    c = y @ y.T / n
    got = ff.psd.solve(size[:, None] * c * size, size * b).value
    want = ff.psd.solve(c, b).value / size
    np.testing.assert_allclose(got * size, want * size, rtol=1e-9, atol=1e-12)


def test_no_right_sides():
    a = np.eye(1300, dtype="float32")
    assert ff.psd.solve(a, np.ones((1300, 0), "float32")).value.shape == (1300, 0)


@pytest.mark.parametrize("n", [100, 200])
def test_a_diagonal_that_overflows_is_told(n):
    with pytest.raises(NumericalError, match="overflow"):
        ff.psd.solve(1e307 * np.eye(n), np.ones(n), damping=1.7e308)


def test_an_interrupt_is_not_lost(rng):
    n = 1000
    x = rng.standard_normal((n, n + 9), dtype="float32")
    a, b = x @ x.T / n, np.ones(n, "float32")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for wait in (0.001, 0.004, 0.007, 0.01):
            signal.setitimer(signal.ITIMER_REAL, wait)
            with pytest.raises(KeyboardInterrupt):
                solve_for(1.0, a, b)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def solve_for(seconds, a, b):
    """Nearly all of the time is within native calls."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ff.psd.solve(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_smallest_sizes_of_panels_have_workspace_enough(dtype):
    # Of these the blocks take more memory than the right-hand sides; a workspace that is counted
    # too small is an error.
    for n in (*range(126, 150), 289):
        a = np.ones((n, n), dtype) + np.eye(n, dtype=dtype)
        got = ff.psd.solve(a, np.ones(n, dtype)).value
        np.testing.assert_allclose(got, 1 / (n + 1), rtol=1e-4)
