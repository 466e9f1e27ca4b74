# SPDX-License-Identifier: Apache-2.0
"""KFAC and EKFAC: resuming, bad input, scalers; frozen, tied, unused and compiled layers."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

import fastfisher as ff  # noqa: E402
from fastfisher.optim import EKFAC, KFAC, NGD  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

F = nn.functional
BOTH = pytest.mark.parametrize("cls", [KFAC, EKFAC])


def network(seed: int = 0, dtype: Any = torch.float64) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(n: int = 8, seed: int = 1, dtype: Any = torch.float64) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 4, generator=generator).to(dtype),
        torch.randint(3, (n,), generator=generator),
    )


def flat(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def train(model: Any, optimizer: Any, x: Any, y: Any) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def means(optimizer: Any) -> list[Any]:
    """All running means."""
    states = optimizer.curvature.states.values()
    return [x.copy() for s in states for mean in (s.a, s.g, s.moments) for x in mean.sums]


def same(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


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
    # From the start there is none: the plain gradient.
    optimizer = KFAC(model, lr=1.0, momentum=0.0, damping=0.0)
    before = flat(model)
    F.cross_entropy(model(torch.zeros_like(x)), y).backward()
    gradient = model[0].weight.grad.clone()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step()
    assert any("goes on with its gradient" in str(one.message) for one in found)
    after = flat(model)
    assert np.array_equal(before[:20] - after[:20], gradient.reshape(-1).numpy())


@BOTH
def test_batches_of_other_sizes(cls: Any) -> None:
    model = network()
    optimizer = cls(model, lr=0.01)
    for n in (8, 1, 3, 50):
        train(model, optimizer, *batch(n))
    assert np.isfinite(flat(model)).all()
    assert optimizer.steps == 4


@BOTH
def test_frozen_and_unused_parameters(cls: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.middle = nn.Linear(4, 6), nn.Linear(6, 6)
            self.unused, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
            self.frozen.requires_grad_(False)
            self.middle.bias.requires_grad_(False)

        def forward(self, x: Any) -> Any:
            return self.last(torch.tanh(self.middle(torch.tanh(self.frozen(x)))))

    torch.manual_seed(0)
    model, (x, y) = Net().double(), batch()
    kept = copy.deepcopy(model.state_dict())
    optimizer = cls(model, lr=0.1, kl_clip=None)
    fisher = ff.fisher(
        model, x, y, likelihood="categorical", kind="empirical",
        structure="kfac" if cls is KFAC else "ekfac", params=["middle", "last"],
    )  # fmt: skip
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    trained = [model.middle.weight, *model.last.parameters()]
    gradient = torch.cat([p.grad.reshape(-1) for p in trained])
    split = {"split": "pi"} if cls is KFAC else {}
    expected = 0.1 * fisher.solve(gradient, damping=1e-3, **split).numpy()
    before = torch.cat([p.detach().reshape(-1) for p in trained]).clone()
    optimizer.step()
    got = (before - torch.cat([p.detach().reshape(-1) for p in trained])).numpy()
    assert np.abs(got - expected).max() <= 1e-8 * np.abs(expected).max()
    for name in ("frozen.weight", "frozen.bias", "middle.bias", "unused.weight", "unused.bias"):
        assert torch.equal(model.state_dict()[name], kept[name])
    # A layer that is frozen from now on stays where it is.
    model.middle.requires_grad_(False)
    weight = model.middle.weight.clone()
    train(model, optimizer, x, y)
    assert torch.equal(model.middle.weight, weight)


def test_tied_weights() -> None:
    """Of an embedding and a linear layer: no factors, said so; of two linear layers: in the sum."""

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight
            self.middle = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.head(torch.tanh(self.middle(self.table(x))))

    torch.manual_seed(0)
    model = Language().double()
    optimizer = KFAC(model, lr=0.1, batch_axes=2, kl_clip=None)
    assert optimizer.treated == {
        "table.weight": "gradient: modules of several kinds share the weight",
        "middle.weight": "factors", "middle.bias": "factors",
    }  # fmt: skip
    x = torch.randint(7, (5, 3))
    before = model.table.weight.detach().clone()
    loss = F.cross_entropy(model(x).reshape(-1, 7), x.reshape(-1))
    loss.backward()
    gradient = model.table.weight.grad.clone()
    optimizer.step()
    assert torch.allclose(before - 0.1 * gradient, model.table.weight)
    # Linear layers with one weight and different biases.
    pair = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pair[1].weight = pair[0].weight
    assert KFAC(pair).treated == {
        "0.weight": "gradient: modules that share the weight have other biases",
        "0.bias": "gradient: no weight of a linear, convolution or embedding layer",
        "1.bias": "gradient: no weight of a linear, convolution or embedding layer",
    }


def test_a_missing_factor_raises() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return F.linear(x, self.layer.weight, self.layer.bias)

    model, (x, y) = Around().double(), batch()
    with pytest.raises(ValueError, match=r"layer 'layer': .* exclude=\['layer'\]"):
        train(model, KFAC(model), x, y)
    before = flat(model)
    train(model, KFAC(model, exclude=["layer"], momentum=0.0), x, y)
    assert (flat(model) != before).any()
    with pytest.raises(ValueError, match="exclude: 'nothing' is neither"):
        KFAC(model, exclude=["nothing"])


def test_a_layer_that_some_batches_leave_out_keeps_its_factors() -> None:
    class Maybe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.maybe, self.use = nn.Linear(4, 3), nn.Linear(3, 3), True

        def forward(self, x: Any) -> Any:
            h = self.always(x)
            return self.maybe(h) if self.use else h

    model, (x, y) = Maybe().double(), batch()
    optimizer = KFAC(model, momentum=0.0)
    train(model, optimizer, x, y)
    state = next(s for site, s in optimizer.curvature.states.items() if site.name == "maybe")
    kept, weight = state.a.values()[0].copy(), model.maybe.weight.detach().clone()
    model.use = False
    train(model, optimizer, x, y)
    assert np.array_equal(state.a.values()[0], kept)
    assert torch.equal(model.maybe.weight, weight)


def test_other_runs_of_the_model_do_not_count() -> None:
    """Evaluation, tangent kernels and Fisher matrices between forward and step."""
    for kind in ("empirical", "mc"):
        likelihood = None if kind == "empirical" else "categorical"
        results = []
        for noise in (False, True):
            model, (x, y) = network(), batch()
            optimizer = KFAC(model, kind=kind, likelihood=likelihood)
            for _ in range(2):
                optimizer.zero_grad()
                if noise:
                    NGD(model, lr=0.0).step(x=2 * x, residual=torch.ones(8, 3).double())
                loss = F.cross_entropy(model(x), y)
                if noise:
                    with torch.no_grad():
                        model(5 * x)
                    ff.ntk(model, 3 * x, outputs="trace")
                    ff.fisher(model, 3 * x, structure="kfac").trace()
                loss.backward()
                if noise:
                    ff.jacobian(model, x)
                optimizer.step()
            results.append(flat(model))
        assert np.array_equal(*results)


def test_copies_and_files_of_the_model_have_no_hooks_that_count() -> None:
    model, (x, y) = network(), batch()
    optimizer = KFAC(model)
    twin = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    for other in (twin, loaded):
        F.cross_entropy(other(x), y).backward()
    assert not optimizer.curvature.collector.passes
    train(model, optimizer, x, y)
    # An optimiser that is gone leaves the model as it was.
    handles = optimizer.curvature.collector.handles
    assert handles
    del optimizer
    import gc

    gc.collect()
    assert not any(module._forward_hooks for module in model.modules())
    other = KFAC(model)
    other.remove_hooks()
    assert not any(module._forward_hooks for module in model.modules())


def test_checkpointed_layers() -> None:
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, saving: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
            self.saving = saving

        def forward(self, x: Any) -> Any:
            def body(z: Any) -> Any:
                return torch.tanh(self.first(z))

            h = checkpoint(body, x, use_reentrant=False) if self.saving else body(x)
            return self.last(h)

    for kind in ("empirical", "mc"):
        results = []
        for saving in (False, True):
            model, (x, y) = Net(saving).double(), batch()
            likelihood = None if kind == "empirical" else "categorical"
            optimizer = KFAC(model, kind=kind, likelihood=likelihood)
            train(model, optimizer, x, y)
            results.append(flat(model))
        assert np.allclose(*results, rtol=1e-12, atol=0)


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
        assert state.a.sums[0].dtype == np.float32


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
    assert next(iter(optimizer.curvature.states.values())).a.sums[0].shape == (4, 4)
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
