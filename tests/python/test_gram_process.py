# SPDX-License-Identifier: Apache-2.0
"""The Gram and its process: fork, threads, the interpreter's lock, interrupts, starved systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastfisher as ff


def test_works_in_a_forked_child_after_the_pool_ran(rng):
    a, g = rng.standard_normal((300, 200)), rng.standard_normal((300, 1, 200))
    expected = ff.gram(a, g, threads=2)  # starts the parent's threads
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(ff.gram(a, g, threads=2), expected) else 2
        finally:
            os._exit(status)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(ff.gram(a, g, threads=2), expected)


def test_many_threads_call_at_once(rng):
    problems = [
        (rng.standard_normal((150, k)), rng.standard_normal((150, 1, k))) for k in range(60, 76)
    ]
    expected = [ff.gram(a, g) for a, g in problems]
    got = [None] * len(problems)

    def work(k):
        for _ in range(3):
            got[k] = ff.gram(*problems[k], threads=2)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(problems))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for x, y in zip(got, expected, strict=True):
        assert np.array_equal(x, y)


def test_the_gil_is_released(rng):
    a, g = rng.standard_normal((1500, 1500)), rng.standard_normal((1500, 1, 1500))
    ticks = []
    done = threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    ff.gram(a, g, threads=1)
    end = time.perf_counter()
    done.set()
    ticker.join()
    assert sum(start < t < end for t in ticks) >= 3


INTERRUPTED = """
import os, signal, threading, time
import numpy as np, fastfisher as ff
rng = np.random.default_rng(0)
a, g = rng.standard_normal((4000, 3000)), rng.standard_normal((4000, 1, 3000))
ff.gram(a[:8], g[:8])
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    for _ in range(1000):
        ff.gram(a, g)
except KeyboardInterrupt:
    took = time.perf_counter() - start
    assert ff.gram(a[:8], g[:8]).shape == (8, 1, 8, 1)
    print("interrupted", took)
"""


def test_interrupt_stops_within_a_tile():
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = (run.stdout.splitlines() or [""])[
        -1
    ]  # an editable installation reports its rebuild first
    assert last.startswith("interrupted"), run.stdout + run.stderr
    assert float(last.split()[1]) < 2.0  # a whole call takes much longer on these cores


def test_small_calls_start_no_thread():
    code = (
        "import threading, os, numpy as np, fastfisher as ff;"
        "ff.gram(np.ones((8, 32)), np.ones((8, 1, 32)));"
        "print(len(os.listdir('/proc/self/task')))"
    )
    env = dict(os.environ, OPENBLAS_NUM_THREADS="1")
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    baseline = "import os, numpy, fastfisher; print(len(os.listdir('/proc/self/task')))"
    idle = subprocess.run(
        [sys.executable, "-c", baseline], capture_output=True, text=True, env=env, check=True
    )
    assert run.stdout.splitlines()[-1] == idle.stdout.splitlines()[-1]


def test_import_brings_in_no_other_library():
    code = (
        "import sys, fastfisher;"
        "print(sorted({'torch', 'jax', 'cupy', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


STARVED = """
import resource
import numpy as np, fastfisher as ff
a, g = np.ones((600, 400)), np.ones((600, 1, 400))
expected = ff.gram(a, g, threads=1)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20), hard))
try:
    ff.gram(a, g, threads=64)
except MemoryError:
    pass
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
assert np.array_equal(ff.gram(a, g, threads=2), expected)
print("alive")
"""


def test_a_system_without_more_threads_neither_hangs_nor_fails():
    run = subprocess.run(
        [sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.splitlines()[-1:] == ["alive"], run.stderr
