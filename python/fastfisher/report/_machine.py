# SPDX-License-Identifier: Apache-2.0
"""The machine a report is made on: what it is, and whether a job fits into its memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

__all__ = ["check_memory", "cpu_count", "environment", "package_version"]

_GIB = 2**30


def package_version(*names: str) -> str | None:
    """Return the version of the first of these distributions that is installed, or None."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def cpu_count() -> int:
    """Processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Return what a reader needs to repeat a run elsewhere."""
    return {
        "fastfisher": package_version("fastfisher"),
        "python": platform.python_version(),
        "numpy": package_version("numpy"),
        "scipy": package_version("scipy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": cpu_count(),
    }


def check_memory(needed: int, what: str, argument: str) -> None:
    """Refuse a job that cannot fit, before it starts.

    Raises
    ------
    MemoryError
        `needed` bytes exceed the memory of the machine; the message names what to reduce.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # unknown here: let the allocation decide
        return
    if needed > total:
        raise MemoryError(
            f"{what} needs about {needed / _GIB:.1f} GiB, this machine has {total / _GIB:.1f} GiB; "
            f"reduce {argument}"
        )
