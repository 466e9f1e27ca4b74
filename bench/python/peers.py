# SPDX-License-Identifier: Apache-2.0
"""Head to head: the kernel of a torch model by `ff.ntk`, by hand, and by other libraries.

    python -m fastfisher._bench.peers [--quick] [--only TEXT] [--budget SECONDS] [--json]

or, in a checkout, ``python -m bench.python.peers``. Everyone gets the same float32 model and
samples. A result is compared with a float64 Jacobian on a small batch first; who is wrong is not
timed. Floor: forward pass, backward to every layer's outputs for the C cotangents without weight
gradients, forming, and the Gram halved by symmetry, at the rate of a 2048^3 product measured
between the calls. Beside it stands the floor of S1, which forms every per-sample gradient. Calls
are interleaved, ratios taken round by round. A rival whose time, taken from a small batch as
growing with N^2, exceeds the budget is left out. For peers: ``pip install nngeometry
asdfghjkl backpack-for-pytorch`` beside a pinned torch. curvlinops has no Gram of outputs;
neural-tangents needs jax <= 0.4.23, which needs numpy < 2.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

import fastfisher as ff

from . import harness, peers_rivals
from .peers_models import CASES, Workload, truth

SMALL, MEDIUM = 3, 8  # samples of the check, and of the estimate of a rival's time
OURS = "fastfisher"
# Ours: float32 and better. Theirs: only to find wrong formulas; sums over 1e7 parameters in plain
# float32 alone lose 2e-4.
TOLERANCES = {OURS: 1e-5}
TOLERANCE = 1e-3


def ours(model: torch.nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """`ff.ntk` with nothing declared; its peak beyond the output stays below the limit."""
    return ff.ntk(model, x, outputs=outputs, memory_limit="512MB")


def participants() -> tuple[dict[str, peers_rivals.Rival], dict[str, str]]:
    """Everyone who can be asked, ours first, and why the others cannot."""
    rivals, missing = peers_rivals.present()
    return {OURS: ours, **rivals}, missing


def run(
    quick: bool, only: str = "", budget: float = 120.0, rounds: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one record for each case and participant; `quick` takes the smallest N of each."""
    rate = harness.MatmulRate("float32")
    everyone, missing = participants()
    seen: set[tuple[str, str]] = set()
    for workload, n, outputs in CASES:
        smallest = (workload.name, outputs) not in seen
        seen.add((workload.name, outputs))
        name = f"{workload.name}, N={n}, {outputs}"
        if only.lower() in name.lower() and (smallest or not quick):
            chosen = rounds or (3 if quick or n >= 256 else 5)
            yield from one_case(name, workload, n, outputs, everyone, rate, budget, chosen)
    for peer, reason in missing.items():
        yield _record("all", peer, note=f"not here: {reason}")


def one_case(
    name: str,
    workload: Workload,
    n: int,
    outputs: str,
    everyone: dict[str, peers_rivals.Rival],
    rate: harness.MatmulRate,
    budget: float,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """Check everyone, then time in turn those who are right."""
    expected = truth(workload, SMALL, outputs)
    records, calls = [], {}
    for peer, function in everyone.items():
        record = _record(name, peer)
        records.append(record)
        try:
            record["error"] = _error(function, workload, outputs, expected)
            record["tolerance"] = TOLERANCES.get(peer, TOLERANCE)
            if not record["error"] <= record["tolerance"]:
                record["note"] = "WRONG"
                continue
            limit = budget if peer != OURS else math.inf
            estimate = _estimate(function, workload, outputs, n, limit)
            if estimate > limit:
                record["note"] = f"left out: {estimate:.0f} s or more"
                continue
            call = _call(function, workload, n, outputs)
            record["extra_bytes"] = harness.extra_memory(call)  # and warm
        except Exception as error:  # a library may fail in any way: that is its result
            record["note"] = f"fails: {type(error).__name__}: {error}".split("\n")[0][:120]
            continue
        calls[peer] = call
        gc.collect()
    flops = [workload.floor(n, outputs, only_s1=only_s1) for only_s1 in (False, True)]
    for peer, numbers in _interleave(calls, flops, rate, rounds).items():
        next(r for r in records if r["peer"] == peer).update(numbers)
    yield from records


def _record(case: str, peer: str, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        (
            "seconds",
            "floor_seconds",
            "ratio_to_floor",
            "ratio_to_floor_of_s1",
            "ratio_to_ours",
            "extra_bytes",
            "error",
            "tolerance",
            "note",
        )
    )
    return {"op": "ntk", "case": case, "peer": peer, **empty, **values}


def _call(
    function: peers_rivals.Rival, workload: Workload, n: int, outputs: str
) -> Callable[[], torch.Tensor]:
    model, x = workload.build(n)  # a model of its own: some libraries mark what they touch

    def call() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(model, x, outputs)

    return call


def _error(
    function: peers_rivals.Rival, workload: Workload, outputs: str, expected: torch.Tensor
) -> float:
    got = _call(function, workload, SMALL, outputs)().double()
    if got.shape != expected.shape:
        raise ValueError(f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}")
    return float((got - expected).norm() / expected.norm())


def _estimate(
    function: peers_rivals.Rival, workload: Workload, outputs: str, n: int, budget: float
) -> float:
    """Seconds at `n` samples from a linear and a quadratic part; at least so many, if too many."""
    times = []
    for size in (SMALL, MEDIUM, 2 * MEDIUM):
        call = _call(function, workload, size, outputs)
        if times:  # the check has warmed the first size
            call()
        times.append(harness.seconds_of(call))
        if times[-1] * n / size > budget:
            return times[-1] * n / size
    quadratic = max(0.0, (times[2] - 2 * times[1]) / (2 * MEDIUM**2))
    linear = max(0.0, times[1] / MEDIUM - quadratic * MEDIUM)
    return quadratic * n**2 + linear * n


def _interleave(
    calls: dict[str, Callable[[], Any]],
    flops: list[float],
    rate: harness.MatmulRate,
    rounds: int,
) -> dict[str, dict[str, float | None]]:
    """Rate, participant, rate, next participant, ...; medians over the rounds."""
    times: dict[str, list[float]] = {peer: [] for peer in calls}
    rates: dict[str, list[float]] = {peer: [] for peer in calls}
    for _ in range(rounds):
        before = rate.measure()
        for peer, call in calls.items():
            times[peer].append(harness.settled_seconds_of(call))
            after = rate.measure()
            rates[peer].append(harness.between(before, after))
            before = after
    found: dict[str, dict[str, float | None]] = {}
    for peer, seconds in times.items():
        floors = [[f / r for r in rates[peer]] for f in flops]
        best, of_s1 = ([s / f for s, f in zip(seconds, fs, strict=True)] for fs in floors)
        versus = None
        if OURS in times:
            pairs = zip(seconds, times[OURS], strict=True)
            versus = statistics.median(theirs / mine for theirs, mine in pairs)
        found[peer] = {
            "seconds": statistics.median(seconds),
            "floor_seconds": statistics.median(floors[0]),
            "ratio_to_floor": statistics.median(best),
            "ratio_to_floor_of_s1": statistics.median(of_s1),
            "ratio_to_ours": versus,
        }
    return found


def _row(record: dict[str, Any]) -> list[str]:
    def number(key: str, form: str, scale: float = 1.0) -> str:
        value = record[key]
        return "" if value is None else format(value * scale, form)

    return [
        record["case"],
        record["peer"],
        number("seconds", ".3g"),
        number("floor_seconds", ".3g"),
        number("ratio_to_floor", ".2f"),
        number("ratio_to_floor_of_s1", ".2f"),
        number("ratio_to_ours", ".2f"),
        number("extra_bytes", ".0f", 1e-6),
        number("error", ".0e"),
        record["note"] or "",
    ]


def main() -> int:
    """Print JSON lines, or a table at the end; status 1 if a result of ours is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest N of every workload")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this text")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds a call of a rival")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of interleaved calls")
    parser.add_argument("--json", action="store_true", help="one JSON line a record, no table")
    arguments = parser.parse_args()
    records = []
    for record in run(arguments.quick, arguments.only, arguments.budget, arguments.rounds):
        records.append(record)
        if arguments.json:
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()
    if not arguments.json:
        _table(records)
    return int(any(r["peer"] == OURS and r["note"] == "WRONG" for r in records))


def _table(records: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Neural tangent kernels of torch models, float32")
    headings = ("case", "who", "s", "floor s", "x floor", "x floor S1", "x ours", "MB", "error", "")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("case", "who", "") else "right")
    last = None
    for record in records:
        if last not in (None, record["case"]):
            table.add_section()
        cells = _row(record)
        if record["case"] == last:
            cells[0] = ""
        last = record["case"]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    sys.exit(main())
