# SPDX-License-Identifier: Apache-2.0
"""Samples of another kind than the model's: what the messages say."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import numpy as np  # noqa: E402

import fastfisher as ff  # noqa: E402

nn = torch.nn


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


X, TARGETS = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(6) % 3


@pytest.mark.parametrize("y", [CLASSES, TARGETS], ids=["classes", "targets"])
@pytest.mark.parametrize("structure", ["full", "kfac"])
def test_a_pair_of_samples_and_labels_is_refused(y: Any, structure: str) -> None:
    """Targets of the shape of the samples would count as samples."""
    match = r"x: expected samples, .*got a tuple of arrays of shapes \[\(6, 3\), .*x=\[\(x, y\)\]"
    for call in (
        lambda: ff.fisher(model(), (X, y), structure=structure),
        lambda: ff.fisher(model(), (X, y), structure=structure, kind="empirical"),
        lambda: ff.jacobian(model(), (X, y)),
        lambda: ff.ntk(model(), (X, y)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(ValueError, match="x2: expected samples"):
        ff.ntk(model(), X, (X, y))
    mlp = ff.models.MLP((3, 4, 3))
    with pytest.raises(ValueError, match="x: expected samples"):
        ff.fisher(mlp, (X.double().numpy(), TARGETS.double().numpy()), structure=structure)


def test_a_pair_within_a_list_is_a_batch() -> None:
    whole = ff.fisher(model(), X, CLASSES, likelihood="categorical", kind="empirical").dense()
    batches = [(X[:4], CLASSES[:4]), [X[4:], CLASSES[4:]]]
    found = ff.fisher(model(), batches, likelihood="categorical", kind="empirical").dense()
    assert (found - whole).abs().max() <= 1e-6 * whole.abs().max()
    expected = ff.jacobian(model(), X).dense()
    for x in (batches, [X[:4], X[4:]]):
        assert torch.equal(ff.jacobian(model(), x).dense(), expected)


@pytest.mark.parametrize("structure", ["full", "kfac"])
def test_batches_that_are_no_batches_alike(structure: str) -> None:
    """What a loader's batch becomes without a list around it."""
    match = (
        r"x: expected batches alike, got shape \(6, 3\) of dtype float32, then \(6,\) of dtype i"
    )
    with pytest.raises(ValueError, match=match):
        ff.fisher(model(), [X, CLASSES], structure=structure)
    with pytest.raises(ValueError, match=match):
        ff.jacobian(model(), [X, CLASSES])
    with pytest.raises(ValueError, match=r"dtype float32, then .* dtype float64"):
        ff.fisher(model(), [X, X.double()], structure=structure)
    with pytest.raises(ValueError, match=r"then \(6, 2\)"):
        ff.jacobian(model(), [X, X[:, :2]])
    with pytest.raises(ValueError, match="batches alike"):
        ff.fisher(ff.models.MLP((3, 4, 3)), [np.ones((6, 3)), np.ones(6)], structure=structure)


def test_batches_of_other_lengths_are_added_up() -> None:
    """K-FAC sees one batch at a time: sequences need not be padded to one length."""
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    x = [torch.randn(4, 2, 5), torch.randn(4, 2, 7)]
    traces = [ff.fisher(net, one, structure="diagonal").trace() for one in x]
    assert ff.fisher(net, x, structure="diagonal").trace() == pytest.approx(sum(traces) / 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_for_a_model_of_floats(dtype: Any) -> None:
    match = f"x: expected dtype torch.float32 as the parameters, got dtype {dtype}; the model says"
    for net, shape in ((model(), (6, 3)), (nn.Conv1d(2, 3, 2), (6, 2, 4))):
        x = torch.ones(shape, dtype=dtype)
        for call in (ff.jacobian, ff.ntk, ff.fisher):
            with pytest.raises(TypeError, match=match):
                call(net, x)
    with pytest.raises(TypeError, match=match):
        ff.fisher(model(), [torch.ones(2, 3, dtype=dtype)] * 2, structure="kfac")


def test_errors_of_models_of_indices_stay_what_they_are() -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    assert ff.jacobian(net, torch.ones(6, 2, dtype=torch.int64)).shape == (12, 29)
    with pytest.raises(IndexError, match="index out of range"):
        ff.jacobian(net, torch.full((6, 2), 7))


def test_a_tracker_and_another_model() -> None:
    measure = ff.diagnostics.track(model(), X)
    first = measure()
    match = (
        "model: expected the parameters of the one before, 31 of dtype float32, .*"
        "another model needs a tracker of its own"
    )
    with pytest.raises(ValueError, match=match):
        measure(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=match):
        measure(model().double(), X.double())
    assert measure().lambda_max == pytest.approx(first.lambda_max, rel=1e-5)
    assert len(measure.history) == 2
    with pytest.raises(ValueError, match="momentum: expected a number"):
        ff.diagnostics.track(model(), X, momentum=2.0)()
