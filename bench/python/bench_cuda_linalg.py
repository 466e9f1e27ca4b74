# SPDX-License-Identifier: Apache-2.0
"""eigsh on a GPU against cupyx's, and its native steps against the device's memory.

``python -m bench.python.bench_cuda_linalg [--quick] [--json FILE]``. Every line first checks itself
against float64. Times are medians of CUDA events: around whole calls of eigsh, host work and
waiting included, and around twenty calls in a row of a step. GB/s counts the bytes that a step has
to read once, of symm half the matrix. cupyx's eigsh runs as it is called (but for a bound on its
steps, or it might run on), and at several tolerances, since its own is absolute. There are two
ratios: of its call with its own tolerance, as ours has its own, and of its fastest run whose
residual is no larger than ours or four roundings, or of its most accurate one if there is none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import fastfisher as ff
from fastfisher import _native

from .harness import device_seconds as seconds

EPS = torch.finfo(torch.float32).eps


def power_law(n: int) -> torch.Tensor:
    """Gram ``B B^T`` of n x 600 normal columns scaled by ``j^-1/2``."""
    b = torch.randn(n, 600, device="cuda") * torch.arange(1, 601, device="cuda") ** -0.5
    a = (b @ b.T).tril_()
    return a + a.tril(-1).T


def tangent_kernel(n: int) -> torch.Tensor:
    """NTK of a ReLU network 784-1024-1024-1024-1 on normal inputs."""
    sizes = list(itertools.pairwise((784, 1024, 1024, 1024, 1)))
    weights = [torch.randn(o, i, device="cuda") * (2 / i) ** 0.5 for i, o in sizes]
    inputs, signs = [torch.randn(n, 784, device="cuda")], []
    for w in weights[:-1]:
        pre = inputs[-1] @ w.T
        inputs.append(pre.relu())
        signs.append(pre > 0)
    g = torch.ones(n, 1, device="cuda")
    layers = [ff.Dense(inputs[-1], g[:, None].contiguous())]
    for w, a, sign in zip(weights[:0:-1], inputs[-2::-1], signs[::-1], strict=True):
        g = (g @ w) * sign
        layers.append(ff.Dense(a, g[:, None].contiguous()))
    return ff.Jacobian.from_factors(layers).gram(outputs="trace")


def residual(a: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> float:
    """Largest residual norm over the largest value, with products in float64."""
    wide, values = vectors.double(), values.double()
    product = torch.cat([rows.double() @ wide for rows in a.split(2048)])
    return float((product - wide * values).norm(dim=0).max() / values.abs().max())


def by_cupyx(a: torch.Tensor, norm: float, quick: bool) -> list[tuple[str, float, float]]:
    """(tolerance, seconds, residual) of cupyx's eigsh; none without cupy."""
    try:
        import cupy
        from cupyx.scipy.sparse.linalg import eigsh
    except ImportError:
        return []
    matrix, found = cupy.from_dlpack(a), []
    for name, options in (
        ("its own, at most 600 steps", {"maxiter": 600}),
        ("1e-7", {"tol": 1e-7 * norm}),
        ("1e-6", {"tol": 1e-6 * norm}),
        ("1e-5", {"tol": 1e-5 * norm}),
    ):
        options.setdefault("maxiter", 1200)
        w, v = eigsh(matrix, k=20, which="LA", **options)
        wrong = residual(a, torch.from_dlpack(w), torch.from_dlpack(v))
        call = lambda o=options: eigsh(matrix, k=20, which="LA", **o)  # noqa: E731
        found.append((name, seconds(call, 2 if quick else 3), wrong))
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    n = 4096 if options.quick else 16384
    figures: dict[str, object] = {"device": torch.cuda.get_device_name()}

    def line(name: str, found: dict[str, object]) -> None:
        figures[name] = found
        shown = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
        print(name, shown, flush=True)

    steps(n, line)
    small_problems(line)
    for name, matrix in (("power law", power_law), ("NTK 784-1024x3-1", tangent_kernel)):
        a = matrix(n)
        found = ff.linalg.eigsh(a, 20)
        ours = residual(a, found.values, found.vectors)
        elapsed = seconds(lambda a=a: ff.linalg.eigsh(a, 20))
        rivals = by_cupyx(a, float(found.values[0]), options.quick)
        for rival, theirs, wrong in rivals:
            line(f"cupyx, {name} {n}, tol {rival}", {"ms": theirs * 1e3, "residual": wrong})
        equal = [theirs for _, theirs, wrong in rivals if wrong <= max(ours, 4 * EPS)]
        best = min(rivals, key=lambda run: run[2])[1] if rivals else None
        against = min(equal) if equal else best
        line(
            f"top 20, {name} {n}",
            {
                "ms": elapsed * 1e3,
                "residual": ours,
                "passes": found.matvecs / 8,
                "certified": found.certified,
                "cupyx as it is called/ours": rivals[0][1] / elapsed if rivals else None,
                "cupyx/ours": None if against is None else against / elapsed,
                "at equal residual": bool(equal),
            },
        )
        del a, found
        torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def steps(n: int, line) -> None:
    """Time the native steps."""
    for size, vectors in ((n, 8), (n, 16), (n, 20), (n - 1, 8)):
        products(torch.float32, size, vectors, line)
    products(torch.float64, n // 2, 4, line)
    for i, j in ((132, 8), (8, 8), (132, 72)):
        panels(n, i, j, line)
    passes(n, line)


def small_problems(line) -> None:
    """Time the decompositions that eigsh makes on the host, on the clock."""
    a = np.random.default_rng(0).standard_normal((1, 120, 120))
    a += a.transpose(0, 2, 1).copy()
    values, rows = np.empty((1, 120)), np.empty((1, 120, 120))

    def clock(call) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    ours = clock(lambda: _native.small_eigh(a, values, rows))
    rng = np.random.default_rng(0)
    figures = {"ms": ours, "numpy ms": clock(lambda: np.linalg.eigh(a))}
    figures["ms of a random block"] = clock(lambda: rng.standard_normal((8, 16384)))
    line("host, eigh 120", figures)


def products(dtype: torch.dtype, n: int, vectors: int, line) -> None:
    """Time symm, and symmetry of the same matrix."""
    a = torch.randn(1, n, n, device="cuda", dtype=dtype)
    a = a + a.mT
    x = torch.randn(1, vectors, n, device="cuda", dtype=dtype)
    out, scale = torch.empty_like(x), torch.ones(1, device="cuda", dtype=torch.float64)
    _native.symm(a, x, scale, out)
    rows = slice(n // 2, n // 2 + 64)
    exact = x[0].double() @ a[0, rows].double().T
    wrong = float((out[0][:, rows].double() - exact).norm() / exact.norm())
    ours = seconds(lambda: _native.symm(a, x, scale, out), inner=20)
    library = seconds(lambda: torch.matmul(x[0], a[0]), inner=20)
    half = n**2 / 2 * a.element_size()
    line(
        f"symm {str(dtype)[6:]} {n} x {vectors}",
        {
            "ms": ours * 1e3,
            "GB/s": half / ours / 1e9,
            "torch/ours": library / ours,
            "error": wrong,
        },
    )
    found = torch.empty(1, 2, device="cuda", dtype=torch.float64)
    ours = seconds(lambda: _native.symmetry(a, found), inner=5)
    wrong = abs(float(found[0, 0]) - float(a.abs().max()))
    rate = 2 * half / ours / 1e9
    line(f"symmetry {str(dtype)[6:]} {n}", {"ms": ours * 1e3, "GB/s": rate, "error": wrong})


def passes(n: int, line) -> None:
    """Time lanczos_steps, nine passes of eight vectors, beside their products."""
    b, count = 8, 9
    a = torch.randn(1, n, n, device="cuda")
    a = a + a.mT
    scale = torch.full((1,), 0.5 / n**0.5, device="cuda", dtype=torch.float64).sqrt()
    start = torch.randn(1, (count + 1) * b, n, device="cuda")
    small = torch.empty(count + 1, 1, b, (count + 1) * b + 1, device="cuda", dtype=torch.float64)
    basis = start.clone()
    _native.lanczos_steps(a, scale, basis, 0, small, fresh=True)
    wide = basis[0].double()
    wrong = float((wide @ wide.T - torch.eye(len(wide), device="cuda")).abs().max())
    out = torch.empty_like(basis[:, :b])
    product = seconds(lambda: _native.symm(a, start[:, :b], scale, out), inner=20)

    def call() -> None:
        basis[:, :b] = start[:, :b]
        _native.lanczos_steps(a, scale, basis, 0, small, fresh=True)

    figures = {"ms a pass": seconds(call) / count * 1e3, "ms symm": product * 1e3, "error": wrong}
    line(f"lanczos_steps {n} x {b}, {count} passes", figures)


def panels(n: int, i: int, j: int, line) -> None:
    """Time panel_dots, panel_combine and panel_remove."""
    x, y = (torch.randn(1, m, n, device="cuda") for m in (i, j))
    small, out = torch.empty(1, j, i, device="cuda", dtype=torch.float64), torch.empty_like(y)
    size = (i + j) * n * 4

    def show(name: str, call, got: torch.Tensor, expected: torch.Tensor) -> None:
        call()
        wrong = float((got.double() - expected).norm() / expected.norm())
        ours = seconds(call, inner=20)
        figures = {"ms": ours * 1e3, "GB/s": size / ours / 1e9, "error": wrong}
        line(f"{name} {i} x {j}", figures)

    exact = y.double() @ x.double().mT
    show("panel_dots", lambda: _native.panel_dots(x, y, small), small, exact)
    combine = lambda: _native.panel_combine(small, x, out, keep=False)  # noqa: E731
    show("panel_combine", combine, out, small @ x.double())
    # The whole step, on an orthonormal basis: what is left of y is orthogonal to it.
    basis = torch.linalg.qr(x[0].T)[0].T[None].contiguous()
    found, rest = torch.empty(1, j, i + j, device="cuda", dtype=torch.float64), y.clone()
    wide = basis.double()
    left = y.double() - y.double() @ wide.mT @ wide
    _native.panel_remove(basis, rest, found)
    wrong = float((rest.double() - left).norm() / left.norm())
    elapsed = seconds(lambda: _native.panel_remove(basis, rest, found), inner=20)
    line(f"panel_remove {i} x {j}", {"ms": elapsed * 1e3, "error": wrong})


if __name__ == "__main__":
    main()
