# SPDX-License-Identifier: Apache-2.0
"""The report's folder: whole or not at all, also if killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastfisher.report import OutputFolderError
from fastfisher.report._folder import RESULTS, SCHEMA, new_folder

# --- the folder ----------------------------------------------------------------------------------


def fill(folder: Path, **results: object) -> None:
    (folder / "report.html").write_text("page", encoding="utf-8")
    (folder / RESULTS).write_text(
        json.dumps({"schema": SCHEMA, "files": ["report.html", RESULTS], **results}),
        encoding="utf-8",
    )


def make(target: Path, **results: object) -> None:
    with new_folder(target) as folder:
        fill(folder, **results)


def test_folder_appears_only_at_the_end(tmp_path):
    target = tmp_path / "with space" / "out"
    with new_folder(target) as folder:
        assert folder.name.endswith(".partial")
        assert folder.parent == target.parent
        assert not target.exists()
        fill(folder)
    assert sorted(p.name for p in target.parent.iterdir()) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=lambda e: e.__name__)
def test_failure_removes_the_partial_folder_and_keeps_the_old_report(error, tmp_path):
    make(tmp_path / "out", mark="old")

    def fail():
        with new_folder(tmp_path / "out") as folder:
            fill(folder, mark="new")
            raise error

    with pytest.raises(error):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / RESULTS).read_text(encoding="utf-8"))["mark"] == "old"


def test_an_older_report_and_an_empty_folder_are_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", mark="old")
    make(tmp_path / "out", mark="new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / RESULTS).read_text(encoding="utf-8"))["mark"] == "new"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"thesis.tex": "x"}, "not a fastfisher report"),
        ({RESULTS: '{"schema": "other"}'}, "not a fastfisher report"),
        ({RESULTS: "[1]"}, "not a fastfisher report"),
        ({RESULTS: "{"}, "not a fastfisher report"),
        ({RESULTS: json.dumps({"schema": SCHEMA, "files": []}), "notes.txt": "x"}, r"notes\.txt"),
        ({RESULTS: json.dumps({"schema": SCHEMA, "files": []}), "sub/x": "x"}, "sub"),
    ],
    ids=["foreign", "other schema", "no object", "no JSON", "extra file", "extra folder"],
)
def test_foreign_files_are_never_replaced(content, match, tmp_path):
    for name, text in content.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text, encoding="utf-8")
    with pytest.raises(OutputFolderError, match=match), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    for name, text in content.items():
        assert (tmp_path / "out" / name).read_text(encoding="utf-8") == text


def test_a_file_and_the_current_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputFolderError, match="is a file"), new_folder(tmp_path / "file"):
        pass
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputFolderError, match="current folder"), new_folder(Path()):
        pass


def test_files_that_appear_during_the_run_are_not_replaced(tmp_path):
    def race():
        with new_folder(tmp_path / "out") as folder:
            fill(folder)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").write_text("x", encoding="utf-8")

    with pytest.raises(OutputFolderError, match="not a fastfisher report"):
        race()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


# --- killed and interrupted runs -----------------------------------------------------------------

# The handler is set by hand: what a shell runs in the background ignores SIGINT.
LAUNCH = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from fastfisher.cli import main; sys.exit(main(sys.argv[1:]))"
)


def start_and_send(number: signal.Signals, folder: Path) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, "report", "--samples", "150", "--out", str(folder / "out")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not list(folder.glob("out.*.partial")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(process.pid, number)
        return process.wait(60), process.communicate()[1]
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_nothing_and_exits_with_130(tmp_path):
    code, errors = start_and_send(signal.SIGINT, tmp_path)
    assert code == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kill_leaves_no_folder_that_looks_like_a_report(tmp_path):
    code, _ = start_and_send(signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.endswith(".partial")
    assert not list(tmp_path.rglob(RESULTS))
    make(tmp_path / "out")  # and the next run is not in its way
    assert (tmp_path / "out" / RESULTS).exists()
