# SPDX-License-Identifier: Apache-2.0
"""Memory that dead arrays leave to new ones."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import _pool
from fastfisher._pool import _KEPT, _KEPT_SMALL, _LENT, Pool, _kept, empty, workspace

SHAPE = (512, 512)
BYTES = 4 * 512 * 512


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def test_outside_of_a_pool_it_is_an_array_of_its_own():
    x = empty(SHAPE, "float32")
    assert x.flags.owndata
    assert (x.shape, x.dtype) == (SHAPE, np.float32)


def test_memory_comes_back_when_the_last_view_is_gone():
    pool = Pool()
    with pool.use():
        x = empty(SHAPE, "float32")
        x[...] = 1
        first, view = address(x), x[3:5].T
        del x
        assert pool.size == 0
        other = empty(SHAPE, "float32")
        assert address(other) != first, "memory that a view still reads was given away"
        assert (view == 1).all()
        del view
        assert pool.size == BYTES
        again = empty((BYTES,), "uint8")
        assert address(again) == first
        assert pool.size == 0


def test_what_one_use_does_not_need_goes_back_to_the_system():
    pool = Pool()
    with pool.use():
        held = empty(SHAPE, "float32")
        del held
    assert pool.size == BYTES
    with pool.use():
        pass
    assert pool.size == 0


def test_small_arrays_and_other_threads_do_without():
    found = []
    with Pool().use():
        found.append(empty((3,), "float64"))
        thread = threading.Thread(target=lambda: found.append(empty(SHAPE, "float32")))
        thread.start()
        thread.join()
    assert [x.flags.owndata for x in found] == [True, True]


def test_an_array_outlives_its_pool():
    with Pool().use():
        x = empty(SHAPE, "float64")
    x[...] = 2
    assert (x == 2).all()


def test_uses_within_each_other():
    outer, inner = Pool(), Pool()
    with outer.use():
        with inner.use(), inner.use():
            x = empty(SHAPE, "float32")
        del x
        assert (inner.size, outer.size) == (BYTES, 0)
        y = empty(SHAPE, "float32")
        del y
    assert outer.size == BYTES


def test_two_threads_share_a_pool():
    pool, entered, done = Pool(), threading.Event(), threading.Event()

    def other():
        with pool.use():
            entered.set()
            done.wait(10)
            x = empty(SHAPE, "float32")
            del x

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with pool.use():
        x = empty(SHAPE, "float32")
        del x
    done.set()
    thread.join()
    assert pool.size == BYTES
    assert empty(SHAPE, "float32").flags.owndata


def test_copies_are_empty():
    pool = Pool()
    with pool.use():
        empty(SHAPE, "float32")
    for other in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert other.size == 0
    assert pool.size == BYTES


def test_no_more_than_the_limit_is_kept():
    pool = Pool(limit=2.5 * BYTES)
    with pool.use():
        x, y, z = (empty(SHAPE, "float32") for _ in range(3))
        del x, y
        assert pool.size == 2 * BYTES
        del z
        assert pool.size == 2 * BYTES
    with pool.use():
        pass
    assert pool.size == 2 * BYTES, "a limited pool keeps its memory from use to use"
    assert pickle.loads(pickle.dumps(pool))._limit == 2.5 * BYTES


def test_a_limited_pool_and_what_is_in_use_never_exceed_what_once_was_in_use():
    pool = Pool(limit=100 * BYTES)

    def make(units: int) -> np.ndarray:
        return empty((units, BYTES), "uint8")

    with pool.use():
        a, b = make(3), make(2)
        del a, b
        assert pool.size == 5 * BYTES
        c = make(4)
        assert pool.size == 0, "4 + 2 would be more than 5"
        del c
        d, e = make(4), make(1)
        del e, d
        assert pool.size == 5 * BYTES
        f = make(2)
        assert pool.size == 0, "the oldest goes first, then the other, which is too large"
        g = make(1)
        del g, f
        h = make(1)
        assert pool.size == 2 * BYTES
        i = make(1)
        assert pool.size == 2 * BYTES, "2 + 1 + 1 are less than 5"
        del h, i
    assert pool.in_use == 0


def test_more_than_there_is_is_a_memory_error():
    in_use = _kept.in_use
    with pytest.raises(MemoryError, match="unable to allocate"):
        workspace(1 << 62)
    assert _kept.in_use == in_use


def test_an_array_may_die_while_another_thread_works_on_the_pool():
    """Finalisers wait for nobody: one that did, for a lock of the caller's, would stop everyone."""
    pool, lock, cache = Pool(limit=1 << 29), threading.RLock(), {}

    class Cached:
        def __init__(self):
            self.me = self
            cache[id(self)] = None

        def __del__(self):
            with lock:
                cache.pop(id(self), None)

    def make():
        for _ in range(2000):
            Cached()
            with pool.use():
                x = empty(SHAPE, "float32")
            del x

    def drop():
        for _ in range(2000):
            with pool.use():
                x = empty(SHAPE, "float32")
            with lock:
                del x

    threads = [threading.Thread(target=work, daemon=True) for work in (make, drop)]
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-4)
    gc.set_threshold(50)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
    assert pool.in_use == 0


@pytest.mark.parametrize("limit", [1 << 29, float("inf")])
def test_a_child_of_a_fork_goes_on_with_any_pool(limit: float):
    pool, stop = Pool(limit=limit), threading.Event()

    def work():
        while not stop.is_set():
            with pool.use():
                empty(SHAPE, "float32")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                with pool.use():
                    empty(SHAPE, "float32")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_memory_is_lent_before_anyone_can_have_it(monkeypatch):
    pool, seen = Pool(limit=1 << 29), []
    monkeypatch.setattr(_pool, "_lend", lambda raw: seen.append((raw.nbytes, pool.size)))
    with pool.use():
        empty(SHAPE, "float32")
    assert seen == [(BYTES, 0)]


def test_of_small_blocks_few_are_kept():
    pool = Pool(limit=1 << 30)
    with pool.use():
        held = [empty((_LENT - 4096,), "uint8") for _ in range(40)]
        large = empty((1 << 25,), "uint8")
        del held, large
    assert pool.size - (1 << 25) <= _KEPT_SMALL
    assert pool.size - (1 << 25) > _KEPT_SMALL - _LENT


def test_under_an_address_limit_little_is_kept():
    pool, before = Pool(limit=1 << 30), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, before[1]))
    try:
        with pool.use():
            held = [empty((1 << 25,), "uint8") for _ in range(8)]
            del held
        assert pool.size == _KEPT_SMALL
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_within_another_pool_it_is_not_used():
    outer, inner = Pool(), Pool()
    with outer.use(), inner.use_if_none():
        x = empty(SHAPE, "float32")
        del x
    assert (outer.size, inner.size) == (BYTES, 0)
    with inner.use_if_none():
        x = empty(SHAPE, "float32")
        del x
    assert inner.size == BYTES


def test_fisher_matrices_made_in_turn_keep_the_memory_of_both():
    rng = np.random.default_rng(0)
    rows = [
        ff.Jacobian.from_factors([ff.Dense(rng.standard_normal((4, k)), np.ones((4, 1, 3)))])
        for k in (200, 300)
    ]
    seen = []
    for _ in range(3):
        for jacobian in rows:
            fisher = ff.fisher(jacobian, structure="kfac")
            seen.append(address(fisher.structure.blocks[0].a))
            del fisher
    assert seen[2:4] == seen[4:6]


def test_workspaces_of_calls_keep_their_memory_and_results_do_not():
    big = workspace(BYTES)
    at = address(big)
    del big
    again = workspace(BYTES)
    assert address(again) == at
    assert _kept.size <= _KEPT
    del again
    with (pool := Pool()).use():
        inside = workspace(BYTES)
        assert address(inside) != at
        del inside
    assert pool.size == BYTES
    kept = _kept.size
    huge = workspace(_KEPT + 1)
    del huge
    assert _kept.size in (0, kept), "nothing beyond the limit is kept"
    a, g = np.ones((300, 40), "float32"), np.ones((300, 4, 50), "float32")
    assert ff.gram(a, g).flags.owndata, "a result is memory of its own"


def lazily_free() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("LazyFree"))


def test_what_is_kept_is_the_systems_to_take():
    size = 1 << 25
    block = workspace(size)
    block.fill(1)
    before = lazily_free()
    del block
    assert lazily_free() - before >= size // 2
    again = workspace(size)
    again.fill(2)
    assert lazily_free() - before < size // 2, "memory in use would be lost"
    assert (again == 2).all()


def test_gradients_of_a_capture_leave_their_memory_to_the_next():
    torch = pytest.importorskip("torch")
    model, x = torch.nn.Linear(8, 64), torch.randn(64, 8)
    jacobian = ff.jacobian(model, x)
    at, view = jacobian.layers[0].g.data_ptr(), jacobian.layers[0].g[:2]
    expected = view.clone()
    del jacobian
    second = ff.jacobian(model, x)
    assert second.layers[0].g.data_ptr() != at, "memory that a view still reads was given away"
    assert torch.equal(view, expected)
    del view
    assert ff.jacobian(model, x).layers[0].g.data_ptr() == at
