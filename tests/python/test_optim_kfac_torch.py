# SPDX-License-Identifier: Apache-2.0
"""KFAC and EKFAC with scalers, autocast, half precision and compiled models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

from fastfisher.optim import KFAC  # noqa: E402
from optim_cases import BOTH, F, batch, flat, network, train  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@BOTH
def test_gradient_scaler(cls: Any) -> None:
    """The step of a scaler, with and without unscaled gradients, is the step without one."""
    options: dict[str, Any] = {"lr": 0.5, "damping": 0.05}
    for kind in ("empirical", "mc"):
        likelihood = None if kind == "empirical" else "categorical"
        results = []
        for way in ("none", "step", "unscale", "precondition"):
            model, (x, y) = network(), batch()
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            given: dict[str, Any] = options | {"kind": kind, "likelihood": likelihood}
            if way in ("unscale", "precondition"):
                given["grad_scaler"] = scaler
            optimizer = cls(model, momentum=0.0, **given)
            sgd = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(2):
                model.zero_grad()
                loss = F.cross_entropy(model(x), y)
                if way == "none":
                    loss.backward()
                    optimizer.step()
                    continue
                scaler.scale(loss).backward()
                if way == "precondition":
                    scaler.unscale_(sgd)
                    optimizer.precondition()
                    scaler.step(sgd)
                else:
                    if way == "unscale":
                        scaler.unscale_(optimizer)
                    scaler.step(optimizer)
                scaler.update()
            results.append(flat(model))
        for other in results[1:]:
            assert np.allclose(other, results[0], rtol=1e-9, atol=1e-12)


def test_gradient_scaler_that_overflows_or_is_unknown() -> None:
    model, (x, y) = network(), batch()
    optimizer = KFAC(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = flat(model)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    model[0].weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert np.array_equal(flat(model), before)
    assert optimizer.skipped == 1
    assert not optimizer.curvature.states
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(ValueError, match="grad_scaler: expected the scaler"):
        scaler.step(optimizer)


@BOTH
def test_autocast(cls: Any) -> None:
    for kind in ("empirical", "mc"):
        model, (x, y) = network(dtype=torch.float32), batch(64, dtype=torch.float32)
        optimizer = cls(
            model, lr=0.1, damping=0.05, kind=kind,
            likelihood=None if kind == "empirical" else "categorical",
        )  # fmt: skip
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.02
        state = next(iter(optimizer.curvature.states.values()))
        assert state.a.arrays[0].dtype == np.float32


def test_half_precision_models() -> None:
    model, (x, y) = network(dtype=torch.bfloat16), batch(32, dtype=torch.bfloat16)
    optimizer = KFAC(model, lr=0.1, damping=0.05)
    before = flat(model.float())
    model.bfloat16()
    train(model, optimizer, x, y)
    assert model[0].weight.dtype == torch.bfloat16
    assert (flat(model.float()) != before).any()


def test_compiled_models() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    for one in (compiled, nn.Sequential(compiled)):
        with pytest.raises(ValueError, match="model: expected one that is not compiled"):
            KFAC(one)
    whole = network()
    whole[0].compile(backend="eager")
    with pytest.raises(ValueError, match="compiled '0'"):
        KFAC(whole)


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_models_that_are_compiled_later() -> None:
    """Hooks are there already: the step is the same."""
    results = []
    for later in (False, True):
        torch.compiler.reset()
        model, (x, y) = network(), batch()
        optimizer = KFAC(model)
        runner = torch.compile(model, backend="eager") if later else model
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(runner(x), y).backward()
            optimizer.step()
        results.append(flat(model))
    assert np.allclose(*results, rtol=1e-12, atol=0)
