# SPDX-License-Identifier: Apache-2.0
"""Runs of the report that go on after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastfisher.report import (
    OutputFolderError,
    Settings,
    _checkpoint,
    _section,
    checkpoint_folder,
    chosen,
    write,
)

FULL = Settings(samples=20, grid="full")


class Sections:
    """Two sections of three points each that count what they compute and fail where told."""

    def __init__(self):
        self.computed = []
        self.fail_at = None

    def build(self, context):
        values = {}
        with context.progress.task("points", 3) as tick:
            for index in range(3):
                name = f"point {index}"
                values[name] = context.point(name, lambda name=name: self.compute(context, name))
                tick()
        plot = _section.Plot("p", "alt", lambda ax: ax.plot([1, 2], [3, 4]))
        return _section.SectionResult(
            "summary",
            (_section.Fact("f", "1"),),
            (_section.Text("words"), _section.Figure((plot,), "c")),
            {"s": (1, 2)},
            {name: value["array"].tolist() for name, value in values.items()},
            headline="h",
        )

    def compute(self, context, name):
        if (context.section, name) == self.fail_at:
            raise KeyboardInterrupt
        self.computed.append((context.section, name))
        rng = np.random.default_rng([context.settings.seed, len(name)])
        return {"array": rng.standard_normal(2) + len(self.computed), "file": np.arange(2)}

    @property
    def rows(self):
        return [_section.Section(i, i, self.build) for i in ("one", "one-more")]


def numbers(results):
    return [section["values"] for section in results["sections"]]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    out, sections = tmp_path / "out", Sections()
    sections.fail_at = ("one-more", "point 2")
    with pytest.raises(KeyboardInterrupt):
        write(FULL, out, sections=sections.rows)
    assert [p.name for p in tmp_path.iterdir()] == ["out.checkpoint"]
    assert len(sections.computed) == 5

    sections.fail_at = None
    results = write(FULL, out, sections=sections.rows)
    assert sections.computed[5:] == [("one-more", "point 2")]
    assert results["resumed"] is True
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    assert {p.name for p in out.iterdir()} == set(results["files"])
    assert (out / "one-p.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

    again = Sections()
    whole = write(FULL, tmp_path / "whole", sections=again.rows)
    assert whole["resumed"] is False
    assert numbers(whole) == numbers(results)


@pytest.mark.parametrize(
    "other",
    [replace(FULL, seed=1), replace(FULL, hidden=(8,)), replace(FULL, samples=21)],
    ids=["seed", "hidden", "samples"],
)
def test_results_of_other_settings_are_neither_used_nor_lost(other, tmp_path):
    out, sections = tmp_path / "out", Sections()
    sections.fail_at = ("one", "point 2")
    with pytest.raises(KeyboardInterrupt):
        write(FULL, out, sections=sections.rows)
    different = Sections()
    results = write(other, out, sections=different.rows)
    assert results["resumed"] is False
    assert len(different.computed) == 6
    assert checkpoint_folder(out).exists()

    sections.fail_at = None
    assert write(FULL, out, sections=sections.rows)["resumed"] is True
    assert len(sections.computed) == 6
    assert not checkpoint_folder(out).exists()


def test_a_changed_installation_is_another_fingerprint(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    monkeypatch.setattr(_checkpoint, "_PACKAGE", tmp_path)
    first = _checkpoint.fingerprint(FULL)
    assert _checkpoint.fingerprint(FULL) == first
    (tmp_path / "a.py").write_text("2", encoding="utf-8")
    second = _checkpoint.fingerprint(FULL)
    monkeypatch.setattr(_checkpoint, "package_version", lambda name: "0")
    assert len({first, second, _checkpoint.fingerprint(FULL)}) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x00" * 400], ids=repr)
def test_damaged_points_and_sections_are_computed_again(content, tmp_path):
    out, sections = tmp_path / "out", Sections()
    sections.fail_at = ("one-more", "point 2")
    with pytest.raises(KeyboardInterrupt):
        write(FULL, out, sections=sections.rows)
    kept = [p for p in checkpoint_folder(out).rglob("*") if p.suffix in (".npz", ".json")]
    assert len(kept) == 4  # the mark, a section and two points
    for path in kept:
        path.write_bytes(content)
    sections.fail_at = None
    write(FULL, out, sections=sections.rows)
    assert len(sections.computed) == 5 + 6


def test_a_point_under_the_name_of_another_is_computed_again(tmp_path):
    kept = _checkpoint.Checkpoint.open(tmp_path / "out", FULL)
    kept.point("s", "a", lambda: {"x": np.ones(1)})
    (file,) = checkpoint_folder(tmp_path / "out").rglob("*.npz")
    kept.point("s", "b", lambda: {"x": np.zeros(1)})
    other = next(p for p in file.parent.glob("*.npz") if p != file)
    other.write_bytes(file.read_bytes())
    assert kept.point("s", "b", lambda: {"x": np.full(1, 2.0)})["x"].tolist() == [2.0]


def test_only_full_runs_keep_anything(tmp_path):
    sections = Sections()
    sections.fail_at = ("one-more", "point 2")
    with pytest.raises(KeyboardInterrupt):
        write(replace(FULL, grid="quick"), tmp_path / "out", sections=sections.rows)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_of_that_name_is_refused(tmp_path):
    checkpoint_folder(tmp_path / "out").mkdir()
    (checkpoint_folder(tmp_path / "out") / "thesis.tex").touch()
    with pytest.raises(OutputFolderError, match="no checkpoint"):
        write(FULL, tmp_path / "out", sections=Sections().rows)
    assert [p.name for p in tmp_path.iterdir()] == ["out.checkpoint"]


def test_chosen_sections_keep_the_order_of_the_page():
    rows = Sections().rows
    assert [section.id for section in chosen((), rows)] == ["one", "one-more"]
    assert [section.id for section in chosen(("one-more", "one"), rows)] == ["one", "one-more"]
    assert [section.id for section in chosen(["one-more"], rows)] == ["one-more"]
    with pytest.raises(ValueError, match=r"only: .*\(one, one-more\), got 'two'"):
        chosen(["two"], rows)


def test_sizes_follow_the_grid():
    sizes = {"quick": 1, "default": 2, "full": 3}
    assert [Settings(grid=grid).pick(**sizes) for grid in sizes] == [1, 2, 3]
    with pytest.raises(ValueError, match="grid: expected quick"):
        Settings(grid="huge")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fastfisher import report
from fastfisher.report import _section
def build(context):
    for index in range(4):
        def compute():
            print("computed", index, flush=True)
            if index == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return {"x": np.ones(3)}
        context.point(str(index), compute)
    return _section.SectionResult("s", (), (), {}, {})
report.write(report.Settings(samples=20, grid="full"), Path(sys.argv[1]),
             sections=[_section.Section("s", "S", build)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_goes_on_in_another_process(tmp_path):
    def run(die_at):
        words = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(die_at)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    first = run(2)
    assert first.returncode == -signal.SIGKILL
    second = run(-1)
    assert second.returncode == 0, second.stderr
    assert first.stdout.splitlines()[-1] == "computed 2"
    assert [line for line in second.stdout.splitlines() if line.startswith("computed")] == [
        "computed 2",
        "computed 3",
    ]
    assert (tmp_path / "out" / "results.json").exists()
    assert not checkpoint_folder(tmp_path / "out").exists()
