# SPDX-License-Identifier: Apache-2.0
"""Fisher matrix of one sample (conditional Fisher matrix) in deep networks of constant width.

All widths are M. With D_l = diag(phi'(u^l)) the dual H_L = (1/M) J J^T, M x M, obeys

    H_1 = qh_0 I,    H_{l+1} = qh_l I + W^{l+1} D_l H_l D_l (W^{l+1})^T,    qh_l = |h^l|^2 / M

It has the spectrum of J^T J up to the factor M, and limits the learning rate of online learning.
For orthogonal weights its spectrum follows from free probability, for which one needs the numbers
qh_l and the laws of the squared slopes phi'(u^l)^2.

References
----------
Hayase and Karakida 2021, The spectrum of Fisher information of deep networks achieving dynamical
isometry (AISTATS; arXiv 2006.07814). Moments for any activation are derived for this library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._checks import Floats, array, count, member, number
from fastfisher.theory.gaussian import ACTIVATIONS, active_fraction, same_overlap

__all__ = [
    "ConditionalLaw",
    "conditional_law",
    "conditional_moments",
    "isometric_lambda_max",
]


@dataclass(frozen=True, eq=False, slots=True)
class ConditionalLaw:
    """What decides the spectrum of H: made by `conditional_law`, or from one network's numbers.

    Parameters
    ----------
    qh : array, shape (L,)
        qh_0, ..., qh_{L-1}; with trained biases plus 1 / M each.
    sigma_w2 : float
        Variance of the weights times the width; for orthogonal W = sigma_w O.
    atoms, weights : tuples of arrays, L - 1 each
        Law of phi'(u^l)^2: values >= 0 and their probabilities, which sum to 1.

    Raises
    ------
    ValueError
        Shapes that do not fit, negative values, probabilities that do not sum to 1.

    Examples
    --------
    >>> law = ConditionalLaw([0.5, 0.4], 1.0, ([0.0, 1.0],), ([0.25, 0.75],))
    >>> law.depth, law.active
    (2, array([0.75]))
    """

    qh: Floats
    sigma_w2: float
    atoms: tuple[Floats, ...]
    weights: tuple[Floats, ...]

    def __post_init__(self) -> None:
        """Check and convert the arrays."""
        qh = array("qh", self.qh, rank=1)
        if qh.size == 0 or qh.min() < 0:
            raise ValueError(f"qh: expected one number >= 0 for each layer, got {self.qh!r}")
        if len(self.atoms) != qh.size - 1 or len(self.weights) != qh.size - 1:
            raise ValueError(
                f"atoms: expected laws of {qh.size - 1} hidden layers, "
                f"got {len(self.atoms)} and {len(self.weights)}"
            )
        atoms, weights = [], []
        for values, probabilities in zip(self.atoms, self.weights, strict=True):
            t = array("atoms", values, rank=1)
            p = array("weights", probabilities, rank=1, shape=t.shape)
            if t.size == 0 or t.min() < 0:
                raise ValueError("atoms: expected numbers >= 0")
            if p.min() < 0 or abs(p.sum() - 1) > 1e-9:
                raise ValueError(f"weights: expected probabilities, got a sum of {p.sum():g}")
            atoms.append(t)
            weights.append(p)
        for name, value in (("qh", qh), ("atoms", tuple(atoms)), ("weights", tuple(weights))):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sigma_w2", number("sigma_w2", self.sigma_w2, above=0))

    @classmethod
    def from_slopes(
        cls, qh: ArrayLike, slopes: Sequence[ArrayLike], *, sigma_w2: float
    ) -> ConditionalLaw:
        """Law of one network: its qh_l and the slopes phi'(u^l) of all units of each layer."""
        atoms, weights = [], []
        for layer in slopes:
            values = array("slopes", layer, rank=1)
            t, counts = np.unique(values * values, return_counts=True)
            atoms.append(t)
            weights.append(counts / max(values.size, 1))
        return cls(array("qh", qh, rank=1), sigma_w2, tuple(atoms), tuple(weights))

    @property
    def depth(self) -> int:
        """Number of affine layers L."""
        return self.qh.size

    @property
    def active(self) -> Floats:
        """Share of units with a slope other than zero, for each hidden layer."""
        pairs = zip(self.atoms, self.weights, strict=True)
        return np.array([float(p[t > 0].sum()) for t, p in pairs])

    def slope_moment(self, power: int) -> Floats:
        """``E[phi'(u^l)^(2 power)]`` for each hidden layer."""
        pairs = zip(self.atoms, self.weights, strict=True)
        return np.array([float(p @ t**power) for t, p in pairs])


def conditional_law(
    depth: int,
    *,
    activation: str = "hard-tanh",
    sigma_w2: float = 1.0,
    sigma_b2: float = 0.0,
    input_variance: float = 1.0,
) -> ConditionalLaw:
    """Law of wide random networks, by mean-field theory.

    Parameters
    ----------
    depth : int
        L.
    activation : "hard-tanh" | "relu" | "tanh" | "erf" | "erf-sqrt2" | "linear"
        phi.
    sigma_w2, sigma_b2 : float
        Variances of weights (times the width) and of biases.
    input_variance : float
        qh_0 = |x|^2 / M.

    Returns
    -------
    ConditionalLaw

    Raises
    ------
    ValueError
        Numbers or names out of range.

    Notes
    -----
    Pre-activations are Gaussian of variance ``q^l = sigma_w2 qh_{l-1} + sigma_b2``; the slopes of
    smooth activations are represented at the nodes of a trapezoid rule.

    Examples
    --------
    >>> law = conditional_law(3, activation="hard-tanh", input_variance=0.1)
    >>> law.active.round(4)
    array([0.9984, 0.9985])
    """
    member("activation", activation, ACTIVATIONS)
    depth = count("depth", depth)
    w = number("sigma_w2", sigma_w2, above=0)
    b = number("sigma_b2", sigma_b2, least=0)
    qh, atoms, weights = [number("input_variance", input_variance, above=0)], [], []
    z = np.linspace(0.0, 10.0, 201)
    p = np.exp(-z * z / 2)
    p[0] /= 2  # one half of a symmetric rule
    p /= p.sum()
    for _ in range(depth - 1):
        q = w * qh[-1] + b
        qh.append(same_overlap(activation, q)[0])
        if activation in ("tanh", "erf", "erf-sqrt2"):
            atoms.append(_slopes(activation, math.sqrt(q) * z) ** 2)
            weights.append(p)
        else:
            share = active_fraction(activation, q)
            atoms.append(np.array([0.0, 1.0]))
            weights.append(np.array([1 - share, share]))
    return ConditionalLaw(np.array(qh), w, tuple(atoms), tuple(weights))


def conditional_moments(
    law: ConditionalLaw, *, weights: Literal["orthogonal", "gaussian"] = "orthogonal"
) -> tuple[float, float]:
    """First two moments of the eigenvalues of H: means of lambda and of lambda^2.

    Parameters
    ----------
    law : ConditionalLaw
        Any activation.
    weights : "orthogonal" | "gaussian"
        Of the network.

    Returns
    -------
    tuple of two floats

    Notes
    -----
    From m_1 = qh_0, m_2 = qh_0^2 upwards, with a = sigma_w2, d_1 = E phi'^2, d_2 = E phi'^4::

        m_1' = qh + a d_1 m_1
        m_2' = qh^2 + 2 qh a d_1 m_1 + a^2 [m_2 d_1^2 + m_1^2 (d_2 - d_1^2) + g]

    g = 0 (orthogonal) or (d_1 m_1)^2 (gaussian).

    Examples
    --------
    >>> law = conditional_law(10, activation="hard-tanh", input_variance=0.1)
    >>> [round(m, 4) for m in conditional_moments(law)]
    [0.9811, 0.9665]
    """
    member("weights", weights, ("orthogonal", "gaussian"))
    m1 = float(law.qh[0])
    m2 = m1 * m1
    a = law.sigma_w2
    for qh, d1, d2 in zip(law.qh[1:], law.slope_moment(1), law.slope_moment(2), strict=True):
        extra = (d1 * m1) ** 2 if weights == "gaussian" else 0.0
        inner = m2 * d1**2 + m1**2 * (d2 - d1**2) + extra
        m1, m2 = (
            float(qh + a * d1 * m1),
            float(qh**2 + 2 * qh * a * d1 * m1 + a**2 * inner),
        )
    return m1, m2


def isometric_lambda_max(depth: int, *, qh: float, decay: float = 0.0) -> float:
    """Largest eigenvalue of H in deep networks near dynamical isometry.

    Parameters
    ----------
    depth : int
        L.
    qh : float
        Limit qh* of the mean square of activations.
    decay : float
        e_2 of sigma_w2 = 1 - e_2 / L.

    Returns
    -------
    float
        ``qh L (1 - exp(-e_2)) / e_2``, for e_2 = 0 ``qh L``: it grows linearly with depth although
        the singular values of the input-output Jacobian stay near one.

    Raises
    ------
    ValueError
        Numbers out of range.

    Examples
    --------
    >>> isometric_lambda_max(50, qh=0.1)
    5.0
    """
    depth = count("depth", depth)
    qh = number("qh", qh, least=0)
    decay = number("decay", decay, least=0)
    return qh * depth * (-math.expm1(-decay) / decay if decay else 1.0)


def _slopes(activation: str, u: Floats) -> Floats:
    """phi'(u) of a smooth activation."""
    result: Floats
    if activation == "tanh":
        result = 1 - np.tanh(u) ** 2
    elif activation == "erf":
        result = 2 / math.sqrt(math.pi) * np.exp(-u * u)
    else:
        result = math.sqrt(2 / math.pi) * np.exp(-u * u / 2)
    return result
