# SPDX-License-Identifier: Apache-2.0
"""Optimisers against what people use: digits by K-FAC, a 2-D Poisson PINN by natural gradient.

Digits: scikit-learn's 1797 images of 8 by 8, standardised; MLP 64-256-256-10 (ReLU) and a CNN of
two convolutions; batches of 256, cross-entropy of all images. Adam is tuned over the six learning
rates `ADAM`, each with cosine decay to zero over `STEPS` steps; its best final loss is the target,
and steps and seconds are those until each run first reaches it. K-FAC has cosine decay over `THIRD`
steps, a third, the settings `KFAC`, and is tuned over six pairs of `DAMPINGS` and `CLIPS`: classes
that are fitted have little curvature left, and the loss stops near the damping; empirical factors
vary less than those of few drawn labels then. Beside it: the best that Adam reaches over a third of
the steps. Networks, orders of batches and the tuning of both follow the seed. Seconds are of
training alone. Where each pixel's mean is taken off the images Adam ends at some 5e-5, and K-FAC
ends a factor of 2 to 5 above it after a third of the steps.

Poisson: -laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, zero on its edge, which the
ansatz x (1 - x) y (1 - y) N(x, y) fulfils; N is a tanh MLP 2-32-32-1 in float64, 400 points drawn
once, the error is relative L2 on a 50 x 50 grid. Each run stops at its budget of seconds. Adam has
cosine decay over the budget and the learning rates `RATES`, L-BFGS a strong Wolfe line search and
the histories `HISTORIES`. NGD adapts its damping; SPRING has the norm constraint of its paper, over
the values `NORMS`: full steps without it (or a learning rate of 0.1) overshoot at the start.

Step: one damped step of NGD on the 784-1024x3-10 MLP, N = 1024, C = 10, against the floor of the
kernel's call (see `peers`) and the flops of a Cholesky factor, n^3 / 3 for its 10240 rows.

Run: ``python -m bench.python.bench_optim [--part digits|poisson|step] [--seconds 20]
[--seeds 0 1 2]``; without `--part` digits and poisson.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

import fastfisher as ff
import fastfisher.optim

from . import harness
from .peers_models import MLP

ADAM = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DAMPINGS, CLIPS = (3e-5, 1e-4, 3e-4), (3e-3, 1e-2)
KFAC: dict[str, Any] = {
    "lr": 1.0, "kind": "empirical", "momentum": 0.0, "ema_decay": 0.9,
    "factor_every": 2, "inverse_every": 4,
}  # fmt: skip
STEPS, BATCH = 160, 256
THIRD = STEPS // 3
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
HISTORIES = (50, 200)
NORMS = (0.1, 1.0)
F = torch.nn.functional


def say(**line: Any) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load images (1797, 64) and labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(found.target)


def network(kind: str, seed: int) -> torch.nn.Module:
    """Build a classifier."""
    torch.manual_seed(seed)
    nn = torch.nn
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def batches(n: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield the samples of each step; every epoch has another order."""
    generator = torch.Generator().manual_seed(seed + 1)
    done = 0
    while True:
        for index in torch.randperm(n, generator=generator).split(BATCH):
            if done == steps:
                return
            yield index
            done += 1


def trained(
    kind: str, seed: int, make: Callable[[torch.nn.Module], Any], steps: int
) -> list[tuple[int, float, float]]:
    """(step, seconds, loss of all images), with cosine decay over the steps."""
    x, y = digits()
    model = network(kind, seed)
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve, seconds = [], 0.0
    for step, index in enumerate(batches(len(x), steps, seed), 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        with torch.no_grad():
            curve.append((step, seconds, F.cross_entropy(model(x), y).item()))
    return curve


def reached(curve: list[tuple[int, float, float]], target: float) -> tuple[int, float] | None:
    """Find step and seconds of the first loss at the target."""
    return next(((s, t) for s, t, loss in curve if loss <= target), None)


def adam(lr: float) -> Callable[[torch.nn.Module], Any]:
    """Make Adam."""
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr)


def bench_digits(seeds: list[int]) -> None:
    """Compare K-FAC with tuned Adam."""
    for kind in ("mlp", "cnn"):
        for seed in seeds:
            adams = {lr: trained(kind, seed, adam(lr), STEPS) for lr in ADAM}
            best = min(adams, key=lambda lr: adams[lr][-1][2])
            target = adams[best][-1][2]
            first = reached(adams[best], target)
            assert first is not None
            short = min(trained(kind, seed, adam(lr), THIRD)[-1][2] for lr in ADAM)
            say(
                bench="digits", network=kind, seed=seed, optimizer="Adam", lr=best, target=target,
                losses={lr: curve[-1][2] for lr, curve in adams.items()},
                steps=first[0], seconds=round(first[1], 3), best_in_a_third=short,
            )  # fmt: skip
            for name, cls in (("KFAC", ff.optim.KFAC), ("EKFAC", ff.optim.EKFAC)):
                for damping, clip in itertools.product(DAMPINGS, CLIPS):
                    options = {"damping": damping, "kl_clip": clip, **KFAC}
                    curve = trained(kind, seed, lambda m, c=cls, o=options: c(m, **o), THIRD)
                    found = reached(curve, target)
                    say(
                        bench="digits", network=kind, seed=seed, optimizer=name, damping=damping,
                        kl_clip=clip, target=target, steps=found and found[0],
                        seconds=found and round(found[1], 3),
                        part_of_steps=found and round(found[0] / first[0], 3),
                        part_of_seconds=found and round(found[1] / first[1], 3),
                        final_loss=curve[-1][2], total_seconds=round(curve[-1][1], 3),
                    )  # fmt: skip


class Ansatz(torch.nn.Module):
    """Zero on the edge of the square."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        nn = torch.nn
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        ).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute u (n, 1)."""
        edge = x[:, :1] * (1 - x[:, :1]) * x[:, 1:] * (1 - x[:, 1:])
        return edge * self.net(x)


def source(x: torch.Tensor) -> torch.Tensor:
    """Evaluate minus the right-hand side at points (..., 2)."""
    return 2 * math.pi**2 * (math.pi * x).sin().prod(-1)


def residual(f: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    """Of one point."""
    return torch.func.hessian(lambda z: f(z)[0])(x).trace() + source(x)


def batched(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of all points, for optimisers that need a loss."""
    z = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(z).sum(), z, create_graph=True)
    total: Any = source(x)
    for k in range(2):
        total = total + torch.autograd.grad(slope[:, k].sum(), z, create_graph=True)[0][:, k]
    return total


def error(model: torch.nn.Module) -> float:
    """Measure the relative L2 error."""
    t = torch.linspace(0, 1, 50).double()
    grid = torch.cartesian_prod(t, t)
    truth = (math.pi * grid).sin().prod(-1)
    with torch.no_grad():
        return float((model(grid)[:, 0] - truth).norm() / truth.norm())


def runs(
    x: torch.Tensor, seed: int, part: Callable[[], float]
) -> Iterator[tuple[str, torch.nn.Module, Callable[[], Any]]]:
    """Name, model and one step of each optimiser; `part` says how much of the budget is used."""
    natural: dict[str, Callable[[torch.nn.Module], Any]] = {
        "NGD": lambda m: ff.optim.NGD(m, adaptive=True, relative_damping=1e-3)
    }
    for norm in NORMS:
        natural[f"SPRING {norm}"] = lambda m, norm=norm: ff.optim.SPRING(
            m, lr=1.0, relative_damping=1e-6, momentum=0.5, norm_constraint=norm
        )
    for name, make in natural.items():
        model = Ansatz(seed)
        optimizer: Any = make(model)
        yield name, model, lambda o=optimizer: o.step([(residual, x)])
    for lr in RATES:
        model = Ansatz(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)

        def decayed(optimizer: Any = optimizer, lr: float = lr, model: Any = model) -> None:
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * min(1, part())))
            optimizer.step(lambda: loss_of(model, optimizer, x))

        yield f"Adam {lr}", model, decayed
    for history in HISTORIES:
        model = Ansatz(seed)
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=20, history_size=history, line_search_fn="strong_wolfe",
            tolerance_grad=0, tolerance_change=0,
        )  # fmt: skip
        yield (
            f"L-BFGS {history}", model,
            lambda o=optimizer, m=model: o.step(lambda: loss_of(m, o, x)),
        )  # fmt: skip


def loss_of(model: torch.nn.Module, optimizer: Any, x: torch.Tensor) -> torch.Tensor:
    """Half the mean square of the residuals, with its gradient."""
    optimizer.zero_grad()
    loss = 0.5 * batched(model, x).square().mean()
    loss.backward()
    return loss


def bench_poisson(budget: float, seeds: list[int]) -> None:
    """Give each optimiser the same seconds."""
    clock = {"start": 0.0}
    for seed in seeds:
        x = torch.rand(400, 2, generator=torch.Generator().manual_seed(seed)).double()
        for name, model, step in runs(
            x, seed, lambda: (time.perf_counter() - clock["start"]) / budget
        ):
            clock["start"], steps, passed, best = time.perf_counter(), 0, None, math.inf
            while time.perf_counter() - clock["start"] < budget:
                step()
                steps += 1
                if steps % (1 if "Adam" not in name else 50) == 0:
                    best = min(best, error(model))
                    if passed is None and best <= 1e-5:
                        passed = round(time.perf_counter() - clock["start"], 2)
            say(
                bench="poisson", seed=seed, optimizer=name, points=len(x), steps=steps,
                seconds=budget, best_error=min(best, error(model)), final_error=error(model),
                seconds_to_1e5=passed,
            )  # fmt: skip


def bench_step(rounds: int = 3) -> None:
    """Time a damped step, with its system solved in float32 and in float64."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n, rate = 1024, harness.MatmulRate("float32")
    for solve in ("float32", "float64"):
        model, x = MLP.build(n)
        y = torch.randn(n, 10, generator=torch.Generator().manual_seed(0))
        optimizer = ff.optim.NGD(model, lr=1e-3, relative_damping=1e-2, solve_dtype=solve)
        flops = MLP.floor(n, "full") + (10 * n) ** 3 / 3
        timing = harness.interleave(
            lambda o=optimizer, x=x, y=y: o.step(x=x, y=y), flops, rate, None, rounds
        )
        say(
            bench="step", solve=solve, n=n, seconds=timing.seconds,
            of_floor=round(timing.ratio_to_floor, 3),
        )  # fmt: skip


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["digits", "poisson", "step"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    if given.part == "step":
        bench_step()
    if given.part in (None, "digits"):
        bench_digits(given.seeds)
    if given.part in (None, "poisson"):
        bench_poisson(given.seconds, given.seeds)


if __name__ == "__main__":
    main()
