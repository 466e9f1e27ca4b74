# SPDX-License-Identifier: Apache-2.0
"""Sections that train torch's modules: torch where it is installed, else why they did not run."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastfisher._extras import MissingExtraError, require
from fastfisher.report._section import Context, SectionResult, Text

__all__ = ["Watch", "best_of", "seeded", "torch", "with_torch"]


def torch() -> Any:
    """Import torch.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    return require("torch", purpose="this section", install="'fastfisher[torch]'")


def with_torch(build: Callable[[Context], SectionResult]) -> Callable[[Context], SectionResult]:
    """Let `build` run where torch is installed; elsewhere the section says that it did not."""

    def built(context: Context) -> SectionResult:
        try:
            torch()
        except MissingExtraError as error:
            why = str(error)
            words = f"Not run: {html.escape(why, quote=False)}."
            return SectionResult(
                summary=words,
                facts=(),
                blocks=(Text(words),),
                settings={"not run": why},
                values={"skipped": why},
                headline=f"not run: {why}",
            )
        with _one_thread():
            return build(context)

    return built


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give torch one thread: for networks this small more cost time, most on a busy machine."""
    t = torch()
    before = t.get_num_threads()
    t.set_num_threads(1)
    try:
        yield
    finally:
        t.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generator as after ``manual_seed``, and leave it as it was."""
    with torch().random.fork_rng(devices=[]):
        torch().manual_seed(seed)
        yield


class Watch:
    """Steps, seconds and values of a run; the clock stands still while values are computed."""

    def __init__(self, every: int, look: Callable[[], tuple[float, ...]]) -> None:
        self._every, self._look = every, look
        self._seconds, self._start = 0.0, 0.0
        self._rows: list[tuple[float, ...]] = [(0.0, 0.0, *look())]

    @contextmanager
    def step(self, number: int, *, last: bool = False) -> Iterator[None]:
        """Time one step, and look after each `every`-th and the last one."""
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start
        if number % self._every == 0 or last:
            self._rows.append((float(number), self._seconds, *self._look()))

    def columns(self, *names: str) -> dict[str, np.ndarray[Any, Any]]:
        """Columns "steps", "seconds", and those that were looked at under their names."""
        table = np.array(self._rows)
        return dict(zip(("steps", "seconds", *names), table.T, strict=True))


def best_of(
    runs: Mapping[float, list[dict[str, np.ndarray[Any, Any]]]], key: str
) -> dict[str, Any]:
    """Pick the setting whose runs end lowest in column `key`, by the median; never diverged ones.

    The result has that "setting", the "last" medians of all of them, and the stacked columns of its
    runs.
    """
    last = {
        setting: float(np.median([np.nan_to_num(one[key][-1], nan=np.inf) for one in points]))
        for setting, points in runs.items()
    }
    setting = min(last, key=lambda one: last[one])
    stacked = {name: np.array([one[name] for one in runs[setting]]) for name in runs[setting][0]}
    return {"setting": setting, "last": last, **stacked}
