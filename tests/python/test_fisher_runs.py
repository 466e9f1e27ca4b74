# SPDX-License-Identifier: Apache-2.0
"""How often a torch model is run for sampled and empirical rows, and that it does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastfisher as ff
from fastfisher.capture import weighted

N = 37

KINDS: dict[str, dict[str, Any]] = {
    "sampled": {"likelihood": "categorical", "kind": "mc", "seed": 3},
    "sampled-twice": {"likelihood": "categorical", "kind": "mc", "samples": 2},
    "gaussian": {"kind": "mc", "samples": 3},
    "empirical": {"likelihood": "categorical", "kind": "empirical", "y": torch.arange(N) % 4},
}


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(5, 8), torch.nn.Linear(8, 4)
        self.runs: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs.append(len(x))
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N, 5)))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_one_run_of_all_samples_is_enough(options: dict[str, Any], x, monkeypatch) -> None:
    model = Counting().double()
    once = ff.fisher(model, x, structure="kfac", **options)
    assert model.runs.count(N) == 1
    assert max(model.runs) == N
    model.runs.clear()
    monkeypatch.setattr(weighted, "_AT_ONCE", 0)
    twice = ff.fisher(model, x, structure="kfac", **options)
    assert model.runs.count(N) == 2
    for one, other in zip(once.rows.layers, twice.rows.layers, strict=True):
        assert np.allclose(one.g, other.g, rtol=1e-12, atol=0)
        assert (one.a == other.a).all()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_rows_are_those_of_the_jacobian(options: dict[str, Any], x) -> None:
    model = Counting().double()
    options = {key: value for key, value in options.items() if key != "y"}
    labels = KINDS["empirical"]["y"] if options["kind"] == "empirical" else None
    jacobian = ff.jacobian(model, x)
    expected = ff.fisher(jacobian, y=labels, **options).dense()
    got = ff.fisher(model, x, labels, **options).dense()
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-13)


def test_outputs_that_are_not_finite_are_refused(x) -> None:
    model = torch.nn.Linear(5, 4).double()
    with torch.no_grad():
        model.weight.fill_(10)
    x[30] = 1e308  # not among the samples that the structure is learned from
    with pytest.raises(ff.errors.NonFiniteError, match=r"expected finite outputs.*sample 30"):
        ff.fisher(model, x, likelihood="categorical", kind="mc", structure="kfac")


def test_labels_that_do_not_fit_are_refused_in_time(x) -> None:
    with pytest.raises(ValueError, match=rf"y: expected shape \({N},\)"):
        ff.fisher(
            Counting().double(), x, torch.zeros(N - 1, dtype=torch.long),
            likelihood="categorical", kind="empirical", structure="kfac",
        )  # fmt: skip
