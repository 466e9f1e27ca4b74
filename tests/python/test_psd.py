# SPDX-License-Identifier: Apache-2.0
"""`ff.psd` against the reference and by backward errors: residual / (n ||A|| eps) below 30."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import reference
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError

DTYPES = ["float32", "float64"]
# 96 and 128 are blocks, 320 the least size that threads share; panels are 4 to 16 wide.
SIZES = [1, 2, 3, 17, 64, 100, 127, 128, 129, 257, 400, 641]
LIMIT = 30
norm = np.linalg.norm


def spd(n, rng, dtype="float64", samples=None, scale=1.0):
    x = rng.standard_normal((n, samples or 2 * n)) * scale
    return (x @ x.T / max(1, x.shape[1])).astype(dtype)


def full(a):
    low = np.tril(np.asarray(a, np.float64))
    return low + np.tril(low, -1).T


def ratio(residual, n, *sizes, dtype):
    return norm(residual) / (n * float(np.finfo(dtype).eps) * np.prod([norm(x) for x in sizes]))


def check(task, a, result, dtype, *, b=None, p=2.0, damping=0.0):
    """Backward error of one result below the limit, and its form."""
    n = len(a)
    m = full(a) + damping * np.eye(n)
    assert str(result.vectors.dtype if task == "eigh" else result.value.dtype).endswith(dtype)
    if task == "eigh":
        w, v = (np.asarray(x, np.float64) for x in (result.values, result.vectors))
        assert (np.diff(w) >= 0).all()
        assert ratio(m @ v - v * w, n, m, dtype=dtype) < LIMIT
        assert norm(v.T @ v - np.eye(n)) < LIMIT * n * np.finfo(dtype).eps
        return
    x = np.asarray(result.value, np.float64)
    if task == "cholesky":
        assert (np.triu(x, 1) == 0).all()
        assert ratio(x @ x.T - m, n, m, dtype=dtype) < LIMIT
    elif task == "solve":
        assert ratio(m @ x - b, n, m, x, dtype=dtype) < LIMIT
    elif task == "inverse":
        assert (x == x.T).all()
        assert ratio(m @ x - np.eye(n), n, m, x, dtype=dtype) < LIMIT
    else:
        assert (x == x.T).all()
        power = np.linalg.matrix_power(x, int(p))
        assert ratio(power @ m - np.eye(n), n, m, *[x] * int(p), dtype=dtype) < LIMIT


TASKS = ["cholesky", "inverse", "solve", "eigh", "inverse_root"]


def call(task, a, *, b=None, p=2.0, **more):
    function = getattr(ff.psd, task)
    if task == "solve":
        return function(a, b, **more)
    return function(a, p=p, **more) if task == "inverse_root" else function(a, **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("task", TASKS)
def test_backward_error_of_a_ragged_list(task, dtype, rng):
    matrices = [spd(n, rng, dtype) for n in SIZES]
    sides = [rng.standard_normal((n, 3)).astype(dtype) for n in SIZES]
    for result, a, b in zip(call(task, matrices, b=sides), matrices, sides, strict=True):
        assert (result.status, result.damping, result.reason) == ("ok", 0, "")
        check(task, a, result, dtype, b=b)


@pytest.mark.parametrize("n", [193, 1301])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_by_small_and_by_large_blocks(dtype, n, rng):
    a = spd(n, rng, dtype)
    check("inverse", a, ff.psd.inverse(a, damping=0.25), dtype, damping=0.25)
    a[-1, -1] = -1
    assert f"order {n} " in ff.psd.inverse([a])[0].reason


@pytest.mark.parametrize("n", [300, 2100, 8200])
def test_factor_by_steps_of_any_width(n, rng):
    """The width of the steps follows the number of rows."""
    j = rng.standard_normal((n, 8), dtype="float32")
    a, b = j @ j.T, rng.standard_normal(n, dtype="float32")
    a[np.diag_indices(n)] += 1
    x = ff.psd.solve(a, b, damping=0.5).value.astype("float64")
    residual = j.astype("float64") @ (j.T.astype("float64") @ x) + 1.5 * x - b
    size = np.linalg.norm(j, 2) ** 2 + 1.5
    scale = size * np.linalg.norm(x) + np.linalg.norm(b)
    # The entries themselves were rounded by eps / 2 each; sums of n terms by no more here.
    assert np.linalg.norm(residual) <= 2 * np.finfo("float32").eps * scale
    a[n - 5, n - 5] = -1
    assert f"order {n - 4} " in ff.psd.cholesky([a])[0].reason


@pytest.mark.parametrize("task", TASKS)
def test_equals_reference(task, rng):
    a, b = spd(40, rng), rng.standard_normal((40, 2))
    got = call(task, a, b=b, p=4.0, damping=0.5)
    want = reference.psd(a, task, damping=0.5, p=4.0, b=b if task == "solve" else None)
    if task == "eigh":
        np.testing.assert_allclose(got.values, want[0], rtol=1e-12)
        np.testing.assert_allclose(np.abs(got.vectors), np.abs(want[1]), atol=1e-9)
    else:
        np.testing.assert_allclose(got.value, want, rtol=1e-9, atol=1e-9)


def test_by_hand():
    a = np.array([[4.0, np.nan], [2.0, 2.0]])  # the upper triangle is not read
    np.testing.assert_array_equal(ff.psd.cholesky(a).value, [[2, 0], [1, 1]])
    np.testing.assert_array_equal(ff.psd.inverse(a).value, [[0.5, -0.5], [-0.5, 1]])
    np.testing.assert_allclose(ff.psd.eigh(a).values, [3 - 5**0.5, 3 + 5**0.5])
    np.testing.assert_array_equal(ff.psd.solve(a, np.array([2.0, 0.0])).value, [1, -1])
    assert ff.psd.inverse(a).condition == pytest.approx(6 * 1.5)


@pytest.mark.parametrize("task", TASKS)
def test_any_order_stack_and_library(task, xp, rng):
    matrices = np.stack([spd(30, rng, "float32") for _ in range(4)])
    sides = rng.standard_normal((4, 30, 2)).astype("float32")
    field = "vectors" if task == "eigh" else "value"
    plain = [getattr(r, field) for r in call(task, list(matrices), b=list(sides))]
    wide = np.zeros((4, 60, 45), "float32")
    wide[:, ::2, ::-1][:, :, :30] = matrices
    forms = [
        (xp.array(matrices), xp.array(sides)),
        ([xp.array(m) for m in matrices], [xp.array(s) for s in sides]),
    ]
    if xp.name == "numpy":
        forms += [
            ([np.asfortranarray(m) for m in matrices], sides),
            (wide[:, ::2, ::-1][:, :, :30], np.asfortranarray(sides)),
        ]
    for a, b in forms:
        for result, want in zip(call(task, a, b=b), plain, strict=True):
            got = getattr(result, field)
            assert isinstance(got, xp.kind())
            if xp.on_device and task == "eigh":  # vectors have no sign of their own
                got, want = np.abs(xp.host(got)), np.abs(want)
                np.testing.assert_allclose(got, want, atol=1e-3)
                continue
            xp.assert_same(got, want)


def test_16_bit_floats_give_float32(rng):
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(spd(20, rng, "float32")).bfloat16()
    found = ff.psd.inverse(a)
    assert found.value.dtype == torch.float32
    check("inverse", a.float().numpy(), found, "float32")
    half = spd(20, rng).astype("float16")
    check("inverse", half, ff.psd.inverse(half), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("task", TASKS)
def test_one_bad_matrix_changes_no_bit_of_the_others(task, dtype, rng):
    matrices = [spd(int(n), rng, dtype) for n in rng.integers(1, 200, 100)]
    sides = [rng.standard_normal(len(m)).astype(dtype) for m in matrices]
    clean = call(task, matrices, b=sides)
    n = 150
    nan, indefinite = spd(n, rng, dtype), spd(n, rng, dtype)
    nan[140, 3] = np.nan
    indefinite[:] = np.diag(np.arange(n) - 3.0)
    bad = {7: nan, 23: indefinite, 40: np.zeros((n, n), dtype), 81: np.ones((n, n), dtype)}
    mixed = [bad.get(k, m) for k, m in enumerate(matrices)]
    sides = [np.ones(n, dtype) if k in bad else s for k, s in enumerate(sides)]
    found = call(task, mixed, b=sides)
    automatic = call(task, mixed, b=sides, damping="auto")
    for k, (x, y) in enumerate(zip(clean, found, strict=True)):
        if k in bad:
            continue
        assert x.status == y.status == automatic[k].status == "ok"
        for field in ("values", "vectors") if task == "eigh" else ("value",):
            np.testing.assert_array_equal(getattr(x, field), getattr(y, field))
    assert found[7].status == automatic[7].status == "failed"
    assert "(140, 3)" in found[7].reason
    values = found[7].vectors if task == "eigh" else found[7].value
    assert np.isnan(values).all()
    assert automatic[23].status == "failed"
    assert "not positive definite" in automatic[23].reason
    for k in (40, 81):
        assert automatic[k].status == "damped"
        assert automatic[k].damping > 0
        check(task, mixed[k], automatic[k], dtype, b=sides[k], damping=automatic[k].damping)
    if task != "eigh":
        assert found[23].status == found[40].status == "failed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [30, 400])
def test_hard_matrices(dtype, n, rng):
    eps = float(np.finfo(dtype).eps)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for condition in (1e2, 0.01 / eps):
        a = ((q * np.geomspace(1, 1 / condition, n)) @ q.T).astype(dtype)
        result = ff.psd.inverse(a, damping="auto")
        check("inverse", a, result, dtype, damping=result.damping)
        check("eigh", a, ff.psd.eigh(a), dtype)
    tiny, huge = (float(getattr(np.finfo(dtype), x)) for x in ("tiny", "max"))
    base = spd(n, rng)
    for scale in (tiny * 64, huge / 64):
        a = (base * scale).astype(dtype)
        for task in ("cholesky", "eigh"):
            got = call(task, a)
            want = call(task, (full(a) / scale).astype(dtype))
            if task == "eigh":
                np.testing.assert_allclose(
                    got.values / scale, want.values, atol=LIMIT * n * eps * want.values[-1]
                )
            else:
                x = np.asarray(got.value, float) / scale**0.5
                assert ratio(x @ x.T - full(a) / scale, n, full(a) / scale, dtype=dtype) < LIMIT
    graded = np.diag(np.geomspace(1e-30, 1e30, n)).astype(dtype)
    np.testing.assert_allclose(
        np.diag(ff.psd.inverse(graded).value), 1 / np.diag(graded), rtol=8 * eps
    )


def test_empty_and_tiny():
    for task in TASKS:
        assert call(task, [], b=[]) == []
        empty = call(task, np.zeros((0, 0)), b=np.zeros((0, 2)))
        assert empty.status == "ok"
        assert call(task, np.zeros((0, 3, 3)), b=np.zeros((0, 3, 1))) == []
    assert ff.psd.inverse(np.array([[4.0]])).value == 0.25
    assert ff.psd.inverse([np.array([[4.0]])], damping=[4])[0].value.item() == pytest.approx(0.125)


def test_dampings(rng):
    matrices = [spd(20, rng), spd(20, rng, samples=3), -np.eye(4)]
    a, b, c = ff.psd.inverse(matrices, damping=[0.5, "auto", "auto"])
    assert (a.status, a.damping) == ("ok", 0.5)
    assert b.status == "damped"
    assert 0 < b.damping <= 1e-7 * np.diag(matrices[1]).max()
    assert c.status == "failed"
    check("inverse", matrices[0], a, "float64", damping=0.5)
    check("inverse", matrices[1], b, "float64", damping=b.damping)
    with pytest.raises(ValueError, match="damping: got 2 of them, expected 3"):
        ff.psd.inverse(matrices, damping=[1, 2])
    with pytest.raises(ValueError, match="damping: expected a finite number >= 0"):
        ff.psd.inverse(matrices, damping=-1)


def test_a_single_matrix_raises(rng):
    a = spd(200, rng)
    a[3, 3] = -5
    smallest = np.linalg.eigvalsh(full(a))[0]
    for damping in (0, "auto"):
        with pytest.raises(
            NotPositiveDefiniteError, match=f"smallest eigenvalue is {smallest:.6g}"
        ):
            ff.psd.inverse(a, damping=damping)
    assert ff.psd.inverse(a, on_error="status").status == "failed"
    a[7, 2] = np.inf
    with pytest.raises(
        NonFiniteError, match=r"a: expected finite numbers, got inf at index \(7, 2"
    ):
        ff.psd.cholesky(a)
    with pytest.raises(NonFiniteError, match=r"a\[1\]"):
        ff.psd.cholesky([np.eye(2), a], on_error="raise")
    with pytest.raises(NonFiniteError, match=r"b: .* at index \(1, 0\)"):
        ff.psd.solve(np.eye(2), np.array([0, np.nan]))


def test_mistakes():
    with pytest.raises(ValueError, match=r"a\[1\]: expected shape \(n, n\), got \(2, 3\)"):
        ff.psd.inverse([np.eye(2), np.ones((2, 3))])
    with pytest.raises(TypeError, match="a: expected dtype"):
        ff.psd.inverse(np.eye(2, dtype=int))
    with pytest.raises(TypeError, match=r"a\[1\]: got dtype float32"):
        ff.psd.inverse([np.eye(2), np.eye(2, dtype="float32")])
    with pytest.raises(ValueError, match="p: expected a positive number"):
        ff.psd.inverse_root(np.eye(2), p=0)
    with pytest.raises(ValueError, match="b: got 1 of them, expected 2"):
        ff.psd.solve([np.eye(2)] * 2, [np.ones(2)])
    with pytest.raises(ValueError, match=r"b: expected shape \(2,\) or \(2, k\)"):
        ff.psd.solve(np.eye(2), np.ones(3))
    with pytest.raises(ValueError, match="on_error"):
        ff.psd.inverse(np.eye(2), on_error="ignore")


@pytest.mark.parametrize("task", TASKS)
def test_bits_do_not_depend_on_threads(task, monkeypatch, rng):
    matrices = [spd(n, rng, "float32") for n in (5, 150, 600, 150)]
    sides = [np.ones(len(m), "float32") for m in matrices]
    field = "vectors" if task == "eigh" else "value"
    found = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("FASTFISHER_NUM_THREADS", threads)
        found.append([getattr(r, field) for r in call(task, matrices, b=sides)])
        found.append(
            [getattr(call(task, m, b=s), field) for m, s in zip(matrices, sides, strict=True)]
        )
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(x, y)
