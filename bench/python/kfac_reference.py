# SPDX-License-Identifier: Apache-2.0
"""K-FAC of a network of dense layers in float64 by numpy, and the refresh inside of the optimiser.

What `bench_kfac` times is compared with the first.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .bench_fisher import WIDTHS, network

DAMPING = 1e-3


def reference(
    torch: Any, model: Any, x: Any, labels: Any, g: Any, kind: str, *, joined: bool
) -> Any:
    """Preconditioned gradient (P,) in float64; not `joined`: biases have the inverse of G alone."""
    weights = [p.detach().double().numpy() for p in model.parameters()]
    h, inputs, masks = x.double().numpy(), [], []
    for k in range(0, len(weights), 2):
        inputs.append(h)
        h = h @ weights[k].T + weights[k + 1]
        masks.append(h > 0)
        h = h if k == len(weights) - 2 else h * masks[-1]
    n, c = h.shape
    p = np.exp(h - h.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    if kind == "exact":  # diag(p) - p p^T = S S^T with S = (I - p 1^T) diag(sqrt p)
        root = (np.eye(c)[None] - p[:, :, None]) * np.sqrt(p)[:, None, :]
        cotangents = [root[:, :, k] for k in range(c)]
    else:
        cotangents = [p - np.eye(c)[labels.numpy()]]
    start, parts, flat = 0, [], g.double().numpy()
    left = [np.zeros((len(w), len(w))) for w in weights[::2]]
    for d in cotangents:
        for k in reversed(range(len(left))):
            left[k] += d.T @ d / n
            if k:
                d = (d @ weights[2 * k]) * masks[k - 1]
    for k, a in enumerate(inputs):
        o = len(left[k])
        wide = np.concatenate([a, np.ones((n, 1))], 1) if joined else a
        right = wide.T @ wide / n
        i = a.shape[1]
        pi = np.sqrt(np.trace(right) / len(right) / (np.trace(left[k]) / o))
        right += np.sqrt(DAMPING) * pi * np.eye(len(right))
        damped = left[k] + np.sqrt(DAMPING) / pi * np.eye(o)
        v = flat[start : start + o * i].reshape(o, i)
        b = flat[start + o * i : start + o * i + o]
        start += o * i + o
        own = np.concatenate([v, b[:, None]], 1) if joined else v
        solved = np.linalg.solve(right, np.linalg.solve(damped, own).T).T
        bias = solved[:, -1] if joined else np.linalg.solve(damped, b)
        parts += [solved[:, :i].reshape(-1), bias]
    return torch.from_numpy(np.concatenate(parts))


def batch_of(torch: Any, n: int) -> tuple[Any, Any]:
    """Draw samples and labels, always the same."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, WIDTHS[0])).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(WIDTHS[-1], size=n))


class Inside:
    """Refresh by `ff.optim.KFAC`: forward pass with its estimate, and all but the loss's pass."""

    name = "fastfisher.optim.KFAC"

    def __init__(self, torch: Any, x: Any, y: Any, kind: str) -> None:
        import fastfisher.optim as optim

        self.torch, self.x, self.y, self.kind = torch, x, y, kind
        self.model = network(torch)
        self.kfac = optim.KFAC(
            self.model, kind=kind, likelihood="categorical", damping=DAMPING, kl_clip=None
        )

    def refresh(self) -> float:
        """Replace the gradients by preconditioned ones; seconds without the loss's pass."""
        time.sleep(0.3)
        start = time.perf_counter()
        self.kfac.zero_grad()
        f = self.model(self.x)
        seconds = time.perf_counter() - start
        self.torch.nn.functional.cross_entropy(f, self.y).backward()
        self.before = [p.grad.clone() for p in self.model.parameters()]
        start = time.perf_counter()
        self.kfac.precondition()
        return seconds + time.perf_counter() - start

    def error(self, labels: Any) -> float:
        """Relative error of the last refresh, which must be the first."""
        flat = [
            self.torch.cat([g.reshape(-1) for g in gradients])
            for gradients in (self.before, [p.grad for p in self.model.parameters()])
        ]
        given = self.torch, self.model, self.x, labels, flat[0], self.kind
        return error_of(flat[1], reference(*given, joined=True))


def error_of(found: Any, expected: Any) -> float:
    """Relative error in the norm."""
    return float((found.double() - expected).norm() / expected.norm())
