# SPDX-License-Identifier: Apache-2.0
"""Sections of the report that train by the optimisers, and the examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

import torch
from matplotlib.figure import Figure as Canvas

from fastfisher.report import SECTIONS, Settings, write
from fastfisher.report._section import Context, Figure, Table, Text
from fastfisher.report._torch import Watch, best_of, seeded
from fastfisher.report.data import load
from fastfisher.report.sections import optim_poisson

IDS = ["optim-digits", "optim-poisson"]
SETTINGS = Settings(samples=20, grid="quick")
ROOT = Path(__file__).parents[2]

# torch.func warns of torch's own use of scripts when it is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@cache
def built(name):
    section = next(section for section in SECTIONS if section.id == name)
    data = load("digits", samples=SETTINGS.samples, seed=SETTINGS.seed)
    return section.build(Context(SETTINGS, data, section=name))


@pytest.mark.parametrize("name", IDS)
def test_sections_have_pictures_captions_tables_and_plain_values(name):
    before = torch.get_num_threads(), torch.get_rng_state()
    result = built(name)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert isinstance(result.blocks[0], Text)
    figures = [block for block in result.blocks if isinstance(block, Figure)]
    tables = [block for block in result.blocks if isinstance(block, Table)]
    assert len(tables) == 1
    assert all(len(row) == len(tables[0].columns) for row in tables[0].rows)
    for figure in figures:
        assert len(figure.caption) > 100
        for plot in figure.plots:
            axes = Canvas(layout="constrained").subplots()
            plot.draw(axes)
            axes.figure.canvas.draw()
            assert axes.get_ylabel()
            assert axes.get_xlabel() in ("step", "time (s)")
            assert len(axes.lines) >= 4
            assert plot.alt.endswith(".")
    assert result.settings["seed"] == 0
    assert result.headline
    assert "nan" not in json.dumps(result.settings).lower()
    json.dumps(result.values, allow_nan=False)


def test_kfac_ends_a_third_of_the_steps_where_adam_ends():
    for methods in built("optim-digits").values.values():
        last = {name: one["loss"][0][-1] for name, one in methods.items()}
        assert methods["K-FAC"]["steps"][-1] == methods["Adam"]["steps"][-1] // 3
        assert last["K-FAC"] < 2 * last["Adam"]
        assert methods["Adam"]["steps_to_target"] == [methods["Adam"]["steps"][-1]]
        for one in methods.values():
            assert one["loss"][0][0] == pytest.approx(np.log(10), rel=0.1)
            assert one["accuracy"][0] > 0.95
            assert np.all(np.diff(one["seconds"][0]) > 0)


def test_natural_gradient_solves_the_poisson_equation():
    values = built("optim-poisson").values
    last = {name: one["error"][0][-1] for name, one in values.items()}
    assert last["SPRING"] < 2e-6
    assert last["NGD"] < 2e-5
    assert last["NGD"] < 0.01 * last["Adam"]
    assert values["SPRING"]["steps_to_target"][0] < 30
    assert values["Adam"]["seconds_to_target"] == [None]
    # The same network at the start, whose error is about that of zero.
    assert len({one["error"][0][0] for one in values.values()}) == 1
    assert 0.5 < values["NGD"]["error"][0][0] < 2


def test_both_ways_to_the_residual_agree():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).double()
    x = torch.rand(5, 2, dtype=torch.float64)
    one = torch.stack([optim_poisson._residual(model, point) for point in x])
    torch.testing.assert_close(optim_poisson._batched(model, x), one)

    # The equation is the one that sin(pi x) sin(pi y) solves.
    def solution(z):
        return torch.sin(torch.pi * z).prod(-1, keepdim=True) / optim_poisson._edge(z)

    inner = 0.1 + 0.8 * x
    for point in inner:
        assert abs(float(optim_poisson._residual(solution, point))) < 1e-9


def test_best_setting_is_never_one_that_diverged():
    def run(*losses):
        return {"loss": np.array(losses), "steps": np.arange(len(losses))}

    found = best_of({0.1: [run(2.0, 0.5)], 1.0: [run(2.0, np.nan)]}, "loss")
    assert found["setting"] == 0.1
    assert found["last"][1.0] == np.inf


def test_watch_stops_while_it_looks_and_seeds_leave_the_generator(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 11.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Watch(2, lambda: (7.0,))
    for k in (1, 2):
        with watch.step(k):
            pass
    columns = watch.columns("loss")
    assert columns["steps"].tolist() == [0, 2]
    assert columns["seconds"].tolist() == [0, 3]
    assert columns["loss"].tolist() == [7, 7]
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(2)
    with seeded(3):
        torch.testing.assert_close(torch.rand(2), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_torch_the_sections_say_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    only = [section for section in SECTIONS if section.id in IDS]
    results = write(SETTINGS, tmp_path / "r", sections=only)
    assert len(results["sections"]) == 2
    for section in results["sections"]:
        assert "needs torch: pip install 'fastfisher[torch]'" in section["headline"]
        assert section["values"] == {"skipped": section["settings"]["not run"]}
    assert "Not run: this section needs torch" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["digits_kfac.py", "--steps", "20"], r"K-FAC: 20 steps, .* test accuracy 0\.9\d+"),
        (["poisson_ngd.py", "--seconds", "1"], r"SPRING: \d+ steps, relative L2 error \d\.\de-0\d"),
    ],
    ids=["digits", "poisson"],
)
def test_examples_run(words, match):
    path = ROOT / "examples" / words[0]
    assert len(path.read_text().splitlines()) < 100
    found = subprocess.run(
        [sys.executable, str(path), *words[1:]],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert re.search(match, found.stdout), found.stdout
    assert "Adam: " in found.stdout
