# SPDX-License-Identifier: Apache-2.0
"""J v, J^T u and Kronecker factors on a GPU, one line a measure.

``python -m bench.python.bench_cuda_products [--quick] [--json FILE]``. Each is checked against
float64 first, then timed by CUDA events round whole calls, medians of interleaved rounds, beside
the best torch expression at highest precision on the same device. Floors: the counted flops at the
rate of torch's 4096^3 product of the same run (float32, highest precision), and the bytes of
factors, vector and result once at the rate of a copy on the device; the longer one is the floor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

import fastfisher as ff
from fastfisher import _native

WIDTHS = (784, 1024, 1024, 1024, 10)


def milliseconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each call, one of each in every round."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, into in zip(calls, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            into.append(start.elapsed_time(end))
    return [statistics.median(x) for x in times]


class Rates:
    """Flops and bytes a millisecond of this device, by torch."""

    def __init__(self) -> None:
        a, b = (torch.randn(4096, 4096, device="cuda") for _ in range(2))
        big = torch.empty(1 << 28, device="cuda")
        other = torch.empty_like(big)
        product, copy = milliseconds([lambda: a @ b, lambda: other.copy_(big)], 7)
        self.flops, self.bytes = 2 * 4096**3 / product, 2 * big.nbytes / copy
        name = torch.cuda.get_device_name()
        self.rows: list[dict[str, object]] = [
            {"device": name, "flops": self.flops * 1e3, "bytes": self.bytes * 1e3}
        ]
        print(f"{name}: {self.flops / 1e9:.1f} TFLOP/s, {self.bytes / 1e9:.2f} TB/s by torch")


def report(
    name: str,
    ours: Callable[[], torch.Tensor],
    theirs: Callable[[], torch.Tensor],
    exact: Callable[[], torch.Tensor],
    flops: float,
    size: float,
    rates: Rates,
    rounds: int,
) -> None:
    """Check, time and print one measure."""
    expected, got = exact(), ours().double()
    error = float(torch.linalg.norm(got - expected) / torch.linalg.norm(expected))
    rival = float(torch.linalg.norm(theirs().double() - expected) / torch.linalg.norm(expected))
    if not error < 2e-5:
        raise SystemExit(f"{name}: relative error {error:.2e}")
    del expected, got
    mine, other = milliseconds([ours, theirs], rounds)
    work, reading = flops / rates.flops, size / rates.bytes
    rates.rows.append(
        {
            "case": name,
            "seconds": mine / 1e3,
            "torch_seconds": other / 1e3,
            "flops_floor_seconds": work / 1e3,
            "bytes_floor_seconds": reading / 1e3,
            "error": error,
            "torch_error": rival,
        }
    )
    print(
        f"{name}: {mine:.3f} ms, torch {other:.3f} ms ({other / mine:.2f} x), floor "
        f"{max(work, reading):.3f} ms (flops {work:.3f}, bytes {reading:.3f}; "
        f"{max(work, reading) / mine:.0%} of it), {flops / mine / 1e9:.1f} TFLOP/s, "
        f"errors {error:.1e} and {rival:.1e}",
        flush=True,
    )


def both(case: str, forward, back, figures) -> None:
    """Report J v and J^T u, each by (ours, theirs, theirs in float64)."""
    report(f"J v    {case}", *forward, *figures)
    report(f"J^T u  {case}", *back, *figures)


def dense(columns: int, n: int, rates: Rates, rounds: int) -> None:
    """Both products for the layers of a network."""
    pairs = list(itertools.pairwise(WIDTHS))
    c = WIDTHS[-1]
    factors = [
        (torch.randn(n, i, device="cuda"), torch.randn(n, c, o, device="cuda") / o)
        for i, o in pairs
    ]
    jacobian = ff.Jacobian.from_factors([ff.Dense(a, g, bias=True) for a, g in factors])
    v = torch.randn(jacobian.shape[1], columns, device="cuda")
    u = torch.randn(n * c, columns, device="cuda")

    def theirs(factors=factors, v=v):
        total, start = 0, 0
        for a, g in factors:
            (i, o), k = (a.shape[1], g.shape[2]), v.shape[1]
            weight = v[start : start + o * i].view(o, i, k)
            start += o * i
            if k == 1:
                z = torch.addmm(v[start : start + o, 0], a, weight[:, :, 0].T)[:, :, None]
            else:
                z = a @ weight.permute(1, 0, 2).reshape(i, o * k)
                z = z.view(-1, o, k) + v[start : start + o]
            start += o
            total = total + torch.bmm(g, z)
        return total.reshape(-1, v.shape[1])

    def theirs_back(factors=factors, u=u):
        parts = []
        for a, g in factors:
            (i, o), k = (a.shape[1], g.shape[2]), u.shape[1]
            h = torch.bmm(g.mT, u.view(-1, c, k))
            weight = h.reshape(-1, o * k).T @ a
            parts += [weight.view(o, k, i).transpose(1, 2).reshape(o * i, k), h.sum(0)]
        return torch.cat(parts)

    double = [(a.double(), g.double()) for a, g in factors]
    flops = 2.0 * columns * sum(n * i * o + n * c * o for i, o in pairs)
    size = 4.0 * (sum(a.numel() + g.numel() for a, g in factors) + v.numel() + u.numel())
    case = f"MLP 784-1024x3-10, N={n}, k={columns}"
    both(
        case,
        (lambda: jacobian @ v, theirs, lambda: theirs(double, v.double())),
        (lambda: jacobian.T @ u, theirs_back, lambda: theirs_back(double, u.double())),
        (flops, size, rates, rounds),
    )


def convolution(columns: int, n: int, rates: Rates, rounds: int) -> None:
    """Both products for one 3 x 3 convolution."""
    channels, o, space, c = 64, 128, 32, 10
    x = torch.randn(n, channels, space, space, device="cuda")
    g = torch.randn(n, c, o, space, space, device="cuda") / o
    layer = ff.Conv(x, g, kernel=3, padding=1, bias=True)
    jacobian = ff.Jacobian.from_factors([layer])
    i = channels * 9
    v = torch.randn(jacobian.shape[1], columns, device="cuda")
    u = torch.randn(n * c, columns, device="cuda")
    # torch's convolution reads x unfolded as ours does; its tensor cores must be off.
    torch.backends.cudnn.allow_tf32 = False

    def theirs(x=x, g=g, v=v):
        k = v.shape[1]
        weight = v[: o * i].T.reshape(k * o, channels, 3, 3)
        z = torch.nn.functional.conv2d(x, weight, v[o * i :].T.reshape(k * o), padding=1)
        return torch.bmm(g.reshape(n, c, -1), z.view(n, k, -1).mT).reshape(n * c, k)

    def theirs_back(x=x, g=g, u=u):
        k = u.shape[1]
        h = torch.bmm(u.view(n, c, k).mT, g.reshape(n, c, -1)).view(n, k * o, space, space)
        weight = torch.nn.grad.conv2d_weight(x, (k * o, channels, 3, 3), h, padding=1)
        bias = h.sum((0, 2, 3)).view(k, o)
        return torch.cat([weight.reshape(k, o * i), bias], 1).T

    flops = 2.0 * columns * n * space**2 * o * (i + c)
    size = 4.0 * (x.numel() + g.numel() + v.numel() + u.numel())
    case = f"conv 3x3 64->128 on 32x32, N={n}, k={columns}"
    double = (x.double(), g.double())
    both(
        case,
        (lambda: jacobian @ v, theirs, lambda: theirs(*double, v.double())),
        (lambda: jacobian.T @ u, theirs_back, lambda: theirs_back(*double, u.double())),
        (flops, size, rates, rounds),
    )


def factors(n: int, rates: Rates, rounds: int) -> None:
    """Kronecker factors of the network's layers, all in one call, and one long and narrow one."""
    lists = {
        f"K-FAC factors of the MLP, N={n}": [
            (torch.randn(n, width, device="cuda"), one)
            for width, one in [(784, 1), *[(1024, 1), (1024, 0)] * 3, (10, 0)]
        ],
        f"factor 576 of {64 * n} patches": [(torch.randn(64 * n, 576, device="cuda"), 1)],
    }
    for name, items in lists.items():
        arrays = [a for a, _ in items]
        outs = [torch.empty(a.shape[1] + one, a.shape[1] + one, device="cuda") for a, one in items]
        scales = [1.0 / n] * len(items)

        def ours(arrays=arrays, outs=outs, scales=scales):
            _native.moments(arrays, outs, scales)
            return outs[0].reshape(-1)

        def theirs(items=items, double=False):
            results = []
            for a, one in items:
                x = a.double() if double else a
                m = x.shape[1]
                out = x.new_empty(m + one, m + one)
                torch.mm(x.T, x, out=out[:m, :m]) if one == 0 else out[:m, :m].copy_(x.T @ x)
                if one:
                    out[m, :m] = out[:m, m] = x.sum(0)
                    out[m, m] = len(x)
                results.append(out / n)
                if double:
                    break
            return results[0].reshape(-1)

        flops = sum(float(a.shape[0]) * (a.shape[1] + one) ** 2 for a, one in items)
        size = 4.0 * sum(a.numel() for a in arrays) + 4.0 * sum(out.numel() for out in outs)
        report(
            name,
            ours,
            theirs,
            lambda theirs=theirs: theirs(double=True),
            flops,
            size,
            rates,
            rounds,
        )


def main() -> None:
    """Print all measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rounds and samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    rates, rounds = Rates(), 5 if quick else 15
    for columns in (1, 8):
        dense(columns, 1024 if quick else 4096, rates, rounds)
        convolution(columns, 64 if quick else 256, rates, rounds)
    factors(1024 if quick else 4096, rates, rounds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rates.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
