# SPDX-License-Identifier: Apache-2.0
"""KFAC and EKFAC: resuming bit for bit; NaN and bad factors never enter the means."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

import fastfisher as ff  # noqa: E402
from fastfisher.optim import EKFAC, KFAC  # noqa: E402
from optim_cases import BOTH, F, batch, flat, means, network, same, train  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@BOTH
@pytest.mark.parametrize("kind", ["empirical", "mc", "exact"])
def test_resume_is_bit_for_bit(cls: Any, kind: str) -> None:
    options: dict[str, Any] = {
        "kind": kind, "likelihood": None if kind == "empirical" else "categorical",
        "factor_every": 2, "inverse_every": 3, "others": "diagonal", "weight_decay": 0.01,
        "kl_clip": 1e-2,
    }  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        model = network(dtype=dtype)
        optimizer = cls(model, **options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for k in range(5):
            train(model, optimizer, *batch(seed=k, dtype=dtype))
            schedule.step()
        file = io.BytesIO()
        torch.save(
            {"m": model.state_dict(), "o": optimizer.state_dict(), "s": schedule.state_dict()}, file
        )
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = network(7, dtype)
        again = cls(other, **options)
        later = torch.optim.lr_scheduler.ExponentialLR(again, 0.9)
        other.load_state_dict(saved["m"])
        again.load_state_dict(saved["o"])
        later.load_state_dict(saved["s"])
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for k in range(5, 12):
            train(model, optimizer, *batch(seed=k, dtype=dtype))
            train(other, again, *batch(seed=k, dtype=dtype))
        assert np.array_equal(flat(model), flat(other))
        assert same(means(optimizer), means(again))


def test_states_that_do_not_fit() -> None:
    model = network()
    optimizer = KFAC(model)
    train(model, optimizer, *batch())
    with pytest.raises(ValueError, match="state_dict: expected one of EKFAC, got one of KFAC"):
        EKFAC(model).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"state_dict: .* none of its state"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=1.0).state_dict())
    with pytest.raises(ValueError, match=r"state_dict: factors of '0\.weight'"):
        KFAC(model, exclude=["0"]).load_state_dict(optimizer.state_dict())


@BOTH
@pytest.mark.parametrize("kind", ["empirical", "mc"])
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_nan_never_enters_the_means(cls: Any, kind: str, where: str) -> None:
    likelihood = None if kind == "empirical" else "categorical"
    for accumulated in (False, True):
        model, (x, y) = network(), batch()
        bad = x.clone()
        bad[3, 1] = float("nan")
        optimizer = cls(model, kind=kind, likelihood=likelihood, on_nonfinite="skip")
        train(model, optimizer, x, y)
        before, kept = flat(model), means(optimizer)
        optimizer.zero_grad()
        if accumulated:
            F.cross_entropy(model(x), y).backward()
        F.cross_entropy(model(bad if where == "input" else x), y).backward()
        if accumulated:
            F.cross_entropy(model(x), y).backward()
        if where == "gradient":
            model[0].weight.grad[0, 0] = float("inf")
        optimizer.step()
        assert optimizer.skipped == 1
        assert np.array_equal(flat(model), before)
        assert same(means(optimizer), kept)
        # And nothing of it is left for the next step.
        other, reference = network(), cls(network(), kind=kind, likelihood=likelihood)
        reference = cls(other, kind=kind, likelihood=likelihood, on_nonfinite="skip")
        train(other, reference, x, y)
        if kind == "mc":  # as many draws
            reference.curvature.collector.estimates = optimizer.curvature.collector.estimates
        train(model, optimizer, x, y)
        train(other, reference, x, y)
        assert np.array_equal(flat(model), flat(other))
        strict = cls(model, kind=kind, likelihood=likelihood)
        before = flat(model)
        strict.zero_grad()
        F.cross_entropy(model(bad), y).backward()
        with pytest.raises(ff.errors.NonFiniteError, match="expected finite numbers"):
            strict.step()
        assert np.array_equal(flat(model), before)
        assert not strict.curvature.states
        train(model, strict, x, y)
        assert np.isfinite(flat(model)).all()


def test_factors_beyond_float32_do_not_enter_the_means() -> None:
    """Inputs so large that their squares overflow: they are finite, their factor is not."""
    model, (x, y) = nn.Linear(4, 3), batch(dtype=torch.float32)
    optimizer = KFAC(model, on_nonfinite="skip", momentum=0.0)
    train(model, optimizer, x, y)
    kept = means(optimizer)
    before = flat(model)
    train(model, optimizer, x * 1e25, y)
    assert optimizer.skipped == 1
    assert same(means(optimizer), kept)
    assert np.array_equal(flat(model), before)
    with pytest.raises(ff.errors.NonFiniteError, match="infinity in its activation factor"):
        train(model, KFAC(model), x * 1e25, y)


def test_nan_and_preconditioning() -> None:
    model, (x, y) = network(), batch()
    kfac = KFAC(model, on_nonfinite="skip")
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = flat(model)
    F.cross_entropy(model(x * float("nan")), y).backward()
    kfac.precondition()
    sgd.step()
    assert np.array_equal(flat(model), before)
    assert kfac.skipped == 1


def test_a_bad_factor_falls_back_and_is_reported() -> None:
    """Without damping a layer whose units died has no inverse: it keeps the one it had."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    (x, y) = batch(40)
    optimizer = KFAC(
        model, lr=0.0, momentum=0.0, damping=0.0, ema_decay=0.0, kind="exact",
        likelihood="bernoulli",
    )  # fmt: skip
    labels = F.one_hot(y, 3).double()

    def run(inputs: Any) -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(inputs), labels).backward()
        optimizer.step()

    run(x)
    assert not optimizer.faults
    good = [a.clone() for state in optimizer.curvature.states.values() for a in state.inverses[0]]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(torch.zeros_like(x))
    texts = [str(one.message) for one in found]
    assert any(t.startswith("layer '0', factor A, step 1: not positive definite") for t in texts)
    assert all(t.endswith("goes on with its last inverse") for t in texts)
    faults = [(f.layer, f.factor, f.step, f.fallback) for f in optimizer.faults]
    assert ("0", "A", 1, "last inverse") in faults
    kept = [a for state in optimizer.curvature.states.values() for a in state.inverses[0]]
    assert torch.equal(kept[0], good[0])


@pytest.mark.parametrize("others", ["gradient", "diagonal"])
def test_a_layer_without_any_inverse_goes_on_with_its_gradient(others: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    (x, y) = batch(40)
    optimizer = KFAC(model, lr=1.0, momentum=0.0, damping=0.0, others=others, kl_clip=None)
    before = flat(model)
    F.cross_entropy(model(torch.zeros_like(x)), y).backward()
    gradient = model[0].weight.grad.clone()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step()
    assert any("goes on with its gradient" in str(one.message) for one in found)
    after = flat(model)
    assert np.array_equal(before[:20] - after[:20], gradient.reshape(-1).numpy())


@pytest.mark.parametrize("inverse_every", [1, 10])
def test_state_of_a_processor_with_other_kernels(inverse_every: int) -> None:
    """Cholesky factors have the form of the kernels; another form is left out and made anew."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 5), torch.randint(3, (32,))
    runs = []
    for foreign in (False, True):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        kfac = ff.optim.KFAC(model, lr=0.1, damping=1e-2, inverse_every=inverse_every)
        for step in range(3):
            if step == 2:
                saved = kfac.state_dict()
                for site in saved["kfac"]["sites"].values():
                    assert bool(site["form"]) == (inverse_every == 1)
                    if foreign and site["form"]:
                        site["form"] = "of another processor"
                kfac.load_state_dict(saved)
                ready = [state.ready for state in kfac.curvature.states.values()]
                assert all(ready) or (foreign and inverse_every == 1 and not any(ready))
            kfac.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            kfac.step()
        assert all(state.ready for state in kfac.curvature.states.values())
        runs.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("inverse_every", [1, 3])
@pytest.mark.parametrize("way", ["converted", "loaded"])
def test_training_goes_on_in_another_dtype(cls: Any, inverse_every: int, way: str) -> None:
    options = {"lr": 0.05, "inverse_every": inverse_every, "factor_every": inverse_every}
    model = network(dtype=torch.float32)
    optimizer = cls(model, **options)
    for k in range(2):
        train(model, optimizer, *batch(seed=k, dtype=torch.float32))
    wide = network(dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    if way == "converted":
        model.double()
    else:
        model, state = wide, optimizer.state_dict()
        optimizer = cls(model, **options)
        optimizer.load_state_dict(state)
    exact = network(dtype=torch.float64)
    reference = cls(exact, **options)
    for k in range(2):
        train(exact, reference, *batch(seed=k, dtype=torch.float64))
    for k in range(2, 5):
        train(model, optimizer, *batch(seed=k))
        train(exact, reference, *batch(seed=k))
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert {x.dtype for x in means(optimizer)} == {np.dtype(np.float64)}
    assert np.abs(flat(model) - flat(exact)).max() < 1e-4


@BOTH
def test_factors_of_other_sizes_are_refused(cls: Any) -> None:
    model = network()
    optimizer = cls(model)
    train(model, optimizer, *batch())
    wider = nn.Sequential(nn.Linear(4, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 3)).double()
    with pytest.raises(ValueError, match=r"state_dict: expected factors of 5 inputs and 9 outputs"):
        cls(wider).load_state_dict(optimizer.state_dict())


@BOTH
@pytest.mark.parametrize("kind", ["empirical", "mc", "exact"])
@pytest.mark.parametrize(("before", "decay"), [(0, 0.0), (2, 0.0), (0, 0.01)])
def test_batches_without_samples_change_nothing(
    cls: Any, kind: str, before: int, decay: float
) -> None:
    model = network()
    likelihood = None if kind == "empirical" else "categorical"
    options = {"momentum": 0.0, "weight_decay": decay, "decoupled": False}
    optimizer = cls(model, kind=kind, likelihood=likelihood, **options)
    for k in range(before):
        train(model, optimizer, *batch(seed=k))
    weights, known = flat(model), means(optimizer)
    optimizer.zero_grad()
    x, y = batch(0)
    F.cross_entropy(model(x), y, reduction="sum").backward()
    optimizer.step()
    assert np.allclose(flat(model), weights * (1 - 0.1 * decay), rtol=1e-12, atol=0)
    assert len(means(optimizer)) == len(known)
    for now, was in zip(means(optimizer), known, strict=True):
        assert np.allclose(now, was, rtol=1e-10), "moments turn to the same basis once more"
    train(model, optimizer, *batch())
    assert not np.array_equal(flat(model), weights)


def test_mistakes_in_the_options() -> None:
    model = network()
    for options, message in (
        ({"select": 3}, "select: expected a function"),
        ({"grad_scaler": 3}, "grad_scaler: expected a GradScaler"),
        ({"params": 3.0}, "params: expected parameters or groups"),
    ):
        with pytest.raises(TypeError, match=message):
            KFAC(model, **options)
    with pytest.raises(ValueError, match="seed: expected an integer of at least 0"):
        KFAC(model, seed=-1)
    with pytest.raises(TypeError, match="select: expected a function"):
        ff.optim.NGD(model, select=3)
    with pytest.raises(ValueError, match="memory_limit: expected bytes"):
        ff.optim.NGD(model, memory_limit="a")
    many = nn.Sequential(*[nn.Linear(2, 2) for _ in range(11)])
    left = [name for name, how in KFAC(many, exclude="10").treated.items() if "excluded" in how]
    assert left == ["10.weight"], "one name, not its letters"
