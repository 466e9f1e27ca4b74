# SPDX-License-Identifier: Apache-2.0
"""Data augmentation: what it does to the spectrum, and self-paced on few real digits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastfisher import augment, kernels, theory
from fastfisher._extras import require
from fastfisher.models import MLP
from fastfisher.report._ensemble import Ensemble
from fastfisher.report._random import VARIANCES, dual, eigenvalues
from fastfisher.report._section import Context, SectionResult, Tick
from fastfisher.report.data import load
from fastfisher.report.sections import _augmentation_page as page

__all__ = ["build"]

Floats = NDArray[np.float64]

# Spectrum: Gaussian samples, noise on the inputs.
SAMPLES, COPIES, NOISE, ACTIVATION = 25, 4, 0.5, "tanh"
# Digits: ReLU network in NTK parameterisation, small rotations and shifts.
PER_CLASS, TEST, VARIANTS = 5, 500, 16
DEGREES, SHIFT = 15.0, 0.09  # largest rotation, and shift as a share of the image's side
THRESHOLD = 0.03
KIND: dict[str, Any] = {"activation": "relu", **VARIANCES["relu"]}
LOOKS = 21  # steps at which the networks see the test images
METHODS = {"none": float("inf"), "all": 0.0, "self-paced": THRESHOLD}


def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings, progress = context.settings, context.progress
    seed = settings.seed
    width = settings.pick(quick=400, default=800, full=800)
    networks = settings.pick(quick=5, default=20, full=20)
    with progress.task("augmented spectra", networks) as tick:
        spectrum = _levels(context, width, networks, tick)
    trained = settings.pick(quick=512, default=1024, full=4096)
    steps = settings.pick(quick=120, default=400, full=400)
    x, y, z, labels = _digits(settings.data, seed)
    rng = np.random.default_rng((seed, 3))
    copies = np.stack([_moved(x, rng) for _ in range(VARIANTS)])
    with progress.task("digits: spectrum", 1) as tick:
        digits = context.point(
            f"digits spectrum {width}", lambda: _digit_spectra(x, copies, width, seed)
        )
        tick()
    with progress.task("self-paced augmentation", steps) as tick:
        runs = context.point(
            f"digits training {trained}",
            lambda: _training(x, y, z, labels, copies, trained, steps, seed, tick),
        )
    values = {
        "levels": page.level_values(spectrum),
        "digits": {key: value.tolist() for key, value in digits.items()},
        "training": {key: value.tolist() for key, value in runs.items()},
        "correlation_of_copies": float((x * copies).sum(2).mean() / x.shape[1]),
    }
    return SectionResult(
        summary=page.summary(values),
        facts=page.facts(values),
        blocks=page.blocks(spectrum, digits, runs, values),
        settings={
            "spectrum_widths": [width, width, width, 1],
            "spectrum_activation": ACTIVATION,
            **{f"spectrum_{key}": value for key, value in VARIANCES[ACTIVATION].items()},
            "spectrum_samples": SAMPLES,
            "spectrum_copies": COPIES,
            "spectrum_noise": NOISE,
            "spectrum_networks": networks,
            "digits_samples": len(x),
            "digits_test_samples": len(z),
            "digits_widths": [x.shape[1], trained, trained, y.shape[1]],
            **{f"digits_{key}": value for key, value in KIND.items()},
            "digits_parameterization": "ntk",
            "digits_copies": VARIANTS,
            "digits_largest_rotation_degrees": DEGREES,
            "digits_largest_shift_of_side": SHIFT,
            "threshold": THRESHOLD,
            "learning_rate": float(runs["lr"]),
            "steps": steps,
            "seed": seed,
        },
        values=values,
        headline=page.headline(values),
    )


# --- spectrum -------------------------------------------------------------------------------------


def _levels(context: Context, width: int, networks: int, tick: Tick) -> dict[str, Floats]:
    """Eigenvalues (networks, n) of both data sets, and their predictions (n,)."""
    widths, seed = (width, width, width, 1), context.settings.seed
    plain, augmented = [], []
    for k in range(networks):
        point = context.point(f"levels {width} network {k}", partial(_network, widths, seed, k))
        plain.append(point["plain"])
        augmented.append(point["augmented"])
        tick()
    order = theory.order_parameters(widths, activation=ACTIVATION, **VARIANCES[ACTIVATION])
    found: dict[str, Floats] = {"plain": np.array(plain), "augmented": np.array(augmented)}
    for name, copies in (("plain", 1), ("augmented", COPIES)):
        levels = theory.augmented_spectrum(order, samples=SAMPLES, copies=copies, noise=NOISE)
        found[f"{name}_predicted"] = np.repeat(
            [levels.lambda_max, levels.between, levels.within],
            [levels.multiplicity, levels.between_size, levels.within_size],
        )
    return found


def _network(widths: tuple[int, ...], seed: int, k: int) -> dict[str, Floats]:
    rng = np.random.default_rng((seed, 1, k))
    x = rng.standard_normal((SAMPLES, widths[0]))
    noise = rng.standard_normal((COPIES, *x.shape))
    copies = ((x + NOISE * noise) / np.sqrt(1 + NOISE**2)).reshape(-1, widths[0])
    mlp = MLP(widths, activation=cast(Any, ACTIVATION), seed=seed + k, **VARIANCES[ACTIVATION])
    return {
        "plain": eigenvalues(dual(mlp.jacobian(x))),
        "augmented": eigenvalues(dual(mlp.jacobian(copies))),
    }


# --- digits ---------------------------------------------------------------------------------------


def _digits(name: str, seed: int) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Training images and targets, test images and labels; classes alike in number."""
    data = load(name, samples=10 * PER_CLASS + TEST, seed=seed)
    first = np.zeros(len(data.labels), dtype=bool)
    for label in np.unique(data.labels):
        first[np.flatnonzero(data.labels == label)[:PER_CLASS]] = True
    targets = data.targets - 1 / data.targets.shape[1]  # of mean zero, like the outputs
    return data.x[first], targets[first], data.x[~first], data.labels[~first]


def _moved(x: Floats, rng: np.random.Generator) -> Floats:
    """Images rotated and shifted at random, of the same norm."""
    transform = require("scipy.ndimage", purpose="the report").affine_transform
    side = int(np.sqrt(x.shape[1]))
    centre = (side - 1) / 2
    moved = np.empty_like(x)
    for k, image in enumerate(x.reshape(-1, side, side)):
        angle = np.deg2rad(rng.uniform(-DEGREES, DEGREES))
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = rng.uniform(-SHIFT * side, SHIFT * side, 2)
        offset = centre - matrix @ [centre, centre] + shift
        moved[k] = transform(image, matrix, offset, order=1, mode="nearest").ravel()
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    scaled: Floats = moved * np.sqrt(x.shape[1]) / norms
    return scaled


def _digit_spectra(x: Floats, copies: Floats, width: int, seed: int) -> Mapping[str, Floats]:
    """Eigenvalues of F* of one output, of a network and of the analytic kernel of these images."""
    mlp = MLP((x.shape[1], width, width, 1), parameterization="ntk", seed=seed, **KIND)
    few = copies[:COPIES].reshape(-1, x.shape[1])
    found = {}
    for name, points in (("plain", x), ("augmented", few)):
        kernel = kernels.ntk(points, depth=3, **KIND)
        found[name] = eigenvalues(dual(mlp.jacobian(points)))
        found[f"{name}_predicted"] = eigenvalues(kernel / len(points))
    return found


def _training(
    x: Floats,
    y: Floats,
    z: Floats,
    labels: NDArray[np.int64],
    copies: Floats,
    width: int,
    steps: int,
    seed: int,
    tick: Tick,
) -> Mapping[str, Floats]:
    """Train networks and their kernel with the same copies in the same steps."""
    n, c = y.shape
    points = np.vstack([x, copies.reshape(-1, x.shape[1]), z])
    known = n * (1 + VARIANTS)
    theta = kernels.ntk(points, points[:known], depth=3, **KIND)
    lr = n / float(np.linalg.eigvalsh(theta[:n, :n])[-1])
    picks = np.random.default_rng((seed, 4)).integers(VARIANTS, size=(steps, n))
    targets = np.eye(c)[labels] - 1 / c

    found: dict[str, Any] = {"lr": np.array(lr)}
    for name, threshold in METHODS.items():
        run = augment.self_paced_descent(
            theta,
            np.zeros((len(points), c)),
            y,
            lr=lr,
            steps=steps,
            threshold=threshold,
            copies=picks,
        )
        f = run.outputs[:, known:]
        found[f"{name} loss predicted"] = _losses(f, targets).mean(1)
        found[f"{name} accuracy predicted"] = (f.argmax(2) == labels).mean(1)
        found[f"{name} count predicted"] = run.counts

    # The same parameters three times; what they say at the start is taken off, so that all starts
    # at zero as in the kernel.
    nets = Ensemble([seed] * len(METHODS), (x.shape[1], width, width, c), **KIND)
    start = nets(points)[0]
    loss, accuracy = np.full((2, steps + 1, len(METHODS)), np.nan)
    looks = set(np.linspace(0, steps, LOOKS).round().astype(int).tolist())
    counts = []
    for step in range(steps + 1):
        if step in looks:
            f = nets(z) - start[known:]
            loss[step] = _losses(f, targets).mean(1)
            accuracy[step] = (f.argmax(2) == labels).mean(1)
        if step == steps:
            break
        # Nobody asks for losses where all samples, or none, are augmented whatever they are.
        used = np.empty((len(METHODS), n), dtype=np.intp)
        for k, threshold in enumerate(METHODS.values()):
            chosen = np.full(n, threshold == 0)
            if 0 < threshold < np.inf:
                own = _losses(nets(x, slice(k, k + 1)) - start[:n], y)[0]
                chosen = augment.select(own, threshold=threshold).chosen
            used[k] = np.where(chosen, (1 + picks[step]) * n, 0) + np.arange(n)
        counts.append((used >= n).sum(1))
        nets.step(points[used], y + start[used], lr)
        tick()
    for k, name in enumerate(METHODS):
        found[f"{name} loss"] = loss[:, k]
        found[f"{name} accuracy"] = accuracy[:, k]
        found[f"{name} count"] = np.array(counts)[:, k]
    return found


def _losses(f: Floats, y: Floats) -> Floats:
    losses: Floats = ((f - y) ** 2).sum(axis=2) / 2
    return losses
