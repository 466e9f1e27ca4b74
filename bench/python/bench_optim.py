# SPDX-License-Identifier: Apache-2.0
"""Optimisers against what people use: digits by K-FAC, a 2-D Poisson PINN by natural gradient.

Digits: scikit-learn's 1797 images of 8 by 8, standardised; MLP 64-256-256-10 (ReLU) and a CNN of
two convolutions; batches of 256, cross-entropy of all images as the target. Adam is tuned over the
learning rates of `ADAM` with cosine decay over `EPOCHS`; its best final loss is the target, and the
steps and seconds are those until each run first reaches it. K-FAC has the same schedule, over the
learning rates of `KFAC`. Seconds are of training alone.

Poisson: -laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, zero on its edge, which the
ansatz x (1 - x) y (1 - y) N(x, y) fulfils; N is a tanh MLP 2-32-32-1 in float64, 400 points drawn
once, the error is relative L2 on a 50 x 50 grid. Each run stops at its budget of seconds.

Run: ``python -m bench.python.bench_optim [--part digits|poisson] [--seconds 20]``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

import fastfisher as ff
import fastfisher.optim

ADAM = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
KFAC = (0.1, 0.3, 1.0)
EPOCHS, BATCH = 20, 256
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


def network(kind: str) -> torch.nn.Module:
    """Build a classifier, always from the same seed."""
    torch.manual_seed(0)
    nn = torch.nn
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def trained(
    kind: str, make: Callable[[torch.nn.Module], Any], *, decay: bool
) -> list[tuple[int, float, float]]:
    """(step, seconds, loss of all images) every fourth step."""
    x, y = digits()
    model = network(kind)
    optimizer = make(model)
    steps = EPOCHS * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    generator, curve, seconds, step = torch.Generator().manual_seed(1), [], 0.0, 0
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            seconds += time.perf_counter() - start
            step += 1
            if step % 4 == 0 or step == steps:
                with torch.no_grad():
                    curve.append((step, seconds, F.cross_entropy(model(x), y).item()))
    return curve


def reached(curve: list[tuple[int, float, float]], target: float) -> tuple[int, float] | None:
    """Find step and seconds of the first loss at the target."""
    return next(((s, t) for s, t, loss in curve if loss <= target), None)


def bench_digits() -> None:
    """Compare K-FAC with tuned Adam."""
    for kind in ("mlp", "cnn"):
        adams = {
            lr: trained(kind, lambda m, lr=lr: torch.optim.Adam(m.parameters(), lr=lr), decay=True)
            for lr in ADAM
        }
        best = min(adams, key=lambda lr: adams[lr][-1][2])
        target = adams[best][-1][2]
        first = reached(adams[best], target)
        assert first is not None
        for lr in KFAC:
            for name, cls in (("KFAC", ff.optim.KFAC), ("EKFAC", ff.optim.EKFAC)):
                curve = trained(
                    kind,
                    lambda m, lr=lr, cls=cls: cls(
                        m, lr=lr, kind="mc", likelihood="categorical", damping=3e-3, momentum=0.0,
                        kl_clip=1e-2, factor_every=4, inverse_every=8, ema_decay=0.9,
                    ),
                    decay=True,
                )  # fmt: skip
                found = reached(curve, target)
                say(
                    bench="digits", network=kind, optimizer=name, lr=lr, target=target,
                    adam_lr=best, adam_steps=first[0], adam_seconds=round(first[1], 3),
                    steps=found and found[0], seconds=found and round(found[1], 3),
                    final_loss=curve[-1][2], total_seconds=round(curve[-1][1], 3),
                )  # fmt: skip


class Ansatz(torch.nn.Module):
    """Zero on the edge of the square."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
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


def runs(x: torch.Tensor) -> Iterator[tuple[str, torch.nn.Module, Callable[[], Any]]]:
    """Name, model and one step of each optimiser."""
    for name, make in (
        ("NGD", lambda m: ff.optim.NGD(m, adaptive=True, relative_damping=1e-3)),
        ("SPRING", lambda m: ff.optim.SPRING(m, lr=0.5, relative_damping=1e-7, momentum=0.9)),
    ):
        model = Ansatz()
        optimizer: Any = make(model)
        yield name, model, lambda o=optimizer: o.step([(residual, x)])
    for lr in (1e-3, 3e-3, 1e-2):
        model = Ansatz()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)

        def loss_of(model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = 0.5 * batched(model, x).square().mean()
            loss.backward()
            return loss

        yield f"Adam {lr}", model, lambda o=optimizer, c=loss_of: o.step(c)
    model = Ansatz()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=20, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def value(model: Any = model, optimizer: Any = optimizer) -> Any:
        optimizer.zero_grad()
        loss = 0.5 * batched(model, x).square().mean()
        loss.backward()
        return loss

    yield "L-BFGS", model, lambda o=optimizer, c=value: o.step(c)


def bench_poisson(budget: float) -> None:
    """Give each optimiser the same seconds."""
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)).double()
    for name, model, step in runs(x):
        start, steps, passed, best = time.perf_counter(), 0, None, math.inf
        while time.perf_counter() - start < budget:
            step()
            steps += 1
            if steps % (1 if "Adam" not in name else 50) == 0:
                best = min(best, error(model))
                if passed is None and best <= 1e-5:
                    passed = round(time.perf_counter() - start, 2)
        say(
            bench="poisson", optimizer=name, points=len(x), steps=steps, seconds=budget,
            relative_error=min(best, error(model)), seconds_to_1e5=passed,
        )  # fmt: skip


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["digits", "poisson"])
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    if given.part != "poisson":
        bench_digits()
    if given.part != "digits":
        bench_poisson(given.seconds)


if __name__ == "__main__":
    main()
