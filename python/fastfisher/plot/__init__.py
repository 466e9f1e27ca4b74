# SPDX-License-Identifier: Apache-2.0
"""Figures: every ``plot_*`` takes ``ax=`` (default: a new pyplot figure) and returns the axes.

Needs matplotlib (``pip install 'fastfisher[report]'``), which is imported by the first plot.
"""

from __future__ import annotations

from fastfisher.plot._bounds import plot_bounds
from fastfisher.plot._curves import plot_curves
from fastfisher.plot._density import plot_density
from fastfisher.plot._descent import plot_gd_curves
from fastfisher.plot._heatmap import plot_ntk_heatmap
from fastfisher.plot._histogram import plot_eigenvalue_histogram
from fastfisher.plot._learning import plot_learning_curves
from fastfisher.plot._levels import plot_levels
from fastfisher.plot._methods import plot_methods
from fastfisher.plot._posterior import plot_posterior
from fastfisher.plot._rates import plot_learning_rate_map
from fastfisher.plot._scaling import plot_scaling
from fastfisher.plot._spectrum import plot_spectrum
from fastfisher.plot._survival import plot_survival
from fastfisher.plot._training import plot_training_curves

__all__ = [
    "plot_bounds",
    "plot_curves",
    "plot_density",
    "plot_eigenvalue_histogram",
    "plot_gd_curves",
    "plot_learning_curves",
    "plot_learning_rate_map",
    "plot_levels",
    "plot_methods",
    "plot_ntk_heatmap",
    "plot_posterior",
    "plot_scaling",
    "plot_spectrum",
    "plot_survival",
    "plot_training_curves",
]
