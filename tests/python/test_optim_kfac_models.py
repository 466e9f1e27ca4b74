# SPDX-License-Identifier: Apache-2.0
"""KFAC and EKFAC: batches of other sizes, frozen, tied and unused layers, other runs, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

import fastfisher as ff  # noqa: E402
from fastfisher.optim import KFAC, NGD  # noqa: E402
from optim_cases import BOTH, F, batch, flat, network, train  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


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


@BOTH
def test_tied_weights(cls: Any) -> None:
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
    optimizer = cls(model, lr=0.1, batch_axes=2, kl_clip=None)
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
    assert cls(pair).treated == {
        "0.weight": "gradient: modules that share the weight have other biases",
        "0.bias": "gradient: no weight of a linear, convolution or embedding layer",
        "1.bias": "gradient: no weight of a linear, convolution or embedding layer",
    }


@BOTH
def test_a_missing_factor_raises(cls: Any) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return F.linear(x, self.layer.weight, self.layer.bias)

    model, (x, y) = Around().double(), batch()
    with pytest.raises(ValueError, match=r"layer 'layer': .* exclude=\['layer'\]"):
        train(model, cls(model), x, y)
    before = flat(model)
    train(model, cls(model, exclude=["layer"], momentum=0.0), x, y)
    assert (flat(model) != before).any()
    with pytest.raises(ValueError, match="exclude: 'nothing' is neither"):
        cls(model, exclude=["nothing"])


@BOTH
def test_a_layer_that_some_batches_leave_out_keeps_its_factors(cls: Any) -> None:
    class Maybe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.maybe, self.use = nn.Linear(4, 3), nn.Linear(3, 3), True

        def forward(self, x: Any) -> Any:
            h = self.always(x)
            return self.maybe(h) if self.use else h

    model, (x, y) = Maybe().double(), batch()
    optimizer = cls(model, momentum=0.0)
    train(model, optimizer, x, y)
    state = next(s for site, s in optimizer.curvature.states.items() if site.name == "maybe")
    kept, weight = state.a.arrays[0].copy(), model.maybe.weight.detach().clone()
    model.use = False
    train(model, optimizer, x, y)
    assert np.array_equal(state.a.arrays[0], kept)
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
