# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient updates from arrays, for every structure of the Fisher matrix.

    theta <- theta - eta (G + rho I)^-1 J^T e / N,      f changes by -eta Theta_G e,
    Theta_G = J (G + rho I)^-1 J^T / N

with the residuals e = f - y of a regression, the loss sum ||e||^2 / (2 N) and the Fisher matrix or
an approximation G. Updates are made in sample space where that is the smaller one: exact also
where G is singular and the damping rho tends to zero (Karakida and Osawa 2020).
"""

from __future__ import annotations

from fastfisher.ngd._function_space import (
    function_space_matrix,
    prediction_curve,
    training_curve,
)
from fastfisher.ngd._update import Update, update

__all__ = ["Update", "function_space_matrix", "prediction_curve", "training_curve", "update"]
