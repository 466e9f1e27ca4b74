# SPDX-License-Identifier: Apache-2.0
"""The Gram on a GPU against the device's own matrix products and the best torch expression.

``python -m bench.python.bench_cuda_gram [--quick] [--json FILE]``. Every line first checks itself
against float64 on some rows. Times are medians of CUDA events around whole calls, host work and
waiting included. The floor counts multiply-adds, halved by symmetry; "rate" is two of them a
second; TF32 and FP32 are torch's products of 8192 x 8192 random matrices in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch

import fastfisher as ff

from .harness import device_seconds as seconds

WIDTHS = (784, 1024, 1024, 1024, 10)


def rate(dtype: torch.dtype, tf32: bool, n: int = 8192) -> float:
    """Torch's matrix product, in FLOP a second."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
    elapsed = seconds(lambda: a @ b)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * n**3 / elapsed


def layers(n: int, c: int, dtype: torch.dtype = torch.float32) -> list[ff.Dense]:
    """Factors of the MLP, positive inputs as after a ReLU."""
    made = []
    for i, o in itertools.pairwise(WIDTHS):
        a = torch.randn(n, i, device="cuda", dtype=dtype).relu() / i**0.5
        g = torch.randn(n, c, o, device="cuda", dtype=dtype) / o**0.5
        made.append(ff.Dense(a, g, bias=True))
    return made


def by_torch(given: list[ff.Dense], outputs: str) -> torch.Tensor:
    """Take the fastest expression found, in place: one large product and one pass a layer."""
    total = None
    for layer in given:
        n, c, o = layer.g.shape
        inner = layer.a @ layer.a.T + 1
        if outputs == "full":
            g = layer.g.reshape(n * c, o)
            part = (g @ g.T).view(n, c, n, c).mul_(inner[:, None, :, None])
        else:
            g = layer.g.reshape(n, c * o)
            part = (g @ g.T).mul_(inner)
        total = part if total is None else total.add_(part)
    return total


def floor(n: int, c: int, outputs: str) -> float:
    """Multiply-adds of the Gram."""
    pairs = n * n / 2
    each = c * c if outputs == "full" else c
    return sum(pairs * (i + each * o) for i, o in itertools.pairwise(WIDTHS))


def error(given: list[ff.Dense], k: torch.Tensor, outputs: str) -> float:
    """Norm-wise error of some rows against float64."""
    rows = slice(0, 64)
    total = 0
    for layer in given:
        a, g = layer.a.double(), layer.g.double()
        inner = a[rows] @ a.T + 1
        if outputs == "full":
            total = total + torch.einsum("nco,mdo,nm->ncmd", g[rows], g, inner)
        else:
            total = total + torch.einsum("nco,mco->nm", g[rows], g) * inner
    return float((k[rows].double() - total).norm() / total.norm())


def one_call(n: int, figures: dict[str, object]) -> None:
    """Time ``ff.ntk`` of one output of a model, from the model to the matrix."""
    sizes = itertools.pairwise(WIDTHS)
    steps = [m for i, o in sizes for m in (torch.nn.Linear(i, o), torch.nn.ReLU())][:-1]
    model, x = torch.nn.Sequential(*steps).cuda(), torch.randn(n, WIDTHS[0], device="cuda")
    k, info = ff.ntk(model, x, outputs=0, return_info=True)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(model(row[None])[0, 0], parameters) for row in x[:16]]
    j = torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients]).double()
    wrong = float((k[:16, :16].double() - j @ j.T).norm() / (j @ j.T).norm())
    del k
    times = {
        f"verify={verify}": seconds(lambda v=verify: ff.ntk(model, x, outputs=0, verify=v), 2)
        for verify in (True, False)
    }
    figures[f"ntk N={n} one output"] = {**times, "error": wrong, "info": str(info)[:400]}
    print(f"ntk N={n} one output", times, f"error {wrong:.2g}", flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.manual_seed(0)
    figures: dict[str, object] = {"device": torch.cuda.get_device_name()}
    fp32, tf32 = rate(torch.float32, False), rate(torch.float32, True)
    fp64 = rate(torch.float64, False, 4096)
    figures["TFLOP/s"] = {"fp32": fp32 / 1e12, "tf32": tf32 / 1e12, "fp64": fp64 / 1e12}
    print(figures)

    def line(name: str, work: float, ours: float, theirs: float | None, wrong: float) -> None:
        found = {
            "ms": ours * 1e3,
            "TFLOP/s": 2 * work / ours / 1e12,
            "of a third of TF32": 2 * work / ours / (tf32 / 3),
            "torch/ours": None if theirs is None else theirs / ours,
            "error": wrong,
        }
        figures[name] = found
        print(
            name, {k: v if v is None else float(f"{v:.4g}") for k, v in found.items()}, flush=True
        )

    cases = [(1024, 10, "full"), (4096, 10, "trace"), (16384, 1, "trace")]
    if not options.quick:
        cases.append((60000, 1, "trace"))
    for n, c, outputs in cases:
        given = layers(n, c)
        jacobian = ff.Jacobian.from_factors(given)
        k = jacobian.gram(outputs=outputs)
        wrong = error(given, k, outputs)
        del k
        repeats = 2 if n > 20000 else 5
        ours = seconds(lambda j=jacobian, o=outputs: j.gram(outputs=o), repeats)
        theirs = seconds(lambda g=given, o=outputs: by_torch(g, o), repeats) if n < 20000 else None
        line(f"dense N={n} C={c} {outputs}", floor(n, c, outputs), ours, theirs, wrong)
        if n == 1024:
            ours = seconds(lambda j=jacobian, o=outputs: j.gram(outputs=o, precision="medium"))
            wrong = error(given, jacobian.gram(outputs=outputs, precision="medium"), outputs)
            line("the same, medium", floor(n, c, outputs), ours, None, wrong)
            # Too little to pack the factors: the kernel that reads them as they are.
            lean = {"outputs": outputs, "memory_limit": "64MB"}
            ours = seconds(lambda j=jacobian, o=lean: j.gram(**o))
            wrong = error(given, jacobian.gram(**lean), outputs)
            line("the same, memory_limit 64MB", floor(n, c, outputs), ours, None, wrong)
        del given, jacobian
        torch.cuda.empty_cache()
    for n in (4096,) if options.quick else (4096, 60000):
        one_call(n, figures)
    given = layers(4096, 1, torch.float64)
    jacobian = ff.Jacobian.from_factors(given)
    k = jacobian.gram(outputs="trace")
    ours, theirs = (
        seconds(lambda: jacobian.gram(outputs="trace")),
        seconds(lambda: by_torch(given, "trace")),
    )
    line("float64 N=4096 C=1", floor(4096, 1, "trace"), ours, theirs, error(given, k, "trace"))
    j = torch.randn(8192, 32768, device="cuda")
    explicit = ff.Jacobian.from_factors([ff.Explicit(j[:, None])])
    k = explicit.gram(outputs="trace")
    reference = j[:64].double() @ j.double().T
    wrong = float((k[:64].double() - reference).norm() / reference.norm())
    ours, theirs = seconds(lambda: explicit.gram(outputs="trace")), seconds(lambda: j @ j.T)
    line("explicit 8192 x 32768", 8192**2 / 2 * 32768, ours, theirs, wrong)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
