# SPDX-License-Identifier: Apache-2.0
"""`fastfisher spectrum`."""

from __future__ import annotations

import json

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
