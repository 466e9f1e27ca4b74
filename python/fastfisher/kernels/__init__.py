# SPDX-License-Identifier: Apache-2.0
"""Analytic kernels of wide random networks between any two data sets.

The outputs of a random MLP are a Gaussian process with the kernel ``nngp``; what gradient descent
does to them follows from the neural tangent kernel ``ntk``, the mean of J J^T in NTK
parameterisation. Both hold in the limit of large widths and depend on depth, activation and
variances alone. Of C outputs each has this kernel, and different outputs are uncorrelated.
"""

from __future__ import annotations

from fastfisher.kernels._functions import nngp, ntk
from fastfisher.kernels._layers import LayerKernels, layer_kernels

__all__ = ["LayerKernels", "layer_kernels", "nngp", "ntk"]
