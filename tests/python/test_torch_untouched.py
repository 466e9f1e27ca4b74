# SPDX-License-Identifier: Apache-2.0
"""A call leaves the model, its inputs and torch as found, whatever happens in between."""

from __future__ import annotations

import builtins
import gc
import weakref
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

import fastfisher as ff  # noqa: E402
import torch_oracle as oracle  # noqa: E402
from torch_cases import BY_ID, REFUSED, N  # noqa: E402
from torch_state import Snapshot  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
# Models whose forward pass writes into their own parameters or into its input.
WRITING = {"embedding-renormalised", "in-place-on-the-input"}
SOME = [
    "mlp",
    "tied-weights",
    "frozen-first-layer",
    "unused-parameters",
    "in-place-relu",
    "dropout-never-called",
    "dropout-in-evaluation",
    "cnn",
    "channels-last",
    "batch-norm2d-eval",
    "instance-norm2d-tracking",
    "weight-norm",
    "spectral-norm-eval",
    "embedding-padding",
    "embedding-renormalised",
    "gru-two-layers-bidirectional",
    "lstm",
    "attention",
    "transformer-layer",
    "transformer-layer-eval",
    "checkpoint",
    "scripted-called-three-times",
    "compiled-eager",
    "custom-function",
    "autocast",
    "in-place-on-the-input",
    "function",
    "flat-parameters",
]
FUNCTIONS = [ff.ntk, ff.jacobian]


class Failure(Exception):
    """What a broken model raises."""


def errors_of(case) -> tuple[type[BaseException], ...]:
    return tuple(getattr(ff.errors, name, getattr(builtins, name, None)) for name in case.error)


def prepared(case, dtype):
    return case.build(dtype), case.samples(N, dtype=dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("id", SOME)
def test_model_is_left_as_found(id, function):
    case = BY_ID[id]
    model, x = prepared(case, case.dtypes[0])
    versions = id not in WRITING
    before = Snapshot(model, x, versions=versions)

    with case.around():
        try:
            function(model, x)
        except ff.errors.CaptureError:
            assert case.kind == "either"

    before.check()


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused_model_is_left_as_found(case):
    model, x = prepared(case, case.dtypes[0])
    before = Snapshot(model, x, versions=case.id != "lazy")

    with pytest.raises(errors_of(case)):
        ff.ntk(model, x)

    before.check()


class Breaking(nn.Module):
    """Raises in its forward pass after `calls` good ones; counts nothing on itself."""

    def __init__(self, calls: int, where: list[int]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 3))
        self.calls, self.where = calls, where

    def forward(self, x):
        y = self.body(x)
        self.where.append(1)
        if len(self.where) > self.calls:
            raise Failure("the model broke")
        return y


@pytest.mark.parametrize("calls", [0, 1])
def test_model_that_raises(calls):
    model, x = Breaking(calls, []), torch.randn(N, 5)
    before = Snapshot(model, x)

    try:
        ff.ntk(model, x)
    except Failure:
        pass  # the model's own exception, unchanged
    else:
        assert calls > 0, "the model was never run"

    before.check()


def test_select_that_raises():
    def select(y):
        raise Failure

    model, x = prepared(BY_ID["cnn"], "float64")
    before = Snapshot(model, x)

    with pytest.raises(Failure):
        ff.ntk(model, x, select=select)

    before.check()


class BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise Failure("the backward pass broke")


def test_backward_pass_that_raises():
    class Model(nn.Sequential):
        def forward(self, x):
            return self[1](BrokenBackward.apply(self[0](x)))

    model, x = Model(nn.Linear(5, 4), nn.Linear(4, 3)), torch.randn(N, 5)
    before = Snapshot(model, x)

    with pytest.raises((Failure, ff.errors.CaptureError)):
        ff.ntk(model, x)

    before.check()


def test_bad_arguments_leave_the_model():
    model, x = prepared(BY_ID["mlp"], "float64")
    before = Snapshot(model, x)

    for options in ({"outputs": "half"}, {"outputs": 7}, {"layers": "all"}, {"precision": "low"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ff.ntk(model, x, **options)
        before.check()


# Contexts of the caller -------------------------------------------------------------------------

CONTEXTS = {
    "no-grad": torch.no_grad,
    "inference-mode": torch.inference_mode,
    "deterministic": lambda: _switched(torch.use_deterministic_algorithms, True, False),
    "default-dtype": lambda: _switched(torch.set_default_dtype, torch.float64, torch.float32),
    "no-mkldnn": lambda: _switched(torch._C._set_mkldnn_enabled, False, True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast-off": lambda: torch.autocast("cpu", enabled=False),
}


class _switched(nullcontext):
    def __init__(self, switch, inside, outside) -> None:
        super().__init__()
        self.switch, self.inside, self.outside = switch, inside, outside

    def __enter__(self):
        self.switch(self.inside)

    def __exit__(self, *exc):
        self.switch(self.outside)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("id", ["mlp", "cnn", "gru", "attention", "function"])
def test_result_and_settings_under_the_context_of_the_caller(id, context):
    model, x = prepared(BY_ID[id], "float64")
    expected = oracle.gram(oracle.jacobian(model, x))

    with CONTEXTS[context]():
        before = Snapshot(model, x)
        got = ff.ntk(model, x)
        before.check()

    assert (got - expected).norm() <= 1e-10 * expected.norm()
    assert not got.requires_grad


def test_inputs_made_in_inference_mode():
    model = BY_ID["mlp"].build()
    with torch.inference_mode():
        x = BY_ID["mlp"].samples(N)
        inside = ff.ntk(model, x)
    outside = ff.ntk(model, x)

    expected = oracle.gram(oracle.jacobian(model, x.clone()))
    for got in (inside, outside):
        assert (got - expected).norm() <= 1e-10 * expected.norm()


def test_inputs_that_require_grad():
    model, x = prepared(BY_ID["mlp"], "float64")
    expected = oracle.gram(oracle.jacobian(model, x))
    x.requires_grad_()
    before = Snapshot(model, x)

    got = ff.ntk(model, x)

    before.check()
    assert x.grad is None
    assert not got.requires_grad
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def test_inputs_with_a_graph_behind_them():
    model, x = prepared(BY_ID["mlp"], "float64")
    expected = oracle.gram(oracle.jacobian(model, x))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    got = ff.ntk(model, x * scale)

    assert scale.grad is None
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def test_gradients_and_hooks_of_the_user_stay():
    model, x = prepared(BY_ID["mlp"], "float64")
    calls = []
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    model[2].register_full_backward_hook(lambda *args: calls.append(1))
    model[0].weight.register_hook(lambda g: calls.append(2))
    model(x).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    calls.clear()
    before = Snapshot(model, x)

    got = ff.ntk(model, x)

    before.check()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, gradients[name])
    bare = BY_ID["mlp"].build()
    bare[0].register_forward_hook(lambda module, args, output: 2 * output)
    expected = oracle.gram(oracle.jacobian(bare, x))  # a hook that changes outputs is model, too
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def test_training_goes_on_as_if_nothing_had_been():
    def losses(between):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)).double()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(16, 5, dtype=torch.float64)
        values = []
        for _ in range(4):
            optimiser.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            between(model, x)
            optimiser.step()
            values.append(loss.item())
        return values

    def kernel(model, x):
        with pytest.raises(ff.errors.CaptureError):
            ff.ntk(model, x)  # refused: active dropout
        model.eval()
        ff.ntk(model, x)
        model.train()

    assert losses(kernel) == losses(lambda model, x: None)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_keeps_the_model_alive(function):
    model, x = prepared(BY_ID["cnn"], "float64")
    gone = weakref.ref(model)

    result = function(model, x)
    del model
    gc.collect()

    assert gone() is None
    del result


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_plain_tensors(dtype):
    model, x = prepared(BY_ID["cnn"], dtype)
    kernel, jacobian = ff.ntk(model, x), ff.jacobian(model, x)
    v = torch.ones(jacobian.shape[1], dtype=x.dtype)
    results = [
        kernel,
        jacobian.dense(),
        jacobian @ v,
        jacobian.gram(),
        *jacobian.unflatten(v).values(),
    ]

    for result in results:
        assert type(result) is torch.Tensor
        assert result.dtype == x.dtype
        assert result.device == x.device
        assert not result.requires_grad
    assert kernel.is_contiguous()
    assert torch.equal(kernel.reshape(12, 12), kernel.reshape(12, 12).T)
