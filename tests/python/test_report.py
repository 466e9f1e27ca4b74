# SPDX-License-Identifier: Apache-2.0
"""The report: pages, numbers, sections."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastfisher.report import SECTIONS, Settings, _section, write
from fastfisher.report._folder import RESULTS, SCHEMA
from fastfisher.report._machine import check_memory
from fastfisher.report.data import load
from fastfisher.report.sections import ntk_spectrum

SMALL = Settings(hidden=(256, 256), samples=40, steps=4, grid="quick")
# Built by test_report_theory.py and test_report_optimizers.py.
ELSEWHERE = ("fig3", "softmax", "input-metric", "ntk-mean", "optim-digits", "optim-poisson")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    return folder, write(SMALL, folder, sections=[s for s in SECTIONS if s.id not in ELSEWHERE])


# --- the report itself ---------------------------------------------------------------------------


def test_folder_is_complete_and_results_are_what_was_returned(report):
    folder, results = report
    assert {p.name for p in folder.iterdir()} == set(results["files"])
    assert json.loads((folder / RESULTS).read_text(encoding="utf-8")) == results
    assert results["schema"] == SCHEMA
    pictures = [name for name in results["files"] if name.endswith(".png")]
    assert len(pictures) == 31
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert list(folder.parent.glob("*.partial")) == []


def test_page_stands_alone(report):
    page = (report[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href|srcset)=\"(?!data:)", page)
    assert page.count("<img ") == page.count('alt="') == 31
    assert "prefers-color-scheme: dark" in page


def test_eta_c_is_confirmed_and_numbers_agree(report):
    section = report[1]["sections"][0]
    values = section["values"]
    eigenvalues = np.array(values["eigenvalues"])
    assert eigenvalues.size == 400
    assert (np.diff(eigenvalues) <= 0).all()
    assert values["eta_c"] == pytest.approx(2 / eigenvalues[0])
    assert values["trace"] == pytest.approx(eigenvalues.sum())
    # trace F* = C/N sum_n K[n, n] with the kernel averaged over outputs: two ways to one number
    assert values["kernel"]["diagonal"] * 10 == pytest.approx(values["trace"])
    assert values["confirmed"] is True
    assert values["kernel"]["same_class"] > values["kernel"]["different_class"]
    for run in values["check"]:
        assert run["growth"] == pytest.approx(abs(1 - 2 * run["ratio"]), abs=2e-3)
        np.testing.assert_allclose(run["loss"], run["loss_predicted"], rtol=0.02)


def test_theory_agrees_with_random_networks(report):
    by_id = {section["id"]: section["values"] for section in report[1]["sections"]}
    regression = by_id["fisher-theory"]["regression"]
    for name in ("outliers", "trace", "bulk_mean"):
        assert regression[name] == pytest.approx(regression[f"{name}_predicted"], rel=0.15)
    softmax = by_id["fisher-theory"]["softmax"]
    assert softmax["trace"] == pytest.approx(softmax["trace_predicted"], rel=0.1)
    assert softmax["lambda_max"] < softmax["upper_bound"] * 1.05
    normalization = by_id["normalization"]
    for phi in ("tanh", "relu"):
        measured = {k: np.mean(v, axis=1) for k, v in normalization["lambda_max"][phi].items()}
        np.testing.assert_allclose(
            measured["as it is"], normalization["predicted"][phi]["as it is"], rtol=0.25
        )
        bound = normalization["predicted"][phi]["mean subtracted: lower bound"]
        assert (measured["mean subtracted"] > bound).all()
        assert measured["mean subtracted"][-1] < 0.3 * measured["as it is"][-1]
    for row in normalization["hidden"]:
        assert row["lambda_max"] == pytest.approx(row["predicted"], rel=0.15)
    assert all(section["headline"] for section in report[1]["sections"])


def test_isotropic_structures_and_blocks_that_are_not(report):
    by_id = {section["id"]: section["values"] for section in report[1]["sections"]}
    values = by_id["isotropy"]
    rows = {row["structure"]: row for row in values["table"]}
    for name in ("exact", "layer-wise", "block tri-diagonal", "K-FAC"):
        assert rows[name]["defect"] < 1e-3
        assert rows[name]["alpha"] == pytest.approx(rows[name]["predicted"], rel=1e-3)
    assert rows["unit-wise"]["defect"] < 0.1 < rows["3 inputs of a unit"]["defect"]
    assert values["cheapest"] in rows
    for curve in (values["defect_of_blocks"][phi] for phi in ("relu", "tanh")):
        assert curve[0] > 3 * curve[-1]
    for curve in (values["condition_of_blocks"][phi] for phi in ("relu", "tanh")):
        assert curve[0] > 3 > 1.5 > curve[-1]


def test_networks_follow_their_kernels_under_augmentation(report):
    by_id = {section["id"]: section["values"] for section in report[1]["sections"]}
    values = by_id["augmentation"]
    for level in values["levels"].values():
        assert level["measured"] == pytest.approx(level["predicted"], rel=0.15)
    assert len(values["levels"]) == 5
    digits = values["digits"]
    for name in ("plain", "augmented"):
        assert digits[name][0] == pytest.approx(digits[f"{name}_predicted"][0], rel=0.1)
        assert sum(digits[name]) == pytest.approx(sum(digits[f"{name}_predicted"]), rel=0.1)
    run = values["training"]
    for method in ("none", "all", "self-paced"):
        last, predicted = run[f"{method} loss"][-1], run[f"{method} loss predicted"][-1]
        assert last == pytest.approx(predicted, rel=0.15)
        assert last < 0.5 * run[f"{method} loss"][0]
    assert set(run["none count"]) == {0}
    assert set(run["all count"]) == {50}
    assert run["self-paced count"][0] == 50
    assert run["self-paced count"][-1] < 10


def test_ensembles_have_the_predicted_laws(report):
    by_id = {section["id"]: section["values"] for section in report[1]["sections"]}
    for name in ("nngp", "early", "late", "ntk"):
        law = by_id["gp"][name]
        assert law["mean_error"] < 2.5 * law["mean_error_expected"]
        assert law["spread_ratio"] == pytest.approx(1, abs=0.2)
        assert law["covariance_error"] < 2 * law["covariance_error_expected"]


def test_fig1_has_theory_beside_measurement(report):
    by_id = {section["id"]: section["values"] for section in report[1]["sections"]}
    values = by_id["fig1"]
    plain, mean = (values["maps"][name] for name in ("no normalisation", "mean subtracted"))
    rates = np.array(values["rates"])
    for one in values["maps"].values():
        assert np.shape(one["loss"]) == (len(one["widths"]), rates.size)
    # the theory line of the plain map has the slope of the inverse width, the other none
    widths = np.log(plain["widths"])
    for one, slope in ((plain, 1.0), (mean, 0.0)):
        assert np.polyfit(widths, np.log(one["predicted"]), 1)[0] == pytest.approx(slope, abs=0.1)
    np.testing.assert_allclose(plain["lambda_max"], plain["predicted"], rtol=0.5)
    for bound, top in zip(mean["bound"], mean["lambda_max"], strict=True):
        assert bound < top < 6 * bound
    # T1.7, with more outputs
    off = np.log10(np.array(plain["unstable"]) * np.array(plain["lambda_max"]) / 2)
    assert (off >= -0.15).all()
    assert (off <= 0.45).all()
    assert values["gain"] > 10
    assert values["least_loss"]["mean subtracted"] < 0.1 * values["least_loss"]["no normalisation"]
    for phi, one in values["scaling"].items():
        tops = {name: np.mean(rows, axis=1) for name, rows in one["lambda_max"].items()}
        np.testing.assert_allclose(
            tops["no normalisation"], one["predicted"]["no normalisation"], rtol=0.3
        )
        for name in ("mean subtracted", "batch normalised"):
            ratio = tops[name] / one["predicted"][name]
            assert (ratio > 1).all()
            assert (ratio < 2.5).all()
            assert (tops[name] > one["lower_bound"][name]).all()
        hidden = "hidden layers only (batch)"
        if phi == "relu":
            np.testing.assert_allclose(tops[hidden], one["predicted"][hidden], rtol=0.15)
        else:
            assert one["predicted"][hidden] == [None] * len(one["widths"])


def test_fig2_has_theory_beside_measurement(report):
    by_id = {section["id"]: section["values"] for section in report[1]["sections"]}
    values = by_id["fig2"]
    np.testing.assert_allclose(values["lambda_max"], values["predicted"], rtol=0.08)
    assert values["slope"] == pytest.approx(-1, abs=0.1)
    # T5.6
    assert all(0.3 <= best <= 0.9 for best in values["best_over_critical"])
    assert all(beyond is None or beyond > 2 for beyond in values["loss_beyond_over_best"])
    for one in values["spectra"]:
        assert one["lambda_max"] == pytest.approx(one["lambda_max_predicted"], rel=0.03)
        assert one["atom_mass"] == pytest.approx(one["atom_mass_predicted"], abs=0.05)
        grid, density = np.array(one["grid"]), np.array(one["density_predicted"])
        mass = (density[1:] + density[:-1]) @ np.diff(grid) / 2
        assert 0.9 < mass < 1.01
        mean = (grid * density)[1:] @ np.diff(grid)
        assert mean == pytest.approx(one["mean"], rel=0.06)


def test_same_settings_give_the_same_numbers(report):
    data = load(SMALL.data, samples=SMALL.samples, seed=SMALL.seed)
    again = ntk_spectrum.build(_section.Context(SMALL, data)).values
    first = report[1]["sections"][0]["values"]
    assert again["lambda_max"] == pytest.approx(first["lambda_max"], rel=1e-12)


def test_a_section_is_a_function_and_a_row(tmp_path):
    def build(context):
        return _section.SectionResult(
            "s",
            (),
            (_section.Text("words"),),
            {},
            {"n": len(context.data.labels), "x": float("nan")},
        )

    rows = [_section.Section("mine", "Mine", build)]
    results = write(SMALL, tmp_path / "r", sections=rows)
    assert results["sections"][0]["values"] == {"n": 40, "x": None}
    assert "words" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_too_much_memory_is_refused_before_work():
    with pytest.raises(MemoryError, match=r"needs about .* GiB.*reduce samples"):
        check_memory(2**60, "the spectrum", "samples")
