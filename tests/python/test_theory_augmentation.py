# SPDX-License-Identifier: Apache-2.0
"""Spectrum under augmentation and loss under noise: mistakes, and the ends of their ranges."""

from __future__ import annotations

import pytest

from fastfisher import theory

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "correlation: .*got neither"),
        ({"noise": 0.1, "correlation": 0.9}, "correlation: .*got both"),
        ({"noise": -1}, "noise: expected a finite number >= 0"),
        ({"correlation": 1.1}, "correlation: expected a number from -1 to 1"),
        ({"noise": 0.1, "copies": 0}, "copies: expected an integer >= 1"),
        ({"noise": 0.1, "samples": 2.5}, "samples: expected an integer"),
        ({"noise": 0.1, "parameterization": "mup"}, "parameterization: expected one of"),
    ],
)
def test_augmented_spectrum_refuses(options, match):
    order = theory.order_parameters((9, 9, 1))
    with pytest.raises(ValueError, match=match):
        theory.augmented_spectrum(order, **{"samples": 3, "copies": 2, **options})


@pytest.mark.parametrize(
    ("covariance", "correlation", "samples", "copies"),
    [(0, -1, 1, 3), (0, -0.6, 4, 3), (0.5, 0.1, 2, 3), (-0.3, 0.1, 5, 4)],
)
def test_augmented_spectrum_refuses_samples_that_cannot_be(
    covariance, correlation, samples, copies
):
    # the input Gram matrix would have a negative eigenvalue, and so would the spectrum
    order = theory.order_parameters((9, 9, 1), activation="linear", input_covariance=covariance)
    sizes = {"samples": samples, "copies": copies}
    with pytest.raises(ValueError, match=r"correlation: .*negative eigenvalue"):
        theory.augmented_spectrum(order, correlation=correlation, **sizes)


def test_augmented_spectrum_at_the_ends_of_correlations():
    order = theory.order_parameters((9, 9, 1), activation="linear", input_covariance=0.5)
    edge = theory.augmented_spectrum(order, correlation=0.25, samples=4, copies=3)
    assert edge.between == pytest.approx(0, abs=1e-12)
    assert edge.lambda_max > edge.within > 0
    far = theory.augmented_spectrum(order, noise=1e200, samples=4, copies=3)
    assert far.Kw == far.K2 == 0
    with pytest.raises(ValueError, match="noise: too large"):
        theory.noise_loss(order, noise=1e200)


def test_normalised_networks_have_no_such_spectrum():
    order = theory.order_parameters((9, 9, 1), hidden_normalization="mean")
    with pytest.raises(ValueError, match="hidden_normalization"):
        theory.augmented_spectrum(order, samples=3, copies=2, noise=0.1)
    with pytest.raises(ValueError, match="hidden_normalization"):
        theory.noise_loss(order, noise=0.1)
    with pytest.raises(ValueError, match="noise: expected a finite number >= 0"):
        theory.noise_loss(theory.order_parameters((9, 9, 1)), noise=INF)
    assert theory.noise_loss(theory.order_parameters((9, 9, 1)), noise=0) == (0, 0, 0)
