# SPDX-License-Identifier: Apache-2.0
"""NGD and SPRING: resuming, groups, frozen and tied parameters, bad input."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastfisher as ff  # noqa: E402
from fastfisher.optim import NGD, SPRING  # noqa: E402
from fastfisher.reference import ngd as reference  # noqa: E402
from optim_ngd_cases import (  # noqa: E402
    INPUTS,
    RHO,
    N,
    assert_equal,
    dense_jacobian,
    flat,
    labels,
    network,
    samples,
    stepped,
)

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = pytest.mark.parametrize("cls", [NGD, SPRING])


@pytest.mark.parametrize("kind", [NGD, SPRING])
def test_resume_is_bit_for_bit(kind: Any) -> None:
    x, y = samples(), labels("gaussian")
    options: dict[str, Any] = {"adaptive": True} if kind is NGD else {"momentum": 0.7}
    model = network()
    optimizer = kind(model, damping=1e-3, **options)
    for _ in range(3):
        optimizer.step(x=x, y=y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=5)
    again = kind(other, damping=1e-3, **options)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for _ in range(3):
        optimizer.step(x=x, y=y)
        again.step(x=x, y=y)
    assert np.array_equal(flat(model), flat(other))
    with pytest.raises(ValueError, match="state_dict"):
        again.load_state_dict(torch.optim.SGD(other.parameters(), lr=1).state_dict())


def test_groups_and_schedulers() -> None:
    """A learning rate for each group; a scheduler changes it; parameters that are left out stay."""
    x, y = samples(), labels("gaussian")
    model = network()
    parts = list(model.parameters())
    groups = [{"params": parts[:2], "lr": 0.2}, {"params": parts[2:4]}]
    optimizer = NGD(model, groups, lr=1.0, damping=RHO)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    kept = [model[0], model[2]]
    j = dense_jacobian(model, x)[:, :, : -(5 * 2 + 2)]
    e = (model(x) - y).detach().numpy()
    expected = reference.update(j, e, np.einsum("ncp,ncq->pq", j, j) / N, RHO)
    first = sum(p.numel() for p in parts[:2])
    expected[:first] *= 0.2
    before = flat(torch.nn.ModuleList(kept))
    last = flat(model[4])
    optimizer.step(x=x, y=y)
    assert_equal(before - flat(torch.nn.ModuleList(kept)), expected)
    assert np.array_equal(flat(model[4]), last)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


@BOTH
def test_frozen_tied_and_unused_parameters(cls: Any) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(INPUTS, INPUTS)
            self.tied = torch.nn.Linear(INPUTS, INPUTS)
            self.tied.weight = self.first.weight
            self.unused = torch.nn.Linear(3, 3)
            self.frozen = torch.nn.Linear(INPUTS, 2)
            self.frozen.weight.requires_grad_(False)

        def forward(self, x: Any) -> Any:
            return self.frozen(torch.tanh(self.tied(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    model, x, y = Net().double(), samples(), labels("gaussian")
    kept = copy.deepcopy(model.state_dict())
    trained = [p for name, p in model.named_parameters()
               if p.requires_grad and "unused" not in name]  # fmt: skip
    f = model(x)
    rows = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, trained, retain_graph=True)])
        for one in f.reshape(-1)
    ]).reshape(N, 2, -1).numpy()  # fmt: skip
    e = (f - y).detach().numpy()
    expected = reference.update(rows, e, np.einsum("ncp,ncq->pq", rows, rows) / N, RHO)
    before = torch.cat([p.detach().reshape(-1) for p in trained]).numpy()
    cls(model, lr=1.0, damping=RHO).step(x=x, y=y)
    after = torch.cat([p.detach().reshape(-1) for p in trained]).numpy()
    assert_equal(before - after, expected)
    for name in ("unused.weight", "unused.bias", "frozen.weight"):
        assert torch.equal(model.state_dict()[name], kept[name])
    # What is frozen later does not move either.
    model.first.bias.requires_grad_(False)
    bias = model.first.bias.clone()
    cls(model, lr=1.0, damping=RHO).step(x=x, y=y)
    assert torch.equal(model.first.bias, bias)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_batches_of_other_sizes(n: int) -> None:
    """One optimiser, batches of several sizes: each step is that of a new optimiser."""
    model = network()
    optimizer = NGD(model, lr=1.0, damping=RHO)
    optimizer.step(x=samples(), y=labels("gaussian"))
    other = copy.deepcopy(model)
    x, y = samples(n), labels("gaussian", n)
    got = stepped(model, optimizer, x=x, y=y)
    assert_equal(got, stepped(other, NGD(other, lr=1.0, damping=RHO), x=x, y=y), 1e-12)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_momentum_goes_on_with_batches_of_other_sizes(n: int) -> None:
    """SPRING's last step is one of parameters, and none of samples."""
    model, mu = network(), 0.8
    optimizer = SPRING(model, lr=0.3, damping=RHO, momentum=mu)
    phi = np.zeros(len(flat(model)))
    for count in (N, n, N):
        x, y = samples(count), labels("gaussian", count)
        rows = dense_jacobian(model, x).reshape(2 * count, -1)
        e = (model(x).detach() - y).numpy().reshape(-1)
        matrix = rows.T @ rows / count + RHO * np.eye(rows.shape[1])
        phi = np.linalg.solve(matrix, rows.T @ e / count + RHO * mu * phi)
        assert_equal(stepped(model, optimizer, x=x, y=y), 0.3 * phi)


@BOTH
@pytest.mark.parametrize("where", ["x", "y", "weight"])
def test_nan_leaves_no_trace(cls: Any, where: str) -> None:
    """A skipped step, or one that raised, changes neither parameters nor what the next step is."""
    x, y = samples(), labels("gaussian")
    runs = []
    for how in ("none", "skip", "raise"):
        model = network()
        optimizer = cls(model, damping=1e-2, on_nonfinite="skip" if how == "skip" else "raise")
        optimizer.step(x=x, y=y)
        if how != "none":
            before, state = flat(model), copy.deepcopy(optimizer.state_dict())
            bad = {"x": x.clone(), "y": y.clone()}
            weight = model[2].weight.detach().clone()
            if where == "weight":
                with torch.no_grad():
                    model[2].weight[0, 0] = float("nan")
            else:
                bad[where][2, 1] = float("nan")
            if how == "skip":
                assert optimizer.step(**bad) is None
                assert optimizer.skipped == 1
            else:
                with pytest.raises(ff.errors.NonFiniteError, match="finite"):
                    optimizer.step(**bad)
            with torch.no_grad():
                model[2].weight.copy_(weight)
            assert np.array_equal(flat(model), before)
            after = optimizer.state_dict()
            assert after["ngd"]["damping_factor"] == state["ngd"]["damping_factor"]
            for key, kept in state["state"].items():
                assert torch.equal(after["state"][key]["phi"], kept["phi"])
        optimizer.step(x=x * 0.5, y=y)
        runs.append(flat(model))
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2])


def test_non_finite_numbers_raise_or_skip() -> None:
    model, x, y = network(), samples(), labels("gaussian")
    bad = x.clone()
    bad[2, 1] = float("nan")
    before = flat(model)
    with pytest.raises(ff.errors.NonFiniteError, match=r"x: .*index \(2, 1\)"):
        NGD(model).step(x=bad, y=y)
    with pytest.raises(ff.errors.NonFiniteError, match="y: "):
        NGD(model).step(x=x, y=y * float("inf"))
    with pytest.raises(ff.errors.NonFiniteError, match="residuals"):
        NGD(model).step(lambda: model(bad)[:, 0])
    with pytest.raises(ff.errors.NonFiniteError, match="points"):
        NGD(model).step([(lambda f, z: f(z), bad)])
    optimizer = SPRING(model, on_nonfinite="skip")
    assert optimizer.step(x=bad, y=y) is None
    assert optimizer.skipped == 1
    assert np.array_equal(flat(model), before)
    assert float(optimizer.step(x=x, y=y)) > 0


def test_no_samples_move_nothing() -> None:
    model = network()
    before = flat(model)
    assert float(NGD(model).step(x=samples(0), y=labels("gaussian", 0))) == 0
    assert np.array_equal(flat(model), before)


def test_duplicate_samples_without_damping() -> None:
    model, x, y = network(), samples()[[0, 1, 1]], labels("gaussian", 3)
    with pytest.raises(ff.errors.NotPositiveDefiniteError, match="expected damping > 0"):
        NGD(model, damping=0.0).step(x=x, y=y)
    assert float(NGD(model).step(x=x, y=y)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": float("nan")}, "lr: "),
        ({"c": 2.0}, "c: expected a number between 0 and 2"),
        ({"damping": -1.0}, "damping: "),
        ({"damping": 1.0, "relative_damping": 1.0}, "relative_damping: expected None"),
        ({"structure": "ekfac"}, "structure: expected one of"),
        ({"likelihood": "poisson"}, "likelihood: expected one of"),
        ({"solve_dtype": "float16"}, "solve_dtype: expected one of"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: expected one of"),
        ({"centred": True, "structure": "kfac"}, "centred: expected structure"),
        ({"params": []}, "params: expected parameters"),
        ({"params": [torch.zeros(2)]}, "params: expected parameters of the model"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGD(network(), **options)


def test_mistakes_of_a_step() -> None:
    model, x, y = network(), samples(), labels("gaussian")
    optimizer = NGD(model)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        NGD(list(model.parameters()))  # type: ignore[arg-type]
    for given in ({}, {"closure": lambda: model(x), "x": x}):
        with pytest.raises(ValueError, match="closure: expected residuals or samples"):
            optimizer.step(**given)
    with pytest.raises(ValueError, match="y: expected None"):
        optimizer.step(lambda: model(x), y=y)
    with pytest.raises(ValueError, match="y: expected labels for this likelihood"):
        NGD(model, likelihood="categorical").step(x=x)
    with pytest.raises(ValueError, match="y: expected shape"):
        optimizer.step(x=x, y=y[:3])
    with pytest.raises(TypeError, match=r"residual: .* floating dtype"):
        optimizer.step(x=x, residual=y.long())
    with pytest.raises(ValueError, match=r"residuals: .* without a graph"):
        optimizer.step(lambda: model(x).detach())
    with pytest.raises(TypeError, match="residuals: expected a tensor, got float"):
        optimizer.step(lambda: 1.0)
    with pytest.raises(TypeError, match=r"closure: .* pairs \(function, points\)"):
        optimizer.step([x])  # type: ignore[list-item]
    with pytest.raises(ff.errors.CaptureError, match="stochastic"):
        NGD(torch.nn.Sequential(model, torch.nn.Dropout(0.5))).step(x=x, y=y)
