# SPDX-License-Identifier: Apache-2.0
"""Mean losses of likelihoods whose value is needed, not only the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._arrays import to_numpy
from fastfisher._device_array import as_array
from fastfisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood

Host = np.ndarray[Any, Any]


def mean_loss(likelihood: Likelihood, f: Host, labels: Host) -> float | None:
    """Mean over samples of ``-log p(y | f)`` up to a constant; None if it is not known.

    A likelihood of the user's may have a method ``loss(f, y)`` with the losses (N,), of numpy's
    arrays.
    """
    f = as_array(f, np.float64)
    if type(likelihood) is Gaussian:
        each = 0.5 * np.square(f - labels).sum(1) / likelihood.variance
    elif type(likelihood) is Categorical:
        top = f.max(1, keepdims=True, initial=-np.inf)
        each = np.log(np.exp(f - top).sum(1)) + top[:, 0] - f[np.arange(len(f)), labels]
    elif type(likelihood) is Bernoulli:
        each = (np.logaddexp(0, f) - labels * f).sum(1)
    elif hasattr(likelihood, "loss"):
        each = np.asarray(likelihood.loss(to_numpy(f), to_numpy(labels)))
    else:
        return None
    return float(each.mean()) if len(each) else 0.0
