# SPDX-License-Identifier: Apache-2.0
"""Classify handwritten digits by K-FAC, and by Adam in three times the steps.

Needs torch and scikit-learn. Run: ``python examples/digits_kfac.py [--steps 53] [--seed 0]``.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits

import fastfisher as ff
import fastfisher.optim

cross_entropy = torch.nn.functional.cross_entropy


def network(seed: int) -> torch.nn.Module:
    """Build a small convolutional network for images (n, 64)."""
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def train(name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train on 1500 images and print what the loss and the test accuracy are."""
    found = load_digits()
    x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean()) / x.std())[order], y[order]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in range(steps):
        index = torch.randint(1500, (256,))
        optimizer.zero_grad()
        cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        loss = float(cross_entropy(model(x[:1500]), y[:1500]))
        accuracy = float((model(x[1500:]).argmax(1) == y[1500:]).double().mean())
    print(f"{name}: {steps} steps, {seconds:.1f} s, loss {loss:.1e}, test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=53)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = network(given.seed)
    kfac = ff.optim.KFAC(
        model, lr=1.0, damping=3e-4, momentum=0.0, kl_clip=3e-3, factor_every=2, inverse_every=4
    )
    train("K-FAC", model, kfac, given.steps)
    model = network(given.seed)
    train("Adam", model, torch.optim.Adam(model.parameters(), lr=3e-2), 3 * given.steps)
