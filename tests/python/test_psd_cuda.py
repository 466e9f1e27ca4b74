# SPDX-License-Identifier: Apache-2.0
"""`ff.psd` on a CUDA device by torch and cupy: backward errors, statuses and bits as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _arrays
from fastfisher.psd import _by_library
from test_psd import TASKS, call, check, spd

# Edges of tiles of 64 and 128 rows, rows at multiples of 16 bytes and not; eigenvectors by the
# native kernel up to 160 (112) rows.
SIZES = [1, 2, 3, 17, 64, 100, 112, 127, 128, 129, 160, 193, 257, 400]


@pytest.fixture(params=["torch", "cupy"])
def to_device(request, cuda_device):
    library = pytest.importorskip(request.param)
    if request.param == "cupy":
        return library.asarray
    return lambda host: library.from_numpy(np.ascontiguousarray(host)).to(cuda_device)


@pytest.fixture
def torch_device(cuda_device):
    torch = pytest.importorskip("torch")
    return lambda host: torch.from_numpy(np.ascontiguousarray(host)).to(cuda_device)


class Host:
    """A result with its arrays on the host."""

    def __init__(self, result) -> None:
        for name in ("status", "damping", "condition", "reason"):
            setattr(self, name, getattr(result, name))
        for name in ("value", "values", "vectors"):
            if hasattr(result, name):
                setattr(self, name, _arrays.to_numpy(getattr(result, name)))

    def arrays(self):
        return [getattr(self, x) for x in ("value", "values", "vectors") if hasattr(self, x)]


def on_device(task, matrices, move, *, b=None, **more):
    sides = None if b is None else [move(x) for x in b]
    return [Host(r) for r in call(task, [move(a) for a in matrices], b=sides, **more)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", TASKS)
def test_backward_error_of_a_ragged_list(task, dtype, to_device, rng):
    matrices = [spd(n, rng, dtype) for n in SIZES]
    sides = [rng.standard_normal((n, 1 + n % 40)).astype(dtype) for n in SIZES]
    expected = call(task, matrices, b=sides)
    found = on_device(task, matrices, to_device, b=sides)
    for result, a, b, want in zip(found, matrices, sides, expected, strict=True):
        assert (result.status, result.damping, result.reason) == ("ok", 0, "")
        check(task, a, result, dtype, b=b)
        assert result.condition == pytest.approx(want.condition, rel=1e-2)
    again = on_device(task, matrices, to_device, b=sides)
    alone = [
        on_device(task, [a], to_device, b=[b])[0] for a, b in zip(matrices, sides, strict=True)
    ]
    for other in (again, alone):
        for x, y in zip(found, other, strict=True):
            for p, q in zip(x.arrays(), y.arrays(), strict=True):
                np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_steps(dtype, torch_device, rng):
    a = spd(1301, rng, dtype)
    for task in ("inverse", "cholesky", "solve"):
        b = rng.standard_normal((1301, 5)).astype(dtype)
        (result,) = on_device(task, [a], torch_device, b=[b], damping=0.25)
        check(task, a, result, dtype, b=b, damping=0.25)
    a[-1, -1] = -1
    assert "order 1301 " in ff.psd.inverse([torch_device(a)])[0].reason


def test_by_hand(to_device):
    a = to_device(np.array([[4.0, np.nan], [2.0, 2.0]]))  # the upper triangle is not read
    value = _arrays.to_numpy
    np.testing.assert_array_equal(value(ff.psd.cholesky(a).value), [[2, 0], [1, 1]])
    np.testing.assert_allclose(value(ff.psd.inverse(a).value), [[0.5, -0.5], [-0.5, 1]], atol=1e-15)
    np.testing.assert_allclose(value(ff.psd.eigh(a).values), [3 - 5**0.5, 3 + 5**0.5])
    side = to_device(np.array([2.0, 0.0]))
    np.testing.assert_allclose(value(ff.psd.solve(a, side).value), [1, -1], atol=1e-15)
    assert ff.psd.inverse(a).condition == pytest.approx(6 * 1.5)
    assert type(ff.psd.inverse(a).value) is type(a)


@pytest.mark.parametrize("task", TASKS)
def test_any_strides_and_streams(task, torch_device, rng):
    torch = pytest.importorskip("torch")
    matrices = np.stack([spd(70, rng, "float32") for _ in range(3)])
    sides = rng.standard_normal((3, 70, 2)).astype("float32")
    plain = on_device(task, list(matrices), torch_device, b=list(sides))
    a, b = torch_device(matrices), torch_device(sides)
    slanted = [x.mT.contiguous().mT for x in a], [x.mT.contiguous().mT for x in b]
    wide = torch.zeros((3, 140, 75), device=a.device)
    wide[:, ::2, 5:] = a
    with torch.cuda.stream(torch.cuda.Stream()):
        for given, side in ((a, b), slanted, (wide[:, ::2, 5:], b)):
            for result, want in zip(call(task, given, b=side), plain, strict=True):
                for p, q in zip(Host(result).arrays(), want.arrays(), strict=True):
                    np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("task", ["inverse", "eigh"])
def test_16_bit_floats_give_float32(task, torch_device, rng):
    for name in ("bfloat16", "float16"):
        torch = pytest.importorskip("torch")
        a = torch_device(spd(130, rng, "float32")).to(getattr(torch, name))
        check(task, a.float().cpu().numpy(), Host(call(task, a)), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", TASKS)
def test_one_bad_matrix_changes_no_bit_of_the_others(task, dtype, torch_device, rng):
    matrices = [spd(int(n), rng, dtype) for n in rng.integers(1, 180, 40)]
    sides = [rng.standard_normal(len(m)).astype(dtype) for m in matrices]
    clean = on_device(task, matrices, torch_device, b=sides)
    # In the native kernels and, for eigenvectors, beyond them.
    bad = {}
    for first, n in ((3, 90), (20, 170)):
        nan, indefinite = spd(n, rng, dtype), spd(n, rng, dtype)
        nan[80, 3] = np.nan
        indefinite[:] = np.diag(np.arange(n) - 3.0)
        bad |= {first: nan, first + 1: indefinite}
        bad |= {first + 2: np.zeros((n, n), dtype), first + 3: np.ones((n, n), dtype)}
    mixed = [bad.get(k, m) for k, m in enumerate(matrices)]
    sides = [
        np.ones(len(m), dtype) if k in bad else s
        for k, (m, s) in enumerate(zip(mixed, sides, strict=True))
    ]
    found = on_device(task, mixed, torch_device, b=sides)
    automatic = on_device(task, mixed, torch_device, b=sides, damping="auto")
    for k, (x, y) in enumerate(zip(clean, found, strict=True)):
        if k in bad:
            continue
        assert x.status == y.status == automatic[k].status == "ok"
        for p, q in zip(x.arrays(), y.arrays(), strict=True):
            np.testing.assert_array_equal(p, q)
    for k in (3, 20):
        assert found[k].status == automatic[k].status == "failed"
        assert "(80, 3)" in found[k].reason
        assert all(np.isnan(x).all() for x in found[k].arrays())
        assert automatic[k + 1].status == "failed"
        assert "not positive definite" in automatic[k + 1].reason
        for at in (k + 2, k + 3):
            assert automatic[at].status == "damped"
            damping = automatic[at].damping
            assert damping > 0
            check(task, mixed[at], automatic[at], dtype, b=sides[at], damping=damping)
        if task != "eigh":
            assert found[k + 1].status == found[k + 2].status == "failed"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [30, 400])
def test_hard_matrices(dtype, n, torch_device, rng):
    eps = float(np.finfo(dtype).eps)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for condition in (1e2, 0.01 / eps):
        a = ((q * np.geomspace(1, 1 / condition, n)) @ q.T).astype(dtype)
        (result,) = on_device("inverse", [a], torch_device, damping="auto")
        check("inverse", a, result, dtype, damping=result.damping)
        check("eigh", a, on_device("eigh", [a], torch_device)[0], dtype)
    graded = np.diag(np.geomspace(1e-30, 1e30, n)).astype(dtype)
    (result,) = on_device("inverse", [graded], torch_device)
    np.testing.assert_allclose(np.diag(result.value), 1 / np.diag(graded), rtol=8 * eps)


def test_a_single_matrix_raises(to_device, rng):
    a = spd(200, rng)
    a[3, 3] = -5
    with pytest.raises(ff.errors.NotPositiveDefiniteError, match="smallest eigenvalue is"):
        ff.psd.inverse(to_device(a))
    a[7, 2] = np.inf
    with pytest.raises(ff.errors.NonFiniteError, match=r"got inf at index \(7, 2"):
        ff.psd.cholesky(to_device(a))
    sides = to_device(np.array([0, np.nan]))
    with pytest.raises(ff.errors.NonFiniteError, match=r"b: .* at index \(1, 0\)"):
        ff.psd.solve(to_device(np.eye(2)), sides)


def test_no_right_hand_sides(torch_device, rng):
    found = call(
        "solve",
        torch_device(spd(160, rng, "float32")),
        b=torch_device(np.zeros((160, 0), "float32")),
    )
    assert (found.status, tuple(found.value.shape)) == ("ok", (160, 0))


def test_empty_and_the_largest_native_eigenvectors(torch_device, rng):
    for task in TASKS:
        empty = call(task, torch_device(np.zeros((0, 0))), b=torch_device(np.zeros((0, 2))))
        assert empty.status == "ok"
        assert (
            call(task, torch_device(np.zeros((0, 3, 3))), b=torch_device(np.zeros((0, 3, 1)))) == []
        )
    for dtype in ("float32", "float64"):
        most = _by_library.native_rows("eigh", torch_device(np.zeros((1, 1), dtype)))
        for n in (most, most + 1):
            a = spd(n, rng, dtype)
            check("eigh", a, on_device("eigh", [a], torch_device)[0], dtype)
