# SPDX-License-Identifier: Apache-2.0
"""Likelihoods by name, and those of the user where outputs are on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastfisher._arrays import to_numpy
from fastfisher._device_array import DeviceArray
from fastfisher.likelihoods._base import Likelihood
from fastfisher.likelihoods.bernoulli import Bernoulli
from fastfisher.likelihoods.categorical import Categorical
from fastfisher.likelihoods.gaussian import Gaussian

Host = np.ndarray[Any, Any]


_NAMED = {"gaussian": Gaussian, "categorical": Categorical, "bernoulli": Bernoulli}


def likelihood_of(given: Any) -> Likelihood:
    """Turn a name or an object with the methods of `Likelihood` into a likelihood."""
    if isinstance(given, str):
        if given not in _NAMED:
            raise ValueError(
                f"likelihood: expected one of {list(_NAMED)} or an object, got {given!r}"
            )
        chosen: Likelihood = _NAMED[given]()
        return chosen
    if isinstance(given, Likelihood):
        return given
    raise TypeError(
        "likelihood: expected a name or an object of a subclass of "
        f"fastfisher.likelihoods.Likelihood, got {type(given).__name__}"
    )


def likelihood_at(likelihood: Likelihood, f: Host) -> Likelihood:
    """`likelihood` for outputs like `f`: one of the user's gets numpy's arrays on any device."""
    known = type(likelihood) in _NAMED.values()
    return likelihood if known or not isinstance(f, DeviceArray) else _OnHost(likelihood)


class _OnHost(Likelihood):
    """A likelihood of the user's: outputs on a device are read back, results are moved there."""

    def __init__(self, own: Likelihood) -> None:
        self.own = own

    def hessian(self, f: Host) -> Host:
        """Of the user's."""
        return np.asarray(self.own.hessian(to_numpy(f)), np.float64, like=f)

    def root(self, f: Host) -> Host:
        """Of the user's."""
        return np.asarray(self.own.root(to_numpy(f)), np.float64, like=f)

    def unrooted(self, f: Host, e: Host) -> Host:
        """Of the user's."""
        return np.asarray(self.own.unrooted(to_numpy(f), to_numpy(e)), np.float64, like=f)

    def sample(self, f: Host, rng: np.random.Generator) -> Host:
        """Of the user's, on the host."""
        return self.own.sample(to_numpy(f), rng)

    def gradient(self, f: Host, y: Host) -> Host:
        """Of the user's; `y` may be on the host already."""
        return np.asarray(self.own.gradient(to_numpy(f), to_numpy(y)), np.float64, like=f)

    def labels(self, y: Host, f: Host) -> Host:
        """Of the user's, on the host."""
        return self.own.labels(to_numpy(y), to_numpy(f))
