# SPDX-License-Identifier: Apache-2.0
"""Exceptions and warnings of fastfisher, beside plain ValueError, TypeError and MemoryError."""

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
    """A computation on finite input has no finite result, for instance it overflows the dtype."""


class NotPositiveDefiniteError(NumericalError, ValueError):
    """A matrix that must be positive definite is clearly indefinite."""


class CaptureError(FastfisherError, ValueError):
    """A model cannot be turned into per-sample factors."""


class CudaError(FastfisherError, RuntimeError):
    """The CUDA runtime reported an error."""


class ConvergenceWarning(UserWarning):
    """An iteration stopped before its tolerance was reached."""
