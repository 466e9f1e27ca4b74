# SPDX-License-Identifier: Apache-2.0
"""Predictions of mean-field and random-matrix theory for wide random networks.

Everything follows from widths, depth, activation and variances of weights and biases. Conventions:
N samples, C outputs, P parameters; the Fisher matrix of regression is F = J^T J / N, its dual
F* = J J^T / N, the neural tangent kernel J J^T. "L layers" counts affine maps.
"""

from __future__ import annotations

from fastfisher.theory.augmentation import (
    AugmentedSpectrum,
    NoiseLoss,
    augmented_spectrum,
    noise_loss,
)
from fastfisher.theory.conditional import (
    ConditionalLaw,
    conditional_law,
    conditional_moments,
    isometric_lambda_max,
)
from fastfisher.theory.conditional_density import (
    ConditionalTop,
    conditional_density,
    conditional_lambda_max,
)
from fastfisher.theory.fisher import (
    PaperForm,
    Spectrum,
    fisher_spectrum,
    layer_spectra,
    ntk_spectrum,
    paper_form,
)
from fastfisher.theory.gaussian import (
    active_fraction,
    mean_activation,
    pair_overlap,
    same_overlap,
    slope_fourth_moment,
)
from fastfisher.theory.hidden_normalization import (
    HiddenNormalizedSpectrum,
    hidden_normalized_spectrum,
)
from fastfisher.theory.kernel import mean_field_kernel
from fastfisher.theory.learning_rate import critical_learning_rate, online_learning_rate
from fastfisher.theory.metric import (
    metric_finite_size_factor,
    metric_spectrum,
    softmax_metric_spectrum,
)
from fastfisher.theory.natural_gradient import (
    forster_transform,
    isotropic_constant,
    tridiagonal_coefficients,
    tridiagonal_matrix,
)
from fastfisher.theory.normalization import (
    NormalizedSpectrum,
    layer_normalized_outliers,
    mean_subtracted_lambda_max,
    normalized_spectrum,
)
from fastfisher.theory.order_parameters import OrderParameters, order_parameters
from fastfisher.theory.softmax import (
    SoftmaxSpectrum,
    SoftmaxStatistics,
    softmax_ensemble,
    softmax_spectrum,
    softmax_statistics,
)
from fastfisher.theory.sweep import OrderParameterSweep, order_parameter_sweep

__all__ = [
    "AugmentedSpectrum",
    "ConditionalLaw",
    "ConditionalTop",
    "HiddenNormalizedSpectrum",
    "NoiseLoss",
    "NormalizedSpectrum",
    "OrderParameterSweep",
    "OrderParameters",
    "PaperForm",
    "SoftmaxSpectrum",
    "SoftmaxStatistics",
    "Spectrum",
    "active_fraction",
    "augmented_spectrum",
    "conditional_density",
    "conditional_lambda_max",
    "conditional_law",
    "conditional_moments",
    "critical_learning_rate",
    "fisher_spectrum",
    "forster_transform",
    "hidden_normalized_spectrum",
    "isometric_lambda_max",
    "isotropic_constant",
    "layer_normalized_outliers",
    "layer_spectra",
    "mean_activation",
    "mean_field_kernel",
    "mean_subtracted_lambda_max",
    "metric_finite_size_factor",
    "metric_spectrum",
    "noise_loss",
    "normalized_spectrum",
    "ntk_spectrum",
    "online_learning_rate",
    "order_parameter_sweep",
    "order_parameters",
    "pair_overlap",
    "paper_form",
    "same_overlap",
    "slope_fourth_moment",
    "softmax_ensemble",
    "softmax_metric_spectrum",
    "softmax_spectrum",
    "softmax_statistics",
    "tridiagonal_coefficients",
    "tridiagonal_matrix",
]
