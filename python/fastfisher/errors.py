# SPDX-License-Identifier: Apache-2.0
"""Exceptions and warnings that fastfisher raises (plain ValueError, TypeError and MemoryError beside them)."""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "ConvergenceWarning",
    "CudaError",
    "FastfisherError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "NumericalError",
]


class FastfisherError(Exception):
    """Base of every exception class of this package."""


class NonFiniteError(FastfisherError, ValueError):
    """An input holds NaN or infinity; the message names the argument and the first index."""


class NumericalError(FastfisherError, ArithmeticError):
    """A computation on finite input has no finite result, for instance an overflow of the output dtype."""


class NotPositiveDefiniteError(NumericalError, ValueError):
    """A matrix that must be positive definite is clearly indefinite."""


class CaptureError(FastfisherError, ValueError):
    """A model cannot be turned into per-sample factors."""


class CudaError(FastfisherError, RuntimeError):
    """The CUDA runtime reported an error."""


class ConvergenceWarning(UserWarning):
    """An iteration stopped before its tolerance was reached."""
