# SPDX-License-Identifier: Apache-2.0
"""The table of sections: a new one is a file here, with ``build(context)``, and a row below."""

from __future__ import annotations

from fastfisher.report._section import Section
from fastfisher.report.sections import (
    augmentation,
    fig1,
    fig2,
    fig3,
    fisher_theory,
    gp,
    input_metric,
    isotropy,
    normalization,
    ntk_mean,
    ntk_spectrum,
    optim_digits,
    optim_poisson,
    softmax,
)

__all__ = ["SECTIONS"]

SECTIONS: tuple[Section, ...] = (
    Section(
        "ntk-spectrum",
        "Tangent kernel, Fisher spectrum and critical learning rate",
        ntk_spectrum.build,
    ),
    Section(
        "fisher-theory",
        "Spectrum of the Fisher matrix: regression and softmax, with outliers",
        fisher_theory.build,
    ),
    Section(
        "normalization",
        "Effect of last-layer normalisation",
        normalization.build,
    ),
    Section(
        "isotropy",
        "Natural gradient: which approximation is as fast as the exact one",
        isotropy.build,
    ),
    Section(
        "fig1",
        "Fig. 1: learning rate and width, without and with normalisation",
        fig1.build,
    ),
    Section(
        "fig2",
        "Fig. 2: online learning of very deep orthogonal networks",
        fig2.build,
    ),
    Section(
        "fig3",
        "Fig. 3: training with natural gradients, and the kernels they regress with",
        fig3.build,
    ),
    Section(
        "softmax",
        "Classification: outliers of the Fisher matrix, sharpness during training",
        softmax.build,
    ),
    Section(
        "input-metric",
        "Metric of the input: few directions in which noise matters",
        input_metric.build,
    ),
    Section(
        "ntk-mean",
        "Tangent kernel of as many samples as units, without and with mean subtraction",
        ntk_mean.build,
    ),
    Section(
        "augmentation",
        "Data augmentation: spectrum, and self-paced on few digits",
        augmentation.build,
    ),
    Section(
        "gp",
        "Gaussian processes of wide networks: predictions and their spread",
        gp.build,
    ),
    Section(
        "optim-digits",
        "Optimisers: K-FAC and EKFAC on a classification, beside Adam and SGD",
        optim_digits.build,
    ),
    Section(
        "optim-poisson",
        "Optimisers: natural gradient on the Poisson equation, beside Adam and L-BFGS",
        optim_poisson.build,
    ),
)
