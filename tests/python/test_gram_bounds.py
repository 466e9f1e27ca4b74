# SPDX-License-Identifier: Apache-2.0
"""The Gram stays within its inputs, output and scratch memory, and that within its limit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import fastfisher as ff
from cases import assert_close

GUARDED = """
import ctypes, mmap, sys
import numpy as np
sys.path.insert(0, FOLDER)
from fastfisher import _native
from fastfisher._gram import gram_factors
from layer_cases import LAYER_CASES
from layer_forms import C, D, LayerCase, S, ours

libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE

def guarded(shape, dtype):
    # Memory of its own, at whose beginning or end is a page that must not be touched.
    dtype, count = np.dtype(dtype), int(np.prod(shape))
    pages = -(-count * dtype.itemsize // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    offset = (pages + 1) * PAGE - count * dtype.itemsize if AT_END else PAGE
    return np.ndarray(shape, dtype, memory, offset)

def copied(x):
    y = guarded(x.shape, x.dtype)
    y[...] = x
    return y

_native.scratch = lambda size, like: guarded((size,), "uint8")
cases = [
    *LAYER_CASES,
    LayerCase("many-samples", 130, 70, 1, (C(16, (6, 6), 17, (3, 3), padding=(1, 1)),)),
    LayerCase("many-positions", 40, 30, 2, (S(70, 24, 33, True), D(40, 30))),
    LayerCase("many-units", 60, 20, 3, (S(5, 30, 130, True, separable=True),)),
]
for case in cases:
    rng = np.random.default_rng(0)
    left = ours(case.draw(rng, "float32"), copied)
    right = ours(case.draw(rng, "float32", right=True), copied)
    n, m, c = case.n, case.m, case.c
    for method in ("auto", *case.methods):
        for other, outputs, shape in (
            (None, "full", (n, c, n, c)), (None, "trace", (n, n)), (right, "full", (n, c, m, c))
        ):
            print(case, method, "square" if other is None else "cross", outputs, flush=True)
            options = dict(outputs=outputs, method=method, out=guarded(shape, "float32"))
            gram_factors(left, other, threads=2, **options)
            try:
                gram_factors(left, other, memory_limit=1, **options)
            except MemoryError as error:
                least = int(str(error).split("about ")[1].split()[0])
                gram_factors(left, other, memory_limit=least, **options)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages by mprotect")
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_beyond_the_given_memory_is_touched(at_end, request):
    values = f"FOLDER, AT_END = {str(request.path.parent)!r}, {at_end}\n"
    run = subprocess.run(
        [sys.executable, "-c", values + GUARDED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    last = (run.stdout.splitlines() or [""])[-1]
    assert (run.returncode, last) == (0, "done"), run.stderr


PEAK = """
import ctypes
import numpy as np
import fastfisher as ff
from fastfisher._gram import gram_factors

def status(field):
    with open("/proc/self/status") as lines:
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(field + ":"))

def ones(*shape):
    return np.ones(shape, "float32")

deep = ff.Conv(ones(4, 960, 3, 3), ones(4, 200, 960, 3, 3), kernel=3, padding=1, groups=960)
few = ff.Conv(ones(4, 60, 3, 3), ones(4, 100, 60, 3, 3), kernel=3, padding=1, groups=60)
split = ff.Separable(ones(4, 3000, 3, 3), ones(300, 3000))
split = ff.Conv(ones(4, 3000, 3, 3), split, kernel=3, padding=1, groups=3000)
head = ff.Shared(ones(2, 8, 512), ones(2, 1, 8, 20000), bias=True)
for layer, outputs, method in (
    (deep, "trace", "S1"), (few, "trace", "S2"), (deep, "full", "S1"),
    (split, "full", "S4"), (head, "full", "S1"), (head, "trace", "S3"),
):
    def call(limit):
        return gram_factors([layer], outputs=outputs, method=method, memory_limit=limit, threads=2)
    try:
        call(1)
    except MemoryError as error:
        least = int(str(error).split("about ")[1].split()[0])
    for limit in (least, 3 * least):
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before = status("VmRSS")
        result = call(limit)
        print(status("VmHWM") - before - result.nbytes, limit, outputs, method, flush=True)
"""


def test_the_limit_bounds_the_peak_of_memory():
    """The workspace, the lists of the plan and copies of small factors, all of them."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell the peak of a process")
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines() if line[-3:-1] == " S"]
    assert len(lines) == 12
    for peak, limit, *case in lines:
        # Stacks of the threads, pages of the allocator.
        assert int(peak) <= int(limit) + (2 << 20), case


# Panels of 16, 32 or 48 columns, and memory for a few of them: whole ones in any case.
@pytest.mark.parametrize("method", ["S1", "S2"])
@pytest.mark.parametrize("outputs", [1, 7, 10, 16, 20])
@pytest.mark.parametrize("positions", [3, 16, 300])
def test_memory_to_form_in_holds_whole_panels(positions, outputs, method, rng):
    a = rng.standard_normal((2, positions, 256), dtype="float32")
    g = rng.standard_normal((2, outputs, positions, 32), dtype="float32")
    layer = ff.Shared(a, g, bias=True)
    jacobian = ff.Jacobian.from_factors([layer])
    dense = layer.block().reshape(2 * outputs, -1).astype(float)
    whole = jacobian.gram(method=method)
    assert_close(whole.reshape(2 * outputs, -1), dense @ dense.T, terms=256 * 32, dtype="float32")
    fits = 0
    for limit in np.geomspace(2e5, 2e7, 48).astype(int):
        for threads in (1, 3):
            try:
                got = jacobian.gram(method=method, memory_limit=int(limit), threads=threads)
            except MemoryError:
                continue
            fits += 1
            np.testing.assert_array_equal(got, whole)
    assert fits > 5


@pytest.mark.parametrize("seed", [155, 266, 283, 295, 297, 312, 322, 325, 332])
def test_more_memory_is_never_too_little(seed: int) -> None:
    """The sides of a Gram need most in different slabs: that is no reason to give up."""
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(2, 9)), int(rng.integers(1, 4))
    layers = []
    for _ in range(int(rng.integers(2, 6))):
        i, o = (int(v) for v in rng.integers(8, 64, 2))
        s = int(rng.choice([1, 2, 3, 4]))
        x, g = rng.standard_normal((n, i, s, s)), rng.standard_normal((n, c, o, s, s))
        kernel, padding = (3, 1) if s > 1 else (1, 0)
        layers.append(
            ff.Conv(x.astype("float32"), g.astype("float32"), kernel=kernel, padding=padding)
        )
    jacobian, least = ff.Jacobian.from_factors(layers), None
    expected = jacobian.gram()
    for limit in (int(20_000 * 1.15**k) for k in range(60)):
        try:
            assert np.array_equal(jacobian.gram(memory_limit=limit), expected)
            least = least or limit
        except MemoryError:
            assert least is None, f"{limit} bytes are too few, {least} were not"
    assert least is not None
    assert least < 2_000_000
