# SPDX-License-Identifier: Apache-2.0
"""The report: from a fresh install to a page about a real network (``fastfisher report``)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastfisher._extras import require
from fastfisher.report import _device, _render
from fastfisher.report._checkpoint import Checkpoint, checkpoint_folder
from fastfisher.report._folder import RESULTS, SCHEMA, OutputFolderError, leftovers, new_folder
from fastfisher.report._machine import environment
from fastfisher.report._section import (
    QUICK_SECONDS,
    QUICK_SECTION_SECONDS,
    Context,
    Figure,
    Progress,
    Section,
    SectionResult,
    Settings,
    Silent,
    Table,
    Text,
)
from fastfisher.report.data import load
from fastfisher.report.sections import SECTIONS

__all__ = [
    "SECTIONS",
    "OutputFolderError",
    "Settings",
    "checkpoint_folder",
    "chosen",
    "leftovers",
    "write",
]

_PAGE = "report.html"


def chosen(only: Sequence[str], sections: Sequence[Section] = SECTIONS) -> tuple[Section, ...]:
    """Sections by id, in the order of the page; all of them if `only` is empty.

    Raises
    ------
    ValueError
        An id that no section has; the message lists those there are.
    """
    ids = [section.id for section in sections]
    for name in only:
        if name not in ids:
            raise ValueError(f"only: expected ids of sections ({', '.join(ids)}), got {name!r}")
    return tuple(section for section in sections if not only or section.id in only)


def write(
    settings: Settings,
    out: Path,
    *,
    command: str = "fastfisher report",
    progress: Progress | None = None,
    sections: Sequence[Section] = SECTIONS,
) -> dict[str, Any]:
    """Compute every section and write the report's folder, whole or not at all.

    Parameters
    ----------
    settings : Settings
        What decides the numbers.
    out : path
        Folder to create; an older report there is replaced.
    command : str
        The command line that repeats this report, for the page.
    progress : Progress, optional
        Where to show progress; nothing is shown by default.
    sections : sequence of Section
        Which sections, see `chosen`.

    Returns
    -------
    dict
        What results.json holds.

    Raises
    ------
    OutputFolderError
        `out` is something else than a report.
    MissingExtraError
        A package of the extra ``report`` is absent.
    ValueError, MemoryError
        A setting that cannot be met.

    Notes
    -----
    With ``grid="full"`` finished sections, and finished grid points of the others, are kept in
    `checkpoint_folder` until the report is complete: the same call goes on from there. They are
    used by runs with the same settings and the same installation only.
    """
    shown = Silent() if progress is None else progress
    for module in ("matplotlib", "jinja2", "scipy"):
        require(module, purpose="the report")
    with _device.use(settings.device), new_folder(out) as folder:
        began = time.perf_counter()
        kept = Checkpoint.open(out, settings) if settings.grid == "full" else None
        with shown.task("data") as tick:
            data = load(settings.data, samples=settings.samples, seed=settings.seed)
            tick()
        context = Context(settings, data, shown, points=kept)
        finished = [_finished(section, context, kept) for section in sections]
        files = [name for one in finished for name in one["pictures"]]
        for one in finished:
            for name, picture in one["pictures"].items():
                (folder / name).write_bytes(_render.picture_bytes(picture))
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - began,
            "grid": settings.grid,
            "device": settings.device,
            "resumed": kept is not None and kept.resumed,
            "slower_than_promised": _slow(settings, finished),
            "command": command,
            "environment": environment(),
            "data": {
                "name": data.name,
                "title": data.title,
                "samples": len(data.labels),
                "of": data.available,
            },
            "files": [_PAGE, *files, RESULTS],
            "sections": [one["record"] for one in finished],
        }
        html = _render.page(results=results, data=data, sections=[one["view"] for one in finished])
        (folder / _PAGE).write_text(html, encoding="utf-8")
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    if kept is not None:
        kept.remove()
    return results


def _slow(settings: Settings, finished: list[dict[str, Any]]) -> list[str]:
    """Sections that took longer than ``--quick`` promises."""
    if settings.grid != "quick":
        return []
    records = [one["record"] for one in finished]
    if sum(record["seconds"] for record in records) <= QUICK_SECONDS:
        return []
    return [record["id"] for record in records if record["seconds"] > QUICK_SECTION_SECONDS]


def _finished(section: Section, context: Context, kept: Checkpoint | None) -> dict[str, Any]:
    """Build a section, or read it: its part of results.json and of the page, plain, and pictures.

    Pictures are data URIs by the names of their files.
    """
    found = None if kept is None else kept.section(section.id)
    if found is not None:
        with context.progress.task(f"{section.id}: finished before") as tick:
            tick()
        return found
    before = 0.0 if kept is None else kept.seconds
    start = time.perf_counter()
    result = section.build(replace(context, section=section.id))
    count = sum(len(block.plots) for block in result.blocks if isinstance(block, Figure))
    pictures: dict[str, str] = {}
    with context.progress.task("pictures", count) as tick:
        blocks = [_view(block, section.id, pictures, tick) for block in result.blocks]
    # The time of points that were read is that of the run that computed them.
    seconds = time.perf_counter() - start + (0.0 if kept is None else kept.seconds - before)
    view = {
        "section": {"id": section.id, "title": section.title},
        "result": {
            "summary": result.summary,
            "facts": [asdict(fact) for fact in result.facts],
            "settings": _settings(section, context, result),
        },
        "blocks": blocks,
        "seconds": seconds,
    }
    # Through JSON in any case, so that a section that was read is the same as one just built.
    plain = _plain(
        {"record": _record(section, context, result, seconds), "view": view, "pictures": pictures}
    )
    finished: dict[str, Any] = json.loads(json.dumps(plain, ensure_ascii=False, allow_nan=False))
    if kept is not None:
        kept.keep(section.id, finished)
    return finished


def _settings(section: Section, context: Context, result: SectionResult) -> dict[str, Any]:
    """Give a section's settings, with what ran on a device other than the CPU."""
    if context.settings.device == "cpu":
        return result.settings
    part = _device.PARTS.get(section.id, "unknown")
    return {**result.settings, f"on {context.settings.device}": part}


def _record(
    section: Section, context: Context, result: SectionResult, seconds: float
) -> dict[str, Any]:
    return {
        "id": section.id,
        "title": section.title,
        "seconds": seconds,
        "headline": result.headline,
        "settings": _settings(section, context, result),
        "values": result.values,
    }


def _view(
    block: Text | Figure | Table, section: str, pictures: dict[str, str], tick: Callable[[], None]
) -> dict[str, Any]:
    """Turn a block into what the template wants; draw pictures and collect the light ones."""
    if isinstance(block, Text):
        return {"kind": "text", "block": asdict(block)}
    if isinstance(block, Table):
        return {"kind": "table", "block": asdict(block)}
    views = []
    for plot in block.plots:
        light, dark = (
            _render.picture_data(_render.picture(plot, dark=dark)) for dark in (False, True)
        )
        pictures[f"{section}-{plot.name}.png"] = light
        views.append({"alt": plot.alt, "light": light, "dark": dark})
        tick()
    return {"kind": "figure", "block": {"caption": block.caption}, "pictures": views}


def _plain(value: Any) -> Any:
    """`value` with everything that is not finite replaced by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
