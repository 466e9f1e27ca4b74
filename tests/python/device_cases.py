# SPDX-License-Identifier: Apache-2.0
"""What must give the same on a device as on the CPU: models, and what is asked of them.

A case takes (model, x, y, t): a torch model or an MLP, samples, classes and targets, all in one
place, and returns arrays and numbers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import fastfisher as ff
from fastfisher import optim


class Poisson(ff.likelihoods.Likelihood):
    """A likelihood of a user, in numpy."""

    def hessian(self, f):
        return np.exp(f)[:, :, None] * np.eye(f.shape[1])

    def sample(self, f, rng):
        return rng.poisson(np.exp(f))

    def gradient(self, f, y):
        return np.exp(f) - y


@dataclass(frozen=True)
class Case:
    id: str
    model: str
    run: Callable[..., list[Any]]
    tolerance: float = 1e-9
    same_kernels: bool = False
    """Whether results depend on the basis that a kernel takes for a null space."""

    def __str__(self) -> str:
        return f"{self.model}-{self.id}"


def problem(name: str) -> tuple[Any, ...]:
    """Model, samples, classes and targets on the CPU, float64."""
    torch.manual_seed(0)
    if name == "mlp":
        model = nn.Sequential(
            nn.Linear(13, 18), nn.Tanh(), nn.Linear(18, 17), nn.Tanh(), nn.Linear(17, 3)
        )
        x = torch.randn(7, 13)
    elif name == "cnn":
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(),
            nn.Linear(4 * 16, 3),
        ).eval()  # fmt: skip
        x = torch.randn(5, 2, 4, 4)
    elif name == "transformer":
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
        x = torch.randn(4, 5, 8)
    elif name == "embedding":
        model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3))
        x = torch.randint(0, 11, (6, 3))
    else:
        options = {"normalization": name.partition(" ")[2] or None}
        model = ff.models.MLP((13, 20, 20, 3), activation="tanh", sigma_b2=0.1, **options)
        x = torch.randn(7, 13)
    if isinstance(model, nn.Module):
        model = model.double()
    x = x.double() if x.is_floating_point() else x
    n = len(x)
    y, t = torch.randint(0, 3, (n,)), torch.randn(n, 3, dtype=torch.float64)
    return model, x, y, t


def run_both(
    case: Case, move: Callable[[Any], Any], host: Callable[[Any], np.ndarray], context: Any
) -> None:
    """Run a case on the CPU and where `move` takes things, and compare."""
    expected = case.run(*problem(case.model))
    with context:
        model, *rest = problem(case.model)
        model = move(copy.deepcopy(model)) if isinstance(model, nn.Module) else model
        got = case.run(model, *map(move, rest))
        assert len(got) == len(expected)
        for k, (one, want) in enumerate(zip(got, expected, strict=True)):
            if isinstance(want, torch.Tensor):
                one, want = host(one), want.detach().numpy()
            assert np.shape(one) == np.shape(want)
            scale = np.abs(want).max(initial=0.0) if np.ndim(want) else abs(want)
            off = np.abs(np.asarray(one) - np.asarray(want)).max(initial=0.0)
            assert off <= case.tolerance * max(scale, 1e-12), (k, off, scale)


# Kernels ------------------------------------------


def kernels(m, x, y, t):
    j = ff.jacobian(m, x)
    size = j.shape[0]
    return [
        ff.ntk(m, x), ff.ntk(m, x, x[:3]), ff.ntk(m, x, outputs="trace"),
        ff.ntk(m, x, outputs="diagonal"), ff.ntk(m, x, outputs="sum"), ff.ntk(m, x, outputs=1),
        ff.ntk(m, x, memory_limit=1_600_000), *ff.ntk(m, x, layers="each").values(),
        j.dense(), j.T @ t.reshape(-1), j @ (j.T @ t.reshape(-1)),
        j.gram(out=ff.ntk(m, x)).reshape(size, size),
    ]  # fmt: skip


# Fisher matrices ----------------------------------


def fisher(structure, likelihood="gaussian", kind="exact", sharing="expand"):
    def run(m, x, y, t):
        F = ff.fisher(
            m, x, y if kind == "empirical" else None, structure=structure, likelihood=likelihood,
            kind=kind, weight_sharing=sharing,
        )  # fmt: skip
        v = F.diagonal() + 1
        wide = torch.stack([v, v * v], 1)
        found = [
            F @ v, F @ wide, F.solve(wide, damping=0.1), F.trace(), F.logdet(damping=0.3),
            F.frobenius_norm(), F.effective_dimension(damping=0.1), F.dense(),
            F.eigsh(2).values,
        ]  # fmt: skip
        if structure != "tridiagonal":  # indefinite
            found += [F.inverse_sqrt(v, damping=0.1), F.sample(2, damping=0.1, seed=1)]
        if structure == "full" and likelihood == "gaussian":
            found.append(F.dual())
        if structure == "kfac":
            found += [F.solve(v, damping=0.1, split=split) for split in ("plain", "pi")]
        return found

    name = likelihood if isinstance(likelihood, str) else "own"
    block = "-".join(map(str, structure)) if isinstance(structure, tuple) else structure
    return f"fisher-{block}-{name}-{kind}-{sharing}", run


def delicate(m, x, y, t):
    """Dampings far below the rounding of the matrix, and a vector with parts out of its range."""
    F = ff.fisher(m, x, likelihood="categorical")
    v = F.diagonal() + 1
    return [
        F.solve(v, damping=1e-13) * 1e-13,
        ff.fisher(m, x, structure="unit").solve(v, damping=1e-13),
    ]


def batches(m, x, y, t):
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    return [
        ff.fisher(m, parts, structure=one, kind="empirical", likelihood="categorical").dense()
        for one in ("kfac", "diagonal", "full")
    ]


# Updates ------------------------------------------


def updates(structure, likelihood="gaussian", few=False):
    def run(m, x, y, t):
        e = t - t.mean(1, keepdim=True)
        j = ff.jacobian(m, x)
        F = ff.fisher(j, structure=structure, likelihood=likelihood)
        options: list[dict[str, Any]] = [{"damping": 0.1}, {"relative_damping": 0.1}]
        if structure != "ekfac":
            options += [{"damping": 0.1, "space": one} for one in ("sample", "parameter")]
        if structure != "ekfac" and not few:
            options += [{"damping": 0.1, "damp": "outputs"}]
        if structure == "kfac":
            options += [{"damping": 0.1, "split": "pi"}]
        if structure == "full":
            options += [{"damping": 0.1, "solver": one, "tol": 1e-12} for one in ("cg", "nystrom")]
        found = [ff.ngd.update(F, e, **one) for one in options]
        gradient = j.T @ e.reshape(-1) / len(e)
        found.append(ff.ngd.update(F, gradient=gradient, damping=0.1))
        if structure in ("full", "layer") and likelihood == "gaussian":
            found.append(ff.ngd.update(j, e, structure=structure, damping=0.1, centred=True))
        theta = ff.ngd.function_space_matrix(F, damping=0.1)
        curve = ff.ngd.training_curve(theta, e, lr=0.1, steps=3)
        return [
            *(one.vector for one in found), *(one.function_change for one in found),
            *(next(iter(one.damping.values())) for one in found), theta, curve,
            ff.ngd.prediction_curve(theta, curve, lr=0.1),
        ]  # fmt: skip

    block = "-".join(map(str, structure)) if isinstance(structure, tuple) else structure
    name = likelihood if isinstance(likelihood, str) else "own"
    return f"ngd-{block}-{name}", run


# Optimisers ---------------------------------------


def trained(optimizer: str, /, **options: Any) -> tuple[str, Callable[..., list[Any]]]:
    def run(m, x, y, t):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _trained(optimizer, options, m, x, y, t)

    words = [f"{key}={value}" for key, value in options.items()]
    return "-".join([optimizer, *words]), run


def _trained(kind: str, options: dict[str, Any], m, x, y, t):
    optimizer = getattr(optim, kind)(m, **options)
    for step in range(4):
        if kind in ("KFAC", "EKFAC"):

            def closure(optimizer=optimizer):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(m(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            if step == 1 and kind == "KFAC":  # a file takes up where it left
                state = copy.deepcopy(optimizer.state_dict())
                optimizer.remove_hooks()
                optimizer = optim.KFAC(m, **options)
                optimizer.load_state_dict(state)
        else:
            categorical = options.get("likelihood") == "categorical"
            optimizer.step(x=x, y=y if categorical else t)
    return [p.detach() for p in m.parameters()]


def of_residuals(m, x, y, t):
    optimizer = optim.NGD(m, lr=0.3, damping=1e-3)
    for _ in range(2):
        optimizer.step(lambda: m(x) - t)
        optimizer.step([(lambda f, z: f(z) ** 2, x)])
    return [p.detach() for p in m.parameters()]


def critical(m, x, y, t):
    tracker = ff.diagnostics.track(m, x)
    scheduler = optim.CriticalLR(torch.optim.SGD(m.parameters(), lr=1.0), tracker)
    return [scheduler.get_last_lr()[0], tracker.history[-1].lambda_max]


# Diagnostics --------------------------------------


def diagnosed(m, x, y, t):
    D = ff.diagnostics
    scores, bound = D.scores(m, x, y), D.lr_bound(m, x, likelihood="categorical", momentum=0.9)
    return [
        bound.lr, bound.safe_lr, scores.alignment, scores.centred_alignment, scores.largest,
        scores.entropy_rank, D.scores(ff.ntk(m, x, outputs="trace"), y=t[:, :1]).alignment,
        ff.linalg.eigsh(ff.jacobian(m, x), 2).values,
    ]  # fmt: skip


def isotropic(m, x, y, t):
    rows = ff.diagnostics.isotropy(m, x).rows
    return [value for row in rows for value in (row.alpha, row.cost)]


def metric(m, x, y, t):
    found = []
    for likelihood in ("gaussian", "categorical"):
        one = ff.diagnostics.input_metric(m, x, likelihood=likelihood)
        found += [one.trace, one.eigenvalues(), one.top(2)[0], one.dense()]
    return found


def conditional(m, x, y, t):
    H = ff.diagnostics.conditional_fisher(m, x[:1])
    return [H.eigenvalues(), H.lambda_max(), *H.moments(), H @ t[0], H.dense()]


def _fishers() -> list[Case]:
    every = ("full", "layer", "tridiagonal", "kfac", "ekfac", "unit", "diagonal", ("block", 5))
    found = [("mlp", *fisher(one, "categorical")) for one in every]
    found += [("mlp", *fisher(one, "categorical", "empirical")) for one in ("full", "kfac")]
    found += [
        ("mlp", *fisher("kfac", "categorical", "mc")),
        ("mlp", *fisher("full", Poisson())),
        ("mlp", *fisher("unit", "bernoulli")),
        ("mlp", *fisher("layer", Poisson(), "mc")),
    ]
    for model in ("cnn", "embedding"):
        found += [(model, *fisher(one)) for one in ("full", "kfac", "unit", "diagonal")]
    found += [("mlp", "batches", batches)]
    found += [("numpy", *fisher("kfac")), ("numpy mean", *fisher("layer"))]
    averaged = Case("averaged", "cnn", fisher("ekfac", sharing="reduce")[1], same_kernels=True)
    return [*(Case(name, model, run) for model, name, run in found), averaged]


def _updates() -> list[Case]:
    every = ("full", "layer", "tridiagonal", "kfac", "ekfac", "unit", "diagonal", ("block", 5))
    found = [("mlp", *updates(one)) for one in every]
    found += [("mlp", *updates("full", "categorical")), ("mlp", *updates("kfac", Poisson()))]
    found += [(model, *updates("kfac", few=True)) for model in ("cnn", "embedding")]
    return [Case(name, model, run, 1e-7) for model, name, run in found]


def _optimisers() -> list[Case]:
    kfacs = [
        trained("KFAC"),
        trained("KFAC", kind="mc", likelihood="categorical"),
        trained("KFAC", kind="exact", likelihood="categorical", weight_sharing="reduce"),
        trained("KFAC", split="plain", others="diagonal", adaptive=True),
    ]
    ngds = [
        trained("EKFAC", ema_decay=0.0),
        trained("NGD", lr=0.5, likelihood="categorical", adaptive=True),
        trained("NGD", lr=0.5, structure="layer", centred=True, damping=0.1),
        trained("NGD", lr=0.5, structure="unit", damping=0.1),
        trained("NGD", memory_limit=1_000_000),
        trained("SPRING", lr=0.3, norm_constraint=0.01),
        ("residuals", of_residuals),
        ("critical", critical),
    ]
    found = [("mlp", *one) for one in kfacs + ngds]
    found += [(model, *kfacs[0]) for model in ("cnn", "embedding", "transformer")]
    found += [("cnn", *trained("NGD", lr=0.5, structure="kfac", damping=0.1))]
    means = Case("EKFAC-means", "mlp", trained("EKFAC")[1], 1e-7, same_kernels=True)
    return [*(Case(name, model, run, 1e-7) for model, name, run in found), means]


_KERNELS = ("mlp", "cnn", "transformer", "embedding", "numpy", "numpy mean", "numpy batch")
CASES = [
    *(Case("kernels", model, kernels) for model in _KERNELS),
    *_fishers(),
    *_updates(),
    *_optimisers(),
    Case("delicate", "mlp", delicate, 1e-6),
    Case("diagnosed", "mlp", diagnosed, 1e-8),
    Case("isotropic", "mlp", isotropic, 1e-8),
    Case("metric", "mlp", metric),
    Case("metric", "numpy", metric),
    Case("conditional", "mlp", conditional),
]
