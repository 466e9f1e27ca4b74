# SPDX-License-Identifier: Apache-2.0
"""ff.psd on the K-FAC factors of a ResNet-50, many small matrices and large ones, against others.

The floor of an inverse is n^3 / 2 multiply-adds at the matrix-product rate of the same run,
that of a solution with one side n^3 / 6. Beyond it lie the bytes: an inverse reads half of n^2
numbers and writes n^2 into memory that is fresh at each call, which the operating system clears
first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastfisher as ff

from . import harness

DAMPING = 1e-2

# ResNet-50: its 53 convolutions (in-channels, kernel, out-channels, how many) and its classifier.
CONVOLUTIONS = [
    (3, 7, 64, 1),
    # stage of 3 blocks, width 64
    (64, 1, 64, 1), (64, 3, 64, 3), (64, 1, 256, 3), (256, 1, 64, 2), (64, 1, 256, 1),
    # 4 blocks, width 128
    (256, 1, 128, 1), (128, 3, 128, 4), (128, 1, 512, 4), (512, 1, 128, 3), (256, 1, 512, 1),
    # 6 blocks, width 256
    (512, 1, 256, 1), (256, 3, 256, 6), (256, 1, 1024, 6), (1024, 1, 256, 5), (512, 1, 1024, 1),
    # 3 blocks, width 512
    (1024, 1, 512, 1), (512, 3, 512, 3), (512, 1, 2048, 3), (2048, 1, 512, 2), (1024, 1, 2048, 1),
]  # fmt: skip
CLASSIFIER = (2048 + 1, 1000)  # with bias


def resnet50_sizes() -> list[int]:
    """Sizes of the activation and gradient factors of every layer, in order."""
    sizes = []
    for channels, kernel, outputs, count in CONVOLUTIONS:
        sizes += [channels * kernel * kernel, outputs] * count
    return [*sizes, *CLASSIFIER]


def factor(n: int, rng: np.random.Generator) -> np.ndarray:
    """Second moments of fewer samples than rows: singular, so that damping is needed."""
    samples = max(1, n // 2)
    x = rng.standard_normal((samples, n)).astype(np.float32)
    return x.T @ x / np.float32(samples)


def worst_residual(matrices: list[np.ndarray], inverses: list[Any], damping: float) -> float:
    """Largest ||A X - I|| / (n eps ||A|| ||X||) over some of the matrices."""
    worst = 0.0
    for k in range(0, len(matrices), max(1, len(matrices) // 12)):
        n = len(matrices[k])
        if n > 1200:
            continue
        a = matrices[k].astype(float) + damping * np.eye(n)
        x = np.asarray(inverses[k], dtype=float)
        scale = n * float(np.finfo(np.float32).eps) * np.linalg.norm(a) * np.linalg.norm(x)
        worst = max(worst, float(np.linalg.norm(a @ x - np.eye(n)) / scale))
    return worst


def rivals(matrices: list[np.ndarray], damping: float) -> dict[str, Callable[[], list[Any]]]:
    """Inverses by others: torch in batches of equal size, torch.linalg.inv, scipy's potri."""
    ways: dict[str, Callable[[], list[Any]]] = {}
    torch = harness.torch_or_none()
    if torch is not None:
        sizes = sorted({len(a) for a in matrices})
        stacks = [
            torch.stack([torch.from_numpy(a) for a in matrices if len(a) == n]) for n in sizes
        ]

        def damped(stack):
            return stack + damping * torch.eye(stack.shape[-1])

        ways["torch batched cholesky_inverse"] = lambda: [
            torch.cholesky_inverse(torch.linalg.cholesky(damped(stack))) for stack in stacks
        ]
        ways["torch batched linalg.inv"] = lambda: [torch.linalg.inv(damped(s)) for s in stacks]
        if len(matrices) < 200:
            ways["torch loop cholesky_inverse"] = lambda: [
                torch.cholesky_inverse(torch.linalg.cholesky(damped(torch.from_numpy(a))))
                for a in matrices
            ]
    try:
        from scipy.linalg.lapack import spotrf, spotri
    except ImportError:
        return ways

    def potri():
        done = []
        for a in matrices:
            c = a.T.copy(order="F")
            c[np.diag_indices_from(c)] += np.float32(damping)
            x, _ = spotri(spotrf(c, lower=1, overwrite_a=1)[0], lower=1, overwrite_c=1)
            done.append(np.tril(x) + np.tril(x, -1).T)
        return done

    ways["scipy potri loop"] = potri
    return ways


def compare(
    op: str,
    case: str,
    call: Callable[[], object],
    ways: dict[str, Callable[[], Any]],
    flops: float | None,
    rounds: int,
    error: float,
    tolerance: float,
) -> Iterator[dict[str, object]]:
    """One record a rival, all interleaved with the call and the rate."""
    rate = harness.MatmulRate("float32")
    seconds, floors = [], []
    others: dict[str, list[float]] = {name: [] for name in ways}
    for name in ways:
        ways[name]()
    for _ in range(rounds):
        before = rate.measure()
        seconds.append(harness.settled_seconds_of(call))
        floors.append((flops or 0.0) / harness.between(before, rate.measure()))
        for name, way in ways.items():
            others[name].append(harness.settled_seconds_of(way) / seconds[-1])
    ratio = statistics.median(s / f if f else 0.0 for s, f in zip(seconds, floors, strict=True))
    for name, ratios in others.items() or [("", [])]:
        yield {
            "op": op,
            "case": case,
            "seconds": statistics.median(seconds),
            "floor_seconds": statistics.median(floors) if flops else None,
            "ratio_to_floor": ratio if flops else None,
            "rival": name or None,
            "rival_ratio": statistics.median(ratios) if ratios else None,
            "error": error,
            "tolerance": tolerance,
        }


def inverses(
    case: str, matrices: list[np.ndarray], rounds: int, *, keep: str = ""
) -> Iterator[dict[str, object]]:
    """Yield records of ff.psd.inverse; `keep` names the rivals that are quick enough."""
    found = ff.psd.inverse(matrices, damping=DAMPING)
    bad = [r.reason for r in found if r.status != "ok"]
    error = float("nan") if bad else worst_residual(matrices, [r.value for r in found], DAMPING)
    ways = {k: v for k, v in rivals(matrices, DAMPING).items() if keep in k}
    flops = float(sum(len(a) ** 3 for a in matrices))
    # The same arrays as torch is given: its allocator keeps memory, numpy's pages are cleared anew.
    torch = harness.torch_or_none()
    given = [np.asarray(a) if torch is None else torch.from_numpy(a) for a in matrices]
    yield from compare(
        "psd.inverse",
        case,
        lambda: ff.psd.inverse(given, damping=DAMPING),
        ways,
        flops,
        rounds,
        error,
        30.0,
    )


def eigenvectors(count: int, n: int, rounds: int) -> Iterator[dict[str, object]]:
    """Yield records of ff.psd.eigh against torch's batched call."""
    rng = np.random.default_rng(2)
    stack = np.stack([factor(n, rng) for _ in range(count)])
    eps = float(np.finfo(np.float32).eps)
    error = 0.0
    for k, result in enumerate(ff.psd.eigh(stack)[:5]):
        a, v, w = (np.asarray(x, float) for x in (stack[k], result.vectors, result.values))
        error = max(error, float(np.linalg.norm(a @ v - v * w) / (n * eps * np.linalg.norm(a))))
    torch = harness.torch_or_none()
    tensor = None if torch is None else torch.from_numpy(stack)
    ways = {} if torch is None else {"torch batched eigh": lambda: torch.linalg.eigh(tensor)}
    yield from compare(
        "psd.eigh", f"{count} of {n}", lambda: ff.psd.eigh(stack), ways, None, rounds, error, 30.0
    )


def solution(n: int, rounds: int) -> Iterator[dict[str, object]]:
    """Yield records of ff.psd.solve with one side against scipy and torch."""
    rng = np.random.default_rng(3)
    a, b = factor(n, rng), rng.standard_normal(n, dtype="float32")
    a[np.diag_indices(n)] += np.float32(DAMPING)
    x = ff.psd.solve(a, b).value
    wide = a.astype(float)
    scale = float(np.finfo(np.float32).eps) * np.linalg.norm(wide, 2) * np.linalg.norm(x)
    error = float(np.linalg.norm(wide @ x - b) / scale)
    ways: dict[str, Callable[[], Any]] = {}
    torch = harness.torch_or_none()
    if torch is not None:
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)[:, None]
        ways["torch cholesky_solve"] = lambda: torch.cholesky_solve(tb, torch.linalg.cholesky(ta))
    try:
        from scipy.linalg import cho_factor, cho_solve
    except ImportError:
        pass
    else:
        ways["scipy cho_solve"] = lambda: cho_solve(cho_factor(a, lower=True), b)
    case = f"n={n}, one side"
    flops = n**3 / 3
    yield from compare(
        "psd.solve", case, lambda: ff.psd.solve(a, b), ways, flops, rounds, error, 30
    )


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield the records; each result is checked by its residual before it is timed."""
    rng = np.random.default_rng(1)
    rounds = 3 if quick else 7
    sizes = resnet50_sizes()
    yield from inverses(
        "ResNet-50, 88 up to 1024", [factor(n, rng) for n in sizes if n <= 1024], rounds
    )
    yield from inverses("500 of 100", [factor(100, rng) for _ in range(500)], rounds)
    yield from eigenvectors(500, 100, rounds)
    for n in (1024,) if quick else (1024, 2048, 4096, 10240):
        yield from solution(n, 3)
    if not quick:
        everything = [factor(n, rng) for n in sizes]
        yield from inverses("ResNet-50, all 108", everything, 3, keep="loop cholesky_inverse")
