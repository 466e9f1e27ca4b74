# SPDX-License-Identifier: Apache-2.0
"""Solve a Poisson equation with a network: SPRING, NGD and Adam, each for the same seconds.

-laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square with u = 0 on its edge; the solution is
sin(pi x) sin(pi y). Needs torch. Run: ``python examples/poisson_ngd.py [--seconds 3]``.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

import fastfisher as ff
import fastfisher.optim


def network() -> torch.nn.Module:
    """Build a tanh network of two inputs, always the same."""
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    ).double()


def u(f, x):
    """Evaluate the solution, zero on the edge, at points (..., 2)."""
    return (x * (1 - x)).prod(-1) * f(x)[..., 0]


def residual(f, x):
    """Evaluate laplace u plus the right-hand side at one point (2,)."""
    laplace = torch.func.hessian(lambda z: u(f, z))(x).trace()
    return laplace + 2 * math.pi**2 * (math.pi * x).sin().prod()


def loss(f, x):
    """Evaluate half the mean square of the residuals of all points at once, for Adam."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(u(f, x).sum(), x, create_graph=True)
    bent = [torch.autograd.grad(slope[:, k].sum(), x, create_graph=True)[0][:, k] for k in (0, 1)]
    total = bent[0] + bent[1] + 2 * math.pi**2 * (math.pi * x.detach()).sin().prod(-1)
    return 0.5 * total.square().mean()


def solve(name: str, model: torch.nn.Module, step, seconds: float) -> None:
    """Take steps for some seconds and print the relative error."""
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 50).double()] * 2)
    truth = (math.pi * grid).sin().prod(-1)
    with torch.no_grad():
        error = float((u(model, grid) - truth).norm() / truth.norm())
    print(f"{name}: {steps} steps, relative L2 error {error:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)).double()
    model = network()
    spring = ff.optim.SPRING(model, relative_damping=1e-6, momentum=0.5, norm_constraint=1.0)
    solve("SPRING", model, lambda: spring.step([(residual, points)]), seconds)
    model = network()
    ngd = ff.optim.NGD(model, adaptive=True, relative_damping=1e-3)
    solve("NGD", model, lambda: ngd.step([(residual, points)]), seconds)
    model = network()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> None:
        """Take one step of Adam."""
        adam.zero_grad()
        loss(model, points.clone()).backward()
        adam.step()

    solve("Adam", model, step, seconds)
