# SPDX-License-Identifier: Apache-2.0
"""Usages around the step of the optimisers that must not change its numbers."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fastfisher.errors import CaptureError  # noqa: E402
from fastfisher.optim import EKFAC, KFAC, NGD, SPRING  # noqa: E402

BOTH = pytest.mark.parametrize("cls", [KFAC, EKFAC])
OPTIONS: dict[str, Any] = {"lr": 1.0, "momentum": 0.0, "damping": 0.1, "kl_clip": None}


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch() -> tuple[Any, Any]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double()
    return x, torch.arange(8) % 3


def flat(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def train(model: Any, optimizer: Any, steps: int = 1) -> Any:
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return flat(model)


def kind_of(kind: str) -> dict[str, Any]:
    return {"kind": kind, "likelihood": None if kind == "empirical" else "categorical"}


@BOTH
@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("where", ["same pass", "another pass", "twice differentiable"])
def test_gradients_of_inputs_are_no_gradients_of_the_loss(cls: Any, kind: str, where: str) -> None:
    model, (x, y) = network(), batch()
    optimizer = cls(model, **kind_of(kind), **OPTIONS)
    x = x.requires_grad_()
    out = model(x)
    twice = where == "twice differentiable"
    (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True, create_graph=twice)
    loss = F.cross_entropy(model(x) if where == "another pass" else out, y)
    (loss + 0 * slope.sum()).backward()
    optimizer.step()
    other = network()
    assert np.array_equal(flat(model), train(other, cls(other, **kind_of(kind), **OPTIONS)))


@BOTH
@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_the_model_forgets_do_not_count(cls: Any, to_none: bool) -> None:
    """A batch that is given up by model.zero_grad(), which no optimiser hears of."""
    model, (x, y) = network(), batch()
    optimizer = cls(model, **OPTIONS)
    for scale in (3, 5):
        F.cross_entropy(model(scale * x), y).backward()
    model.zero_grad(set_to_none=to_none)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    other = network()
    assert np.array_equal(flat(model), train(other, cls(other, **OPTIONS)))


@BOTH
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_one_sample_without_an_axis(cls: Any, kind: str) -> None:
    results = []
    for index in (0, slice(0, 1)):
        model, (x, y) = network(), batch()
        optimizer = cls(model, **kind_of(kind), **OPTIONS)
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        results.append(flat(model))
    np.testing.assert_allclose(*results, rtol=1e-12)


@BOTH
def test_weight_decay_leaves_gradients_alone(cls: Any) -> None:
    """A second step with the same gradients decays once more, not twice more."""
    model, (x, y) = network(), batch()
    optimizer = cls(model, **OPTIONS, weight_decay=0.1, decoupled=False)
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("cls", [KFAC, EKFAC, NGD, SPRING])
def test_copies_go_on_like_the_original(cls: Any, way: str) -> None:
    """Model and optimiser copied together; schedulers and steps before do not matter."""
    x, y = batch()

    def go(model: Any, optimizer: Any) -> Any:
        if isinstance(optimizer, KFAC):
            return train(model, optimizer, 2)
        for _ in range(2):
            optimizer.step(x=x, y=F.one_hot(y).double())
        return flat(model)

    model = network()
    optimizer = cls(model, lr=0.1, damping=0.1)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    go(model, optimizer)
    both = model, optimizer
    pair = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
    start = flat(model)
    assert np.array_equal(go(*pair), go(*both))
    assert not np.array_equal(flat(model), start)
    if issubclass(cls, KFAC):
        handles = sum(len(m._forward_hooks) for m in pair[0].modules())
        assert handles > 0
        assert pair[1].curvature.collector.model is pair[0]


def test_passes_without_a_backward_pass_are_let_go() -> None:
    """Evaluation that forgot no_grad() neither counts nor fills the memory."""
    model, (x, _) = network(), batch()
    optimizer = KFAC(model, **OPTIONS)
    for _ in range(20):
        model(x)
    assert len(optimizer.curvature.collector.passes) == 1
    other = network()
    assert np.array_equal(train(model, optimizer), train(other, KFAC(other, **OPTIONS)))


@BOTH
def test_nothing_stays_on_the_model_and_nothing_grows(cls: Any) -> None:
    model = network()
    optimizer = cls(model, **OPTIONS)
    train(model, optimizer, 10)
    gc.collect()
    before = len(gc.get_objects())
    train(model, optimizer, 100)
    gc.collect()
    assert len(gc.get_objects()) < before + 50
    del optimizer
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("cls", [NGD, SPRING])
def test_batch_statistics_are_refused_at_later_steps_too(cls: Any) -> None:
    """One module is put back into training while the model as a whole is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model.double().eval()
    (x, _), optimizer = batch(), cls(model, lr=0.1)
    optimizer.step(x=x, y=torch.ones(8, 3).double())
    before = flat(model)
    model[1].train()
    with pytest.raises(CaptureError, match="batch statistics in: 1"):
        optimizer.step(x=x, y=torch.ones(8, 3).double())
    assert np.array_equal(flat(model), before)


@BOTH
@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_default_steps_of_small_batches_do_not_diverge(cls: Any, lr: float) -> None:
    """The first factors are of fewer samples than they have rows: the norm constraint holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = cls(model, lr=lr)
    x = torch.randn(400, 64)
    y = (x @ torch.randn(64, 10)).argmax(1)
    with torch.no_grad():
        start = float(F.cross_entropy(model(x), y))
    for _ in range(60):
        few = torch.randint(400, (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[few]), y[few]).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(F.cross_entropy(model(x), y)) < 0.7 * start


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (KFAC, {"lr": float("nan")}, "lr: expected a finite number >= 0"),
        (KFAC, {"lr": -1.0}, "lr: expected a finite number >= 0"),
        (EKFAC, {"momentum": 2.0}, "momentum: expected a number below 1"),
        (EKFAC, {"damping": 2.0}, "damping: no option of a group"),
        (NGD, {"weight_decay": 0.1}, "weight_decay: no option of a group"),
        (NGD, {"lr": torch.tensor(-1.0)}, "lr: expected a finite number >= 0"),
        (SPRING, {"momentum": 0.5}, "momentum: no option of a group"),
        (SPRING, {"damping": 0.5}, "damping: no option of a group"),
    ],
)
def test_options_of_groups_that_do_not_fit(cls: Any, options: Any, message: str) -> None:
    """A number that would be ignored, or make parameters NaN."""
    model = network()
    with pytest.raises(ValueError, match=message):
        cls(model, [{"params": model.parameters(), **options}])
    optimizer = cls(model, [{"params": model[0].parameters(), "lr": torch.tensor(0.1)}])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": list(model[2].parameters()), **options})


@BOTH
def test_parameters_that_are_thawed_later_are_not_trained_without_factors(cls: Any) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = cls(model, model.parameters(), **OPTIONS)
    train(model, optimizer)
    model[0].weight.requires_grad_(True)
    before = flat(model)
    with pytest.raises(ValueError, match=r"0\.weight: has a gradient, but was frozen"):
        train(model, optimizer)
    optimizer = cls(model, model[0].parameters(), **OPTIONS)
    with pytest.raises(ValueError, match=r"param_group: '2\.weight' was frozen or in no group"):
        optimizer.add_param_group({"params": list(model[2].parameters())})
    assert len(optimizer.param_groups) == 1
    assert np.array_equal(flat(model), before)


def test_classes_without_curvature_left_say_so() -> None:
    (x, y), model = batch(), network()
    with torch.no_grad():
        model[2].bias[0] += 1e6
    optimizer = NGD(model, likelihood="categorical")
    with pytest.raises(ArithmeticError, match=r"its trace is 0.*adaptive=True"):
        optimizer.step(x=x, y=y)
