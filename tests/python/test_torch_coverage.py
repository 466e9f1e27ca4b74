# SPDX-License-Identifier: Apache-2.0
"""`ff.ntk` and `ff.jacobian` of every torch model of the table, against the oracle.

Tolerances. float64: 1e-10, norm-wise. float32: the sum over the P parameters may lose
sqrt(P) eps as in every test; before it, the model's own forward and backward passes round in
float32, by an amount that depends on the model (depth, normalisations, exponentials) and not on
how its Gram is computed. The oracle in float32 measures that part: its distance from the oracle in
float64 is allowed four times, for batched kernels round in another order than single samples do.
bfloat16, of the model or under autocast: four eps of bfloat16 more, for every factor is rounded.
"""

from __future__ import annotations

import builtins
import re
import sys
from functools import cache

import pytest

torch = pytest.importorskip("torch")

import fastfisher as ff  # noqa: E402
import torch_oracle as oracle  # noqa: E402 - after the skip
from torch_cases import BY_ID, REFUSED, WORKS, M, N  # noqa: E402

# What torch says about these models to whoever runs them.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
SINGLE = [case for case in WORKS if "float32" in case.dtypes]
DOUBLE = [case for case in WORKS if "float64" in case.dtypes]


@cache
def truth(id: str, dtype: str = "float64") -> tuple[torch.Tensor, torch.Tensor]:
    """Dense Jacobians (N, C, P) and (M, C, P) of the two sets of samples."""
    case = BY_ID[id]

    def dense(n, seed):
        with case.around():
            model = case.build(dtype, wrapped=False)
            x = case.samples(n, seed=seed, dtype=dtype)
            return oracle.jacobian(model, x, case.select)

    return dense(N, 0), dense(M, 1)


def errors_of(case) -> tuple[type[BaseException], ...]:
    return tuple(getattr(ff.errors, name, getattr(builtins, name, None)) for name in case.error)


class Subject:
    """The model of a case with its two sets of samples, as the user calls it."""

    def __init__(self, case, dtype: str) -> None:
        self.case, self.dtype = case, dtype
        self.model = case.build(dtype)
        self.x = case.samples(N, dtype=dtype)
        self.x2 = case.samples(M, seed=1, dtype=dtype)

    def __call__(self, function, *arrays, **options):
        """Call `function`; None where a case of kind "either" is refused as it says."""
        if self.case.select is not None:
            options["select"] = self.case.select
        try:
            with self.case.around():
                return function(self.model, *arrays, **options)
        except errors_of(self.case) as error:
            if self.case.kind != "either" or not re.search(self.case.match, str(error)):
                raise
            return None

    def check(self, *, outputs="full", cross=False) -> None:
        got = self(ff.ntk, self.x, *([self.x2] if cross else []), outputs=outputs)
        if got is None:
            return
        assert isinstance(got, torch.Tensor)
        assert not got.requires_grad
        assert got.device == self.x.device
        if self.case.rounding is None and self.case.id != "mixed-dtypes":
            assert got.dtype == getattr(torch, self.dtype)
        self.compare(got, lambda j, j2: oracle.gram(j, j2 if cross else j, outputs))

    def compare(self, got, form) -> None:
        """`form` gives the quantity of dense Jacobians (N, C, P) and (M, C, P)."""
        expected = form(*truth(self.case.id))
        assert tuple(got.shape) == tuple(expected.shape)
        error = (got.double() - expected).norm()
        bound = 1e-10 * expected.norm()
        if self.dtype != "float64":
            p = truth(self.case.id)[0].shape[-1]
            eps = torch.finfo(getattr(torch, self.dtype)).eps * max(4.0, p**0.5)
            if self.case.rounding is not None:
                eps += 4 * torch.finfo(getattr(torch, self.case.rounding)).eps
            own = (form(*truth(self.case.id, self.dtype)) - expected).norm()
            bound = eps * expected.norm() + 4 * own
        assert error <= bound, f"error {error:.3e} above {bound:.3e}"


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_float64_equals_the_dense_jacobian(case):
    subject = Subject(case, "float64")
    subject.check()
    subject.check(cross=True)
    subject.check(outputs="trace")


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_float64_by_our_own_products_equals_the_dense_jacobian(case, own_products):
    subject = Subject(case, "float64")
    subject.check()
    subject.check(outputs="trace", cross=True)


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_float32_equals_the_dense_jacobian(case):
    subject = Subject(case, "float32")
    subject.check()
    subject.check(outputs="diagonal", cross=True)


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_jacobian_is_the_dense_one(case):
    subject = Subject(case, "float64")
    jacobian = subject(ff.jacobian, subject.x)
    if jacobian is None:
        return
    rows, p = N * truth(case.id)[0].shape[1], truth(case.id)[0].shape[-1]
    draw = torch.Generator().manual_seed(5)
    v = torch.randn(p, 2, generator=draw, dtype=torch.float64)
    u = torch.randn(rows, generator=draw, dtype=torch.float64)

    assert jacobian.shape == (rows, p)
    subject.compare(jacobian.dense(), lambda j, _: j.reshape(rows, p))
    subject.compare(jacobian @ v, lambda j, _: j.reshape(rows, p) @ v)
    subject.compare(jacobian @ v[:, 0], lambda j, _: j.reshape(rows, p) @ v[:, 0])
    subject.compare(jacobian.T @ u, lambda j, _: j.reshape(rows, p).T @ u)
    subject.compare(jacobian.gram(), lambda j, _: oracle.gram(j))
    expected = oracle.parameters_of(case.build(wrapped=False))
    named = jacobian.unflatten(v[:, 0])
    prefix = "_orig_mod."  # torch.compile puts it before every name
    assert [name.removeprefix(prefix) for name in named] == list(expected)
    assert [named[name].shape for name in named] == [q.shape for q in expected.values()]
    torch.testing.assert_close(jacobian.flatten(named), v[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_one_sample(case):
    subject = Subject(case, "float64")
    got = subject(ff.ntk, subject.x[:1], subject.x2[:1])
    if got is not None:
        subject.compare(got, lambda j, j2: oracle.gram(j[:1], j2[:1]))


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "sum", 0, 2, -1])
@pytest.mark.parametrize("id", ["mlp", "conv2d", "attention", "function", "tied-weights"])
def test_other_forms(id, outputs):
    subject = Subject(BY_ID[id], "float64")
    subject.check(outputs=outputs)
    subject.check(outputs=outputs, cross=True)


@pytest.mark.parametrize(
    "id", ["mlp", "tied-weights", "cnn", "transformer-layer", "hypernetwork", "unused-parameters"]
)
def test_layers_sum_to_the_whole(id):
    subject = Subject(BY_ID[id], "float64")
    each = subject(ff.ntk, subject.x, subject.x2, layers="each")
    assert all(isinstance(name, str) for name in each)
    subject.compare(sum(each.values()), oracle.gram)


@pytest.mark.parametrize("id", ["linear", "conv2d", "layer-norm", "attention", "embedding"])
def test_bfloat16_model(id):
    """Against float64 from the rounded parameters; the bound is bfloat16's."""
    case = BY_ID[id]
    model, x = case.build("float32").bfloat16(), case.samples(N, dtype="float32")
    x = x.bfloat16() if x.is_floating_point() else x
    wide = x.double() if x.is_floating_point() else x
    expected = oracle.gram(oracle.jacobian(case.build("float32").bfloat16().double(), wide))
    own = (oracle.gram(oracle.jacobian(model, x)) - expected).norm()

    got = ff.ntk(model, x)

    eps = torch.finfo(torch.bfloat16).eps
    error = (got.double() - expected).norm()
    assert error <= 4 * eps * expected.norm() + 4 * own
    assert got.is_floating_point()


@pytest.mark.parametrize("function", [ff.ntk, ff.jacobian])
@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case, function):
    subject = Subject(case, case.dtypes[0])
    with pytest.raises(errors_of(case)) as caught:
        subject(function, subject.x)
    assert re.search(case.match, str(caught.value)), caught.value


def test_no_samples():
    subject = Subject(BY_ID["mlp"], "float64")

    kernel = ff.ntk(subject.model, subject.x[:0], subject.x2)

    assert tuple(kernel.shape) == (0, 3, M, 3)
