# SPDX-License-Identifier: Apache-2.0
"""``fastfisher spectrum``: the largest eigenvalues, the density and the condition of a matrix."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._extras import require
from fastfisher.cli._console import print_json, print_table

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "spectrum",
        help="print and plot the spectrum of a symmetric matrix, operator or Jacobian",
        description=(
            "Print the largest eigenvalues with their residual norms, moments of the spectral "
            "density and the condition number of a symmetric matrix."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        metavar="FILE.npy|FILE.npz|MODULE:FACTORY",
        help="a stored matrix, or a function without arguments that returns a matrix, operator or "
        "Jacobian",
    )
    parser.add_argument("-k", type=int, default=10, help="eigenvalues (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw them to this file")
    parser.set_defaults(run=_run)


def _load(source: str) -> Any:
    path = Path(source)
    if path.suffix in (".npy", ".npz"):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        names = list(loaded.files)
        if len(names) != 1:
            raise ValueError(f"source: expected one array in {source}, got {names}")
        return loaded[names[0]]
    module, _, factory = source.partition(":")
    if not factory:
        raise ValueError(f"source: expected FILE.npy, FILE.npz or MODULE:FACTORY, got {source!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for a script that lies there
    found = getattr(importlib.import_module(module), factory, None)
    if not callable(found):
        raise ValueError(f"source: expected a function {factory} in {module}, got {found!r}")
    return found()


def _run(arguments: argparse.Namespace) -> int:
    a = _load(arguments.source)
    try:
        top = linalg.eigsh(a, arguments.k, seed=arguments.seed)
    except TypeError as error:  # what the source holds is no bug of this program
        raise ValueError(str(error)) from error
    ends = linalg.eigsh(a, 2, which="BE", seed=arguments.seed)
    density = linalg.spectral_density(a, seed=arguments.seed)
    values, norms = np.asarray(top.values, float), np.asarray(top.residual_norms, float)
    high, low = (float(x) for x in np.asarray(ends.values, float)[[0, -1]])
    eps = float(np.finfo(np.asarray(top.values).dtype).eps)
    # Below the rounding of the largest eigenvalue the smallest one is unknown.
    condition = high / low if low > eps * abs(high) else None
    if arguments.plot is not None:
        _plot(values, arguments.plot)
    if arguments.json:
        print_json(
            {
                "values": values.tolist(),
                "residual_norms": norms.tolist(),
                "certified": bool(top.certified),
                "smallest": low,
                "condition": condition,
                "mean": density.mean,
                "second_moment": density.second_moment,
                "density": {
                    "grid": density.grid.tolist(),
                    "density": density.density.tolist(),
                    "error": np.nan_to_num(density.error).tolist(),
                },
            }
        )
        return 0
    print_table(
        "largest eigenvalues" + ("" if top.certified else " (copies may be missing)"),
        ("rank", "value", "residual norm"),
        [
            (str(i + 1), f"{v:.6g}", f"{r:.1e}")
            for i, (v, r) in enumerate(zip(values, norms, strict=True))
        ],
        numbers=(1, 2),
    )
    print_table(
        "spectrum",
        ("", ""),
        [
            ("smallest", f"{low:.6g}"),
            ("condition", "not positive definite" if condition is None else f"{condition:.3g}"),
            ("mean", f"{density.mean:.6g} ± {density.mean_error:.1g}"),
            ("second moment", f"{density.second_moment:.6g} ± {density.second_moment_error:.1g}"),
        ],
        header=False,
    )
    return 0


def _plot(values: np.ndarray[Any, Any], path: Path) -> None:
    require("matplotlib", purpose="--plot").use("Agg")
    from fastfisher.plot import plot_spectrum

    axes: Any = plot_spectrum(values, label="eigenvalue")
    axes.figure.savefig(path, dpi=150)
