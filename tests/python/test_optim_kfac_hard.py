# SPDX-License-Identifier: Apache-2.0
"""KFAC and EKFAC: groups and schedulers, options that do not fit, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

from fastfisher.optim import EKFAC, KFAC  # noqa: E402
from optim_cases import F, batch, flat, network, train  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_groups_and_schedulers() -> None:
    """Weight and bias of one layer may be in different groups."""
    model, (x, y) = network(), batch()
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.0}]
    optimizer = KFAC(model, groups, lr=0.5, momentum=0.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    kept = [p.detach().clone() for p in biases]
    before = [p.detach().clone() for p in weights]
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(kept, biases, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    # Without its bias a layer has factors of the weight alone.
    optimizer = KFAC(model, weights)
    train(model, optimizer, x, y)
    assert next(iter(optimizer.curvature.states.values())).a.arrays[0].shape == (4, 4)
    assert optimizer.treated == {"0.weight": "factors", "3.weight": "factors"}


def test_large_layers_and_attention_get_no_factors() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "large": nn.Linear(4, 50),
            "up": nn.ConvTranspose1d(2, 2, 3),
            "table": nn.Embedding(100, 4),
        }
    )
    treated = KFAC(model, max_dim=40).treated
    assert "attention" in treated["attention.out_proj.weight"]
    assert "a side of 50" in treated["large.weight"]
    assert "ConvTranspose1d has no Kronecker factors" in treated["up.weight"]
    assert treated["table.weight"] == "factors"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr: expected a finite number >= 0"),
        ({"kind": "fisher"}, "kind: expected one of"),
        ({"kind": "mc"}, "likelihood: expected one with kind='mc', got None"),
        ({"likelihood": "gaussian"}, "likelihood: expected None with kind='empirical'"),
        ({"damping": float("inf")}, "damping: "),
        ({"split": "both"}, "split: expected one of"),
        ({"ema_decay": 1.0}, "ema_decay: expected a number below 1"),
        ({"momentum": 1.5}, "momentum: expected a number below 1"),
        ({"factor_every": 0}, "factor_every: expected an integer of at least 1"),
        ({"inverse_every": 1.5}, "inverse_every: "),
        ({"kl_clip": 0.0}, "kl_clip: expected a finite number > 0"),
        ({"weight_sharing": "sum"}, "weight_sharing: expected one of"),
        ({"others": "adam"}, "others: expected one of"),
        ({"loss_reduction": "none"}, "loss_reduction: expected one of"),
        ({"weight_decay": -1}, "weight_decay: "),
        ({"on_nonfinite": "warn"}, "on_nonfinite: expected one of"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KFAC(network(), **options)


def test_mistakes() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        KFAC(network().parameters())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="split: no option of EKFAC"):
        EKFAC(network(), split="pi")
    with pytest.raises(ValueError, match="parameters that require gradients, got none"):
        KFAC(network().requires_grad_(False))
    with pytest.raises(TypeError, match="dtype"):
        KFAC(nn.Linear(2, 2, dtype=torch.complex64))
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = KFAC(table)
    table(torch.arange(4)).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    model, (x, y) = network(), batch()
    optimizer = KFAC(model, kind="mc", likelihood="categorical", select=lambda f: [f])
    with pytest.raises(TypeError, match="pass select="):
        train(model, optimizer, x, y)
    model, (x, y) = network(), batch()
    optimizer = KFAC(model)
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    loss.backward()  # both count
    before = flat(model)
    optimizer.step()
    assert (flat(model) != before).any()


def test_a_step_without_gradients_moves_nothing() -> None:
    model = network()
    before = flat(model)
    optimizer = KFAC(model, weight_decay=0.1)
    optimizer.step()
    assert np.array_equal(flat(model), before)
