# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: a machine's rate moves, so ratios are taken round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastfisher import _native

# Seconds below which a timing is made of several calls.
SHORTEST = 0.03


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def settled_seconds_of(call: Callable[[], object]) -> float:
    """Wall time of a call that is made again and again, after a pause for other threads to rest.

    Idle threads of other libraries spin for a while. The call before the timed one wakes threads
    and asks the system for memory: fresh pages of a virtual machine took up to 0.1 s in 100 MB.
    Short calls are repeated and their median taken.
    """
    time.sleep(0.3)
    call()
    times = [seconds_of(call)]
    while sum(times) < SHORTEST:
        times.append(seconds_of(call))
    return statistics.median(times)


class MatmulRate:
    """Flops a second of a 2048^3 product: the fastest of numpy, torch (if there) and our BLAS."""

    size = 2048

    def __init__(self, dtype: str) -> None:
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((self.size, self.size)).astype(dtype) for _ in range(2))
        out = np.empty_like(a)
        self.calls: dict[str, Callable[[], object]] = {
            "ours": lambda: _native.matmul(a, b, out),
            "numpy": lambda: np.matmul(a, b, out=out),
        }
        torch = torch_or_none()
        if torch is not None:
            ta, tb, to = (torch.from_numpy(x) for x in (a, b, out))
            self.calls["torch"] = lambda: torch.mm(ta, tb, out=to)
        for call in self.calls.values():
            call()

    def measure(self) -> float:
        """Best rate of the libraries now."""
        return 2 * self.size**3 / min(settled_seconds_of(call) for call in self.calls.values())


def between(before: float, after: float) -> float:
    """Rate of a call between two measured ones: that of a product in the mean of their times.

    The larger one would be that of the quieter moment: on a machine whose rate moves a product
    came out 1 to 9 % slower than itself.
    """
    return 2 / (1 / before + 1 / after)


def torch_or_none():
    """Return the torch module if it is installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds."""

    seconds: float
    floor_seconds: float
    ratio_to_floor: float
    rival_ratio: float | None


def interleave(
    call: Callable[[], object],
    flops: float,
    rate: MatmulRate,
    rival: Callable[[], object] | None,
    rounds: int,
) -> Timing:
    """Time rate, call, rate, rival in turn; the floor is `flops` at the rate around the call."""
    call()
    if rival is not None:
        rival()
    seconds, floors, rivals = [], [], []
    for _ in range(rounds):
        before = rate.measure()
        seconds.append(settled_seconds_of(call))
        floors.append(flops / between(before, rate.measure()))
        if rival is not None:
            rivals.append(settled_seconds_of(rival) / seconds[-1])
    ratios = [s / f for s, f in zip(seconds, floors, strict=True)]
    return Timing(
        statistics.median(seconds),
        statistics.median(floors),
        statistics.median(ratios),
        statistics.median(rivals) if rivals else None,
    )


def extra_memory(call: Callable[[], np.ndarray]) -> int | None:
    """Bytes by which `call` raised the peak of this process beyond its result; None if unknown."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")  # resets the peak to the present
        before = _kilobytes(status, "VmRSS")
        result = call()
        return 1024 * (_kilobytes(status, "VmHWM") - before) - result.nbytes
    except (OSError, ValueError):
        return None


def _kilobytes(status: Path, field: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(field)


def device_seconds(call: Callable[[], object], repeats: int = 5, inner: int = 1) -> float:
    """Median time on a GPU of one of `inner` calls in a row, by events, after one that warms up."""
    torch = torch_or_none()
    call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(inner):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / inner)
    return statistics.median(times)
