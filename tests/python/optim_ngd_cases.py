# SPDX-License-Identifier: Apache-2.0
"""Networks and brute-force natural-gradient steps that the tests of NGD share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastfisher.reference import fisher as fisher_reference  # noqa: E402
from fastfisher.reference import ngd as reference  # noqa: E402

STRUCTURES = ("full", "layer", "tridiagonal", "unit", "kfac")
N, INPUTS, RHO = 6, 4, 0.1


def network(c: int = 2, *, width: int = 5, dtype: Any = torch.float64, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(INPUTS, width), torch.nn.Tanh(),
        torch.nn.Linear(width, width), torch.nn.Tanh(),
        torch.nn.Linear(width, c),
    ).to(dtype)  # fmt: skip


def samples(n: int = N, dtype: Any = torch.float64) -> Any:
    return torch.randn(n, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)


def labels(likelihood: str, n: int = N, c: int = 2) -> Any:
    rng = np.random.default_rng(2)
    if likelihood == "categorical":
        return torch.from_numpy(rng.integers(0, c, n))
    if likelihood == "bernoulli":
        return torch.from_numpy(rng.integers(0, 2, (n, c)).astype(float))
    return torch.from_numpy(rng.standard_normal((n, c)))


def flat(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def dense_jacobian(model: Any, x: Any) -> Any:
    """(N, C, P) by one backward pass an output."""
    f = model(x)
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(one, list(model.parameters()), retain_graph=True)
            ]
        )
        for one in f.reshape(-1)
    ]
    return torch.stack(rows).reshape(*f.shape, -1).numpy()


def layer_columns(model: Any) -> list[Any]:
    """Columns of each module, in the order of the parameters."""
    sizes = [sum(p.numel() for p in m.parameters()) for m in model if list(m.parameters())]
    ends = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


def unit_columns(model: Any) -> list[Any]:
    """Columns of each unit: a row of the weight and its bias."""
    found, start = [], 0
    for module in model:
        if not list(module.parameters()):
            continue
        o, i = module.weight.shape
        found += [
            np.concatenate([start + k * i + np.arange(i), [start + o * i + k]]) for k in range(o)
        ]
        start += o * i + o
    return found


def brute_matrix(model: Any, j: Any, f: Any, likelihood: str, structure: str) -> Any:
    """G (P, P), by definition."""
    n, _c, size = j.shape
    h = np.stack([fisher_reference.hessian(likelihood, one) for one in f])
    matrix = np.einsum("ncp,ncd,ndq->pq", j, h, j) / n
    blocks = {"layer": layer_columns(model), "tridiagonal": layer_columns(model)}
    if structure == "full":
        return matrix
    kept = np.zeros((size, size), bool)
    parts = unit_columns(model) if structure == "unit" else blocks[structure]
    near = 1 if structure == "tridiagonal" else 0
    for k, a in enumerate(parts):
        for b in parts[max(0, k - near) : k + near + 1]:
            kept[np.ix_(a, b)] = True
    return np.where(kept, matrix, 0)


def kfac_factors(model: Any, x: Any, likelihood: str) -> list[tuple[Any, Any]]:
    """A and B of each layer, with the bias as the last input, by sums over samples."""
    h, inputs = x, []
    for module in model:
        if isinstance(module, torch.nn.Linear):
            inputs.append(torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1).detach().numpy())
        h = module(h)
    f = h.detach().numpy()
    result = []
    j, columns = dense_jacobian(model, x), layer_columns(model)
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    for module, a, own in zip(linear, inputs, columns, strict=True):
        o = module.out_features
        g = j[:, :, own[-o:]]  # gradients in the bias are those of the pre-activations
        b = np.zeros((o, o))
        for one, at in zip(g, f, strict=True):
            b += one.T @ fisher_reference.hessian(likelihood, at) @ one / len(x)
        result.append((a.T @ a / len(x), b))
    return result


def brute_step(model: Any, x: Any, e: Any, likelihood: str, structure: str, rho: float) -> Any:
    j = dense_jacobian(model, x)
    if structure != "kfac":
        f = model(x).detach().numpy()
        return reference.update(j, e, brute_matrix(model, j, f, likelihood, structure), rho)
    gradient = reference.gradient(j, e)
    result = np.empty_like(gradient)
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    for module, (a, b), own in zip(
        linear, kfac_factors(model, x, likelihood), layer_columns(model), strict=True
    ):
        o, i = module.weight.shape
        v = np.concatenate([gradient[own[: o * i]].reshape(o, i), gradient[own[o * i :], None]], 1)
        solved = reference.kfac_update(v, a, b, rho, rho)
        result[own] = np.concatenate([solved[:, :-1].reshape(-1), solved[:, -1]])
    return result


def assert_equal(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    assert np.shape(got) == np.shape(expected)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def stepped(model: Any, optimizer: Any, *given: Any, **options: Any) -> Any:
    """Vector that a step takes off."""
    before = flat(model)
    optimizer.step(*given, **options)
    return before - flat(model)
