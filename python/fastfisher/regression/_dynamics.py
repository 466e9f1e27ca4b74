# SPDX-License-Identifier: Apache-2.0
"""Linear training dynamics from one eigendecomposition: responses and curves at any time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.regression._clock import moments, progress
from fastfisher.regression._eigen import eigenpairs, kernel_matrix, targets_of
from fastfisher.theory._checks import Floats, array, symmetric

__all__ = ["Dynamics", "dynamics", "gradient_descent"]


@dataclass(frozen=True, eq=False, slots=True)
class Dynamics:
    """Training ``f_{t+1} = f_t - lr A (f_t - y)``, and what it does at other samples.

    Times are given as ``lr=, steps=``, or as ``time=`` of the flow df/ds = -A (f - y), the limit of
    small steps with s = lr steps. ``steps`` may be fractional while lr times the largest curvature
    is below one, and ``math.inf``.

    Attributes
    ----------
    values : array, shape (n,), float64
        Curvatures: eigenvalues of A, ascending.
    vectors : array, shape (n, n)
        Eigenvectors of A, as columns.
    modes : None or array, shape (m, n)
        ``B V``: what the modes do to the outputs at other samples.
    """

    values: Floats
    vectors: Floats
    modes: Floats | None

    @property
    def critical_learning_rate(self) -> float:
        """``2 / max(values)``: beyond it training diverges; infinite without curvature."""
        return 2 / float(self.values[-1]) if self.values[-1] > 0 else math.inf

    def response(
        self, *, lr: float | None = None, steps: float | None = None, time: float | None = None
    ) -> Floats:
        """R_t (m, n) of ``f_t = f_0 - R_t (f_0(X) - y)`` at the other samples.

        Raises
        ------
        ValueError
            Bad times; no other samples; a learning rate that diverges with infinite steps.
        NotPositiveDefiniteError
            A singular A and a time that is infinite, or so long that rounding would be learned.
        NumericalError
            Training that diverges beyond float64.
        """
        _, moved = progress(self.values, *moments(lr, steps, time, several=False))
        response: Floats = (self._others() * moved[0]) @ self.vectors.T
        return response

    def training_response(
        self, *, lr: float | None = None, steps: float | None = None, time: float | None = None
    ) -> Floats:
        """R_t (n, n) of ``f_t = f_0 - R_t (f_0 - y)`` at the training samples; raises likewise."""
        _, moved = progress(self.values, *moments(lr, steps, time, several=False))
        response: Floats = (self.vectors * (self.values * moved[0])) @ self.vectors.T
        return response

    def training_curve(
        self,
        residual: ArrayLike,
        *,
        lr: float | None = None,
        steps: ArrayLike | None = None,
        time: ArrayLike | None = None,
    ) -> Floats:
        """Residuals ``f_t - y`` at the training samples.

        Parameters
        ----------
        residual : array, shape (n,) or (n, C)
            f_0 - y.
        lr, steps, time
            `steps`, an integer, stands for 0, 1, ..., steps; an array for those numbers of steps.

        Returns
        -------
        array, shape (T, n) or (T, n, C), float64
        """
        left, _ = progress(self.values, *moments(lr, steps, time, several=True))
        return self._curve(self.vectors, left, residual)

    def prediction_curve(
        self,
        residual: ArrayLike,
        *,
        lr: float | None = None,
        steps: ArrayLike | None = None,
        time: ArrayLike | None = None,
    ) -> Floats:
        """Like `training_curve`, the changes ``f_t - f_0`` (T, m[, C]) at the other samples."""
        _, moved = progress(self.values, *moments(lr, steps, time, several=True))
        return -self._curve(self._others(), moved, residual)

    def _others(self) -> Floats:
        if self.modes is None:
            raise ValueError("cross: these dynamics were made without other samples")
        return self.modes

    def _curve(self, modes: Floats, factors: Floats, residual: ArrayLike) -> Floats:
        e = targets_of("residual", residual, len(self.values))
        flat = self.vectors.T @ e.reshape(len(e), -1)
        curve: Floats = modes @ (factors[:, :, None] * flat)
        return curve.reshape(len(factors), len(modes), *e.shape[1:])


def dynamics(matrix: ArrayLike, cross: ArrayLike | None = None) -> Dynamics:
    """Dynamics of given matrices A and B.

    Parameters
    ----------
    matrix : array, shape (n, n)
        A, symmetric: for gradient descent the tangent kernel over N, for natural gradient Theta_G
        of `fastfisher.ngd.function_space_matrix`, sample-major as (N C, N C).
    cross : array, shape (m, n), optional
        B, of other samples: Theta(x', X) / N or R_G.

    Returns
    -------
    Dynamics

    Raises
    ------
    ValueError
        Bad shapes, numbers that are not finite, a matrix that is not symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> found = ff.regression.dynamics(2 * np.eye(3))
    >>> found.training_curve(np.ones(3), lr=0.25, steps=2)[:, 0]
    array([1.  , 0.5 , 0.25])
    """
    a = symmetric("matrix", matrix)
    values, vectors = np.linalg.eigh(a)
    return Dynamics(values, vectors, _modes(cross, vectors))


def gradient_descent(
    kernel: ArrayLike, cross: ArrayLike | None = None, *, jitter: float = 0.0
) -> Dynamics:
    """Gradient descent on ``E = 1 / (2 N) sum ||f - y||^2`` of a wide network.

    Parameters
    ----------
    kernel : array, shape (N, N)
        Tangent kernel Theta of the training samples, positive semi-definite.
    cross : array, shape (m, N), optional
        Theta(x', X), of other samples with the training samples.
    jitter : float
        Added to the kernel's diagonal, relative to its mean eigenvalue: 1e-10 is of use where the
        kernel is singular (equal samples).

    Returns
    -------
    Dynamics
        A = Theta / N, B = Theta(x', X) / N.

    Raises
    ------
    ValueError
        Bad shapes or numbers, a kernel that is not symmetric.
    NotPositiveDefiniteError
        A kernel with negative eigenvalues.

    Notes
    -----
    ``f_t = y + (I - (eta / N) Theta)^t (f_0 - y)``, and at other samples ``f_t = f_0 - Theta(x', X)
    Theta^{-1} [I - (I - (eta / N) Theta)^t] (f_0 - y)``, with infinite time kernel regression. One
    eigendecomposition, O(N^3); a response O(m N^2), a curve O((m + N) N C) a time.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> descent = ff.regression.gradient_descent(ff.kernels.ntk(x, depth=3))
    >>> descent.training_curve([-1.0, 1.0], lr=0.5, steps=[0, 5, 10]).round(3)
    array([[-1.   ,  1.   ],
           [-0.104,  0.104],
           [-0.011,  0.011]])
    """
    theta = kernel_matrix("kernel", kernel, jitter)
    n = len(theta)
    values, vectors = eigenpairs("kernel", theta)
    modes = _modes(cross, vectors)
    return Dynamics(values / n, vectors, None if modes is None else modes / n)


def _modes(cross: ArrayLike | None, vectors: Floats) -> Floats | None:
    if cross is None:
        return None
    b = array("cross", cross, rank=2)
    if b.shape[1] != len(vectors):
        raise ValueError(f"cross: expected shape (m, {len(vectors)}), got {b.shape}")
    return b @ vectors
