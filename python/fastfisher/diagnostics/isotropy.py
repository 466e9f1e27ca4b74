# SPDX-License-Identifier: Apache-2.0
"""Whether an approximate natural gradient is as fast as the exact one: the isotropic condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from fastfisher._arrays import dtype_name, in_numpys_words
from fastfisher._jacobian import Jacobian
from fastfisher._ntk import jacobian
from fastfisher.diagnostics._isotropic import Facts
from fastfisher.errors import NumericalError
from fastfisher.ngd import function_space_matrix
from fastfisher.structures._rooted import in_numpy

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
        Its value for vanishing damping, from the ranks of inputs, cotangents and kernels, where
        they tell: of a wide network 1 ("full"), L ("layer"), N (L - 1) + 1 ("kfac") and so on.
    condition_number : float
        Of the symmetric part of Theta_G; infinite where that is not positive definite.
    defect : float
        ``||Theta_G - alpha I||_F / ||Theta_G||_F``.
    cost : float
        Multiply-adds of the matrices that are made and inverted for one update.
    conditions : dict of str to bool
        What the theory asks for, and whether it is so; ranks count eigenvalues above the damping.
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
    relative_damping: float
    threshold: float
    cheapest: Any

    def __getitem__(self, structure: Any) -> IsotropyRow:
        """Row of a structure; KeyError where it was not asked for."""
        for row in self.rows:
            if row.structure == structure:
                return row
        raise KeyError(
            f"structure: expected one of {[row.structure for row in self.rows]}, got {structure!r}"
        )

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
    relative_damping: float | None = None,
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
    relative_damping : float, optional
        Part of the mean eigenvalue of each inverted matrix; 1e-6, for float32 factors 1e-4.
    threshold : float
        Largest defect that counts as isotropic.
    **options
        Of `fastfisher.jacobian`.

    Returns
    -------
    Isotropy
        ``str()`` of it is a table; ``result["kfac"]`` a row.

    Raises
    ------
    ValueError
        Unknown structures, a negative damping or threshold.
    TypeError
        Options beside a Jacobian.
    CaptureError
        A model that cannot be captured.

    Notes
    -----
    If Theta_G is alpha times the identity, the outputs follow ``f - y = (1 - alpha eta)^t (f_0 -
    y)`` whatever the data, as with the exact natural gradient (Karakida and Osawa 2020). Cost: the
    tangent kernel and the matrices of each structure, see `fastfisher.ngd.function_space_matrix`,
    and eigenvalues of N C x N C matrices.

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
    if not (isinstance(threshold, Real) and math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold: expected a number >= 0, got {threshold!r}")
    if isinstance(structures, str):
        raise TypeError(f"structures: expected a sequence of names, got {structures!r}")
    for one in structures:
        if isinstance(one, str) and one not in STRUCTURES:
            raise ValueError(
                f"structures: expected names among {list(STRUCTURES)} or ('block', b), got {one!r}"
            )
    if isinstance(model, Jacobian):
        if x is not None:
            raise ValueError("x: expected None with a Jacobian, got one")
        if options:
            raise TypeError(f"isotropy: unexpected with a Jacobian: {', '.join(options)}")
        j = model
    else:
        j = jacobian(model, x, **options)
    if relative_damping is None:
        relative_damping = 1e-4 if dtype_name(j.layers[0].g) == "float32" else 1e-6
    facts = Facts(in_numpy(j), relative_damping)
    rows = tuple(_row(j, facts, one, relative_damping) for one in structures)
    good = [row for row in rows if row.defect <= threshold]
    cheapest = min(good, key=lambda row: row.cost).structure if good else None
    return Isotropy(rows, relative_damping, threshold, cheapest)


def _row(j: Jacobian, facts: Facts, structure: Any, relative: float) -> IsotropyRow:
    size = j.shape[0]
    try:
        found = function_space_matrix(j, structure=structure, relative_damping=relative)
    except NumericalError as error:
        known = facts.predicted(structure), math.inf, math.inf, facts.cost(structure)
        return IsotropyRow(structure, math.nan, *known, facts.conditions(structure), str(error))
    known_alpha, cost = facts.predicted(structure), facts.cost(structure)
    conditions = facts.conditions(structure)
    theta = in_numpys_words(found).reshape(size, size).astype(np.float64)
    if size == 0:
        return IsotropyRow(structure, 0.0, known_alpha, 1.0, 0.0, cost, conditions)
    w = np.linalg.eigvalsh((theta + theta.T) / 2)
    alpha, norm = float(np.trace(theta)) / size, float(np.linalg.norm(theta))
    defect = (
        float(np.linalg.norm(theta - alpha * np.eye(size, like=theta))) / norm if norm else math.inf
    )
    condition = float(w[-1] / w[0]) if w[0] > 0 else math.inf
    return IsotropyRow(structure, alpha, known_alpha, condition, defect, cost, conditions)
