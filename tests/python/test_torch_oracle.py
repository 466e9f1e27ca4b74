# SPDX-License-Identifier: Apache-2.0
"""The oracle itself, against torch.func and by hand; the table of cases is whole."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.func import functional_call, jacrev  # noqa: E402 - after the skip

import torch_oracle as oracle  # noqa: E402
from fastfisher.capture import verify  # noqa: E402
from torch_cases import BY_ID, CASES, WORKS, N  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_by_hand():
    model = torch.nn.Linear(2, 2)
    x = torch.tensor([[2.0, 3.0]])

    j = oracle.jacobian(model, x)

    rows = [[2.0, 3.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 2.0, 3.0, 0.0, 1.0]]
    torch.testing.assert_close(j, torch.tensor([rows], dtype=torch.float64))
    assert oracle.gram(j).tolist() == [[[[14.0, 0.0]], [[0.0, 14.0]]]]


def test_forms_by_hand():
    j = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    j2 = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [2.0, 0.0]]])

    assert oracle.gram(j, j2).tolist() == [[[[1.0, 2.0], [3.0, 2.0]], [[3.0, 4.0], [7.0, 6.0]]]]
    assert oracle.gram(j, j2, "diagonal").tolist() == [[[1.0, 4.0], [3.0, 6.0]]]
    assert oracle.gram(j, j2, "trace").tolist() == [[5.0, 9.0]]
    assert oracle.gram(j, j2, "sum").tolist() == [[10.0, 18.0]]
    assert oracle.gram(j, j2, 1).tolist() == [[4.0, 6.0]]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap over attention
@pytest.mark.parametrize(
    "id",
    [
        "mlp",
        "tied-autoencoder",
        "frozen-first-layer",
        "unused-parameters",
        "conv2d-groups",
        "batch-norm2d-eval",
        "attention",
        "transformer-layer-sequence-first",
        "gru-cell-loop",
        "flat-parameters",
        "function",
    ],
)
def test_oracle_equals_jacrev(id):
    case = BY_ID[id]
    model, x = case.build(), case.samples(N)
    parameters = {name: p.detach() for name, p in oracle.parameters_of(model).items()}

    def outputs(params):
        y = model[0](params, x) if isinstance(model, tuple) else functional_call(model, params, x)
        return y.reshape(N, -1)

    expected = torch.cat([g.flatten(2) for g in jacrev(outputs)(parameters).values()], -1)

    torch.testing.assert_close(oracle.jacobian(model, x), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:Using padding='same'")
@pytest.mark.parametrize("case", [c for c in WORKS if c.kind == "works"], ids=str)
def test_samples_are_independent(case):
    """Outputs of a batch are those of its samples one by one: what "works" presumes."""
    with case.around():
        model = case.build(case.dtypes[0], wrapped=False)
        x = case.samples(N, dtype=case.dtypes[0])
        together, _ = oracle.outputs_of(model, x.clone(), case.select)
        alone = [oracle.outputs_of(model, x[n : n + 1].clone(), case.select)[0] for n in range(N)]

    tolerance = 1e-12 if case.rounding is None else 0.1
    torch.testing.assert_close(together, torch.cat(alone), rtol=tolerance, atol=tolerance)


def test_seeds_give_the_same_model_in_every_dtype():
    case = BY_ID["mlp"]
    single, double, again = case.build("float32"), case.build("float64"), case.build("float64")

    for p, q, r in zip(single.parameters(), double.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.double(), q)
        assert torch.equal(q, r)
    assert torch.equal(case.samples(N, dtype="float32").double(), case.samples(N))


def test_table_is_well_formed():
    assert len(BY_ID) == len(CASES)
    for case in CASES:
        assert case.kind in {"works", "refused", "either"}, case.id
        assert bool(case.match) == (case.kind != "works"), case.id


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_norms_of_a_proof(size, dtype):
    # Squares of float32 numbers of size 1e-30 and 1e30 are out of its range.
    x = torch.full((3, 50), size, dtype=dtype)
    for y in (x, x.T, x[:, ::2], x.repeat(100, 100)):
        expected = float(y.double().norm())
        assert verify._norm(y) == pytest.approx(expected, rel=0.01)
    x[1, 2] = torch.nan
    assert not verify._norm(x) <= 1e300
