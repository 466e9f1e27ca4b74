# SPDX-License-Identifier: Apache-2.0
"""``fastfisher bench``: run the benches of package ``fastfisher._bench`` against their floors.

A bench is a module with ``run(quick: bool) -> Iterator[dict]``; each row has the keys of `KEYS`. It
may have those of `MORE` too: other ratios, shown where a row has them. It checks its result before
it times it; a row whose error exceeds its tolerance fails the command. Modules without `run` are
programs of their own: those on a GPU, those that train.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

from fastfisher.cli._console import print_json, print_line, print_table
from fastfisher.errors import FastfisherError

__all__ = ["add"]

PACKAGE = "fastfisher._bench"
PREFIX = "bench_"
KEYS = (
    "op",
    "case",
    "seconds",
    "floor_seconds",
    "ratio_to_floor",
    "rival",
    "rival_ratio",
    "error",
    "tolerance",
)
# Ratios to the floor that memory allows, and to that of a product of the case's own shape.
MORE = {"ratio_to_roofline": "/ roofline", "ratio_to_shape": "/ own shape"}


class BenchError(FastfisherError, ValueError):
    """No such bench, or one that does not give what it must."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure the operations against their floors and rivals on this machine",
        description=(
            "Run the benches. Each verifies its result first, then measures it in one run against "
            "the time that the counted operations take at the machine's own matrix-product rate "
            "(the floor) and against the fastest public way (the rival). Exit status 1 if a result "
            "is wrong."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benches to run (default: all)")
    parser.add_argument(
        "--list", action="store_true", help="print the names of the benches and stop"
    )
    parser.add_argument("--quick", action="store_true", help="smaller cases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    present = _names()
    unknown = [name for name in arguments.names if name not in present]
    if unknown:
        raise BenchError(
            f"no bench named {unknown[0]!r}; there are: {', '.join(present) or 'none'}"
        )
    if arguments.list:
        for name in present:
            print_line(name)
        return 0
    if not present:
        raise BenchError("this installation has no benches")
    rows = []
    for name in arguments.names or present:
        own = list(_told(_rows(name, arguments.quick)))
        if not own:
            idle = f"bench {name}: not run, it needs torch: pip install 'fastfisher[torch]'"
            if name in arguments.names:
                raise BenchError(idle)
            sys.stderr.write(f"{idle}\n")
        rows += own
    wrong = [index for index, row in enumerate(rows) if not _right(row)]
    if arguments.json:
        print_json([{key: _plain(value) for key, value in row.items()} for row in rows])
    else:
        more = [key for key in MORE if any(key in row for row in rows)]
        print_table(
            "benches",
            (
                "op",
                "case",
                "time",
                "floor",
                "time / floor",
                *(MORE[key] for key in more),
                "rival",
                "rival / time",
                "error / tolerance",
            ),
            [_cells(row, more) for row in rows],
            numbers=(2, 3, 4, *range(5, 5 + len(more)), 6 + len(more), 7 + len(more)),
            alarming=wrong,
        )
        if wrong:
            print_line(
                f"{len(wrong)} of {len(rows)} results are WRONG: their error exceeds the tolerance"
            )
    return 1 if wrong else 0


def _names() -> list[str]:
    if importlib.util.find_spec(PACKAGE) is None:
        return []
    package = importlib.import_module(PACKAGE)
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    benches = (name for name in found if name.startswith(PREFIX) and _runs(name))
    return sorted(name.removeprefix(PREFIX) for name in benches)


def _runs(name: str) -> bool:
    """Whether a module has `run`; read, since importing it may need torch or a GPU."""
    spec: Any = importlib.util.find_spec(f"{PACKAGE}.{name}")
    return "\ndef run(" in (spec.loader.get_source(spec.name) or "")


def _rows(name: str, quick: bool) -> Iterator[dict[str, Any]]:
    for row in importlib.import_module(f"{PACKAGE}.{PREFIX}{name}").run(quick):
        missing = [key for key in KEYS if key not in row]
        if missing:
            raise BenchError(f"bench {name}: a row lacks {', '.join(missing)}")
        yield row


def _told(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Say of each row that it is there: some take a minute, and the table comes last."""
    for row in rows:
        ratio = _ratio(row["ratio_to_floor"])
        of = f", {ratio} of the floor" if ratio else ""
        sys.stderr.write(f"{row['op']} {row['case']}: {_time(row['seconds'])}{of}\n")
        sys.stderr.flush()
        yield row


def _right(row: dict[str, Any]) -> bool:
    # Written so that a NaN error is wrong.
    return bool(row["error"] <= row["tolerance"])


def _cells(row: dict[str, Any], more: list[str]) -> tuple[str, ...]:
    return (
        str(row["op"]),
        str(row["case"]),
        _time(row["seconds"]),
        _time(row["floor_seconds"]),
        _ratio(row["ratio_to_floor"]),
        *(_ratio(row.get(key)) for key in more),
        str(row["rival"] or ""),
        _ratio(row["rival_ratio"]),
        f"{row['error']:.1e} / {row['tolerance']:.1e}",
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
