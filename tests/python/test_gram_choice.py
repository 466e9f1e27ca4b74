# SPDX-License-Identifier: Apache-2.0
"""Which method a layer of a Gram takes by itself.

The faster one was measured for each case here, by a factor of 2 to 50 (`bench_layers` names one).
"""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff

# samples, positions, inputs, outputs, classes
PAIRS = {
    "few positions": (64, 4, 512, 512, 10),
    "few positions, many samples": (200, 4, 512, 512, 10),
    "sixteen positions": (64, 16, 256, 256, 10),
    "two classes": (128, 8, 512, 512, 2),
}
FORMED = {
    "one sample of tokens": (1, 64, 128, 128, 10),
    "two samples of tokens": (2, 64, 128, 128, 10),
    "eight samples": (8, 16, 64, 64, 10),
    "tokens": (64, 64, 128, 128, 10),
    "tokens, one output": (64, 64, 128, 128, 1),
}


def zeros(*shape):
    """Memory that is never touched: the choice depends on shapes."""
    return np.broadcast_to(np.float32(0), shape)


def method_of(layer, outputs):
    factors = ff.Jacobian.from_factors([layer])
    return factors.gram(outputs=outputs, return_info=True)[1].layers[0].method


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize(
    ("case", "method"),
    [(case, "S3") for case in PAIRS.values()] + [(case, "S1") for case in FORMED.values()],
    ids=[*PAIRS, *FORMED],
)
def test_the_faster_method_is_chosen(case, method, outputs):
    n, t, i, o, c = case
    assert method_of(ff.Shared(zeros(n, t, i), zeros(n, c, t, o)), outputs) == method


@pytest.mark.parametrize(
    ("channels", "edge", "method"), [((256, 256), 2, "S3"), ((64, 128), 8, "S1")]
)
def test_convolutions_of_few_positions_meet_pair_by_pair(channels, edge, method):
    i, o = channels
    layer = ff.Conv(zeros(8, i, edge, edge), zeros(8, 10, o, edge, edge), kernel=3, padding=1)
    for outputs in ("full", "trace"):
        assert method_of(layer, outputs) == method


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((2, 1024, 8, 1000, 2), "trace"),
        ((2, 64, 2048, 4096, 3), "trace"),
        ((2, 32, 1024, 1024, 20), "trace"),
        ((2, 64, 4096, 4096, 2), "diagonal"),
    ],
)
def test_pairs_that_would_take_much_memory_are_not_chosen(shape, outputs, dtype):
    n, t, i, o, c = shape
    layer = ff.Shared(zeros(n, t, i).astype(dtype), zeros(n, c, t, o).astype(dtype))
    assert method_of(layer, outputs) == "S1"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pairs_that_are_chosen_fit_in_the_default_memory(dtype):
    # The most entries of a position, 95,000, that S3 takes.
    layer = ff.Shared(zeros(100, 4, 12_000).astype(dtype), zeros(100, 1, 4, 11_500).astype(dtype))
    for outputs in ("full", "trace"):
        assert method_of(layer, outputs) == "S3"
