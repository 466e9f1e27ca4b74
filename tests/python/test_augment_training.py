# SPDX-License-Identifier: Apache-2.0
"""Self-paced augmentation in a training loop of torch."""

from __future__ import annotations

import pytest

import fastfisher as ff
from fastfisher import augment

INF, NAN = float("inf"), float("nan")


def test_scoring_leaves_model_and_random_numbers_as_they_were():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 2)
    )
    model.train()
    model[0].eval()  # as a frozen part is
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    losses = augment.SelfPaced(lambda x: x, threshold=1).losses(model, x, y)
    assert [m.training for m in model] == [False, True, True]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    expected = (model.eval()(x) - y).square().sum(1) / 2
    torch.testing.assert_close(losses, expected)
    assert not losses.requires_grad


def test_modes_come_back_after_an_error():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2).train()
    paced = augment.SelfPaced(lambda x: x, threshold=1)
    with pytest.raises(RuntimeError, match="shape"):
        paced(model, torch.ones(2, 5), torch.ones(2, 2))
    assert model.training
    assert paced.fractions == []
    with pytest.raises(ff.errors.NonFiniteError, match="losses"):
        paced(model, torch.full((2, 3), NAN), torch.ones(2, 2))


def test_losses_by_the_kind_of_target():
    torch = pytest.importorskip("torch")
    paced = augment.SelfPaced(lambda x: x, threshold=1)
    x = torch.randn(4, 5, 6)
    labels = torch.randint(5, (4,))
    expected = torch.nn.functional.cross_entropy(x[:, :, 0], labels, reduction="none")
    torch.testing.assert_close(paced.losses(lambda x: x[:, :, 0], x, labels), expected)
    pixels = torch.randint(5, (4, 6))  # one label a position: their mean
    expected = torch.nn.functional.cross_entropy(x, pixels, reduction="none").mean(1)
    torch.testing.assert_close(paced.losses(lambda x: x, x, pixels), expected)
    own = augment.SelfPaced(lambda x: x, threshold=1, loss=lambda f, y: (f - y).abs().sum((1, 2)))
    torch.testing.assert_close(own.losses(lambda x: x, x, 0 * x), x.abs().sum((1, 2)))


def test_labels_of_any_integer_dtype():
    torch = pytest.importorskip("torch")
    paced = augment.SelfPaced(lambda x: x, threshold=1)
    x, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 0])
    expected = paced.losses(lambda x: x, x, labels)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        torch.testing.assert_close(paced.losses(lambda x: x, x, labels.to(dtype)), expected)


def test_training_helper_refuses_what_it_cannot_score():
    torch = pytest.importorskip("torch")
    paced = augment.SelfPaced(lambda x: x, threshold=1)
    model, x = torch.nn.Linear(4, 1), torch.randn(3, 4)
    # Cross-entropy of one class is zero, whatever the output.
    with pytest.raises(ValueError, match=r"y: classes .* C >= 2, got \(3, 1\)"):
        paced(model, x, torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match=r"y: expected classes .*bool"):
        paced(model, x, torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match="x: expected a torch tensor, got ndarray"):
        paced(model, x.numpy(), x)
    with pytest.raises(ValueError, match="x: expected at least one sample"):
        paced(model, x[:0], torch.zeros(0, 1))
    assert paced.fractions == []


def test_training_helper_refuses():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="got neither"):
        augment.SelfPaced(lambda x: x)
    with pytest.raises(TypeError, match="augment: expected a function, got None"):
        augment.SelfPaced(None, threshold=1)
    with pytest.raises(TypeError, match="loss: expected a function, got 'mse'"):
        augment.SelfPaced(lambda x: x, threshold=1, loss="mse")
    paced = augment.SelfPaced(lambda x: x, threshold=1)
    # (4, 1) against (4,) would broadcast to all pairs.
    with pytest.raises(ValueError, match=r"y: expected the shape of the outputs, \(4, 1\)"):
        paced(torch.nn.Linear(2, 1), torch.ones(4, 2), torch.ones(4))
    mean = augment.SelfPaced(lambda x: x, threshold=1, loss=torch.nn.functional.mse_loss)
    with pytest.raises(ValueError, match=r"loss: expected one value a sample.*reduction='none'"):
        mean(torch.nn.Linear(2, 1), torch.ones(4, 2), torch.ones(4, 1))
