# SPDX-License-Identifier: Apache-2.0
"""Kernel regression, Gaussian-process posteriors, and the law of an ensemble of wide networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastfisher.errors import NotPositiveDefiniteError
from fastfisher.regression._dynamics import Dynamics
from fastfisher.regression._eigen import kernel_matrix, over, targets_of
from fastfisher.theory._checks import Floats, array, number, symmetric

__all__ = ["Posterior", "ensemble", "kernel_regression", "posterior"]

REMEDY = "noise, a ridge or jitter"
# A variance this far below zero, relative to the largest prior one, is not rounding.
_NEGATIVE = 1e-3


@dataclass(frozen=True, eq=False, slots=True)
class Posterior:
    """Gaussian law of the outputs at m samples; outputs are independent of each other.

    Attributes
    ----------
    mean : array, shape (m,) or (m, C), float64
    covariance : array, shape (m, m), float64
        Of each output.
    """

    mean: Floats
    covariance: Floats

    @property
    def variance(self) -> Floats:
        """Variances (m,); rounding below zero becomes zero."""
        variances: Floats = np.diagonal(self.covariance).clip(0)
        return variances

    @property
    def std(self) -> Floats:
        """Standard deviations (m,)."""
        deviations: Floats = np.sqrt(self.variance)
        return deviations

    def loss(self, y: ArrayLike) -> tuple[float, float]:
        """Mean and standard deviation, over draws, of the loss ``1 / (2 m) sum ||f - y||^2``.

        The deviation is that of single networks: what one of them may be off by.
        """
        target = targets_of("y", y, len(self.mean))
        if target.shape != self.mean.shape:
            raise ValueError(f"y: expected shape {self.mean.shape}, got {target.shape}")
        m = len(target)
        if m == 0:
            raise ValueError("y: expected at least one sample, got none")
        apart = (self.mean - target).reshape(m, -1)
        outputs = apart.shape[1]
        mean = (np.square(apart).sum() + outputs * np.trace(self.covariance)) / (2 * m)
        square = 2 * outputs * np.square(self.covariance).sum()
        square += 4 * np.einsum("tk,ts,sk->", apart, self.covariance, apart)
        return float(mean), float(np.sqrt(max(square, 0.0)) / (2 * m))


def kernel_regression(
    kernel: ArrayLike, cross: ArrayLike, y: ArrayLike, *, ridge: float = 0.0, jitter: float = 0.0
) -> Floats:
    """Kernel ridge regression, without a ridge kernel interpolation.

    Parameters
    ----------
    kernel : array, shape (n, n)
        Of the training samples, positive semi-definite.
    cross : array, shape (m, n)
        Of other samples with the training samples.
    y : array, shape (n,) or (n, C)
        Targets.
    ridge : float
        Added to the kernel's diagonal, in its units.
    jitter : float
        Likewise, relative to the kernel's mean eigenvalue: in float64 1e-10 makes a singular
        kernel (equal samples) regular.

    Returns
    -------
    array, shape (m,) or (m, C), float64
        ``K(x', X) (K + ridge I)^{-1} y``.

    Raises
    ------
    ValueError
        Bad shapes or numbers, a kernel that is not symmetric.
    NotPositiveDefiniteError
        A kernel that is indefinite, or singular to rounding and nothing added.

    Notes
    -----
    Without a ridge, what gradient descent from f_0 = 0 tends to. The matrix counts as singular
    where its smallest eigenvalue is at most n eps of the largest; results lose as many digits as
    their ratio has. O(n^3 + m n^2).

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> kernel = ff.kernels.ntk(x, depth=3)
    >>> ff.regression.kernel_regression(kernel, kernel, [1.0, -1.0]).round(12)
    array([ 1., -1.])
    """
    ridge = number("ridge", ridge, least=0)
    k = kernel_matrix("kernel", kernel, jitter, noise=ridge)
    target = targets_of("y", y, len(k))
    fitted: Floats = _response(k, cross) @ target
    return fitted


def posterior(
    kernel: ArrayLike,
    cross: ArrayLike,
    prior: ArrayLike,
    y: ArrayLike,
    *,
    noise: float = 0.0,
    jitter: float = 0.0,
) -> Posterior:
    """Posterior of a Gaussian process with zero mean, given noisy targets.

    Parameters
    ----------
    kernel : array, shape (n, n)
        Prior covariance of the training samples.
    cross : array, shape (m, n)
        Of other samples with the training samples.
    prior : array, shape (m, m)
        Of the other samples.
    y : array, shape (n,) or (n, C)
        Targets.
    noise : float
        Variance of the targets' noise.
    jitter : float
        As in `kernel_regression`.

    Returns
    -------
    Posterior

    Raises
    ------
    ValueError
        As `kernel_regression`.
    NotPositiveDefiniteError
        Likewise, or kernels that together are no covariance.

    Notes
    -----
    Mean ``K* (K + noise I)^{-1} y``, covariance ``K** - K* (K + noise I)^{-1} K*^T``. With
    `fastfisher.kernels.nngp` Bayesian inference in a wide network, or training of its last layer
    alone; with `fastfisher.kernels.ntk` the tangent kernel as a prior, which is not the law of an
    ensemble of trained networks: that is `ensemble`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x, z = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0]])
    >>> kind = {"depth": 3, "activation": "erf"}
    >>> kernels = [ff.kernels.nngp(*pair, **kind) for pair in ((x,), (z, x), (z,))]
    >>> found = ff.regression.posterior(*kernels, [1.0, -1.0], noise=0.1)
    >>> found.mean.round(4), found.std.round(4)
    (array([-1.2775]), array([0.5685]))
    """
    noise = number("noise", noise, least=0)
    k = kernel_matrix("kernel", kernel, jitter, noise=noise)
    target = targets_of("y", y, len(k))
    between = _cross(cross, len(k))
    own = _prior(prior, len(between))
    response = _response(k, between)
    return _law(response @ target, own - response @ between.T, own)


def ensemble(
    dynamics: Dynamics,
    y: ArrayLike,
    *,
    kernel: ArrayLike,
    cross: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    lr: float | None = None,
    steps: float | None = None,
    time: float | None = None,
) -> Posterior:
    """Law of the outputs of wide networks with random starts, trained for some time.

    Parameters
    ----------
    dynamics : Dynamics
        Of `gradient_descent` or `natural_gradient`, with the other samples.
    y : array, shape (n,) or (n, C)
        Targets.
    kernel : array, shape (n, n)
        NNGP kernel of the training samples: the law of the networks at the start.
    cross, prior : arrays, shapes (m, n) and (m, m)
        NNGP kernels of the other samples. Without them, the law at the training samples.
    lr, steps, time
        As in `Dynamics`; ``time=math.inf`` is the end of training.

    Returns
    -------
    Posterior

    Raises
    ------
    ValueError, NotPositiveDefiniteError, NumericalError
        As `Dynamics.response`, and bad shapes.

    Notes
    -----
    ``f_t = f_0 - R_t (f_0(X) - y)``, hence with the NNGP kernels K, K*, K** the mean ``R_t y`` and
    the covariance ``K** + R_t K R_t^T - R_t K*^T - K* R_t^T``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x, z = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0]])
    >>> train, cross, prior = (
    ...     ff.kernels.layer_kernels(*pair, depth=3, activation="erf")
    ...     for pair in ((x,), (z, x), (z,))
    ... )
    >>> descent = ff.regression.gradient_descent(train.ntk, cross.ntk)
    >>> nngp = {"kernel": train.nngp, "cross": cross.nngp, "prior": prior.nngp}
    >>> found = ff.regression.ensemble(descent, [1.0, -1.0], time=np.inf, **nngp)
    >>> found.mean.round(4), found.std.round(4)
    (array([-1.2306]), array([0.4873]))
    """
    k = symmetric("kernel", kernel)
    n = len(dynamics.values)
    if len(k) != n:
        raise ValueError(f"kernel: expected shape {(n, n)}, got {k.shape}")
    target = targets_of("y", y, n)
    if (cross is None) != (prior is None):
        raise ValueError("prior: expected both or neither of cross and prior")
    if cross is None:
        response = dynamics.training_response(lr=lr, steps=steps, time=time)
        between = own = k
    else:
        response = dynamics.response(lr=lr, steps=steps, time=time)
        between = _cross(cross, n)
        assert prior is not None
        own = _prior(prior, len(between))
        if len(response) != len(between):
            raise ValueError(f"cross: expected shape {response.shape}, got {between.shape}")
    mixed = response @ between.T
    return _law(response @ target, own + response @ k @ response.T - mixed - mixed.T, own)


def _law(mean: Floats, covariance: Floats, prior: Floats) -> Posterior:
    """Require variances that are not negative but for rounding."""
    variances = np.diagonal(covariance)
    if (variances < -_NEGATIVE * np.abs(np.diagonal(prior)).max(initial=0)).any():
        raise NotPositiveDefiniteError(
            f"cross: with kernel and prior no covariance, it gives a variance of "
            f"{variances.min():.3g}; expected kernels of the same networks"
        )
    return Posterior(mean, (covariance + covariance.T) / 2)


def _cross(cross: ArrayLike, n: int) -> Floats:
    checked = array("cross", cross, rank=2)
    if checked.shape[1] != n:
        raise ValueError(f"cross: expected shape (m, {n}), got {checked.shape}")
    return checked


def _prior(prior: ArrayLike, m: int) -> Floats:
    return symmetric("prior", array("prior", prior, rank=2, shape=(m, m)))


def _response(kernel: Floats, cross: ArrayLike) -> Floats:
    return over("kernel", _cross(cross, len(kernel)), kernel, REMEDY)
