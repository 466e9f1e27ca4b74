# SPDX-License-Identifier: Apache-2.0
"""The report: from a fresh install to a page about a real network (``fastfisher report``)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastfisher._extras import require
from fastfisher.report import _render
from fastfisher.report._folder import RESULTS, SCHEMA, OutputFolderError, leftovers, new_folder
from fastfisher.report._machine import environment
from fastfisher.report._section import (
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

__all__ = ["SECTIONS", "OutputFolderError", "Settings", "leftovers", "write"]

_PAGE = "report.html"


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
        Which sections.

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
    """
    shown = Silent() if progress is None else progress
    for module in ("matplotlib", "jinja2", "scipy"):
        require(module, purpose="the report")
    with new_folder(out) as folder:
        began = time.perf_counter()
        with shown.task("data") as tick:
            data = load(settings.data, samples=settings.samples, seed=settings.seed)
            tick()
        context = Context(settings, data, shown)
        files: list[str] = []
        finished: list[dict[str, Any]] = []
        views: list[dict[str, Any]] = []
        for section in sections:
            start = time.perf_counter()
            result = section.build(context)
            pictures = sum(len(block.plots) for block in result.blocks if isinstance(block, Figure))
            with shown.task("pictures", pictures) as tick:
                blocks = [_view(block, section.id, folder, files, tick) for block in result.blocks]
            seconds = time.perf_counter() - start
            finished.append(_record(section, result, seconds))
            views.append(
                {"section": section, "result": result, "blocks": blocks, "seconds": seconds}
            )
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - began,
            "command": command,
            "environment": environment(),
            "data": {
                "name": data.name,
                "title": data.title,
                "samples": len(data.labels),
                "of": data.available,
            },
            "files": [_PAGE, *files, RESULTS],
            "sections": finished,
        }
        html = _render.page(results=results, data=data, sections=views)
        (folder / _PAGE).write_text(html, encoding="utf-8")
        results = _plain(results)
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    return results


def _record(section: Section, result: SectionResult, seconds: float) -> dict[str, Any]:
    return {
        "id": section.id,
        "title": section.title,
        "seconds": seconds,
        "headline": result.headline,
        "settings": result.settings,
        "values": result.values,
    }


def _view(
    block: Text | Figure | Table,
    section: str,
    folder: Path,
    files: list[str],
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Turn a block into what the template wants; draw pictures and keep the light ones as files."""
    if isinstance(block, Text):
        return {"kind": "text", "block": block}
    if isinstance(block, Table):
        return {"kind": "table", "block": block}
    pictures = []
    for plot in block.plots:
        name = f"{section}-{plot.name}.png"
        light, dark = _render.picture(plot), _render.picture(plot, dark=True)
        (folder / name).write_bytes(light)
        files.append(name)
        pictures.append(
            {
                "alt": plot.alt,
                "light": _render.picture_data(light),
                "dark": _render.picture_data(dark),
            }
        )
        tick()
    return {"kind": "figure", "block": block, "pictures": pictures}


def _plain(value: Any) -> Any:
    """`value` with everything that is not finite replaced by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
