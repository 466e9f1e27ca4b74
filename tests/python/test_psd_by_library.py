# SPDX-License-Identifier: Apache-2.0
"""Eigenvectors and roots by the array's own library, as the native op gives and reports them."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _arrays, _native
from fastfisher.psd import _by_library

LIMIT = 30
N = 24


def matrices(rng, dtype):
    """Matrix, damping and whether it is automatic, by id."""
    x = rng.standard_normal((N, 2 * N))
    good = (x @ x.T / (2 * N)).astype(dtype)
    good[np.triu_indices(N, 1)] = np.nan  # the upper triangle is not read
    bad = good.copy()
    bad[20, 11], bad[21, 0] = np.inf, np.nan
    most = np.finfo(dtype).max
    return {
        "good": (good, 0.0, False),
        "damped": (good, 0.5, False),
        "tiny": (good * dtype(float(np.finfo(dtype).tiny) * 64), 0.0, True),
        "ones": (np.ones((N, N), dtype), 0.0, True),
        "zero": (np.zeros((N, N), dtype), 0.0, True),
        "negative": (-np.eye(N, dtype=dtype), 0.0, True),
        "indefinite": (np.diag(np.arange(N) - 3.5).astype(dtype), 0.0, False),
        "bad": (bad, 0.0, True),
        "overflow": (np.eye(N, dtype=dtype) * most, float(most), False),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("task", ["eigh", "inverse_root"])
@pytest.mark.parametrize("owner", ["numpy", "torch"])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_reports_and_results_are_those_of_the_native_op(task, dtype, owner, rng):
    library = pytest.importorskip(owner)
    array = library.from_numpy if owner == "torch" else library.asarray
    more = {"p": 2.0} if task == "inverse_root" else {}
    eps = float(np.finfo(dtype).eps)
    for name, (a, damping, automatic) in matrices(rng, dtype).items():
        given = ["auto"] if automatic else [damping]
        (want,) = getattr(ff.psd, task)([a], damping=given, **more)
        out, values = np.empty((N, N), dtype), np.empty(N, dtype)
        report = _by_library.spectral(
            task,
            array(a),
            damping=damping,
            automatic=automatic,
            p=2.0,
            out=array(out),
            values=array(values) if task == "eigh" else None,
        )
        kind = _native.PSD_KINDS[report.kind]
        if name == "overflow" and task == "inverse_root" and dtype is np.float64:
            assert kind == "overflow"
            continue
        assert (kind if kind in ("ok", "damped") else "failed") == want.status, name
        if want.status == "failed":
            assert np.isnan(out).all()
            assert task != "eigh" or np.isnan(values).all()
            assert report.condition == np.inf
            assert kind != "non_finite" or report.position == 20 * N + 11
            continue
        low = np.tril(a.astype(float))
        m = low + np.tril(low, -1).T + report.damping * np.eye(N)
        assert np.isinf(want.condition) or 0.01 < want.condition / report.condition < 100
        if task == "eigh":
            assert (np.diff(values) >= 0).all()
            v = out.astype(float)
            assert np.linalg.norm(m @ v - v * values) <= LIMIT * N * eps * np.linalg.norm(m)
            assert np.linalg.norm(v.T @ v - np.eye(N)) <= LIMIT * N * eps
        elif name in ("good", "damped", "zero"):
            np.testing.assert_array_equal(out, out.T)
            np.testing.assert_allclose(out, want.value, rtol=1e3 * eps, atol=1e3 * eps)


@pytest.mark.parametrize("most", [0, 1, 107, 160, 1024])
def test_only_large_matrices_on_a_device_need_it(most, monkeypatch):
    class Far:
        device = "cuda:0"
        dtype = "torch.float32"

    def workspace(task, sizes, dtype, *, cuda):
        assert cuda
        if max(sizes) > most:
            raise NotImplementedError
        return 1

    Far.__module__ = "torch"
    monkeypatch.setattr(_native, "psd_workspace", workspace)
    _by_library._rows.cache_clear()
    for task in ("eigh", "inverse_root"):
        assert _by_library.native_rows(task, Far()) == most
        assert _by_library.native_rows(task, np.zeros((500, 500))) == np.inf
    assert _by_library.native_rows("inverse", Far()) == np.inf
    _by_library._rows.cache_clear()
    assert _arrays.device_name(Far()) == "cuda:0"
