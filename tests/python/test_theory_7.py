# SPDX-License-Identifier: Apache-2.0
"""Theory sheet, section 7: augmentation, self-paced and by groups, and what it does to spectra."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import augment, theory
from wide import dual, eigenvalues, gaussian, kind, off

# --- T7.1: self-paced augmentation at its two ends -----------------------------------------------


def torch_setting():
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    # Everything that draws random numbers, or keeps a state, in training.
    model = torch.nn.Sequential(
        torch.nn.Linear(12, 32),
        torch.nn.BatchNorm1d(32),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(32, 4),
    )
    x, y = torch.randn(48, 12), torch.randint(4, (48,))
    return torch, model, x, y


def jitter(x):
    import torch

    return x + 0.3 * torch.randn_like(x) * (1 + torch.rand(len(x), 1))


def train(model, x, y, batch):
    """Plain loop; `batch` makes the batch to train on. Parameters and buffers, all steps."""
    import torch

    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(11)
    states = []
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(16):
            inputs = batch(model, x[rows], y[rows])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), y[rows]).backward()
            optimizer.step()
            states.append({k: v.clone() for k, v in model.state_dict().items()})
    return states, torch.random.get_rng_state()


def same_bits(one, other):
    import torch

    states, random = one
    other_states, other_random = other
    return bool(torch.equal(random, other_random)) and all(
        torch.equal(a[k], b[k]) for a, b in zip(states, other_states, strict=True) for k in a
    )


@pytest.mark.parametrize(
    ("mode", "threshold", "plain"),
    [
        ("above", 0.0, "all"),
        ("above", float("inf"), "none"),
        ("below", float("inf"), "all"),
        ("below", 0.0, "none"),
    ],
)
def test_t7_1_ends_of_the_threshold_are_all_and_none_bit_for_bit(mode, threshold, plain):
    torch, model, x, y = torch_setting()
    paced = augment.SelfPaced(jitter, threshold=threshold, mode=mode)
    ours = train(model, x, y, paced)
    every = train(model, x, y, lambda _, inputs, __: jitter(inputs))
    nothing = train(model, x, y, lambda _, inputs, __: inputs)

    expected, other = (every, nothing) if plain == "all" else (nothing, every)
    assert same_bits(ours, expected)
    assert not same_bits(ours, other)
    assert paced.fractions == [1.0 if plain == "all" else 0.0] * 9
    assert model.training
    # In between it is neither.
    between = train(model, x, y, augment.SelfPaced(jitter, threshold=1.3, mode=mode))
    assert not same_bits(between, every)
    assert not same_bits(between, nothing)
    assert torch.equal(ours[0][-1]["1.num_batches_tracked"], torch.tensor(9))


def test_t7_1_step_is_the_plain_loop():
    torch, model, x, y = torch_setting()
    stepped = copy.deepcopy(model)
    optimizer = torch.optim.SGD(stepped.parameters(), lr=0.1, momentum=0.9)
    paced = augment.SelfPaced(jitter, threshold=0.0)
    torch.manual_seed(11)
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(16):
            paced.step(stepped, optimizer, x[rows], y[rows])
    states, random = train(model, x, y, lambda _, inputs, __: jitter(inputs))
    assert same_bits(([stepped.state_dict()], torch.random.get_rng_state()), (states[-1:], random))


def test_t7_1_fraction_falls_as_training_converges():
    torch, model, x, y = torch_setting()
    paced = augment.SelfPaced(jitter, threshold=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        paced.step(model, optimizer, x, y)
    first, last = np.mean(paced.fractions[:5]), np.mean(paced.fractions[-5:])
    assert first > 0.9
    assert last < 0.5 * first


# --- T7.2: full orbits equal the averaged kernel --------------------------------------------------

KERNELS = {
    "ntk": partial(ff.kernels.ntk, depth=3, sigma_b2=0.1),
    "nngp": partial(ff.kernels.nngp, depth=3, sigma_b2=0.1),
    "ntk erf": partial(ff.kernels.ntk, depth=3, activation="erf", sigma_b2=0.3),
    "nngp erf": partial(ff.kernels.nngp, depth=3, activation="erf", sigma_b2=0.3),
}


def rotations():
    """Rotations of a plane by quarter turns, within 12 dimensions."""
    q = np.eye(12)
    q[:2, :2] = [[0, -1], [1, 0]]
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((12, 12)))[0]
    return augment.group(
        np.array([basis @ np.linalg.matrix_power(q, k) @ basis.T for k in range(4)])
    )


GROUPS = {
    "shifts": augment.cyclic_shifts(12),
    "shifts of rows": augment.cyclic_shifts((3, 4), axes=[1]),
    "flips": augment.flips((3, 4)),
    "rotations": rotations(),
}


def orbit_setting():
    rng = np.random.default_rng(72)
    x, z = rng.standard_normal((7, 12)), rng.standard_normal((5, 12))
    # Samples that some maps leave as they are: there c = 1 exactly.
    x[0], x[1] = 0.7, np.tile(x[1, :4], 3)
    return x, z, rng.standard_normal((7, 2))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("maps", GROUPS)
def test_t7_2_ridge_on_the_orbit_is_ridge_with_the_averaged_kernel(name, maps):
    kernel, group = KERNELS[name], GROUPS[maps]
    x, z, y = orbit_setting()
    g, ridge = len(group), 1e-3
    orbit = group.apply(x).reshape(-1, 12)
    full = np.linalg.solve(kernel(orbit) + ridge * np.eye(len(orbit)), np.tile(y, (g, 1)))
    expected = kernel(z, orbit) @ full

    square = augment.averaged_kernel(kernel, group, x)
    weights = np.linalg.solve(square + ridge / g * np.eye(len(x)), y)
    got = augment.averaged_kernel(kernel, group, z, x) @ weights

    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_array_equal(square, square.T)
    assert np.linalg.eigvalsh(square)[0] > -1e-12


@pytest.mark.parametrize("name", KERNELS)
def test_t7_2_descent_on_the_orbit_is_descent_with_the_averaged_kernel(name):
    kernel, group = KERNELS[name], GROUPS["shifts"]
    x, z, y = orbit_setting()
    n, g = len(x), len(group)
    orbit = group.apply(x).reshape(-1, 12)
    points = np.vstack([orbit, z])
    theta = kernel(points)[:, : n * g]
    mean = np.vstack(
        [
            augment.averaged_kernel(kernel, group, x),
            augment.averaged_kernel(kernel, group, z, x),
        ]
    )
    eta = n / np.linalg.eigvalsh(mean[:n])[-1]
    full, few = np.zeros((len(points), 2)), np.zeros((n + len(z), 2))
    for _ in range(50):
        full = full - eta / (n * g) * theta @ (full[: n * g] - np.tile(y, (g, 1)))
        few = few - eta / n * mean @ (few[:n] - y)
        scale = np.abs(few).max()
        np.testing.assert_allclose(few[:n], full[:n], rtol=0, atol=1e-10 * scale)
        np.testing.assert_allclose(few[n:], full[n * g :], rtol=0, atol=1e-10 * scale)


# --- T7.3: three levels ---------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "relu", "erf", "linear"])
def test_t7_3_three_levels_of_augmented_samples(activation):
    n, a, sigma = 25, 4, 0.5
    # Of a linear network the smallest level is 4.1 % low at 800, where its samples are 1/8 of M.
    width = 1600 if activation == "linear" else 800
    rows = []
    for seed in range(20):
        x = gaussian(n, width, 7000 + seed)
        noise = gaussian(a * n, width, 8000 + seed).reshape(a, n, width)
        copies = ((x + sigma * noise) / np.sqrt(1 + sigma**2)).reshape(a * n, width)
        mlp = ff.models.MLP((width, width, width, 1), seed=seed, **kind(activation))
        values = eigenvalues(dual(ff.jacobian(mlp, copies)))
        rows.append((values[0], values[1:n].mean(), values[n:].mean()))
    top, between, within = np.mean(rows, axis=0)
    order = theory.order_parameters((width, width, width, 1), **kind(activation))
    levels = theory.augmented_spectrum(order, samples=n, copies=a, noise=sigma)

    assert off(top, levels.lambda_max) < 0.06
    assert off(between, levels.between) < 0.04
    assert off(within, levels.within) < 0.04


@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_t7_3_levels_are_the_eigenvalues_of_the_dual(parameterization):
    widths, n, a = (50, 70, 60, 2), 6, 3
    order = theory.order_parameters(widths, **kind("erf"), input_variance=1.4)
    levels = theory.augmented_spectrum(
        order, samples=n, copies=a, correlation=0.7, parameterization=parameterization
    )
    blocks = np.kron(np.eye(n), np.full((a, a), levels.Kw - levels.K2)) + levels.K2
    np.fill_diagonal(blocks, levels.K1)
    expected = np.repeat(eigenvalues(blocks / (n * a)), 2)

    sizes = (levels.multiplicity, levels.between_size, levels.within_size)
    values = np.repeat([levels.lambda_max, levels.between, levels.within], sizes)
    np.testing.assert_allclose(values, expected, rtol=1e-10)
    assert levels.trace == pytest.approx(values.sum())
    # Kw is the kernel of two such points.
    if parameterization == "ntk":
        x = np.zeros((2, 50))
        x[0, 0], x[1, :2] = 1, (0.7, np.sqrt(1 - 0.49))
        x *= np.sqrt(50 * 1.4)
        pair = ff.kernels.ntk(x, depth=3, **kind("erf"))
        np.testing.assert_allclose(pair, [[levels.K1, levels.Kw], [levels.Kw, levels.K1]])


@pytest.mark.parametrize("covariance", [0.4, -0.2])
def test_t7_3_noise_on_correlated_samples(covariance):
    # Fresh noise on every copy lowers the correlation of different samples too. The Gram matrix of
    # such inputs, its kernel, and the eigenvalues of that, without the formula of three levels.
    n, a, noise = 4, 3, 0.7
    order = theory.order_parameters(
        (50, 60, 70, 1), **kind("erf"), input_variance=1.4, input_covariance=1.4 * covariance
    )
    samples = np.full((n, n), covariance) + (1 - covariance) * np.eye(n)
    gram = 1.4 * (np.kron(samples, np.ones((a, a))) + noise**2 * np.eye(n * a)) / (1 + noise**2)
    x = np.linalg.cholesky(gram) * np.sqrt(n * a)
    expected = eigenvalues(ff.kernels.ntk(x, depth=3, **kind("erf")) / (n * a))

    levels = theory.augmented_spectrum(
        order, samples=n, copies=a, noise=noise, parameterization="ntk"
    )
    sizes = (levels.multiplicity, levels.between_size, levels.within_size)
    values = np.repeat([levels.lambda_max, levels.between, levels.within], sizes)
    np.testing.assert_allclose(np.sort(values), np.sort(expected), rtol=1e-10)


def test_t7_3_one_copy_is_the_plain_spectrum_and_the_top_hardly_moves():
    order = theory.order_parameters((300, 300, 300, 3), **kind("tanh"))
    plain = theory.fisher_spectrum(order, samples=25)
    once = theory.augmented_spectrum(order, samples=25, copies=1, noise=0.5)
    assert once.lambda_max == pytest.approx(plain.lambda_max, rel=1e-12)
    assert once.between == pytest.approx(plain.bulk_mean, rel=1e-12)
    assert (once.multiplicity, once.between_size, once.within_size) == (3, 72, 0)
    many = theory.augmented_spectrum(order, samples=25, copies=8, noise=0.5)
    assert off(many.lambda_max, plain.lambda_max) < 0.1
    assert many.within < 0.2 * plain.bulk_mean
    # Identical copies add zeros only.
    same = theory.augmented_spectrum(order, samples=25, copies=8, noise=0.0)
    assert same.within == 0
    assert same.lambda_max == pytest.approx(plain.lambda_max, rel=1e-12)


# --- T7.4: the kernel regime of self-paced augmentation ------------------------------------------


def paced_network(width, seed=0, *, n=15, inputs=100, sigma=0.2, tau=0.1, steps=40):
    """Counts of augmented samples of a network and of its kernel, and the error of its change."""
    rng = np.random.default_rng(7400 + seed)
    x, noise, z = (rng.standard_normal((k, inputs)) for k in (n, n, 100))
    x_augmented = (x + sigma * noise) / np.sqrt(1 + sigma**2)
    y = np.tanh(x @ rng.standard_normal(inputs) / np.sqrt(inputs))[:, None]
    options = {"activation": "relu", "sigma_w2": 2.0, "sigma_b2": 0.1}
    mlp = ff.models.MLP((inputs, width, width, 1), parameterization="ntk", seed=seed, **options)
    points = np.vstack([x, x_augmented, z])
    theta = ff.kernels.ntk(points, depth=3, **options)
    lr = n / np.linalg.eigvalsh(theta[:n, :n])[-1]
    start = mlp(points)
    run = augment.self_paced_descent(theta[:, : 2 * n], start, y, lr=lr, steps=steps, threshold=tau)
    counts = []
    for _ in range(steps):
        picked = augment.select(((mlp(x) - y) ** 2)[:, 0] / 2, threshold=tau)
        mixed = np.where(picked.chosen[:, None], x_augmented, x)
        j = mlp.jacobian(mixed)
        step = lr / n * (j.T @ (j.outputs - y).ravel())
        mlp = mlp.with_parameters(j.flatten(mlp.parameters) - step)
        counts.append(picked.count)
    got, expected = mlp(z) - start[2 * n :], run.outputs[-1, 2 * n :] - start[2 * n :]
    return np.array(counts), run.counts, np.linalg.norm(got - expected) / np.linalg.norm(got)


def test_t7_4_kernel_follows_self_paced_augmentation_of_a_wide_network():
    counts, simulated, error = paced_network(2048)
    times = [0, 5, 10, 20, 39]
    assert np.abs(counts - simulated)[times].max() <= 3
    assert error < 0.2
    # It has begun with nearly all samples and has come to few.
    assert counts[0] >= 12
    assert counts[-1] <= 3


# --- Noise on the inputs --------------------------------------------------------------------------


def test_noise_adds_a_penalty_on_gradients_and_curvature_to_a_kernel_predictor():
    # What 10 samples teach an erf network in the kernel regime.
    rng = np.random.default_rng(75)
    inputs, sigma = 6, 0.05
    x, z = rng.standard_normal((10, inputs)), rng.standard_normal((30, inputs))
    y, at_z = np.sin(x.sum(1)), np.sin(z.sum(1))
    kernel = partial(ff.kernels.ntk, depth=3, activation="erf", sigma_b2=0.3)
    weights = np.linalg.solve(kernel(x) + 1e-6 * np.eye(10), y)

    def f(points):
        return kernel(points.reshape(-1, inputs), x).dot(weights).reshape(points.shape[:-1])

    h = 1e-3
    steps = h * np.eye(inputs)
    plus, minus, at = f(z[:, None] + steps), f(z[:, None] - steps), f(z)
    gradient = ((plus - minus) / (2 * h)) ** 2
    laplacian = ((plus + minus - 2 * at[:, None]) / h**2).sum(1)
    expected = sigma**2 / 2 * (gradient.sum(1) + (at - at_z) * laplacian).mean()

    noise = rng.standard_normal((4000, *z.shape))
    noise = sigma * np.concatenate([noise, -noise])  # odd orders cancel
    measured = ((f(z + noise) - at_z) ** 2 / 2).mean() - ((at - at_z) ** 2 / 2).mean()

    assert off(measured, expected) < 0.016


@pytest.mark.parametrize("activation", ["tanh", "relu", "erf", "linear"])
def test_noise_adds_its_loss_to_random_networks(activation):
    widths, sigma = (400, 400, 400, 2), 0.3
    order = theory.order_parameters(widths, **kind(activation))
    expected = theory.noise_loss(order, noise=sigma)

    added = []
    for seed in range(60):
        x = gaussian(40, 400, 7500 + seed)
        # Antithetic noise: the part that is linear in it cancels.
        noise = sigma * gaussian(40, 400, 7600 + seed)
        mlp = ff.models.MLP(widths, seed=seed, **kind(activation))
        after = (mlp(x + noise) ** 2 + mlp(x - noise) ** 2) / 2
        added.append((after - mlp(x) ** 2).sum(1).mean() / 2)
    error = np.std(added) / np.sqrt(len(added))
    assert abs(np.mean(added) - expected.total) < 4 * error
    assert error < 0.1 * expected.gradient
    # The two parts: the trace of the input metric, and what second derivatives take back.
    trace = theory.metric_spectrum(order, samples=50).trace
    assert expected.gradient == pytest.approx(sigma**2 / 2 * trace, rel=1e-12)
    if activation in ("relu", "linear"):
        assert expected.curvature == pytest.approx(0, abs=1e-12)
    else:
        assert expected.curvature < -0.1 * expected.gradient
