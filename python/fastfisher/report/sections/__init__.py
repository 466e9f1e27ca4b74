# SPDX-License-Identifier: Apache-2.0
"""The table of sections: a new one is a file here, with ``build(context)``, and a row below."""

from __future__ import annotations

from fastfisher.report._section import Section
from fastfisher.report.sections import (
    augmentation,
    fig1,
    fig2,
    fisher_theory,
    gp,
    isotropy,
    normalization,
    ntk_spectrum,
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
        "augmentation",
        "Data augmentation: spectrum, and self-paced on few digits",
        augmentation.build,
    ),
    Section(
        "gp",
        "Gaussian processes of wide networks: predictions and their spread",
        gp.build,
    ),
)
