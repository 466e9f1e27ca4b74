# SPDX-License-Identifier: Apache-2.0
"""K-FAC refresh of a 784-1024-1024-1024-10 network: against its floor, and against others.

A refresh is the factors of one estimate (labels drawn once, "mc", or all outputs, "exact"), their
inverses, and one preconditioned gradient. As a call on the model (`ff.fisher`, then `solve`) it has
a forward and a backward pass of its own, and so have the rivals, who do the same estimate in the
same run; of `ff.optim.KFAC` it is the forward pass with the estimate, and `precondition`. In
training it is what a step of `ff.optim.KFAC` costs beyond forward, backward and the step of SGD
with the same momentum: the mean over 10 steps in a row, over ten times 10 where one of 100
refreshes, each after 10 of SGD. The floor is the multiply-adds of factors, halved by symmetry, the
extra backward pass of the estimate, inverses (n^3 / 2) and products with the gradient at the
matrix-product rate between the calls; a call on the model has its forward pass in it too.

Results are compared with float64 K-FAC in numpy first, all with the same labels. Whoever treats
something otherwise is compared with that, and named so. Calls are interleaved, ratios are medians
of the ratios of each round. Seconds of kfac-jax are those that its own process measures.

    python -m fastfisher._bench.bench_kfac [--json] [--rounds N] [--kfac-jax-python PATH]

or, in a checkout, ``python -m bench.python.bench_kfac``. For rivals: ``pip install --no-deps
curvlinops-for-pytorch einops einconv linear_operator jaxtyping nngeometry asdfghjkl`` beside torch;
kfac-jax 0.0.8 needs an environment of its own with jax 0.6.2 (its tensorflow-probability breaks
on later ones), whose interpreter is PATH.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import harness
from .bench_fisher import WIDTHS, kfac_work, network
from .kfac_reference import DAMPING, Inside, batch_of, error_of, reference

TOLERANCE = 1e-3
PIECE = 10  # steps in a row, between measurements of the rate
NOTES = {"ASDL": "ASDL (bias by G alone)"}


def row(case: str, seconds: float, floor: float | None, ratio: float | None, **more: Any) -> Any:
    """Record as ``fastfisher bench`` wants it."""
    start = {"op": "optim.kfac", "case": case, "seconds": seconds, "floor_seconds": floor}
    rest = {"rival": None, "rival_ratio": None, "error": 0.0, "tolerance": TOLERANCE}
    return {**start, "ratio_to_floor": ratio, **rest, **more}


def calls(
    torch: Any, n: int, kind: str, rounds: int, python: str | None
) -> Iterator[dict[str, Any]]:
    """Yield a record of ours for each rival: one refresh as a call on the model."""
    from . import kfac_rivals

    model, (x, y) = network(torch), batch_of(torch, n)
    torch.manual_seed(1)
    g = torch.randn(sum(p.numel() for p in model.parameters())) * 1e-3
    drawn = torch.from_numpy(np.random.default_rng(1).integers(WIDTHS[-1], size=n))
    rivals, missing = kfac_rivals.present()
    times: dict[str, Callable[[], float]] = {}
    errors = {}
    expected = {
        joined: reference(torch, model, x, drawn, g, kind, joined=joined)
        for joined in (True, False)
    }
    kept: dict[str, Any] = {}

    def timed(name: str, call: Any) -> float:
        def work() -> None:  # a result lives until the next one is there, as in a loop
            kept[name] = call(model, x, y, g, kind, DAMPING)

        return harness.settled_seconds_of(work)

    everyone = {kfac_rivals.OURS: kfac_rivals.ours, **rivals}
    for name, call in everyone.items():
        with kfac_rivals.drawn(drawn):
            found = call(model, x, y, g, kind, DAMPING)
        errors[name] = error_of(found, expected[name != "ASDL"])
        times[name] = lambda name=name, call=call: timed(name, call)
    jax = None
    if python is None:
        missing["kfac-jax"] = "no interpreter was given (--kfac-jax-python)"
    else:
        jax = kfac_rivals.KfacJax(python, model, DAMPING)
        jax.load(x, y, g)
        found = jax.result(kind, drawn if kind == "mc" else None)
        errors["kfac-jax"] = error_of(found, expected[True])
        times["kfac-jax"] = lambda: jax.seconds(kind)
    for name, why in missing.items():
        sys.stderr.write(f"{name} is not there: {why}\n")
    inside = Inside(torch, x, y, kind)
    with kfac_rivals.drawn(drawn):
        inside.refresh()
    errors[Inside.name] = inside.error(drawn)
    times[Inside.name] = inside.refresh
    mine = {kfac_rivals.OURS: "refresh of the model", Inside.name: "refresh of KFAC"}
    for name in [name for name, error in errors.items() if not error <= TOLERANCE]:
        if name not in mine:  # who is wrong is not timed
            sys.stderr.write(f"{name}, {kind}: WRONG, relative error {errors[name]:.1e}\n")
            del times[name]
    columns = WIDTHS[-1] if kind == "exact" else 1
    work = kfac_work(WIDTHS, n)
    macs = sum(work.values()) + (columns - 1) * work["backward"]
    macs += (columns - 1) * sum(n * o * o / 2 for o in WIDTHS[1:])
    rate = harness.MatmulRate("float32")
    seconds: dict[str, list[float]] = {name: [] for name in times}
    floors = []
    for call in times.values():
        call()
    for _ in range(rounds):
        before = rate.measure()
        for name, call in times.items():
            seconds[name].append(call())
            if name == kfac_rivals.OURS:
                floors.append(2 * macs / harness.between(before, rate.measure()))
    if jax is not None:
        jax.close()
    for own, what in mine.items():
        for name in [name for name in seconds if name not in mine] or [None]:
            yield row(
                f"{what}, {kind}, N={n}", statistics.median(seconds[own]),
                statistics.median(floors), _median_ratio(seconds[own], floors),
                rival=None if name is None else NOTES.get(name, name),
                rival_ratio=None if name is None else _median_ratio(seconds[name], seconds[own]),
                error=errors[own],
                rival_seconds=None if name is None else statistics.median(seconds[name]),
                rival_error=None if name is None else errors[name],
            )  # fmt: skip


def training(
    torch: Any, n: int, kind: str, intervals: tuple[int, ...], rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield a record for each interval: what K-FAC adds to a step, against its floor."""
    import fastfisher.optim as optim

    x, y = batch_of(torch, n)
    work = kfac_work(WIDTHS, n)
    rate = harness.MatmulRate("float32")
    error = steperror_of(torch, x, y, kind)

    def looped(model: Any, optimizer: Any) -> Callable[[], None]:
        def work() -> None:
            for _ in range(PIECE):
                passes(torch, model, optimizer, x, y)
                optimizer.step()

        return work

    plain, alone = network(torch), network(torch)
    sgd = torch.optim.SGD(plain.parameters(), lr=1e-4, momentum=0.9)
    bare = torch.optim.SGD(alone.parameters(), lr=1e-4)
    for every in intervals:
        model = network(torch)
        kfac = optim.KFAC(
            model, lr=1e-4, damping=DAMPING, kind=kind, likelihood="categorical",
            factor_every=every, inverse_every=every,
        )  # fmt: skip
        loop, base = looped(model, kfac), looped(plain, sgd)
        pieces = max(every, 10) // PIECE
        for _ in range(pieces):
            loop()
        base()
        added, floors, ratios = [], [], []
        once = work["factors"] + work["inverses"] + work["backward"]
        macs = once / every + work["gradient"]
        for _ in range(rounds):
            ratios.append(harness.settled_seconds_of(lambda: passes(torch, alone, bare, x, y)))
            beyond, floor, before = [], [], rate.measure()
            for _ in range(pieces):
                standard = harness.settled_seconds_of(base)
                beyond.append((harness.settled_seconds_of(loop) - standard) / PIECE)
                after = rate.measure()
                floor.append(2 * macs / harness.between(before, after))
                before = after
            added.append(statistics.fmean(beyond))
            floors.append(statistics.fmean(floor))
        yield row(
            f"KFAC step beyond SGD's, {kind}, every {every}, N={n}", statistics.median(added),
            statistics.median(floors), _median_ratio(added, floors), error=error,
            rival="forward + backward", rival_ratio=_median_ratio(ratios, added),
            rival_seconds=statistics.median(ratios),
        )  # fmt: skip


def passes(torch: Any, model: Any, optimizer: Any, x: Any, y: Any) -> None:
    """Forward and backward."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()


def steperror_of(torch: Any, x: Any, y: Any, kind: str) -> float:
    """Relative error of one step of KFAC against float64, with the same labels."""
    import fastfisher.optim as optim

    from . import kfac_rivals

    model = network(torch)
    kfac = optim.KFAC(
        model, lr=1.0, damping=DAMPING, kind=kind, likelihood="categorical", kl_clip=None,
        momentum=0.0,
    )  # fmt: skip
    with kfac_rivals.drawn(y):
        passes(torch, model, kfac, x, y)
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    before = [p.detach().clone() for p in model.parameters()]
    expected = reference(torch, model, x, y, g, kind, joined=True)
    kfac.step()
    moved = [(b - p.detach()).reshape(-1) for b, p in zip(before, model.parameters(), strict=True)]
    return error_of(torch.cat(moved), expected)


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def run(
    quick: bool, rounds: int | None = None, python: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one record a case and rival."""
    torch = harness.torch_or_none()
    if torch is None:
        return
    rounds = rounds or (3 if quick else 7)
    for kind in ("mc", "exact"):
        yield from calls(torch, 128 if quick else 512, kind, rounds, python)
    yield from training(torch, 128 if quick else 512, "mc", (1,) if quick else (1, 10), rounds)
    if not quick:
        yield from training(torch, 512, "mc", (100,), min(rounds, 3))
        for n in (2048, 8192):
            yield from training(torch, n, "mc", (1,), min(rounds, 3))


def main() -> int:
    """Print a line a record; status 1 if a result of ours is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="128 samples")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of interleaved calls")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    parser.add_argument(
        "--kfac-jax-python", metavar="PATH", help="interpreter that has kfac-jax and its jax"
    )
    given = parser.parse_args()
    wrong = False
    for record in run(given.quick, given.rounds, given.kfac_jax_python):
        wrong |= not record["error"] <= record["tolerance"]
        sys.stdout.write((json.dumps(record) if given.json else _line(record)) + "\n")
        sys.stdout.flush()
    return int(wrong)


def _line(record: dict[str, Any]) -> str:
    parts = [f"{record['case']}: {1e3 * record['seconds']:.1f} ms"]
    parts.append(f"{record['ratio_to_floor']:.2f} x floor, error {record['error']:.0e}")
    if record["rival"] is not None:
        theirs = f"{record['rival']} {1e3 * record['rival_seconds']:.1f} ms"
        parts.append(f"{theirs}, {record['rival_ratio']:.2f} x ours")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
