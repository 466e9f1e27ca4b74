# SPDX-License-Identifier: Apache-2.0
"""How samples are cut into blocks and pieces, and what a probe of one mixture finds out."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest

import fastfisher as ff

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from fastfisher.capture import Capture, torch_model  # noqa: E402
from fastfisher.capture.cost import LEAST_PIECE, Blocks, Cost, plan_at_once, plan_blocks  # noqa: E402

KB = 1 << 10


def dense_gram(model: Any, x: Any) -> Any:
    parameters = list(model.parameters())
    rows = []
    for sample in x.split(1):
        for output in model(sample)[0]:
            gradients = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    j = torch.stack(rows)
    n = len(x)
    return (j @ j.T).reshape(n, -1, n, len(j) // n)


@pytest.mark.parametrize(("limit", "piece"), [(512, 8), (480, 4), (460, 15)])
def test_pieces_shrink_before_blocks_do(limit: int, piece: int) -> None:
    cost = Cost(3200 * KB, 5000 * KB, 3200 * KB)
    assert (cost.piece, LEAST_PIECE) == (15, 8)
    plan = plan_blocks(128, None, cost, limit << 20)
    assert (plan.left >= 128) == (limit > 460)
    assert plan.piece == piece
    roomy = plan_blocks(128, None, cost, 1 << 30)
    assert (roomy.left, roomy.piece) == (128, cost.piece)


def test_gradients_are_kept_whole_with_pieces_of_four() -> None:
    cost = Cost(4865 * KB, 8560 * KB, 1565 * KB)
    assert cost.piece == LEAST_PIECE
    plan = plan_blocks(256, None, cost, 512_000_000)
    assert (plan.left, plan.piece, plan.compact) == (256, LEAST_PIECE // 2, True)
    used = 256 * cost.compact + plan.piece * cost.capture + plan.workspace
    assert used <= 512_000_000
    less = plan_blocks(256, None, cost, 400 << 20)
    assert less.left < 256, "it does not fit whole"
    assert (less.piece, less.compact) == (LEAST_PIECE, True), "small pieces would not help"


@pytest.mark.parametrize(
    ("m", "limit"), [(None, 40), (None, 400), (None, 700), (60, 40), (60, 700)]
)
def test_blocks_without_pieces_fit(m: int | None, limit: int) -> None:
    cost, limit = Cost(1000 * KB, 4000 * KB, 900 * KB), limit << 20
    plan = plan_at_once(128, m, cost, limit)
    assert plan.piece >= max(plan.left, plan.right), "no block is cut"
    alone = m is None and plan.left == 128
    used = plan.left * cost.capture + (0 if alone else plan.right * cost.factors) + plan.workspace
    assert used <= limit
    assert (plan.left == 128) == (limit == 700 << 20)
    with pytest.raises(MemoryError, match="memory_limit: 5000000 bytes, expected at least"):
        plan_at_once(128, m, cost, 5_000_000)


def test_larger_costs_need_other_blocks() -> None:
    cost, larger = Cost(10.0, 30.0, 9.0), Cost(5.0, 40.0, 9.5)
    assert cost.most(larger) == Cost(10.0, 40.0, 9.5)
    blocks = Blocks(10, 8, 100, 4)
    assert blocks.within(Blocks(10, 9, 50, 4))
    for other in (Blocks(9, 9, 100, 4), Blocks(10, 7, 100, 4), Blocks(10, 8, 100, 3)):
        assert not blocks.within(other)
    assert not blocks.within(replace(blocks, compact=True))


class Pooled(nn.Module):
    """Convolution, pooling and a linear head, with a branch that mixes the units by `share`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(2, 5, 3), nn.Linear(5, 5), nn.Linear(5, 3)
        self.share = share

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.conv(x)).mean((2, 3))
        return self.head(h + self.share * self.mix(h) if self.share else h)


@pytest.mark.parametrize("share", [0.0, 1e-6, 1.0])
def test_only_cotangents_that_all_outputs_share_are_separable(share: float) -> None:
    torch.manual_seed(3)
    model, x = Pooled(share).double(), torch.randn(19, 2, 6, 6, dtype=torch.float64)
    if not share:
        model.mix.requires_grad_(False)
    kernel = ff.ntk(model, x)
    shared = {layer.label: layer.w is not None for layer in ff.jacobian(model, x).layers}
    assert shared["conv"] == (share == 0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len(parameters) == (4 if share == 0 else 6)
    if not share:
        del model.mix
    torch.testing.assert_close(kernel, dense_gram(model, x), rtol=1e-10, atol=1e-12)


def test_pieces_of_any_width_give_the_same() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 2)).double()
    x = torch.randn(29, 5, 3, dtype=torch.float64)

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            return self.inner(x).mean(1)

    captured = Capture(torch_model(Mean(), select=None, params=None), x)
    expected = dense_gram(Mean(), x)
    # The first one is cut shorter, to be proven; the others are not.
    for width in (10, 12, 40, 1):
        got = captured.jacobian(x, piece=width).gram()
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_blocks_are_gone_with_the_call() -> None:
    """Their memory is for the next call: nothing of them waits for the collector."""
    model, x = Pooled(0.0), torch.randn(40, 2, 6, 6)
    gc.collect()
    gc.disable()
    try:
        ff.ntk(model, x, memory_limit="300KB")
        left = [type(one).__name__ for one in gc.get_objects() if type(one).__name__ == "_Run"]
    finally:
        gc.enable()
    assert not left
