# SPDX-License-Identifier: Apache-2.0
"""ff.fisher: top eigenvalues against autograd's GGN operator, and a K-FAC refresh.

The model is a 784-1024-1024-1024-10 network of torch on 1,024 samples. Eigenvalues count from the
model to the pairs, the rival's too; with curvlinops installed the rival is its GGN operator under
scipy's eigsh, else the same operator written with torch.func. The floor of a K-FAC refresh is its
factors, inverses (n^3 / 2) and one preconditioned gradient at the matrix-product rate; as a call
on the model also the forward pass and the backward pass of one draw, timed with the proof of the
capture, as a first call has it, and without, as later ones of a training loop. As in such a loop,
the matrix and the result of a call live until those of the next one are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastfisher as ff

from . import harness

WIDTHS = (784, 1024, 1024, 1024, 10)


def network(torch: Any, widths: tuple[int, ...] = WIDTHS) -> Any:
    """ReLU network with torch's own initial weights."""
    torch.manual_seed(0)
    layers: list[Any] = []
    for i, o in itertools.pairwise(widths):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def ggn(torch: Any, model: Any, x: Any, likelihood: str) -> tuple[str, Any]:
    """GGN operator for scipy, by curvlinops or by forward and reverse differentiation."""
    from scipy.sparse.linalg import LinearOperator

    n, size = len(x), sum(p.numel() for p in model.parameters())
    loss = torch.nn.CrossEntropyLoss() if likelihood == "categorical" else torch.nn.MSELoss()
    labels = torch.zeros(n, dtype=torch.long) if likelihood == "categorical" else None
    try:
        from curvlinops import GGNLinearOperator
    except ImportError:
        pass
    else:
        if labels is None:
            labels = torch.zeros(n, WIDTHS[-1])
        operator = GGNLinearOperator(model, loss, list(model.parameters()), [(x, labels)])
        return "curvlinops GGN under scipy eigsh", operator.to_scipy()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(p):
        return torch.func.functional_call(model, p, (x,))

    def product(v):
        parts, start = {}, 0
        for name, p in parameters.items():
            parts[name] = torch.from_numpy(v[start : start + p.numel()]).reshape(p.shape)
            start += p.numel()
        f, u = torch.func.jvp(outputs, (parameters,), (parts,))
        if likelihood == "categorical":
            p = f.softmax(1)
            u = p * u - p * (p * u).sum(1, keepdim=True)
        back = torch.func.vjp(outputs, parameters)[1](u / n)[0]
        return torch.cat([g.reshape(-1) for g in back.values()]).numpy()

    return "torch.func GGN under scipy eigsh", LinearOperator(
        (size, size), product, dtype=np.float32
    )


def top(torch: Any, model: Any, x: Any, likelihood: str, rounds: int) -> dict[str, object]:
    """Record of ten eigenpairs; MSELoss has curvature 2 / C, which scales eigenvalues only."""
    from scipy.sparse.linalg import eigsh

    found = ff.fisher(model, x, likelihood=likelihood).eigsh(10)
    name, operator = ggn(torch, model, x, likelihood)
    seconds, rivals = [], []
    for _ in range(rounds):
        seconds.append(
            harness.settled_seconds_of(lambda: ff.fisher(model, x, likelihood=likelihood).eigsh(10))
        )
        box: list[Any] = []
        rivals.append(
            harness.settled_seconds_of(lambda box=box: box.append(eigsh(operator, 10, which="LA")))
        )
    theirs = np.sort(box[0][0])[::-1]
    ours = found.values.numpy()
    error = float(np.abs(ours / ours[0] - theirs / theirs[0]).max())
    return {
        "op": "fisher.eigsh",
        "case": f"top 10, {likelihood}, N={len(x)}",
        "seconds": float(np.median(seconds)),
        "floor_seconds": None,
        "ratio_to_floor": None,
        "rival": name,
        "rival_ratio": float(np.median(np.array(rivals) / np.array(seconds))),
        "error": max(error, float((found.residual_norms / found.values[0]).max())),
        "tolerance": 1e-5,
    }


def kfac_work(widths: tuple[int, ...], n: int) -> dict[str, float]:
    """Multiply-adds of a refresh with one cotangent a sample and biases."""
    pairs = [(i + 1, o) for i, o in itertools.pairwise(widths)]
    return {
        "factors": sum(n * (i * i + o * o) / 2 for i, o in pairs),
        "inverses": sum((i**3 + o**3) / 2 for i, o in pairs),
        "gradient": sum(i * o * (i + o) for i, o in pairs),
        "forward": n * sum(i * o for i, o in pairs),
        "backward": n * sum(i * o for i, o in pairs[1:]),
    }


def refresh(torch: Any, model: Any, x: Any, rounds: int) -> Iterator[dict[str, object]]:
    """Yield records of factors, inverses and one preconditioned gradient."""
    work = kfac_work((*(m.in_features for m in model[::2]), WIDTHS[-1]), len(x))
    size = sum(p.numel() for p in model.parameters())
    g = torch.from_numpy(np.random.default_rng(0).standard_normal(size).astype(np.float32))
    options: dict[str, Any] = {"likelihood": "categorical", "kind": "mc", "structure": "kfac"}
    rows = ff.fisher(model, x, **options).rows
    as_torch = ff.Jacobian.from_factors(
        [
            ff.Dense(torch.from_numpy(layer.a), torch.from_numpy(layer.g), bias=True)
            for layer in rows.layers
        ]
    )

    kept: list[Any] = []

    def solved(F: ff.Fisher) -> Any:
        step = F.solve(g, damping=1e-3, split="pi")
        kept[:] = [F, step]
        return step

    def from_factors() -> Any:
        return solved(ff.fisher(as_torch, structure="kfac"))

    def from_model() -> Any:
        return solved(ff.fisher(model, x, verify=False, **options))

    def from_model_proved() -> Any:
        return solved(ff.fisher(model, x, **options))

    rate = harness.MatmulRate("float32")
    own = work["factors"] + work["inverses"] + work["gradient"]
    call = own + work["forward"] + work["backward"]
    cases: list[tuple[str, Callable[[], Any], float]] = [
        ("K-FAC refresh, factors in hand", from_factors, own),
        ("K-FAC refresh of the model", from_model, call),
        ("K-FAC refresh of the model, proved", from_model_proved, call),
    ]
    for case, work_of, macs in cases:
        timing = harness.interleave(work_of, 2 * macs, rate, None, rounds)
        expected = by_torch(torch, rows, g)
        got = work_of()
        yield {
            "op": "fisher.kfac",
            "case": f"{case}, N={len(x)}",
            "seconds": timing.seconds,
            "floor_seconds": timing.floor_seconds,
            "ratio_to_floor": timing.ratio_to_floor,
            "rival": None,
            "rival_ratio": None,
            "error": float((got - expected).norm() / expected.norm()),
            "tolerance": 1e-3,
        }


def by_torch(torch: Any, rows: ff.Jacobian, g: Any) -> Any:
    """Preconditioned gradient in float64 by torch."""
    start, parts = 0, []
    for layer in rows.layers:
        a = torch.from_numpy(layer.a).double()
        a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
        d = torch.from_numpy(layer.g).double().reshape(-1, layer.out_features)
        left, right = d.T @ d / len(a), a.T @ a / len(a)
        o, i = left.shape[0], right.shape[0]
        pi = ((right.trace() / i) / (left.trace() / o)).sqrt()
        left += 1e-3**0.5 / pi * torch.eye(o)
        right += 1e-3**0.5 * pi * torch.eye(i)
        own = g[start : start + o * i].double()
        matrix = torch.cat([own[: o * (i - 1)].reshape(o, i - 1), own[o * (i - 1) :, None]], 1)
        solved = torch.linalg.solve(left, torch.linalg.solve(right, matrix.T).T)
        parts += [solved[:, :-1].reshape(-1), solved[:, -1]]
        start += o * i
    return torch.cat(parts)


def run(quick: bool) -> Iterator[dict[str, object]]:
    """Yield one record a case."""
    torch = harness.torch_or_none()
    if torch is None:
        return
    n = 128 if quick else 1024
    model = network(torch)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 784)).astype(np.float32))
    yield from refresh(torch, model, x, 3 if quick else 7)
    for likelihood in ("categorical", "gaussian"):
        yield top(torch, model, x, likelihood, 1)
