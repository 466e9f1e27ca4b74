# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastfisher import cli
from fastfisher.cli import _bench, _console, _report
from fastfisher.report import SECTIONS, _render, _section

ROW = {
    "op": "gram",
    "case": "N=8",
    "seconds": 0.002,
    "floor_seconds": 0.001,
    "ratio_to_floor": 2.0,
    "rival": "torch",
    "rival_ratio": 1.5,
    "error": 1e-8,
    "tolerance": 1e-6,
}


@pytest.fixture
def benches(tmp_path, monkeypatch):
    """A package of benches that a test fills with rows; returns the function that does."""
    package = tmp_path / "stand_in_benches"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_bench, "PACKAGE", "stand_in_benches")

    def add(name, *rows):
        text = f"ROWS = {rows!r}\ndef run(quick):\n"
        text += "    for row in ROWS:\n        yield row | {'case': row['case'] + str(quick)}\n"
        (package / f"bench_{name}.py").write_text(
            text.replace("nan", "float('NaN')"), encoding="utf-8"
        )

    yield add
    for name in [n for n in sys.modules if n.startswith("stand_in_benches")]:
        del sys.modules[name]


def without(monkeypatch, name):
    """Make a package look as if it were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a)
    )
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("command", [[], ["report"], ["doctor"], ["bench"]], ids=str)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: fastfisher" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["report", "--widths", "a,b"],
        ["report", "--widths", "0"],
        ["report", "--data", "cifar"],
        ["report", "--activation", "gelu"],
        ["report", "--seed", "-1"],
        ["report", "--samples", "many"],
        ["report", "--only", "isotropy,fig99"],
        ["report", "--only", ""],
        ["report", "--quick", "--full"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_doctor_as_json_names_what_runs(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["numpy"]
    assert found["backends"]["cpu"]["available"] is True
    assert found["native"]["threads"] >= 1
    assert found["native"]["blas"]
    assert "cuda" in found["backends"]


def test_doctor_explains_a_number_of_threads_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("FASTFISHER_NUM_THREADS", "abc")
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "expected a number from 1 to 4096, got 'abc'" in found["native"]["threads"]
    assert found["FASTFISHER_NUM_THREADS"] == "abc"


def test_doctor_without_rich_is_plain(monkeypatch, capsys):
    without(monkeypatch, "rich")
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "cuda" in text
    assert "numpy" in text
    assert text.isascii() or "│" not in text


def test_doctor_works_when_only_numpy_can_be_imported():
    code = (
        "import sys\n"
        "for name in 'rich matplotlib scipy sklearn jinja2 mlxtend torch jax cupy'.split():\n"
        "    sys.modules[name] = None\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'rich' else real(n, *a)\n"
        "from fastfisher.cli import main\n"
        "status = main(['doctor'])\n"
        "assert main(['report', '--quick', '--out', 'x']) == 1\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backends" in done.stdout
    assert "pip install 'fastfisher[report]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_prints_a_table_with_the_floors(benches, capsys):
    benches("gram", ROW)
    benches("other", ROW | {"op": "empty", "floor_seconds": None, "ratio_to_floor": None})
    assert cli.main(["bench", "gram"]) == 0
    text = capsys.readouterr().out
    assert "floor" in text
    assert "empty" not in text
    assert cli.main(["bench", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["gram", "other"]


def test_bench_as_json_passes_quick_on(benches, capsys):
    benches("gram", ROW)
    assert cli.main(["bench", "--json", "--quick"]) == 0
    assert json.loads(capsys.readouterr().out) == [ROW | {"case": "N=8True"}]


@pytest.mark.parametrize("error", [1.0, float("nan")], ids=str)
def test_bench_fails_on_a_wrong_result(error, benches, capsys):
    benches("gram", ROW, ROW | {"error": error})
    assert cli.main(["bench"]) == 1
    assert "1 of 2 results are WRONG" in capsys.readouterr().out


def test_bench_mistakes(benches, capsys):
    benches("gram", {"op": "gram", "case": ""})
    assert cli.main(["bench", "nothing"]) == 1
    assert "no bench named 'nothing'; there are: gram" in capsys.readouterr().err
    assert cli.main(["bench"]) == 1
    assert "bench gram: a row lacks seconds" in capsys.readouterr().err


def test_benches_without_cases_say_what_they_need(benches, capsys):
    benches("gram", ROW)
    benches("kfac")
    assert cli.main(["bench", "kfac"]) == 1
    assert "bench kfac: not run, it needs torch: pip install" in capsys.readouterr().err
    assert cli.main(["bench", "--json"]) == 0
    text = capsys.readouterr()
    assert len(json.loads(text.out)) == 1
    assert "bench kfac: not run" in text.err
    assert "gram N=8" in text.err, "rows are told as they come"


def test_every_bench_of_the_checkout_runs_by_name_or_as_a_program():
    folder = Path(__file__).parents[2] / "bench" / "python"
    for path in folder.glob("bench_*.py"):
        text = path.read_text(encoding="utf-8")
        assert ("\ndef run(" in text) or ("__main__" in text and "\ndef main(" in text), path.name


def test_bench_leaves_programs_alone(benches, capsys, tmp_path):
    benches("gram", ROW)
    (tmp_path / "stand_in_benches" / "bench_program.py").write_text(
        "import no_such_module\n\ndef main(): ...\n"
    )
    assert cli.main(["bench", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["gram"]


def test_bench_says_when_there_are_none(monkeypatch, capsys):
    monkeypatch.setattr(_bench, "PACKAGE", "fastfisher_no_such_package")
    assert cli.main(["bench"]) == 1
    assert "no benches" in capsys.readouterr().err


def test_plain_table_aligns(monkeypatch, capsys):
    without(monkeypatch, "rich")
    _console.print_table("t", ("a", "number"), [("x", "1"), ("yyy", "22")], numbers=(1,))
    assert capsys.readouterr().out == "t\n  a    number\n  x         1\n  yyy      22\n\n"


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        ([], (1024, 1024)),
        (["--quick"], (256, 256)),
        (["--full"], (2048, 2048)),
        (["--widths", "32,16"], (32, 16)),
        (["--widths", "64,32,16,10"], (32, 16)),
        (["--widths", "64,10"], ()),
        (["--data", "mnist", "--widths", "784,20,10"], (20,)),
    ],
    ids=["default", "quick", "full", "hidden", "all", "no hidden", "mnist"],
)
def test_widths_are_hidden_ones_or_all(words, hidden):
    settings = _report._settings(cli._parser().parse_args(["report", *words]))
    assert settings.hidden == hidden


@pytest.mark.parametrize("activation", sorted(_report.VARIANCES))
def test_the_printed_command_repeats_the_settings(activation):
    words = ["report", "--activation", activation, "--samples", "33", "--seed", "4", "--out", "a b"]
    arguments = cli._parser().parse_args(words)
    settings = _report._settings(arguments)
    again = shlex.split(_report._command(settings, arguments.out))
    assert _report._settings(cli._parser().parse_args(again[1:])) == settings


@pytest.mark.parametrize("grid", [[], ["--quick"], ["--full"]], ids=["default", "quick", "full"])
def test_the_printed_command_repeats_grid_and_sections(grid):
    words = ["report", *grid, "--only", "isotropy,ntk-spectrum,isotropy"]
    arguments = cli._parser().parse_args(words)
    assert arguments.only == ("isotropy", "ntk-spectrum")
    command = _report._command(_report._settings(arguments), arguments.out, arguments.only)
    again = cli._parser().parse_args(shlex.split(command)[1:])
    assert again.only == arguments.only
    assert _report._settings(again) == _report._settings(arguments)


def test_report_lists_its_sections(capsys):
    assert cli.main(["report", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [section.id for section in SECTIONS]
    assert cli.main(["report", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == SECTIONS[0].id
    with pytest.raises(SystemExit):
        cli.main(["report", "--only", "fig99"])
    error = capsys.readouterr().err
    assert "got 'fig99'" in error
    assert all(section.id in error for section in SECTIONS)


def test_report_of_one_section_goes_on_after_an_interruption(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")

    def build(context):
        point = context.point("a", lambda: {"x": np.ones(2)})
        if broken:
            raise KeyboardInterrupt
        return _section.SectionResult("s", (), (), {}, {"x": point["x"].tolist()}, headline="done")

    section = _section.Section("mine", "Mine", build)
    monkeypatch.setattr(_report, "chosen", lambda only: (section,) if only else SECTIONS)
    out = tmp_path / "out"
    words = ["report", "--full", "--samples", "20", "--only", "isotropy", "--out", str(out)]
    broken = True
    assert cli.main(words) == 130
    assert "the same command goes on from" in capsys.readouterr().err
    broken = False
    assert cli.main(words) == 0
    assert "done" in capsys.readouterr().out
    assert "--full --only isotropy" in json.loads((out / "results.json").read_text())["command"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_report_end_to_end(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    monkeypatch.chdir(tmp_path)
    # test_report draws the real pictures
    monkeypatch.setattr(_render, "picture", lambda plot, *, dark=False: b"PNG")
    words = ["report", "--quick", "--samples", "20", "--widths", "64", "--out", "new report"]
    words += ["--only", "ntk-spectrum"]
    assert cli.main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["data"]["samples"] == 20
    assert captured.err == ""
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert "critical learning rate" in captured.out
    assert "gradient descent" in captured.err
    assert (tmp_path / "new report" / "report.html").exists()


def test_report_refuses_a_foreign_folder_in_one_line(tmp_path, capsys):
    pytest.importorskip("sklearn")
    (tmp_path / "thesis.tex").touch()
    assert cli.main(["report", "--json", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "not a fastfisher report" in captured.err
