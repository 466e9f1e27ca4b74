# SPDX-License-Identifier: Apache-2.0
"""Plots of kernels and spectra; matplotlib is optional."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from fastfisher import plot
from fastfisher._extras import MissingExtraError, require
from fastfisher.plot._axes import palette


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def test_heatmap_returns_the_axes_and_names_each_class_once(ax):
    kernel = np.arange(36.0).reshape(6, 6)
    got = plot.plot_ntk_heatmap(kernel, classes=[0, 0, 2, 2, 2, 7], ax=ax)
    assert got is ax
    drawn(ax)
    assert [t.get_text() for t in ax.xaxis.get_minorticklabels()] == ["0", "2", "7"]
    np.testing.assert_allclose(ax.xaxis.get_minorticklocs(), [0.5, 3, 5])


def test_heatmap_colours_ignore_the_diagonal(ax):
    kernel = np.full((5, 5), 2.0) + np.diag(np.full(5, 1e6))
    kernel[0, 1] = kernel[1, 0] = 3.0
    plot.plot_ntk_heatmap(kernel, ax=ax)
    assert ax.images[0].norm.vmax <= 3.0


@pytest.mark.parametrize("kernel", [np.zeros((0, 0)), np.ones((1, 1)), np.ones((3, 3))], ids=str)
def test_heatmap_of_little_draws(kernel, ax):
    drawn(plot.plot_ntk_heatmap(kernel, ax=ax))


@pytest.mark.parametrize(
    ("kernel", "classes", "match"),
    [
        (np.ones(3), None, "kernel: expected 2 axes"),
        (np.ones((3, 3)), [0, 1], "classes: expected one class per sample"),
        (np.ones((3, 2)), [0, 1, 1], "classes: expected one class per sample of a square"),
        (np.ones((2, 2)), [1, 0], "classes: expected samples ordered"),
    ],
    ids=["rank", "length", "square", "order"],
)
def test_heatmap_mistakes(kernel, classes, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_ntk_heatmap(kernel, classes=classes, ax=ax)


def test_spectrum_sorts_marks_and_counts_what_a_log_axis_cannot_show(ax):
    plot.plot_spectrum([1.0, 100.0, -1e-12, 10.0, 0.0], outliers=2, ax=ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    curves = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert curves == {"the 2 largest": [100.0, 10.0], "the other 3, 2 not positive": [1.0]}
    assert "parameter" in ax.get_ylabel()
    assert any("100" in text.get_text() for text in ax.texts)


def test_spectrum_of_nothing_draws(ax):
    drawn(plot.plot_spectrum([], ax=ax))


@pytest.mark.parametrize(
    ("values", "outliers", "match"),
    [([[1.0]], 0, "eigenvalues: expected 1 axes"), ([1.0], 2, "outliers: expected 0 to 1")],
    ids=["rank", "too many"],
)
def test_spectrum_mistakes(values, outliers, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_spectrum(values, outliers=outliers, ax=ax)


def test_descent_colours_tell_the_sides_apart(ax):
    curves = [[1.0, 0.5, 0.2], [1.0, 0.9, 0.8], [1.0, 1.1, np.nan], [1.0, 2.0, 4.0]]
    plot.plot_gd_curves(curves, ratios=[0.8, 0.95, 1.05, 1.2], predicted=curves, ax=drawn(ax))
    colours = [line.get_color() for line in ax.lines if str(line.get_label()).endswith("c$")]
    assert colours[0] in palette().cool
    assert colours[1] in palette().cool
    assert colours[2] in palette().warm
    assert len(set(colours)) == 4
    assert ax.get_xlabel() == "gradient-descent step"
    drawn(ax)


@pytest.mark.parametrize(
    ("ratios", "predicted", "match"),
    [([1.0, 2.0], None, "ratios: expected 1"), ([1.0], [[1.0]], "predicted: expected the shape")],
    ids=["ratios", "predicted"],
)
def test_descent_mistakes(ratios, predicted, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_gd_curves([[1.0, 2.0]], ratios=ratios, predicted=predicted, ax=ax)


def test_missing_package_says_how_to_install_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'fastfisher\[report\]'"):
        require("no_such_package_at_all", purpose="plotting")


def test_importing_the_command_line_imports_no_optional_package():
    code = (
        "import sys, fastfisher.cli, fastfisher.plot, fastfisher.report;"
        "heavy = {'matplotlib', 'scipy', 'rich', 'jinja2', 'sklearn', 'torch', 'jax', 'cupy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The last line: an editable installation reports its rebuild first.
    assert done.stdout.splitlines()[-1] == "[]"


def test_histogram_leaves_out_rounding_and_names_theory(ax):
    values = [1e-18, 0.0, 1.0, 1.1, 1.2, 50.0]
    plot.plot_eigenvalue_histogram(values, theory={"outlier": 49.0}, networks=2, ax=ax)
    assert sum(patch.get_height() for patch in ax.patches) == 2.0
    assert [line.get_label() for line in ax.lines] == ["outlier: 49"]
    drawn(ax)


def test_histogram_of_nothing_draws(ax):
    drawn(plot.plot_eigenvalue_histogram([], ax=ax))
    with pytest.raises(ValueError, match="bins: expected"):
        plot.plot_eigenvalue_histogram([1.0], bins=0, ax=ax)
