# SPDX-License-Identifier: Apache-2.0
"""`ff.psd` beside other threads, after a fork, and interrupted between matrices."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

import fastfisher as ff


def spd(n, rng):
    x = rng.standard_normal((n, 2 * n)).astype("float32")
    return x @ x.T


def test_works_in_a_forked_child(rng):
    a = spd(400, rng)
    before = ff.psd.inverse([a, a])[1].value
    child = os.fork()
    if child == 0:
        same = np.array_equal(ff.psd.inverse([a, a])[1].value, before)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_of_the_caller(rng):
    a = [spd(n, rng) for n in (100, 300)]
    want = [r.value for r in ff.psd.inverse(a)]
    found = []
    threads = [threading.Thread(target=lambda: found.append(ff.psd.inverse(a))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for results in found:
        for result, value in zip(results, want, strict=True):
            np.testing.assert_array_equal(result.value, value)


def test_an_interrupt_stops_between_matrices(rng):
    a = [spd(128, rng)] * 4000
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.perf_counter()

    def work():
        while time.perf_counter() - start < 60:
            ff.psd.inverse(a)

    with pytest.raises(KeyboardInterrupt):
        work()
    timer.join()
    assert ff.psd.inverse(a[0]).status == "ok"
