# SPDX-License-Identifier: Apache-2.0
"""The Gram stays within its inputs, its output and its scratch memory: pages beyond are guarded."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
