# SPDX-License-Identifier: Apache-2.0
"""Kernel regression, Gaussian-process posteriors and training curves of wide networks.

While the Jacobian stays what it was at the start, in the limit of large widths, training is linear:

    f_{t+1} = f_t - eta A (f_t - y)  on the training samples,    A = Theta / N for gradient descent
    f_{t+1} = f_t - eta B (f_t - y)  at other samples,           B = Theta(x', X) / N

and natural gradient has its own A and B. So every curve, at any time, follows from one
eigendecomposition of A, and the law of an ensemble of networks from the NNGP kernel beside it.
Kernels come from `fastfisher.kernels`, or measured ones from `fastfisher.ntk` and
`fastfisher.ngd.function_space_matrix`; C outputs share one kernel (n, n).
"""

from __future__ import annotations

from fastfisher.regression._cross_entropy import CrossEntropyCurve, cross_entropy_curve
from fastfisher.regression._dynamics import Dynamics, dynamics, gradient_descent
from fastfisher.regression._losses import PredictedLosses, predicted_losses
from fastfisher.regression._natural_gradient import natural_gradient
from fastfisher.regression._posterior import Posterior, ensemble, kernel_regression, posterior

__all__ = [
    "CrossEntropyCurve",
    "Dynamics",
    "Posterior",
    "PredictedLosses",
    "cross_entropy_curve",
    "dynamics",
    "ensemble",
    "gradient_descent",
    "kernel_regression",
    "natural_gradient",
    "posterior",
    "predicted_losses",
]
