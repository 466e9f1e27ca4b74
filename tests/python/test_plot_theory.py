# SPDX-License-Identifier: Apache-2.0
"""Plots of measurements beside lines, bands and bounds of theory."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from fastfisher import plot
from fastfisher.plot._axes import palette


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def test_scaling_draws_means_and_gives_a_line_the_colour_of_its_marks(ax):
    measured = {"tanh": [[1.0, 3.0], [4.0, 4.0]], "relu": [5.0, 6.0]}
    plot.plot_scaling([10, 20], measured, theory={"tanh": [2.0, 4.0], "bound": [1, 1]}, ax=ax)
    drawn(ax)
    means = ax.containers[0].lines[0]
    assert means.get_ydata().tolist() == [2.0, 4.0]
    line = next(
        one for one in ax.lines if one.get_ydata()[-1] == 4.0 and one.get_marker() == "None"
    )
    assert line.get_color() == means.get_color()
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["bound", "relu", "tanh"]
    with pytest.raises(ValueError, match="relu: expected 2 values"):
        plot.plot_scaling([10, 20], {"relu": [1.0]}, ax=ax)


def test_training_curves_have_marks_and_lines(ax):
    curves = {"exact": [1.0, 0.3, 0.1], "K-FAC": [1.0, 0.4, np.nan]}
    got = drawn(plot.plot_training_curves(curves, predicted={"exact": [1.0, 0.25, 0.06]}, ax=ax))
    assert [t.get_text() for t in got.get_legend().get_texts()] == ["exact", "K-FAC", "theory"]
    assert got.get_yscale() == "log"
    with pytest.raises(ValueError, match="predicted: expected names"):
        plot.plot_training_curves(curves, predicted={"other": [1.0]}, ax=ax)
    with pytest.raises(ValueError, match="exact: expected 1 axes"):
        plot.plot_training_curves({"exact": 1.0}, ax=ax)


def rates_map(ax, loss, **options):
    named = {"x": [10, 20, 40], "rates": [0.1, 1.0], **options}
    return plot.plot_learning_rate_map(loss, ax=ax, **named)


def test_learning_rate_map_draws_lines_marks_and_what_diverged(ax):
    loss = [[0.5, 1e-9, 3.0], [0.1, np.inf, np.nan]]
    got = rates_map(ax, loss, theory={"t": [0.8, 0.4, 0.2]}, measured={"m": [0.7, 0.5, 0.2]})
    assert drawn(got) is ax
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "parameter" in ax.get_ylabel()
    cells = ax.collections[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(cells), ~np.isfinite(loss))
    line, mark = (next(one for one in ax.lines if one.get_label() == name) for name in "tm")
    assert (line.get_marker(), mark.get_linestyle()) == ("None", "None")
    # the line goes on to the edges of the cells, on its power law
    x, y = line.get_xdata(), line.get_ydata()
    np.testing.assert_allclose(x[[0, -1]], ax.get_xlim())
    np.testing.assert_allclose(x * y, 8.0)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["t", "m"]
    assert "grey" in ax.figure.axes[1].get_ylabel()


def test_learning_rate_map_of_one_cell_and_of_nothing_but_failures(ax):
    drawn(plot.plot_learning_rate_map([[0.5]], x=[3], rates=[0.1], theory={"t": [1.0]}, ax=ax))
    other = Figure(layout="constrained").subplots()
    drawn(rates_map(other, np.full((2, 3), np.nan)))


@pytest.mark.parametrize(
    ("loss", "options", "match"),
    [
        (np.ones((3, 2)), {}, r"loss: expected shape \(2, 3\), got \(3, 2\)"),
        (np.ones((2, 3)), {"x": [10, 40, 20]}, "x: expected numbers > 0 in ascending order"),
        (np.ones((2, 3)), {"rates": [0.0, 1.0]}, "rates: expected numbers > 0"),
        (np.ones((2, 3)), {"x": [10, 20, np.inf]}, "x: expected numbers > 0"),
        (np.ones((2, 3)), {"theory": {"t": [1.0]}}, r"theory\['t'\]: expected 3 values"),
        (np.ones((2, 3)), {"measured": {"m": 1.0}}, r"measured\['m'\]: expected 1 axes"),
        (np.ones((2, 3)), {"floor": 1.0}, "floor: expected"),
    ],
    ids=["shape", "order", "zero", "infinite", "theory", "measured", "floor"],
)
def test_learning_rate_map_mistakes(loss, options, match, ax):
    with pytest.raises(ValueError, match=match):
        rates_map(ax, loss, **options)


def test_density_is_normalised_and_has_theory_and_marks(ax):
    values = np.concatenate([np.linspace(0, 1, 50), np.full(50, 2.0)])
    curve = (np.linspace(0, 2, 9), np.full(9, 0.5))
    plot.plot_density(values, theory={"t": curve}, marks={"top": 2.0}, bins=10, ax=ax)
    drawn(ax)
    heights, edges, _ = ax.patches[0].get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(labels) == ["networks", "t", "top: 2"]
    assert ax.get_yscale() == "log"


def test_density_of_nothing_and_of_one_draws(ax):
    drawn(plot.plot_density([], theory={"t": ([0, 1], [1, 1])}, ax=ax))
    drawn(plot.plot_density([3.0], log=False, ax=Figure().subplots()))


@pytest.mark.parametrize(
    ("values", "options", "match"),
    [
        ([[1.0]], {}, "eigenvalues: expected 1 axes"),
        ([np.nan], {}, "eigenvalues: expected finite"),
        ([1.0], {"bins": 0}, "bins: expected"),
        ([1.0], {"theory": {"t": ([1, 2], [1])}}, r"theory\['t'\]: expected two arrays"),
    ],
    ids=["rank", "nan", "bins", "theory"],
)
def test_density_mistakes(values, options, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_density(values, ax=ax, **options)


def test_curves_mark_what_was_measured_and_draw_theory_whole(ax):
    steps = np.arange(101)
    curve = np.where(steps % 10, np.nan, 1.0 / (1 + steps))
    plot.plot_curves(
        steps, {"a": curve, "b": 1 - steps / 200}, predicted={"a": 1.0 / (1 + steps)}, ax=ax
    )
    drawn(ax)
    theory, a, b, _ = ax.get_lines()
    assert theory.get_xdata().size == 101
    assert a.get_xdata().tolist() == list(range(0, 101, 10))
    assert (b.get_xdata().size, b.get_linestyle(), a.get_linestyle()) == (25, "-", "None")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "theory"]


def test_curves_of_one_point_and_of_nothing_measured(ax):
    drawn(plot.plot_curves([3], {"a": [1.0]}, scale="log", ax=ax))
    drawn(plot.plot_curves([1, 2], {"a": [np.nan, np.nan]}, ax=Figure().subplots()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"measured": {"a": [1.0]}}, "a: expected 2 values, got 1"),
        ({"predicted": {"b": [1.0, 2.0]}}, "predicted: expected names of"),
        ({"predicted": {"a": [[1.0, 2.0]]}}, "a: expected 1 axes"),
        ({"marks": 0}, "marks: expected"),
        ({"x": [[1, 2]]}, "x: expected 1 axes"),
    ],
)
def test_curves_mistakes(options, match, ax):
    given = {"x": [0, 1], "measured": {"a": [1.0, 2.0]}, **options}
    with pytest.raises(ValueError, match=match):
        plot.plot_curves(given.pop("x"), given.pop("measured"), ax=ax, **given)


def test_learning_curves_have_medians_bands_and_a_target(ax):
    losses = [[4.0, 2.0, 1.0], [5.0, 0.0, 3.0], [6.0, np.nan, 2.0]]
    plot.plot_learning_curves(
        {"a": ([0, 1, 2], losses), "b": ([0.5, 4], [1.0, 2.0])}, target=0.1, xlabel="s", ax=ax
    )
    drawn(ax)
    a, b, target = ax.get_lines()
    assert (a.get_xdata().tolist(), a.get_ydata().tolist()) == ([0, 2], [5, 2])
    assert b.get_xdata().tolist() == [0.5, 4]
    assert set(target.get_ydata()) == {0.1}
    assert len(ax.collections) == 1
    assert (ax.get_yscale(), ax.get_xscale(), ax.get_xlabel()) == ("log", "linear", "s")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "target"]


def test_learning_curves_over_seconds_leave_the_start_out(ax):
    plot.plot_learning_curves({"a": ([0, 1, 2], [3.0, 2.0, 1.0])}, xscale="log", ax=ax)
    assert drawn(ax).get_lines()[0].get_xdata().tolist() == [1, 2]
    drawn(plot.plot_learning_curves({"a": ([1], [np.nan])}, ax=Figure().subplots()))


@pytest.mark.parametrize(
    ("curves", "options", "match"),
    [
        ({}, {}, "curves: expected at least one"),
        ({"a": ([0, 1], [1.0])}, {}, r"a: expected losses of shape \(2,\) or \(runs, 2\)"),
        ({"a": ([], [])}, {}, "at least one, got shape"),
        ({"a": ([[0]], [1.0])}, {}, "a: places: expected 1 axes"),
        ({"a": ([0], [1.0])}, {"target": 0.0}, "target: expected a finite number above 0"),
        ({"a": ([0], [1.0])}, {"marks": 0}, "marks: expected"),
        ({"a": ([0], [1.0])}, {"xscale": "logit"}, "xscale: expected linear or log"),
    ],
    ids=["none", "length", "empty", "rank", "target", "marks", "scale"],
)
def test_learning_curves_mistakes(curves, options, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_learning_curves(curves, ax=ax, **options)


def test_levels_are_sorted_and_over_their_theory(ax):
    plot.plot_levels({"a": [1.0, 9.0, 3.0], "b": [2.0]}, predicted={"a": [2, 2, 8]}, ax=ax)
    drawn(ax)
    line, a, b, _ = ax.get_lines()
    assert line.get_ydata().tolist() == [8, 2, 2]
    assert a.get_ydata().tolist() == [9, 3, 1]
    assert b.get_xdata().tolist() == [1]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


@pytest.mark.parametrize(
    ("measured", "predicted", "match"),
    [
        ({"a": [1.0, 0.0]}, {}, "a: expected positive eigenvalues, got 0"),
        ({"a": [1.0, np.nan]}, {}, "a: expected positive eigenvalues, got nan"),
        ({"a": [1.0]}, {"a": [1.0, 2.0]}, "a: expected 1 values, got 2"),
        ({"a": [1.0]}, {"b": [1.0]}, "predicted: expected names of"),
        ({"a": [[1.0]]}, {}, "a: expected 1 axes"),
    ],
)
def test_levels_mistakes(measured, predicted, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_levels(measured, predicted=predicted, ax=ax)


def test_posterior_has_band_bars_and_samples(ax):
    x = np.linspace(0, 1, 11)
    runs = np.array([x - 0.1, x, x + 0.1])
    plot.plot_posterior(x, x, 0.2 * x, measured=runs, data=([0.5], [0.4]), marks=3, ax=ax)
    drawn(ax)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(1.4)
    bars = ax.containers[0]
    assert bars.lines[0].get_xdata().tolist() == [0, 0.5, 1]
    (segments,) = (one.get_segments() for one in bars.lines[2])
    assert segments[1][:, 1] == pytest.approx([0.3, 0.7])  # two sample deviations of 0.1
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "training samples" in labels


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mean": [0.0]}, "mean: expected 2 values, got 1"),
        ({"deviation": [0.1, -0.1]}, "deviation: expected numbers >= 0"),
        ({"measured": [[0.0, 1.0]]}, r"measured: expected shape \(k, 2\) with k >= 2"),
        ({"measured": np.ones((3, 4))}, "measured: expected shape"),
        ({"data": ([[1.0]], [1.0])}, "data: expected 1 axes"),
    ],
)
def test_posterior_mistakes(options, match, ax):
    given = {"mean": [0.0, 1.0], "deviation": [0.1, 0.1], **options}
    with pytest.raises(ValueError, match=match):
        plot.plot_posterior([0, 1], given.pop("mean"), given.pop("deviation"), ax=ax, **given)


def test_scaling_draws_bands_in_the_colour_of_the_marks_and_linear_scales(ax):
    bands = {"relu": [[1.0, 2.0], [3.0, 4.0]], "alone": [[1.0, 1.0], [2.0, 2.0]]}
    plot.plot_scaling([1, 2], {"relu": [2.0, 3.0]}, bands=bands, xscale="linear", ax=ax)
    drawn(ax)
    assert ax.get_xscale() == "linear"
    assert len(ax.collections) >= 2
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["alone", "relu"]
    with pytest.raises(ValueError, match=r"relu: expected bands of shape \(2, 2\)"):
        plot.plot_scaling([1, 2], {"relu": [2.0, 3.0]}, bands={"relu": [[1.0], [2.0]]}, ax=ax)
    with pytest.raises(ValueError, match="xscale: expected 'log' or 'linear', got 'symlog'"):
        plot.plot_scaling([1, 2], {"relu": [2.0, 3.0]}, xscale="symlog", ax=ax)


def test_training_lines_that_coincide_are_drawn_once_in_grey(ax):
    same, other = [1.0, 0.25], [1.0, 0.9]
    curves = {"exact": same, "K-FAC": same, "plain": other}
    plot.plot_training_curves(curves, predicted=curves, ax=ax)
    lines = [line for line in ax.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [line.get_color() for line in lines] == [palette().faint, palette().series[2]]


def test_survival_counts_from_the_top_and_gives_theory_its_colour(ax):
    plot.plot_survival(
        {"a": [4.0, 1.0, 2.0, 3.0], "b": [0.0, 0.0, 5.0]}, theory={"a": 3.9, "edge": 9.0}, ax=ax
    )
    drawn(ax)
    first = ax.lines[0]
    assert first.get_xdata().tolist() == [4.0, 3.0, 2.0, 1.0]
    assert first.get_ydata().tolist() == [0.25, 0.5, 0.75, 1.0]
    second = next(line for line in ax.lines[1:] if line.get_xdata()[0] == 5.0)
    assert second.get_ydata().tolist() == [1 / 3]  # zeros count, though no log scale shows them
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["a", "b", "edge", "theory"]
    with pytest.raises(ValueError, match=r"spectra\['a'\]: expected 1 axes"):
        plot.plot_survival({"a": [[1.0]]}, ax=ax)


def test_survival_of_nothing_draws(ax):
    drawn(plot.plot_survival({}, ax=ax))
    drawn(plot.plot_survival({"a": []}, ax=ax))


def test_bounds_have_marks_lines_and_shades(ax):
    plot.plot_bounds(
        [0, 10],
        {"top": [3.0, 0.2]},
        bounds={"top": [[2.0, 0.1], [4.0, 0.3]]},
        predicted={"top": [3.0, 1.0, 0.2]},
        predicted_steps=[0, 5, 10],
        xscale="log",
        ax=ax,
    )
    drawn(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "10"]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["top", "theory", "between the bounds"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bounds": {"other": [[1.0], [2.0]]}}, "bounds: expected names of"),
        ({"bounds": {"top": [[1.0, 2.0], [1.0, 2.0]]}}, r"expected shape \(2, 1\)"),
        ({"predicted": {"top": [1.0, 2.0]}}, r"predicted\['top'\]: expected shape \(1,\)"),
        ({"xscale": "symlog"}, "xscale: expected 'linear' or 'log'"),
    ],
    ids=["name", "bounds", "line", "scale"],
)
def test_bounds_mistakes(options, match, ax):
    with pytest.raises(ValueError, match=match):
        plot.plot_bounds([0], {"top": [1.0]}, ax=ax, **options)


def test_methods_have_a_column_each_and_a_bar_where_theory_has_one(ax):
    plot.plot_methods({"exact": [0.1, 0.2], "unit": [0.3]}, predicted={"exact": 0.15}, ax=ax)
    drawn(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["exact", "unit"]
    assert len(ax.collections) == 1
    with pytest.raises(ValueError, match="predicted: expected names of"):
        plot.plot_methods({"exact": [0.1]}, predicted={"other": 1.0}, ax=ax)
    with pytest.raises(ValueError, match="exact: expected 1 axes"):
        plot.plot_methods({"exact": 0.1}, ax=ax)
