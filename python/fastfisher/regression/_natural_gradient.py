# SPDX-License-Identifier: Apache-2.0
"""Natural gradient in wide networks: which kernel each structure of the Fisher matrix regresses."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastfisher.kernels import LayerKernels
from fastfisher.regression._dynamics import Dynamics
from fastfisher.regression._eigen import over
from fastfisher.theory._checks import Floats, array, member, number
from fastfisher.theory.natural_gradient import tridiagonal_coefficients, tridiagonal_matrix

__all__ = ["natural_gradient"]

STRUCTURES = ("full", "layer", "tridiagonal", "kfac")


def natural_gradient(
    kernels: LayerKernels,
    cross: LayerKernels | None = None,
    *,
    structure: Literal["full", "layer", "tridiagonal", "kfac"] = "full",
    damping: float | None = None,
    relative_damping: float | None = None,
    last_factor: Literal["identity", "mean"] = "identity",
) -> Dynamics:
    """Natural-gradient descent of wide networks with an approximation G of the Fisher matrix.

    Parameters
    ----------
    kernels : LayerKernels, of N training samples
        Of `fastfisher.kernels.layer_kernels`.
    cross : LayerKernels, of m other samples with the training samples, optional
    structure : "full" | "layer" | "tridiagonal" | "kfac"
        G: the Fisher matrix, its blocks of layers, those of neighbouring layers too, or Kronecker
        factors. "unit" has no limit at other samples, the ratios of gradients of its units have no
        mean; on the training set its ``A = alpha I`` (`fastfisher.theory.isotropic_constant`).
    damping : float, optional
        rho of (G + rho I)^{-1}, on each Kronecker factor of "kfac". Without, the limit rho -> 0.
    relative_damping : float, optional
        In its place: rho relative to the mean eigenvalue of each matrix inverted in sample space.
    last_factor : "identity" | "mean"
        Gradient factor of the last layer in "kfac": B_L = I as the definition says, or I / N.

    Returns
    -------
    Dynamics
        Learning rates are those of the parameters' update: 1 / alpha is one step to the end.

    Raises
    ------
    ValueError
        Bad names, dampings or shapes.
    NotPositiveDefiniteError
        No damping, and a kernel that is singular: parallel samples, or for "kfac" more samples
        than inputs (and bias).

    Notes
    -----
    In the limit rho -> 0 (Karakida and Osawa 2020, arXiv 2010.00879; with the layers' tangent
    kernels Theta_l = q^l * qt^l, * entry by entry)::

        A = alpha I,        B =
        full                Theta(x', X) Theta^{-1}
        layer               sum_l Theta_l(x', X) Theta_l^{-1}
        tridiagonal         sum_l Theta_l(x', X) Theta_l^{-1} (c_l I + n_l W),    T c = 1, T n = 0
        kfac                N sum_{l<L} {qt^l(x', X) (qt^l)^{-1}} * {q^l(x', X) (q^l)^{-1}}
                            + q^L(x', X) (q^L)^{-1}

    where n = (1, -1, 0, 1, -1, ...) if L = 3 s + 2, else zero, and
    ``W = -(sum_l n_l^2 Theta_l^{-1})^{-1} sum_l n_l c_l Theta_l^{-1}`` (derived for this library).
    With damping the same in sample space, A and B from (Theta_l / N + rho)^{-1} and so on; A of
    "tridiagonal" may then have negative eigenvalues. Valid for fixed N and widths to infinity;
    "kfac" on C outputs asks for N C <= M_l. O(L N^3), for a damped "tridiagonal" O(L^3 N^3).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((4, 10))
    >>> train = ff.kernels.layer_kernels(x, depth=3)
    >>> for structure in ("full", "layer", "tridiagonal", "kfac"):
    ...     print(structure, ff.regression.natural_gradient(train, structure=structure).values[0])
    full 1.0
    layer 3.0
    tridiagonal 1.0
    kfac 9.0
    """
    member("structure", structure, STRUCTURES)
    member("last_factor", last_factor, ("identity", "mean"))
    _check(kernels, cross)
    if damping is not None and relative_damping is not None:
        raise ValueError("relative_damping: expected None with a damping, got both")
    relative = damping is None
    rho = number("damping", damping or 0.0, least=0)
    if relative_damping is not None:
        rho = number("relative_damping", relative_damping, least=0)
    n = kernels.forward.shape[1]
    # The training samples come first: their B is A.
    sets = [kernels] if cross is None else [kernels, cross]
    if structure == "kfac":
        last = 1.0 if last_factor == "identity" else float(n)
        parts = [_kfac(k, kernels, rho, last, relative=relative) for k in sets]
    else:
        parts = _blocks(structure, sets, kernels, rho, relative=relative)
    if rho == 0:
        alpha = {
            "full": 1.0,
            "layer": float(kernels.depth),
            "tridiagonal": float((kernels.depth + 2) // 3),
        }
        if structure == "kfac":
            alpha["kfac"] = n * (kernels.depth - 1) + last
        values, vectors = np.full(n, alpha[structure]), np.eye(n)
    else:
        values, vectors = np.linalg.eigh((parts[0] + parts[0].T) / 2)
    return Dynamics(values, vectors, None if cross is None else parts[1] @ vectors)


def _damped(kernel: Floats, rho: float, *, relative: bool) -> Floats:
    """``K + N rho I``, that is N times the damped matrix of sample space."""
    n = len(kernel)
    added = rho * (np.trace(kernel) / n if relative else n)
    damped: Floats = kernel + added * np.eye(n)
    return damped


def _blocks(
    structure: str, sets: list[LayerKernels], train: LayerKernels, rho: float, *, relative: bool
) -> list[Floats]:
    """Full, layer-wise and tridiagonal: B of each set as sum_l Theta_l(x', X) V_l."""
    layers = train.layers
    depth, n = layers.shape[:2]
    if structure == "full":
        theta = train.ntk
        damped = _damped(theta, rho, relative=relative)
        return [over("kernels: Theta", k.ntk, damped) for k in sets]
    if structure == "tridiagonal" and rho > 0:
        system = np.einsum("ij,jts->itjs", tridiagonal_matrix(depth), layers)
        system = _damped_system(system.reshape(depth * n, depth * n), n, rho, relative=relative)
        ones = np.tile(np.eye(n), (depth, 1))
        solved = np.linalg.solve(system, ones).reshape(depth, n, n)
        return [np.einsum("lts,lsr->tr", k.layers, solved) for k in sets]
    inverses = []
    for index, layer in enumerate(layers):
        name = f"kernels: Theta of layer {index + 1}"
        inverses.append(over(name, np.eye(n), _damped(layer, rho, relative=relative)))
    weights = [np.eye(n)] * depth if structure == "layer" else _tridiagonal_limit(inverses)
    return [
        sum((p @ q @ w for p, q, w in zip(k.layers, inverses, weights, strict=True)), np.zeros(()))
        for k in sets
    ]


def _damped_system(system: Floats, n: int, rho: float, *, relative: bool) -> Floats:
    added = rho * (np.trace(system) / len(system) if relative else n)
    damped: Floats = system + added * np.eye(len(system))
    return damped


def _tridiagonal_limit(inverses: list[Floats]) -> list[Floats]:
    """``c_l I + n_l W`` of each layer."""
    depth, n = len(inverses), len(inverses[0])
    c = tridiagonal_coefficients(depth)
    if depth % 3 != 2:
        return [value * np.eye(n) for value in c]
    null = np.array([(1.0, -1.0, 0.0)[index % 3] for index in range(depth)])
    squares = np.einsum("l,lts->ts", null**2, np.array(inverses))
    mixed = np.einsum("l,lts->ts", null * c, np.array(inverses))
    w = -np.linalg.solve(squares, mixed)
    return [value * np.eye(n) + other * w for value, other in zip(c, null, strict=True)]


def _kfac(
    other: LayerKernels, train: LayerKernels, rho: float, last: float, *, relative: bool
) -> Floats:
    depth, n = train.forward.shape[:2]
    result = np.zeros(other.forward.shape[1:])
    for layer in range(depth):
        name = f"kernels: features of layer {layer + 1}"
        q = _damped(train.forward[layer], rho, relative=relative)
        features = over(name, other.forward[layer], q, "damping, or as many inputs as samples")
        if layer + 1 == depth:
            # B_L = I or I / N in parameter space: one number for all outputs.
            # In sample space its mean eigenvalue is 1 / N of that.
            mean = 1 / last
            result += features / (mean + rho * (mean / n if relative else 1))
            continue
        name = f"kernels: gradients of layer {layer + 1}"
        qt = _damped(train.backward[layer], rho, relative=relative)
        result += n * over(name, other.backward[layer], qt) * features
    return result


def _check(kernels: LayerKernels, cross: LayerKernels | None) -> None:
    for name, value in (("kernels", kernels), ("cross", cross)):
        if value is None and name == "cross":
            continue
        if not isinstance(value, LayerKernels):
            raise TypeError(f"{name}: expected LayerKernels, got {type(value).__name__}")
        array(f"{name}.forward", value.forward, rank=3)
    depth, n, m = kernels.forward.shape
    if n != m or n == 0:
        raise ValueError(f"kernels: expected shape (L, N, N) with N > 0, got {(depth, n, m)}")
    if cross is not None and (cross.depth, cross.forward.shape[2]) != (depth, n):
        raise ValueError(f"cross: expected shape ({depth}, m, {n}), got {cross.forward.shape}")
