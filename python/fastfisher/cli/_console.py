# SPDX-License-Identifier: Apache-2.0
"""Printing: rich where it is installed, plain text otherwise."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastfisher._extras import require
from fastfisher.report._section import Tick

__all__ = ["Bars", "print_json", "print_line", "print_table"]


def print_line(text: str = "") -> None:
    """Print one line of plain text to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print `value` as JSON to standard output."""
    print_line(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    alarming: Sequence[int] = (),
    header: bool = True,
) -> None:
    """Print a table; `numbers` are the right-aligned columns, `alarming` the rows to colour."""
    if importlib.util.find_spec("rich") is None:
        _plain_table(title, columns if header else (), rows, numbers)
        return
    rich_table = require("rich.table", purpose="this table")
    box = require("rich.box", purpose="this table")
    markup = require("rich.markup", purpose="this table")
    table = rich_table.Table(
        title=markup.escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=header,
    )
    for index, column in enumerate(columns):
        style = "cyan" if index == 0 else None
        table.add_column(
            column, justify="right" if index in numbers else "left", style=style, overflow="fold"
        )
    for index, row in enumerate(rows):
        table.add_row(
            *(markup.escape(cell) for cell in row), style="bold red" if index in alarming else None
        )
    require("rich.console", purpose="this table").Console(file=sys.stdout).print(table)


def _plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]
) -> None:
    lines = (
        [tuple(columns), *(tuple(row) for row in rows)] if columns else [tuple(row) for row in rows]
    )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    print_line(title)
    for line in lines:
        cells = [
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print_line("  " + "  ".join(cells).rstrip())
    print_line()


class Bars:
    """Rich progress bars on standard error; use as a context manager.

    Raises
    ------
    MissingExtraError
        rich is not installed.
    """

    def __init__(self) -> None:
        progress = require("rich.progress", purpose="the progress display")
        console = require("rich.console", purpose="the progress display")
        self._bars = progress.Progress(
            progress.SpinnerColumn(finished_text="[green]✓"),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=28),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
        )

    def __enter__(self) -> Bars:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing and give the cursor back, whatever happened."""
        self._bars.stop()

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Tick]:
        """Show one task; the block is given a function to call after each step."""
        task = self._bars.add_task(description, total=total)

        def tick(steps: int = 1) -> None:
            self._bars.advance(task, steps)

        yield tick
        steps = total or 1
        self._bars.update(task, total=steps, completed=steps)
