# SPDX-License-Identifier: Apache-2.0
"""The command line: ``fastfisher report | spectrum | doctor | bench``.

Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted.
Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastfisher.cli import _bench, _doctor, _report, _spectrum
from fastfisher.errors import FastfisherError
from fastfisher.report._machine import package_version

__all__ = ["main"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status.

    Examples
    --------
    >>> main(["doctor", "--json"]) # doctest: +ELLIPSIS
    {
     "fastfisher": ...
    0
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        kept = _report.kept(arguments) if arguments.command == "report" else None
        _complain(
            f"interrupted; the same command goes on from {kept}"
            if kept is not None
            else "interrupted; nothing was left behind"
            if arguments.command == "report"
            else "interrupted"
        )
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, head for instance, has gone
        sys.stderr.close()
        return 1
    # What a user can mend is told in one line; anything else is a bug and keeps its traceback.
    except (FastfisherError, ValueError, OSError, ImportError, MemoryError) as error:
        _complain(f"error: {error}")
        return 1


def _complain(message: str) -> None:
    sys.stderr.write(f"fastfisher: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastfisher",
        description=(
            "Curvature of neural networks: tangent kernels, Fisher spectra, learning rates."
        ),
        epilog="'fastfisher COMMAND --help' explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"fastfisher {package_version('fastfisher')}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (_report, _spectrum, _doctor, _bench):
        module.add(commands)
    return parser
