# SPDX-License-Identifier: Apache-2.0
"""Likelihoods p(y | f) of a model's outputs f (N, C): what turns a Jacobian into a Fisher matrix.

The Fisher matrix of the parameters is ``sum_n J_n^T H_n J_n / N`` with the Fisher matrix H_n (C, C)
of the outputs, which for these likelihoods is also the Hessian of -log p. All arrays are numpy's,
float64. Those defined here also run where a model's outputs are, on a device; labels are drawn by
numpy's generator in any case. Outputs are read back for likelihoods of your own.
"""

from __future__ import annotations

from fastfisher.likelihoods._base import Likelihood
from fastfisher.likelihoods._base import symmetric_root as symmetric_root
from fastfisher.likelihoods._chosen import likelihood_at as likelihood_at
from fastfisher.likelihoods._chosen import likelihood_of
from fastfisher.likelihoods.bernoulli import Bernoulli
from fastfisher.likelihoods.categorical import Categorical
from fastfisher.likelihoods.gaussian import Gaussian

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "likelihood_of"]
