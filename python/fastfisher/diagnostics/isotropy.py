# SPDX-License-Identifier: Apache-2.0
"""Whether an approximate natural gradient is as fast as the exact one: the isotropic condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import to_numpy
from fastfisher._jacobian import Jacobian
from fastfisher._ntk import jacobian
from fastfisher.errors import NumericalError
from fastfisher.factors import Dense
from fastfisher.ngd import function_space_matrix
from fastfisher.structures._rooted import on_host
from fastfisher.structures.coupled import parts_of

__all__ = ["Isotropy", "IsotropyRow", "isotropy"]

STRUCTURES: tuple[Any, ...] = ("full", "layer", "tridiagonal", "kfac", "unit", "diagonal")


@dataclass(frozen=True, slots=True)
class IsotropyRow:
    """One structure.

    Attributes
    ----------
    structure : str or ("block", b)
    alpha : float
        Mean eigenvalue of ``Theta_G = J (G + rho I)^-1 J^T / N``; the learning rate 1 / alpha
        removes the residual in one step if the condition holds.
    predicted : float or None
        Its value for wide networks, where known.
    condition_number : float
        Of the symmetric part of Theta_G; infinite where that is not positive definite.
    defect : float
        ``||Theta_G - alpha I||_F / ||Theta_G||_F``.
    cost : float
        Multiply-adds of the matrices that are made and inverted for one update.
    conditions : dict of str to bool
        What the theory asks for, and whether it is so.
    note : str
        Why there are no numbers, else empty.
    """

    structure: Any
    alpha: float
    predicted: float | None
    condition_number: float
    defect: float
    cost: float
    conditions: dict[str, bool]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Isotropy:
    """Rows in the order asked for, and the structure of least cost within the threshold."""

    rows: tuple[IsotropyRow, ...]
    threshold: float
    cheapest: Any

    def __getitem__(self, structure: Any) -> IsotropyRow:
        """Row of a structure."""
        return next(row for row in self.rows if row.structure == structure)

    def __str__(self) -> str:
        """Show a table."""
        head = f"{'structure':<16}{'alpha':>12}{'predicted':>12}{'condition':>12}{'defect':>10}"
        lines = [head + f"{'cost':>10}  conditions not met"]
        for row in self.rows:
            known = "" if row.predicted is None else f"{row.predicted:.4g}"
            missing = row.note or "; ".join(k for k, holds in row.conditions.items() if not holds)
            lines.append(
                f"{row.structure!s:<16}{row.alpha:>12.4g}{known:>12}{row.condition_number:>12.4g}"
                f"{row.defect:>10.3f}{row.cost:>10.2g}  {missing}".rstrip()
            )
        return "\n".join(
            [*lines, f"cheapest with a defect up to {self.threshold}: {self.cheapest}"]
        )


def isotropy(
    model: Any,
    x: Any = None,
    *,
    structures: Sequence[Any] = STRUCTURES,
    relative_damping: float = 1e-6,
    threshold: float = 0.1,
    **options: Any,
) -> Isotropy:
    """Compare structures of the Fisher matrix by the isotropic condition.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters), MLP or Jacobian
    x : array, mapping or iterable of batches, optional
        Training samples; none with a Jacobian.
    structures : sequence
        Names as in `fastfisher.fisher`, without "ekfac"; also ("block", b).
    relative_damping : float
        Part of the mean eigenvalue of each inverted matrix; in float32 not below 1e-4.
    threshold : float
        Largest defect that counts as isotropic.
    **options
        Of `fastfisher.jacobian`.

    Returns
    -------
    Isotropy
        ``str()`` of it is a table.

    Notes
    -----
    If Theta_G is alpha times the identity, the outputs follow ``f - y = (1 - alpha eta)^t (f_0 -
    y)`` whatever the data, as with the exact natural gradient (Karakida and Osawa 2020). Cost: an
    update for each of the N C outputs and structures, and their eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((6, 20))
    >>> mlp = ff.models.MLP((20, 100, 100, 1), parameterization="ntk")
    >>> found = ff.diagnostics.isotropy(mlp, x, structures=("full", "layer", "diagonal"))
    >>> round(found["layer"].alpha, 3), found.cheapest
    (3.0, 'full')
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold: expected a number >= 0, got {threshold!r}")
    if isinstance(model, Jacobian):
        if x is not None:
            raise ValueError("x: expected None with a Jacobian, got one")
        j = model
    else:
        j = jacobian(model, x, **options)
    host = on_host(j)
    rows = tuple(_row(j, host, one, relative_damping) for one in structures)
    good = [row for row in rows if row.defect <= threshold]
    cheapest = min(good, key=lambda row: row.cost).structure if good else None
    return Isotropy(rows, threshold, cheapest)


def _row(j: Jacobian, host: Jacobian, structure: Any, relative: float) -> IsotropyRow:
    predicted, conditions = _theory(host, structure)
    cost = _cost(host, structure)
    size = j.shape[0]
    try:
        found = function_space_matrix(j, structure=structure, relative_damping=relative)
    except NumericalError as error:
        nothing = (math.nan, predicted, math.inf, math.inf, cost, conditions)
        return IsotropyRow(structure, *nothing, note=str(error))
    theta = to_numpy(found).reshape(size, size).astype(np.float64)
    if size == 0:
        return IsotropyRow(structure, 0.0, predicted, 1.0, 0.0, cost, conditions)
    w = np.linalg.eigvalsh((theta + theta.T) / 2)
    alpha, norm = float(np.trace(theta)) / size, float(np.linalg.norm(theta))
    defect = float(np.linalg.norm(theta - alpha * np.eye(size))) / norm if norm else 0.0
    condition = float(w[-1] / w[0]) if w[0] > 0 else math.inf
    return IsotropyRow(structure, alpha, predicted, condition, defect, cost, conditions)


def _theory(j: Jacobian, structure: Any) -> tuple[float | None, dict[str, bool]]:
    """Alpha of a wide network, where it is known, and what it takes."""
    n, size = j.samples, j.shape[0]
    depth = len(parts_of(j))
    dense = all(isinstance(layer, Dense) for layer in j.layers)
    inputs = [layer.in_features + layer.bias for layer in j.layers]
    outputs = [layer.out_features for layer in j.layers]
    conditions: dict[str, bool] = {}
    if structure == "full":
        conditions["N C <= P"] = size <= j.shape[1]
        return 1.0, conditions
    if structure in ("layer", "tridiagonal"):
        conditions["N C <= parameters of each layer"] = all(
            size <= part.jacobian.shape[1] for part in parts_of(j)
        )
        if structure == "layer":
            return float(depth), conditions
        conditions["depth is not 3 s + 2, or damped"] = depth % 3 != 2
        return float((depth + 2) // 3), conditions
    conditions["dense layers only"] = dense
    if structure == "kfac":
        conditions["N <= inputs of each layer"] = all(n <= i for i in inputs)
        conditions["N C <= units of each hidden layer"] = all(size <= o for o in outputs[:-1])
        known = dense and all(conditions.values())
        return (float(n * (depth - 1) + 1) if known else None), conditions
    width = min(inputs)
    if isinstance(structure, tuple):
        width = min(width, structure[1])
        conditions["N <= b"] = n <= structure[1]
    if structure == "diagonal":
        width = 1
        conditions["N <= 1"] = n <= 1
    conditions["N <= inputs of each layer"] = all(n <= i for i in inputs)
    if structure != "unit" or not dense or n > width or size == 0:
        return None, conditions
    # Each unit gives a projector on the samples that move it.
    active = sum(int((layer.g != 0).any(1).sum()) for layer in j.layers)
    return active / size, conditions


def _cost(j: Jacobian, structure: Any) -> float:
    """Multiply-adds to make and to invert the matrices of one update."""
    n, c, size = j.samples, j.n_outputs, j.shape[0]
    total = 0.0
    if structure in ("full", "layer", "tridiagonal"):
        for layer in j.layers:
            total += n * n / 2 * (layer.in_features + c * c * layer.out_features)
        depth = len(parts_of(j))
        matrices = {"full": 1.0, "layer": depth, "tridiagonal": 2.0 * depth**3}[structure]
        return total + matrices * size**3 / 6
    for layer in j.layers:
        i, o = layer.in_features + layer.bias, layer.out_features
        if structure == "kfac":
            total += n * i * min(n, i) / 2 + min(n, i) ** 3 / 6
            total += size * o * min(size, o) / 2 + min(size, o) ** 3 / 6
            continue
        b = {"unit": i, "diagonal": 1}.get(structure if isinstance(structure, str) else "")
        b = structure[1] if b is None else b
        few = min(n, b)
        total += o * math.ceil(i / b) * (n * b * few / 2 + few**3 / 6)
    return total
