# SPDX-License-Identifier: Apache-2.0
"""`psd(task="factor")` and `sandwich` with factors in place of matrices."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import fastfisher as ff
from cases import LAYOUTS
from fastfisher import _native, reference
from fastfisher._native import PsdItem, SandwichItem
from fastfisher.structures import _split
from fastfisher.structures._factor import factors


def positive(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray:
    x = rng.standard_normal((n, 2 * n + 3))
    return (x @ x.T / (2 * n + 3)).astype(dtype)


def item_of(left, w, b, right) -> SandwichItem:
    return SandwichItem(left, w, b, right, np.full_like(w, np.nan), np.full_like(b, np.nan))


def expected_of(g, a, w, b, dampings) -> np.ndarray:
    inverses = [
        np.linalg.inv(m.astype(np.float64) + on * np.eye(len(m)))
        for m, on in zip((g, a), dampings, strict=True)
    ]
    out, out_b = reference.sandwich(inverses[0], w, b if len(a) > w.shape[1] else None, inverses[1])
    return out if out_b is None else np.concatenate([out, out_b[:, None]], 1)


def joined(item: SandwichItem) -> np.ndarray:
    return np.concatenate([item.out, item.out_b[:, None]], 1) if len(item.out_b) else item.out


def check(item: SandwichItem, g, a, dampings) -> None:
    expected = expected_of(g, a, item.w, item.b, dampings)
    # Normwise, by the condition numbers of both: these are at most 50.
    eps = np.finfo(item.out.dtype).eps
    assert np.linalg.norm(joined(item) - expected) <= 100 * eps * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    "shape",
    # around panels (8, 16, 32), blocks (96, 192) and the sizes where these change (128, 1280)
    [(1, 1), (1, 40), (40, 1), (7, 16), (33, 31), (96, 192), (128, 129), (288, 95), (1281, 65)],
    ids=str,
)
def test_sandwich_with_factors_equals_reference(shape, bias, dtype, rng):
    o, i = shape
    g, a = positive(rng, o, dtype), positive(rng, i + bias, dtype)
    w = rng.standard_normal((o, i)).astype(dtype)
    b = rng.standard_normal(o if bias else 0).astype(dtype)
    dampings = [0.1, 0.3]
    for layout in LAYOUTS.values():
        f_g, f_a = factors([layout(g), layout(a)], dampings)
        items = [item_of(f_g, layout(w), b, f_a) for _ in range(2)]
        for threads, item in zip((1, 2), items, strict=True):
            _native.sandwich([item], threads=threads)
        check(items[0], layout(g), layout(a), dampings)
        assert (joined(items[0]) == joined(items[1])).all(), "the bits depend on the threads"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_do_not_depend_on_threads_neighbours_or_memory(dtype, rng):
    matrices = [positive(rng, n, dtype) for n in (700, 30, 700, 1, 0, 129)]
    alone = [factors([m], [0.1])[0] for m in matrices]
    for threads in (1, 2, 3):
        outs = [np.full_like(one, np.nan) for one in alone]
        items = [PsdItem(k, 0, k, 0, -1, 0, 0.1, False) for k in range(len(matrices))]
        reports = _native.psd(
            "factor", matrices, outs, items, sizes=list(map(len, matrices)), threads=threads
        )
        assert all(report.kind == 0 for report in reports)
        w = rng.standard_normal((700, 700)).astype(dtype)
        for out, one, m in zip(outs, alone, matrices, strict=True):
            # Whole: nothing is left of what the memory held.
            np.testing.assert_array_equal(out, one)
            assert np.isfinite(out).all()
            part = np.ascontiguousarray(w[: len(m), : len(m)])
            found = [item_of(f, part, np.empty(0, dtype), f) for f in (out, one)]
            _native.sandwich(found[:1])
            _native.sandwich(found[1:])
            assert (found[0].out == found[1].out).all()


def test_sandwich_with_factors_by_hand():
    f_g, f_a = factors([np.array([[4.0, 2], [2, 5]]), np.array([[3.0]])], [0.0, 1.0])
    item = item_of(f_g, np.array([[8.0], [8]]), np.empty(0), f_a)
    _native.sandwich([item])
    # [[4 2] [2 5]] x = [8 8] has x = (1.5, 1); over 4
    np.testing.assert_allclose(item.out, [[0.375], [0.25]], rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scales_far_apart(dtype, rng):
    """Rows 1e12 apart: the matrices are scaled inside, and the results as well."""
    # Kept within the dtype: products of three such numbers would leave float32.
    d = 10.0 ** np.linspace(-6, 6, 60)
    base = positive(rng, 60, "float64")
    g = (d[:, None] * base * d).astype(dtype)
    a = np.eye(3, dtype=dtype)
    f_g, f_a = factors([g, a], [0.0, 0.0])
    assert f_g is not None
    w = (d[:, None] * rng.standard_normal((60, 3))).astype(dtype)
    item = item_of(f_g, w, np.empty(0, dtype), f_a)
    _native.sandwich([item])
    expected = np.linalg.solve(base, w / d[:, None].astype(dtype)) / d[:, None]
    error = np.linalg.norm((item.out - expected) * d[:, None])
    assert error <= 300 * np.finfo(dtype).eps * np.linalg.norm(expected * d[:, None])


def test_what_has_no_factor(rng):
    good = positive(rng, 150, "float64")
    nan, indefinite = good.copy(), good - 3 * np.eye(150)
    nan[140, 3] = np.nan
    outs = [np.zeros(_native.psd_factor_size(150, "float64", cuda=False)) for _ in range(3)]
    items = [PsdItem(k, 0, k, 0, -1, 0, 0.0, False) for k in range(3)]
    reports = _native.psd("factor", [nan, indefinite, good], outs, items, sizes=[150] * 3)
    assert [_native.PSD_KINDS[one.kind] for one in reports] == ["non_finite", "indefinite", "ok"]
    assert reports[0].position == 140 * 150 + 3
    minor = np.linalg.eigvalsh(indefinite[: reports[1].position, : reports[1].position])
    before = reports[1].position - 1
    assert minor[0] < 0 < np.linalg.eigvalsh(indefinite[:before, :before]).min(initial=1.0)
    assert np.isnan(outs[0]).all()
    assert np.isnan(outs[1]).all()
    assert factors([good, indefinite, good], [0.0, 0.0, 0.0])[1] is None
    assert factors([], []) == []


def test_factors_are_refused_where_they_do_not_fit(rng):
    f_g, f_a = factors([positive(rng, 4, "float64"), positive(rng, 3, "float64")], [0.0, 0.0])
    w, none = rng.standard_normal((4, 3)), np.empty(0)
    good = item_of(f_g, w, none, f_a)
    for name, wrong, message in [
        ("left", f_a[:-1], "got shape"),
        ("left", np.full_like(f_g, np.nan), r"left\[0\]: expected a factor of 4 rows"),
        ("right", f_g[::-1], "expected"),
        ("right", np.eye(3), "expected"),
        ("left", f_g.astype("float32"), "expected dtype"),
        ("out", w, "overlaps"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            _native.sandwich([good._replace(**{name: wrong})])
    # Of as many numbers as one of 4 rows, but of 3.
    f_small = factors([positive(rng, 3, "float64")], [0.0])[0]
    if len(f_small) == len(f_g):
        with pytest.raises(ValueError, match=r"left\[0\]: expected a factor of 4 rows"):
            _native.sandwich([good._replace(left=f_small)])
    assert np.isnan(good.out).all(), "nothing is written by what is refused"
    mixed = [good, item_of(np.eye(4), w, none, np.eye(3))]
    _native.sandwich(mixed)
    assert (mixed[1].out == w).all()
    with pytest.raises(ValueError, match="0 to 32000"):
        _native.psd_factor_size(32001, "float64", cuda=False)


@pytest.mark.parametrize("bias", [False, True])
def test_no_rows(bias):
    for columns in (3, 8, 40):
        f_g, f_a = factors([np.zeros((0, 0)), np.eye(columns + bias)], [0.0, 0.0])
        item = item_of(f_g, np.zeros((0, columns)), np.zeros(0), f_a)
        _native.sandwich([item])
        assert item.out.shape == (0, columns)


@pytest.mark.parametrize("simd", ["avx2", "base"])
def test_on_processors_with_narrower_vectors(simd):
    """The other kernels have other panels and blocks: these tests again, with them."""
    if os.environ.get("FASTFISHER_SIMD"):
        pytest.skip("this is such a run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "FASTFISHER_SIMD": simd},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def dense(rng, *, dtype: str = "float32", scale: float = 1.0) -> ff.Jacobian:
    widths = ((20, 30), (30, 10))
    return ff.Jacobian.from_factors(
        [
            ff.Dense(
                rng.standard_normal((50, i)).astype(dtype),
                (scale * rng.standard_normal((50, 1, o))).astype(dtype),
                bias=True,
            )
            for i, o in widths
        ]
    )


def brute(F: ff.Fisher, v: np.ndarray, damping: float, split: str) -> np.ndarray:
    x = np.empty(v.shape)
    blocks = F.structure.blocks
    pairs = _split.split_dampings([(b.a, b.g) for b in blocks], damping, split)
    for block, (on_a, on_g) in zip(blocks, pairs, strict=True):
        a = block.a.astype(np.float64) + on_a * np.eye(len(block.a))
        g = block.g.astype(np.float64) + on_g * np.eye(len(block.g))
        x[block.columns] = np.linalg.solve(np.kron(g, a), v[block.columns].reshape(-1)).reshape(
            block.columns.shape
        )
    return x


@pytest.mark.parametrize("split", ["plain", "pi"])
def test_fisher_solves_by_factors(split, rng):
    F = ff.fisher(dense(rng), structure="kfac")
    v = rng.standard_normal((F.shape[0], 3)).astype("float32")
    got = F.solve(v[:, 0].copy(), damping=0.1, split=split)
    ((_, solvers),) = F.structure.solvers.items()
    assert all(isinstance(one, _split.Factors) for one in solvers), "not the way that is tested"
    for k in range(3):
        expected = brute(F, v[:, k].astype(np.float64), 0.1, split)
        column = F.solve(v, damping=0.1, split=split)[:, k]
        assert np.linalg.norm(column - expected) <= 1e-5 * np.linalg.norm(expected)
        if k == 0:
            assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_fisher_goes_on_without_factors_where_digits_would_be_lost(rng):
    F = ff.fisher(dense(rng), structure="kfac")
    v = rng.standard_normal(F.shape[0]).astype("float32")
    for damping in (1e-12, 1e-2):
        F.solve(v, damping=damping, split="plain")
    ((_, solvers),) = F.structure.solvers.items()
    assert all(isinstance(one, _split.Factors) for one in solvers)
    F.solve(v, damping=1e-7, split="plain")
    ((_, solvers),) = F.structure.solvers.items()
    assert not any(isinstance(one, _split.Factors) for one in solvers)
