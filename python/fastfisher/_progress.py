# SPDX-License-Identifier: Apache-2.0
"""A progress bar beside a native call: it reads two numbers that the call keeps up to date."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastfisher._extras import require

_PERIOD = 0.1


@contextmanager
def progress_numbers(show: bool, title: str) -> Iterator[np.ndarray[Any, Any] | None]:
    """Numbers (done, total) for a native op, with a bar on standard error while the block runs."""
    if not show:
        yield None
        return
    rich_progress = require("rich.progress", purpose="progress=True")
    console = require("rich.console", purpose="progress=True").Console(stderr=True)
    numbers = np.zeros(2, np.int64)
    finished = threading.Event()
    with rich_progress.Progress(console=console, transient=False) as bar:
        task = bar.add_task(title, total=None)

        def follow() -> None:
            while not finished.wait(_PERIOD):
                bar.update(task, completed=int(numbers[0]), total=int(numbers[1]) or None)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield numbers
        finally:
            finished.set()
            follower.join()
            bar.update(task, completed=int(numbers[0]), total=int(numbers[1]) or None)
