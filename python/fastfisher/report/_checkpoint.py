# SPDX-License-Identifier: Apache-2.0
"""What an interrupted long run keeps: finished sections, and finished grid points of a section.

A checkpoint lies beside the report's folder under the name ``NAME.checkpoint``, one folder inside
it for each fingerprint of settings and installation. A run reads its own fingerprint's folder only:
results of other settings or of another version are left alone and never used. Every file is written
under another name and renamed, so that a kill leaves no half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.report._folder import OutputFolderError
from fastfisher.report._machine import package_version
from fastfisher.report._section import Settings

__all__ = ["Checkpoint", "checkpoint_folder", "fingerprint"]

_PACKAGE = Path(__file__).resolve().parents[1]
# Whatever can change a number or a picture without a change of our own files.
_DEPENDENCIES = ("numpy", "scipy", "scikit-learn", "mlxtend", "matplotlib", "torch")
_VALUE = "value "
_MARK = "fastfisher-checkpoint.json"


def checkpoint_folder(out: Path) -> Path:
    """Where the checkpoints of the report `out` lie."""
    target = out.resolve()
    return target.parent / f"{target.name}.checkpoint"


def fingerprint(settings: Settings) -> str:
    """Hash of the settings, of every file of this package and of the versions it rests on."""
    hashed = hashlib.sha256()
    hashed.update(json.dumps(asdict(settings), sort_keys=True).encode())
    for name in _DEPENDENCIES:
        hashed.update(f"{name} {package_version(name)}\n".encode())
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and path.suffix not in (".pyc", ".pyi") and path.name != "py.typed":
            hashed.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()[:20]


class Checkpoint:
    """Results of one run, on disk; use `open` to make or to find it.

    Attributes
    ----------
    seconds : float
        Time that computing the points read so far took when they were computed.
    resumed : bool
        Whether there was something to go on from.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds = 0.0
        self.resumed = any(folder.glob("*.*"))

    @classmethod
    def open(cls, out: Path, settings: Settings) -> Checkpoint:
        """Make or find the checkpoint of the report `out` with these settings.

        Raises
        ------
        OutputFolderError
            Something else has the name of the checkpoint.
        """
        parent = checkpoint_folder(out)
        mark = parent / _MARK
        if parent.exists() and not mark.is_file() and (parent.is_file() or any(parent.iterdir())):
            raise OutputFolderError(f"out: {parent} is in the way and is no checkpoint of a report")
        folder = parent / fingerprint(settings)
        folder.mkdir(parents=True, exist_ok=True)
        _write(mark, b'{"schema": "fastfisher-checkpoint/1"}\n')
        return cls(folder)

    def point(
        self, section: str, name: str, compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """Read the arrays of one grid point, or compute and keep them."""
        path = self._folder / f"{section}-{hashlib.sha256(name.encode()).hexdigest()[:20]}.npz"
        found = _read_point(path, name)
        if found is not None:
            self.seconds += found[0]
            return found[1]
        start = time.perf_counter()
        values = {key: np.asarray(value) for key, value in compute().items()}
        spent = time.perf_counter() - start
        partial = path.with_suffix(".partial")
        columns = {f"{_VALUE}{key}": value for key, value in values.items()}
        with partial.open("wb") as file:
            np.savez(file, name=np.array(name), seconds=np.array(spent), **columns)  # type: ignore[arg-type]
        partial.replace(path)
        return values

    def section(self, section: str) -> dict[str, Any] | None:
        """Read what `keep` was given for this section; None if there is nothing, or damage."""
        try:
            found = json.loads((self._folder / f"{section}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, section: str, finished: dict[str, Any]) -> None:
        """Keep a finished section; its grid points are not needed any more."""
        text = json.dumps(finished, ensure_ascii=False, allow_nan=False)
        _write(self._folder / f"{section}.json", text.encode())
        for path in self._folder.glob(f"{section}-*.npz"):
            if len(path.stem) == len(section) + 21:  # not one of a section whose name goes on
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove this checkpoint, and the folder of all of them if none of others is left."""
        shutil.rmtree(self._folder, ignore_errors=True)
        parent = self._folder.parent
        if [path.name for path in parent.iterdir()] == [_MARK]:
            shutil.rmtree(parent, ignore_errors=True)


def _read_point(path: Path, name: str) -> tuple[float, dict[str, NDArray[Any]]] | None:
    """Seconds and arrays of a point; None if there is none or the file is damaged."""
    try:
        # Opened here: numpy leaves the file open when it is damaged.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            if str(file["name"]) != name:
                return None
            values = {k.removeprefix(_VALUE): file[k] for k in file.files if k.startswith(_VALUE)}
            return float(file["seconds"]), values
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
