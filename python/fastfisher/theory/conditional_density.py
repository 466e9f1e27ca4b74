# SPDX-License-Identifier: Apache-2.0
"""Spectrum of the conditional Fisher matrix of orthogonal networks, by free probability.

One layer takes the law mu_l of H_l to mu_{l+1} = (qh_l + sigma_w2 .)_* (mu_l [x] nu_l), with nu_l
the law of phi'(u^l)^2 and [x] the free multiplicative convolution. The Cauchy transform
G(z) = E 1/(z - lambda) is followed through the layers as a function of a parameter om:

    z_1 = om,  G_1 = 1 / (om - qh_0)
    slopes 0 or gamma with P(gamma) = alpha, s = sigma_w2 gamma^2:
        w = z_l - (1 - alpha) / G_l,    z_{l+1} = qh_l + s w,    G_{l+1} = G_l/s + (1 - alpha)/(s w)
    any slopes, s = sigma_w2, y = z_l G_l - 1:
        E[chi t / (1 - chi t)] = y,     w = z_l y / (chi (1 + y)),
        z_{l+1} = qh_l + s w,           G_{l+1} = (1 + y) / (s w)

and z_L(om) = lambda + i eps is solved for om by Newton steps, continued from large imaginary parts.

References
----------
Hayase and Karakida 2021, The spectrum of Fisher information of deep networks achieving dynamical
isometry (AISTATS; arXiv 2006.07814). The parametrisation by om is derived for this library: the
compression of a free variable by a projection of trace alpha is a free convolution power 1/alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.theory._cauchy import Branch, edge
from fastfisher.theory._checks import Floats, array, number
from fastfisher.theory.conditional import ConditionalLaw

__all__ = ["ConditionalTop", "conditional_density", "conditional_lambda_max"]


@dataclass(frozen=True, slots=True)
class ConditionalTop:
    """Upper end of the spectrum of H.

    Attributes
    ----------
    lambda_max : float
        Largest eigenvalue.
    lambda_top : float
        ``sum_k s^k qh_{L-1-k}``: attained where no layer blocks a direction altogether.
    atom_mass : float
        Share of the eigenvalues that equal `lambda_top`; if it is zero lambda_max is the edge of
        the continuous part, below lambda_top.
    """

    lambda_max: float
    lambda_top: float
    atom_mass: float


def conditional_lambda_max(law: ConditionalLaw) -> ConditionalTop:
    """Largest eigenvalue of H for orthogonal weights.

    Parameters
    ----------
    law : ConditionalLaw
        Any activation.

    Returns
    -------
    ConditionalTop

    Notes
    -----
    ``lambda_top = qh_{L-1} + s (qh_{L-2} + s (... + s qh_0))`` with s = sigma_w2 times the largest
    squared slope. Its mass is ``max(0, 1 - sum_l (1 - alpha_l))``, alpha_l the probability of that
    slope. Without mass the edge is z_L(om) at the largest real om with d z_L / d om = 0.

    Examples
    --------
    >>> from fastfisher.theory import conditional_law
    >>> top = conditional_lambda_max(conditional_law(4, activation="relu", sigma_w2=2.0,
    ...                                              input_variance=1.0))
    >>> top.atom_mass, top.lambda_max < top.lambda_top
    (0.0, True)
    """
    top, missing = _lambda_top(law), 0.0
    for t, p in zip(law.atoms, law.weights, strict=True):
        missing += 1 - float(p[t == t.max()].sum())
    mass = max(0.0, 1 - missing)
    return ConditionalTop(top if mass > 0 else min(top, edge(law)), top, mass)


def conditional_density(law: ConditionalLaw, grid: ArrayLike, *, smoothing: float) -> Floats:
    """Density of the eigenvalues of H for orthogonal weights, smoothed by a Cauchy kernel.

    Parameters
    ----------
    law : ConditionalLaw
        Any activation.
    grid : array, shape (n,)
        Where: real numbers in any order.
    smoothing : float
        Width eps > 0 of the kernel ``eps / (pi (x^2 + eps^2))``, in units of the eigenvalues: 1e-4
        to 1e-2 of the largest. Atoms show as peaks of that width.

    Returns
    -------
    array, shape (n,), float64
        ``-Im G(lambda + i eps) / pi``; it integrates to 1 over the real line.

    Raises
    ------
    ValueError
        Bad `grid` or `smoothing`.
    NumericalError
        The continuation could not be followed.

    Notes
    -----
    The path runs through the upper half-plane, where om(z) is analytic; steps that Newton's method
    cannot follow are halved. Time: some ten evaluations of L layers a grid point.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfisher.theory import conditional_law
    >>> law = conditional_law(3, activation="hard-tanh", input_variance=0.5)
    >>> grid = np.linspace(-2, 4, 601)
    >>> density = conditional_density(law, grid, smoothing=0.02)
    >>> bool(0.97 < density.sum() * (grid[1] - grid[0]) < 1)
    True
    """
    points = array("grid", grid, rank=1)
    eps = number("smoothing", smoothing, above=0)
    result = np.empty(points.size)
    if points.size == 0:
        return result
    order = np.argsort(points)[::-1]
    right = float(points[order[0]])
    height = 100 * max(float(np.abs(points).max()), _lambda_top(law), eps)
    branch = Branch(law, complex(right, height))
    while height > eps:
        height = max(eps, 0.7 * height)
        branch.follow(complex(right, height))
    for index in order:
        result[index] = -branch.follow(complex(points[index], eps)).imag / np.pi
    return result


def _lambda_top(law: ConditionalLaw) -> float:
    """Upper bound of the spectrum."""
    top = float(law.qh[0])
    for qh, t in zip(law.qh[1:], law.atoms, strict=True):
        top = float(qh) + law.sigma_w2 * float(t.max()) * top
    return top
