# SPDX-License-Identifier: Apache-2.0
"""ff.psd on a CUDA device against torch.linalg on the same device, in the same run.

``python -m bench.python.bench_cuda_psd [--quick] [--json FILE]`` prints a line a measure: medians
of CUDA events round a whole call, the time of torch's, their ratio, and the residual of the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastfisher as ff

from .bench_psd import DAMPING, resnet50_sizes
from .harness import device_seconds

LIMIT = 30.0
figures: dict[str, dict[str, float]] = {}


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median time of a call."""
    return 1e3 * device_seconds(call, rounds)


def factor(n: int, generator: torch.Generator) -> torch.Tensor:
    """Second moments of fewer samples than rows: singular, so that damping is needed."""
    samples = max(1, n // 2)
    x = torch.randn(samples, n, device="cuda", generator=generator)
    return x.T @ x / samples


def residual(a: torch.Tensor, x: torch.Tensor, damping: float) -> float:
    """Return ||A X - I|| / (n eps ||A|| ||X||) in float64."""
    n, eps = len(a), torch.finfo(a.dtype).eps
    eye = torch.eye(n, device=a.device, dtype=torch.float64)
    m, x = a.double() + damping * eye, x.double()
    return float((m @ x - eye).norm() / (n * eps * m.norm() * x.norm()))


def eigen_residual(a: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> float:
    """Return the larger of ||A V - V W|| / (n eps ||A||) and ||V^T V - I|| / (n eps)."""
    n, eps = len(a), torch.finfo(a.dtype).eps
    m, w, v = a.double(), values.double(), vectors.double()
    eye = torch.eye(n, device=a.device, dtype=torch.float64)
    one = (m @ v - v * w).norm() / m.norm()
    return float(max(one, (v.T @ v - eye).norm()) / (n * eps))


def tell(name: str, ours: float, rivals: dict[str, float], error: float) -> None:
    """Check, then print one line: our time, those of others and how many times ours they are."""
    if not error < LIMIT:
        raise SystemExit(f"{name}: residual {error:.3g}, expected less than {LIMIT}")
    against = "  ".join(f"{k} {t:.2f} ms ({t / ours:.2f} x)" for k, t in rivals.items())
    print(f"{name}: {ours:.2f} ms  {against}  residual {error:.3g}", flush=True)
    figures[name] = {"ms": ours, "residual / n eps": error} | {
        f"{k} ms": t for k, t in rivals.items()
    }


def inverses(name: str, matrices: list[torch.Tensor], rounds: int, *, stacked: bool) -> None:
    """Inverses of a list against a loop of torch, or of a stack against its batched calls."""
    given: Any = torch.stack(matrices) if stacked else matrices

    def ours() -> Any:
        return ff.psd.inverse(given, damping=DAMPING)

    # Theirs is given the damped matrices: no kernel of it adds the damping.
    damped = [a + DAMPING * torch.eye(len(a), device=a.device) for a in matrices]
    stack = torch.stack(damped) if stacked else None

    def theirs() -> Any:
        if stack is not None:
            return torch.cholesky_inverse(torch.linalg.cholesky(stack))
        return [torch.cholesky_inverse(torch.linalg.cholesky(a)) for a in damped]

    found = ours()
    assert all(r.status == "ok" for r in found)
    largest = max(range(len(matrices)), key=lambda k: len(matrices[k]))
    places = [largest, *range(0, len(matrices), max(1, len(matrices) // 12))]
    error = max(residual(matrices[k], found[k].value, DAMPING) for k in places)
    del found
    way = "torch batched" if stacked else "torch loop"
    tell(name, milliseconds(ours, rounds), {way: milliseconds(theirs, rounds)}, error)


def eigenvectors(count: int, n: int, rounds: int, generator: torch.Generator) -> None:
    """Eigenvectors of a stack against torch's batched call."""
    stack = torch.stack([factor(n, generator) for _ in range(count)])

    def ours() -> Any:
        return ff.psd.eigh(stack)

    found = ours()
    error = max(
        eigen_residual(stack[k], found[k].values, found[k].vectors)
        for k in range(0, count, max(1, count // 10))
    )
    theirs = milliseconds(lambda: torch.linalg.eigh(stack), min(rounds, 3))
    tell(f"eigh {count} of {n}", milliseconds(ours, rounds), {"torch batched": theirs}, error)


def main() -> None:
    """Run all cases, or the ones that the bars are about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 15 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    options = parser.parse_args()
    quick = options.quick
    rounds = 5 if quick else 15
    generator = torch.Generator(device="cuda").manual_seed(1)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    sizes = resnet50_sizes()
    everything = [factor(n, generator) for n in sizes]
    inverses("inverse ResNet-50, 108 factors", everything, min(rounds, 5), stacked=False)
    small = [a for a in everything if len(a) <= 1024]
    inverses("inverse ResNet-50, up to 1024", small, rounds, stacked=False)
    del everything, small
    hundreds = [factor(100, generator) for _ in range(500)]
    inverses("inverse 500 of 100", hundreds, rounds, stacked=True)
    eigenvectors(500, 100, rounds, generator)
    eigenvectors(500, 32, rounds, generator)
    if not quick:
        for n in (1024, 4608):
            inverses(f"inverse of {n}", [factor(n, generator)], rounds, stacked=False)
        inverses(
            "inverse 5000 of 32", [factor(32, generator) for _ in range(5000)], 5, stacked=True
        )
        eigenvectors(100, 160, 5, generator)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
