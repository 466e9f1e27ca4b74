# SPDX-License-Identifier: Apache-2.0
"""Augmentation on hard input: every array library, and mistakes that must not pass in silence."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import augment, theory

INF, NAN = float("inf"), float("nan")

# --- select ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_select_takes_losses_of_any_library(xp, dtype):
    losses = xp.array(np.array([3, 1, 2, 0], dtype))
    picked = augment.select(losses, threshold=2)
    assert picked.chosen.tolist() == [True, False, True, False]
    assert (picked.count, picked.fraction, picked.threshold) == (2, 0.5, 2.0)
    others = augment.select(losses, threshold=2, mode="below")
    np.testing.assert_array_equal(others.chosen, ~picked.chosen)


def test_select_takes_lists_slices_and_16_bits():
    torch = pytest.importorskip("torch")
    assert augment.select([0.5, 1.0], threshold=1.0).count == 1
    assert augment.select(np.arange(12.0)[::-3], threshold=6).chosen.tolist() == [1, 1, 0, 0]
    narrow = torch.tensor([0.5, 1.0, 2.0], dtype=torch.bfloat16)
    assert augment.select(narrow, threshold=1).count == 2
    # A gradient is no obstacle, and 2^-24 above the threshold is above it.
    near = torch.tensor([1.0, 1.0 + 2**-23], requires_grad=True)
    assert augment.select(near, threshold=1 + 2**-24).chosen.tolist() == [False, True]


@pytest.mark.parametrize(
    ("quantile", "mode", "count"),
    [(0, "above", 8), (0.75, "above", 2), (1, "above", 1), (0, "below", 0), (0.75, "below", 6)],
)
def test_quantiles(quantile, mode, count):
    losses = np.random.default_rng(0).permutation(8) + 0.5
    picked = augment.select(losses, quantile=quantile, mode=mode)
    assert picked.count == count
    assert picked.threshold == np.quantile(losses, quantile)


def test_quantiles_of_the_largest_numbers():
    assert augment.select([1e308, -1e308], quantile=0.5).threshold == 0
    found = augment.select([1.7e308, -1.7e308, 1.0], quantile=1.0)
    assert found.threshold == 1.7e308
    assert found.chosen.tolist() == [True, False, False]


def test_one_sample_and_negative_losses():
    assert augment.select([0.0], threshold=0.0).fraction == 1.0
    assert augment.select([0.0], quantile=0.5).fraction == 1.0
    assert augment.select([-1.0, 1.0], threshold=0.0).count == 1
    assert augment.select([-1.0, 1.0], threshold=-INF).count == 2


@pytest.mark.parametrize(
    ("losses", "options", "error", "match"),
    [
        ([1.0], {}, ValueError, "either a threshold or a quantile, got neither"),
        ([1.0], {"threshold": 1, "quantile": 0.5}, ValueError, "got both"),
        ([1.0], {"threshold": NAN}, ValueError, "threshold: expected a number, got nan"),
        ([1.0], {"threshold": "high"}, ValueError, "threshold: expected a number, got 'high'"),
        ([1.0], {"quantile": 1.5}, ValueError, "quantile: expected a number from 0 to 1"),
        ([1.0], {"quantile": NAN}, ValueError, "quantile: expected a number"),
        ([1.0], {"threshold": 1, "mode": "over"}, ValueError, "mode: expected one of"),
        ([], {"threshold": 1}, ValueError, r"losses: .*n >= 1, got shape \(0,\)"),
        ([[1.0]], {"threshold": 1}, ValueError, r"losses: .*got shape \(1, 1\)"),
        ([[1.0], [1.0, 2.0]], {"threshold": 1}, ValueError, "losses: expected one number"),
        ([1.0, NAN], {"threshold": 0}, ff.errors.NonFiniteError, r"got nan at \[1\]"),
        ([INF], {"threshold": INF}, ff.errors.NonFiniteError, r"got inf at \[0\]"),
        ([1j], {"threshold": 0}, TypeError, "losses: .*dtype complex128"),
        ([True], {"threshold": 0}, TypeError, "losses: .*dtype bool"),
        ("words", {"threshold": 0}, TypeError, "expected a numpy"),
    ],
)
def test_select_refuses(losses, options, error, match):
    with pytest.raises(error, match=match):
        augment.select(losses, **options)


# --- mix ------------------------------------------------------------------------------------------


def test_mix_changes_the_chosen_samples_only(xp):
    x = xp.array(np.arange(24.0).reshape(4, 3, 2))
    before = np.asarray(x).copy()
    mixed = augment.mix(x, np.array([True, False, True, False]), lambda part: -part)
    assert isinstance(mixed, xp.kind())
    np.testing.assert_array_equal(np.asarray(mixed)[[0, 2]], -before[[0, 2]])
    np.testing.assert_array_equal(np.asarray(mixed)[[1, 3]], before[[1, 3]])
    np.testing.assert_array_equal(np.asarray(x), before)


def test_mix_of_none_and_of_all():
    x = np.arange(6).reshape(3, 2)  # any dtype
    calls = []

    def augmented(part):
        calls.append(part)
        return part + 1

    assert augment.mix(x, np.zeros(3, bool), augmented) is x
    assert calls == []
    np.testing.assert_array_equal(augment.mix(x, [True] * 3, augmented), x + 1)
    assert calls[0] is x
    empty = np.zeros((0, 2))
    assert augment.mix(empty, np.zeros(0, bool), augmented) is empty
    sliced = np.arange(12.0).reshape(6, 2)[::2]
    got = augment.mix(sliced, np.array([False, False, True]), augmented)
    np.testing.assert_array_equal(got, np.array([[0, 1], [4, 5], [9, 10]]))


def test_mix_keeps_the_memory_format_of_images():
    torch = pytest.importorskip("torch")
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    mixed = augment.mix(x, np.array([True, False, False, False]), lambda part: part.flip(3))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed[1:], x[1:])
    assert torch.equal(mixed[0], x[0].flip(2))


@pytest.mark.parametrize(
    ("chosen", "change", "error", "match"),
    [
        ([1, 0], lambda x: x, TypeError, "chosen: expected dtype bool, got int64"),
        ([True], lambda x: x, ValueError, r"chosen: .*shape \(2,\), got \(1,\)"),
        ([True, False], lambda x: x[0], ValueError, r"augment: expected shape \(1, 3\), got \(3,"),
        ([True, True], lambda x: x[:1], ValueError, r"augment: expected shape \(2, 3\)"),
        ([True, False], lambda x: x.astype("float32"), TypeError, "augment: .*dtype float64"),
        ([True, True], lambda x: x.tolist(), TypeError, "augment: expected a numpy"),
        ([True, True], lambda x: None, TypeError, "augment: expected a numpy"),
    ],
)
def test_mix_refuses(chosen, change, error, match):
    with pytest.raises(error, match=match):
        augment.mix(np.ones((2, 3)), chosen, change)


def test_mix_refuses_a_change_of_library():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="augment: expected an array of torch, got one of numpy"):
        augment.mix(torch.ones(2, 3), [True, False], lambda x: x.numpy())
    with pytest.raises(TypeError, match="x: expected a numpy"):
        augment.mix([[1.0]], [True], lambda x: x)


# --- the training helper --------------------------------------------------------------------------


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


# --- groups ---------------------------------------------------------------------------------------


def test_shifts_and_flips_of_images():
    image = np.arange(6.0).reshape(2, 3)
    shifted = augment.cyclic_shifts((2, 3)).apply(image.reshape(1, 6)).reshape(6, 2, 3)
    expected = [np.roll(image, (i, j), (0, 1)) for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(shifted, expected)
    flipped = augment.flips((2, 3)).apply(image.reshape(1, 6)).reshape(4, 2, 3)
    expected = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    np.testing.assert_array_equal(flipped, expected)
    # They are groups by the general check as well.
    for group in (augment.cyclic_shifts((2, 3)), augment.flips((2, 3)), augment.flips((1, 1))):
        assert len(augment.group(group.maps)) == len(group)
    assert len(augment.flips((1, 4))) == 2
    assert augment.cyclic_shifts(5, axes=[]).maps.tolist() == [[0, 1, 2, 3, 4]]
    assert augment.cyclic_shifts(1).apply(np.zeros((0, 1))).shape == (1, 0, 1)


def test_matrices_and_permutations_of_one_group_do_the_same():
    shifts = augment.cyclic_shifts(4)
    matrices = augment.group(np.eye(4)[shifts.maps])
    x = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_allclose(matrices.apply(x), shifts.apply(x), rtol=1e-14)
    assert len(augment.group(np.ones((1, 1, 1), int))) == 1


@pytest.mark.parametrize(
    ("maps", "error", "match"),
    [
        ([0, 1], ValueError, r"maps: expected shape \(g, d\) or \(g, d, d\), got \(2,\)"),
        (np.zeros((0, 3), int), ValueError, "maps: expected shape"),
        ([[0, 2]], ValueError, r"permutations of 0\.\.1, got \[0, 2\]"),
        ([[0, 0]], ValueError, r"permutations of 0\.\.1, got \[0, 0\]"),
        ([[0.0, 1.0]], TypeError, "integer dtype, got dtype float64"),
        ([[0, 1, 2], [1, 2, 0]], ValueError, "product of maps 1 and 1 is not among them"),
        ([[0, 1], [1, 0], [1, 0]], ValueError, "expected distinct maps, got 3, of them 2"),
        ([[[2.0]]], ValueError, "expected orthogonal matrices"),
        ([np.eye(2), [[0.6, -0.8], [0.8, 0.6]]], ValueError, "product of maps 1 and 1"),
        ([np.eye(2), np.eye(2)], ValueError, "expected distinct maps, got 2, of them 1"),
        (np.ones((1, 2, 3)), ValueError, "expected square matrices"),
        ([[[1.0, NAN], [0.0, 1.0]]], ValueError, "maps: expected finite"),
        ([[[1j]]], TypeError, "real dtype, got dtype complex128"),
    ],
)
def test_what_is_no_group_is_refused(maps, error, match):
    with pytest.raises(error, match=match):
        augment.group(maps)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: augment.cyclic_shifts(0), "shape: expected an integer >= 1, got 0"),
        (lambda: augment.cyclic_shifts(()), "shape: expected one extent"),
        (lambda: augment.cyclic_shifts((2, 2.5)), "shape: expected an integer"),
        (lambda: augment.cyclic_shifts((2, 2), axes=[2]), "axes: expected distinct axes of 2"),
        (lambda: augment.flips((2, 2), axes=[1, -1]), "axes: expected distinct axes of 2"),
        (lambda: augment.cyclic_shifts((2, 2), axes=1), "axes: expected a sequence"),
        (lambda: augment.flips(3).apply(np.ones((2, 4))), r"x: expected shape \(n, 3\)"),
        (lambda: augment.flips(3).apply([[1, 2, NAN]]), "x: expected finite"),
    ],
)
def test_group_mistakes(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- averaged kernels -----------------------------------------------------------------------------

NTK = partial(ff.kernels.ntk, depth=2)


def test_averaged_kernel_is_exact_where_maps_leave_a_sample_as_it_is():
    # This kernel is as inaccurate for equal samples as closed forms with arccos are.
    def rough(a, b=None):
        return NTK(a) if b is None else NTK(a, b) * (1 - 1e-8)

    x = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, -0.0]])
    got = augment.averaged_kernel(rough, augment.cyclic_shifts(3), x)
    np.testing.assert_allclose(np.diagonal(got), np.diagonal(NTK(x)), rtol=1e-14)


def test_averaged_kernel_of_few_and_of_one_map():
    x = np.random.default_rng(1).standard_normal((3, 4))
    one = augment.group([[0, 1, 2, 3]])
    np.testing.assert_allclose(augment.averaged_kernel(NTK, one, x), NTK(x), rtol=1e-14)
    shifts = augment.cyclic_shifts(4)
    assert augment.averaged_kernel(NTK, shifts, x[:0]).shape == (0, 0)
    assert augment.averaged_kernel(NTK, shifts, x[:1], x[:0]).shape == (1, 0)
    assert augment.averaged_kernel(NTK, shifts, x[:1]).shape == (1, 1)
    # Integers, and slices, are samples like others.
    whole = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(
        augment.averaged_kernel(NTK, shifts, whole),
        augment.averaged_kernel(NTK, shifts, np.repeat(whole.astype(float), 2, axis=0)[::2]),
    )


def test_averaged_kernel_refuses():
    shifts = augment.cyclic_shifts(3)
    x = np.random.default_rng(2).standard_normal((4, 3))
    local = np.diag([1.0, 2.0, 3.0])

    def weighted(a, b=None):
        return a @ local @ (a if b is None else b).T

    with pytest.raises(ValueError, match="kernel: expected one that the group does not change"):
        augment.averaged_kernel(weighted, shifts, x)
    assert augment.averaged_kernel(weighted, shifts, x, check=False).shape == (4, 4)
    with pytest.raises(ValueError, match=r"x: expected shape \(n, 3\), got \(3, 4\)"):
        augment.averaged_kernel(NTK, shifts, x.T)
    with pytest.raises(ValueError, match=r"y: expected shape \(n, 3\)"):
        augment.averaged_kernel(NTK, shifts, x, x[:, :2])
    with pytest.raises(ValueError, match="x: expected finite"):
        augment.averaged_kernel(NTK, shifts, np.full((2, 3), NAN))
    with pytest.raises(ValueError, match=r"kernel: expected shape \(3, 3\)"):
        augment.averaged_kernel(lambda a, b=None: np.eye(2), shifts, x)
    with pytest.raises(TypeError, match=r"group: expected an OrthogonalGroup, .* got ndarray"):
        augment.averaged_kernel(NTK, np.eye(3), x)


# --- the kernel regime ----------------------------------------------------------------------------


def descent_setting():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 8))
    copies = np.tile(x, (3, 1)) + 0.03 * rng.standard_normal((15, 8))
    z = np.vstack([x, copies, rng.standard_normal((6, 8))])
    theta = ff.kernels.ntk(z, depth=3, sigma_b2=0.1)
    w, v = np.linalg.eigh(ff.kernels.nngp(z, depth=3, sigma_b2=0.1))
    f0 = v * np.sqrt(w.clip(0)) @ rng.standard_normal((26, 2))
    return theta, f0, rng.standard_normal((5, 2))


def test_descent_at_its_ends_is_plain_descent():
    theta, f0, y = descent_setting()
    none = augment.self_paced_descent(theta[:, :20], f0, y, lr=0.3, steps=9, threshold=INF)
    copies = np.tile([[2], [0], [1]], (3, 5))
    every = augment.self_paced_descent(
        theta[:, :20], f0, y, lr=0.3, steps=9, threshold=0, copies=copies
    )
    plain = augmented = f0
    for step in range(9):
        used = 5 * (1 + copies[step]) + np.arange(5)
        np.testing.assert_array_equal(none.outputs[step], plain)
        np.testing.assert_array_equal(every.outputs[step], augmented)
        plain = plain - 0.3 / 5 * (theta[:, :5] @ (plain[:5] - y))
        augmented = augmented - 0.3 / 5 * (theta[:, used] @ (augmented[used] - y))
    assert none.counts.tolist() == [0] * 9
    assert every.fractions.tolist() == [1.0] * 9
    np.testing.assert_array_equal(every.copies, copies)
    np.testing.assert_allclose(every.loss, every.losses.mean(1))
    np.testing.assert_allclose(none.losses[3], ((none.outputs[3, :5] - y) ** 2).sum(1) / 2)


def test_descent_is_that_without_augmentation_once_no_loss_is_above():
    theta, f0, y = descent_setting()
    run = augment.self_paced_descent(theta[:, :20], f0, y, lr=0.3, steps=300, threshold=0.05)
    end = int(np.flatnonzero(run.counts)[-1]) + 1
    assert run.counts[0] > 0
    assert 0 < end < 300
    rest = augment.self_paced_descent(
        theta[:, :20], run.outputs[end], y, lr=0.3, steps=300 - end, threshold=INF
    )
    np.testing.assert_array_equal(rest.outputs, run.outputs[end:])


def test_descent_draws_copies_by_seed_and_takes_one_output():
    theta, f0, y = descent_setting()
    options = {"lr": 0.3, "steps": 4, "quantile": 0.5}
    one, two, other = (
        augment.self_paced_descent(theta[:, :20], f0[:, 0], y[:, 0], **options, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.outputs, two.outputs)
    assert not np.array_equal(one.copies, other.copies)
    assert set(np.unique(one.copies)) <= {0, 1, 2}
    assert one.outputs.shape == (5, 26, 1)
    assert one.counts.tolist() == [3] * 4
    still = augment.self_paced_descent(theta[:, :20], f0, y, lr=0.3, steps=0, threshold=1)
    assert still.outputs.shape == (1, 26, 2)
    assert still.chosen.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"lr": 0}, ValueError, "lr: expected a finite number > 0"),
        ({"lr": 1e9, "steps": 400}, ff.errors.NumericalError, "lr: the outputs overflow at step"),
        ({"steps": -1}, ValueError, "steps: expected an integer >= 0"),
        ({"threshold": None}, ValueError, "got neither"),
        ({"kernel": np.eye(26)[:, :19]}, ValueError, "kernel: expected shape"),
        ({"kernel": np.eye(26)[:, :5]}, ValueError, "kernel: .*at least 10"),
        ({"kernel": np.eye(26)[:15, :20]}, ValueError, "kernel: .*t >= k"),
        ({"kernel": np.full((26, 20), NAN)}, ValueError, "kernel: expected finite"),
        ({"kernel": np.tri(26, 20)}, ValueError, "kernel: expected training points with a symm"),
        ({"f0": np.zeros(26)}, ValueError, r"f0: expected shape \(26, 2\), got \(26, 1\)"),
        ({"y": np.zeros((0, 2))}, ValueError, "kernel: expected shape"),
        ({"copies": np.full((3, 5), 3)}, ValueError, "copies: expected numbers from 0 to 2"),
        ({"copies": np.zeros((3, 4), int)}, ValueError, r"copies: expected shape \(3, 5\)"),
        ({"copies": np.zeros((3, 5))}, TypeError, "copies: expected an integer dtype"),
    ],
)
def test_descent_refuses(change, error, match):
    theta, f0, y = descent_setting()
    given = {"kernel": theta[:, :20], "f0": f0, "y": y, "lr": 0.3, "steps": 3, "threshold": 1.0}
    given.update(change)
    arrays = (given.pop("kernel"), given.pop("f0"), given.pop("y"))
    with pytest.raises(error, match=match):
        augment.self_paced_descent(*arrays, **given)


# --- theory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "correlation: .*got neither"),
        ({"noise": 0.1, "correlation": 0.9}, "correlation: .*got both"),
        ({"noise": -1}, "noise: expected a finite number >= 0"),
        ({"correlation": 1.1}, "correlation: expected a number from -1 to 1"),
        ({"noise": 0.1, "copies": 0}, "copies: expected an integer >= 1"),
        ({"noise": 0.1, "samples": 2.5}, "samples: expected an integer"),
        ({"noise": 0.1, "parameterization": "mup"}, "parameterization: expected one of"),
    ],
)
def test_augmented_spectrum_refuses(options, match):
    order = theory.order_parameters((9, 9, 1))
    with pytest.raises(ValueError, match=match):
        theory.augmented_spectrum(order, **{"samples": 3, "copies": 2, **options})


@pytest.mark.parametrize(
    ("covariance", "correlation", "samples", "copies"),
    [(0, -1, 1, 3), (0, -0.6, 4, 3), (0.5, 0.1, 2, 3), (-0.3, 0.1, 5, 4)],
)
def test_augmented_spectrum_refuses_samples_that_cannot_be(
    covariance, correlation, samples, copies
):
    # the input Gram matrix would have a negative eigenvalue, and so would the spectrum
    order = theory.order_parameters((9, 9, 1), activation="linear", input_covariance=covariance)
    sizes = {"samples": samples, "copies": copies}
    with pytest.raises(ValueError, match=r"correlation: .*negative eigenvalue"):
        theory.augmented_spectrum(order, correlation=correlation, **sizes)


def test_augmented_spectrum_at_the_ends_of_correlations():
    order = theory.order_parameters((9, 9, 1), activation="linear", input_covariance=0.5)
    edge = theory.augmented_spectrum(order, correlation=0.25, samples=4, copies=3)
    assert edge.between == pytest.approx(0, abs=1e-12)
    assert edge.lambda_max > edge.within > 0
    far = theory.augmented_spectrum(order, noise=1e200, samples=4, copies=3)
    assert far.Kw == far.K2 == 0
    with pytest.raises(ValueError, match="noise: too large"):
        theory.noise_loss(order, noise=1e200)


def test_normalised_networks_have_no_such_spectrum():
    order = theory.order_parameters((9, 9, 1), hidden_normalization="mean")
    with pytest.raises(ValueError, match="hidden_normalization"):
        theory.augmented_spectrum(order, samples=3, copies=2, noise=0.1)
    with pytest.raises(ValueError, match="hidden_normalization"):
        theory.noise_loss(order, noise=0.1)
    with pytest.raises(ValueError, match="noise: expected a finite number >= 0"):
        theory.noise_loss(theory.order_parameters((9, 9, 1)), noise=INF)
    assert theory.noise_loss(theory.order_parameters((9, 9, 1)), noise=0) == (0, 0, 0)
