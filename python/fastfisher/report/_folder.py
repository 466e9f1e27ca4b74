# SPDX-License-Identifier: Apache-2.0
"""The report's folder: complete or absent.

A run writes into a sibling folder whose name ends in ``.partial`` and renames it as its last act.
Whatever kills the run before that, no folder that looks like a report is left; what can still be
caught (Ctrl-C, an exception) also removes the partial one.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastfisher.errors import FastfisherError

__all__ = ["RESULTS", "SCHEMA", "OutputFolderError", "leftovers", "new_folder"]

SCHEMA = "fastfisher-report/1"
RESULTS = "results.json"


class OutputFolderError(FastfisherError, OSError):
    """The folder to write to holds something that a report must not replace."""


def leftovers(target: Path) -> list[Path]:
    """Partial folders that killed runs (or one that is still running) left beside `target`."""
    return sorted(p for p in target.parent.glob(f"{_escaped(target.name)}.*.partial") if p.is_dir())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends without an exception.

    Raises
    ------
    OutputFolderError
        `target` exists and is neither empty nor a report of ours, or holds other files too.
    """
    target = target.resolve()
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(target)
    try:
        partial.mkdir()
        yield partial
        _replace(target, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_replaceable(target: Path) -> None:
    if target == Path.cwd():
        raise OutputFolderError(f"out: {target} is the current folder; name a folder inside it")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputFolderError(f"out: {target} is a file; expected the name of a folder")
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir()}
    found |= {f"{p.name}/" for p in target.iterdir() if p.is_dir()}
    if not found:
        return
    ours = _files_of_report(target)
    if ours is None:
        raise OutputFolderError(
            f"out: {target} is not empty and not a fastfisher report (it has no {RESULTS} of "
            "ours); choose another folder or empty it"
        )
    foreign = sorted(found - ours)
    if foreign:
        raise OutputFolderError(
            f"out: {target} holds files that are not part of the report and would be lost "
            f"({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}); move them or choose "
            "another folder"
        )


def _files_of_report(folder: Path) -> set[str] | None:
    """Names of the files of the report in `folder`, None if there is no report of ours."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(results, dict) or not str(results.get("schema", "")).startswith(
        "fastfisher-report/"
    ):
        return None
    files = results.get("files", [])
    return {str(name) for name in files} | {RESULTS} if isinstance(files, list) else None


def _replace(target: Path, partial: Path) -> None:
    # Asked again: minutes may have passed since the run began.
    _check_replaceable(target)
    if not target.exists():
        partial.rename(target)
        return
    # A folder cannot be swapped in one step; the old one steps aside under a name that says it is
    # no report.
    old = _sibling(target)
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(target: Path) -> Path:
    return target.parent / f"{target.name}.{secrets.token_hex(4)}.partial"


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
