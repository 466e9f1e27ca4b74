# SPDX-License-Identifier: Apache-2.0
"""`fastfisher spectrum`."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from fastfisher.cli import main


def test_spectrum_of_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    values = np.arange(1.0, 31.0)
    np.save(tmp_path / "a.npy", np.diag(values))
    np.savez(tmp_path / "a.npz", a=np.diag(values))
    for name in ("a.npy", "a.npz"):
        plot = tmp_path / "out.png"
        assert (
            main(["spectrum", str(tmp_path / name), "--json", "-k", "3", "--plot", str(plot)]) == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert found["values"] == [30, 29, 28]
        assert found["condition"] == pytest.approx(30)
        assert plot.stat().st_size > 1000
    assert main(["spectrum", str(tmp_path / "a.npy")]) == 0
    assert "largest eigenvalues" in capsys.readouterr().out


def test_spectrum_of_a_factory_and_of_nothing(capsys):
    assert main(["spectrum", "no-such-source"]) == 1
    assert "source: expected" in capsys.readouterr().err


def test_sources_that_hold_something_else_are_told_in_one_line(tmp_path, capsys):
    for name, dtype in (("whole", int), ("half", "f2"), ("complex", complex)):
        np.save(tmp_path / f"{name}.npy", np.eye(3, dtype=dtype))
        assert main(["spectrum", str(tmp_path / f"{name}.npy")]) == 1
        text = capsys.readouterr().err
        assert text.startswith("fastfisher: error: A: expected dtype")
        assert text.count("\n") == 1


def test_factories_of_modules_in_the_current_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "matrices_of_mine.py").write_text(
        "import numpy as np\ndef diagonal():\n    return np.diag([1.0, 2.0])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert main(["spectrum", "matrices_of_mine:diagonal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == [2, 1]
