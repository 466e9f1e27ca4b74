# SPDX-License-Identifier: Apache-2.0
"""Optimisers on a classification: K-FAC and EKFAC beside Adam and SGD, each tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher.report._section import Context, SectionResult
from fastfisher.report._torch import Watch, best_of, seeded, torch, with_torch
from fastfisher.report.data import DATA_SETS
from fastfisher.report.sections import _optim_digits_page as page

__all__ = ["build"]

Floats = NDArray[np.float64]

IMAGES, TEST, BATCH, STEPS = 1797, 297, 256, 160
THIRD = STEPS // 3
NETWORKS = ("MLP", "CNN")
# Of K-FAC and of EKFAC; the norm constraint is tuned. Softmax on classes that are fitted has little
# curvature left: the damping decides where the loss stops. Factors of drawn labels then vary more
# than empirical ones.
KFAC: dict[str, Any] = {
    "lr": 1.0,
    "kind": "empirical",
    "momentum": 0.0,
    "ema_decay": 0.9,
    "factor_every": 2,
    "inverse_every": 4,
}
SGD_MOMENTUM = 0.9
DAMPINGS = {"K-FAC": 3e-4, "EKFAC": 1e-3}


@dataclass(frozen=True)
class Sizes:
    """What the three grids differ in: what each method is tuned over, and its networks."""

    clips: tuple[float, ...]
    clips_of_ekfac: tuple[float, ...]
    adam: tuple[float, ...]
    sgd: tuple[float, ...]
    networks: int
    every: int

    def tried(self) -> dict[str, tuple[float, ...]]:
        """Give what each method is tuned over."""
        return {
            "K-FAC": self.clips,
            "EKFAC": self.clips_of_ekfac,
            "Adam": self.adam,
            "SGD": self.sgd,
        }


QUICK = Sizes((3e-3, 1e-2), (3e-3,), (1e-2, 3e-2), (3e-1,), 1, 4)
DEFAULT = Sizes(
    (1e-3, 3e-3, 1e-2, 3e-2),
    (1e-3, 3e-3, 1e-2, 3e-2),
    (3e-3, 1e-2, 3e-2, 1e-1),
    (3e-2, 1e-1, 3e-1, 1.0),
    3,
    2,
)
FULL = Sizes(
    (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    10,
    2,
)
SECOND_ORDER = ("K-FAC", "EKFAC")


@with_torch
def build(context: Context) -> SectionResult:
    """Compute the section and describe it."""
    settings = context.settings
    sizes = settings.pick(quick=QUICK, default=DEFAULT, full=FULL)
    seeds = range(settings.seed, settings.seed + sizes.networks)
    tried = sizes.tried()
    images, labels = _images(settings.data, settings.seed)
    total = (
        len(NETWORKS)
        * len(seeds)
        * sum(len(grid) * (1 if method in SECOND_ORDER else 3) for method, grid in tried.items())
    )
    found: dict[str, dict[str, dict[str, Any]]] = {network: {} for network in NETWORKS}
    with context.progress.task("training of classifiers", total) as tick:
        for network in NETWORKS:
            for method, grid in tried.items():
                runs = {}
                for value in grid:
                    points = []
                    for seed in seeds:
                        name = f"{network} {method} {value:g} seed {seed}"
                        run = partial(
                            _run, images, labels, network, method, value, seed, sizes.every
                        )
                        points.append(context.point(name, run))
                        tick(1 if method in SECOND_ORDER else 3)
                    runs[value] = points
                found[network][method] = best_of(runs, "loss")
    reached = {network: _reached(one) for network, one in found.items()}
    values = page.values(found, reached)
    return SectionResult(
        summary=page.summary(values),
        facts=page.facts(values),
        blocks=page.blocks(found, values),
        settings={
            "images": len(labels),
            "inputs": "pixels less their mean, over their standard deviation, of all images",
            "test_images": TEST,
            "batch": BATCH,
            "steps": STEPS,
            "steps_of_kfac_and_ekfac": THIRD,
            "schedule": "cosine to zero over a run's steps",
            "tuned_over": {method: list(grid) for method, grid in tried.items()},
            "kfac_and_ekfac": KFAC,
            "dampings": DAMPINGS,
            "sgd_momentum": SGD_MOMENTUM,
            "networks": sizes.networks,
            "torch_threads": 1,
            "seed": settings.seed,
        },
        values=values,
        headline=page.headline(values),
    )


def _images(name: str, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Images (n, pixels) in random order, as one usually gives them to a network, and labels."""
    images, labels = DATA_SETS[name][1]()
    chosen = np.random.default_rng((seed, 5)).permutation(len(labels))[:IMAGES]
    x = np.asarray(images, dtype=np.float64)
    return (x[chosen] - x.mean()) / x.std(), np.asarray(labels, dtype=np.int64)[chosen]


def _reached(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Floats]]:
    """Find steps and seconds (runs,) until each method has Adam's last loss; NaN: it never has."""
    targets = found["Adam"]["loss"][:, -1]
    result = {}
    for method, one in found.items():
        rows = []
        for k, target in enumerate(targets):
            hits = np.flatnonzero(one["loss"][k] <= target)
            known = hits.size > 0
            rows.append([one[key][k][hits[0]] if known else np.nan for key in ("steps", "seconds")])
        steps, seconds = np.array(rows).T
        result[method] = {"steps": steps, "seconds": seconds}
    return result


# --- one run --------------------------------------------------------------------------------------


def _run(
    images: Floats,
    labels: NDArray[np.int64],
    network: str,
    method: str,
    value: float,
    seed: int,
    every: int,
) -> Mapping[str, Floats]:
    """Train; give steps, seconds, loss of all training images and accuracy on the test images."""
    t = torch()
    cross_entropy = t.nn.functional.cross_entropy
    x, y = t.tensor(images[TEST:], dtype=t.float32), t.tensor(labels[TEST:])
    z, truth = t.tensor(images[:TEST], dtype=t.float32), t.tensor(labels[:TEST])
    with seeded(seed):
        model = _network(network, x.shape[1], int(labels.max()) + 1)
    optimizer = _optimizer(model, method, value)
    steps = THIRD if method in SECOND_ORDER else STEPS
    schedule = t.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def look() -> tuple[float, ...]:
        with t.no_grad():
            loss = float(cross_entropy(model(x), y))
            return loss, float((model(z).argmax(1) == truth).double().mean())

    watch = Watch(every, look)
    generator, done = t.Generator().manual_seed(seed + 1), 0
    while done < steps:
        for index in t.randperm(len(x), generator=generator).split(BATCH)[: steps - done]:
            done += 1
            with watch.step(done, last=done == steps):
                optimizer.zero_grad()
                cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
                schedule.step()
    return watch.columns("loss", "accuracy")


def _network(kind: str, pixels: int, classes: int) -> Any:
    nn = torch().nn
    if kind == "MLP":
        return nn.Sequential(
            nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, classes),
        )  # fmt: skip
    side = math.isqrt(pixels)
    half = (side + 1) // 2
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * half**2, classes),
    )  # fmt: skip


def _optimizer(model: Any, method: str, value: float) -> Any:
    from fastfisher import optim

    own = {"damping": DAMPINGS.get(method, 0.0), "kl_clip": value, **KFAC}
    make: dict[str, Callable[[], Any]] = {
        "K-FAC": lambda: optim.KFAC(model, **own),
        "EKFAC": lambda: optim.EKFAC(model, **own),
        "Adam": lambda: torch().optim.Adam(model.parameters(), lr=value),
        "SGD": lambda: torch().optim.SGD(model.parameters(), lr=value, momentum=SGD_MOMENTUM),
    }
    return make[method]()
