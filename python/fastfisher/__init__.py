# SPDX-License-Identifier: Apache-2.0
"""Curvature of neural networks at the speed of the hardware.

Arrays are anything with ``__dlpack__``: numpy, torch, cupy, jax; results come back in the
caller's library. Importing this package imports none of them but numpy.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

from fastfisher import (
    augment,
    diagnostics,
    errors,
    kernels,
    layouts,
    likelihoods,
    linalg,
    models,
    ngd,
    psd,
    regression,
    theory,
)
from fastfisher._conv import Conv
from fastfisher._extras import require as _require
from fastfisher._fisher import Fisher, fisher
from fastfisher._gram import gram
from fastfisher._info import GramInfo, LayerInfo
from fastfisher._jacobian import Jacobian
from fastfisher._lookup import Lookup
from fastfisher._ntk import jacobian, ntk
from fastfisher.factors import Dense, Explicit, Separable, Shared

__version__ = _version("fastfisher")

__all__ = [
    "Conv",
    "Dense",
    "Explicit",
    "Fisher",
    "GramInfo",
    "Jacobian",
    "LayerInfo",
    "Lookup",
    "Separable",
    "Shared",
    "__version__",
    "augment",
    "diagnostics",
    "errors",
    "fisher",
    "gram",
    "jacobian",
    "kernels",
    "layouts",
    "likelihoods",
    "linalg",
    "models",
    "ngd",
    "ntk",
    "psd",
    "regression",
    "theory",
]


_LATER = ("optim", "plot")  # with what they need: torch, matplotlib


def __getattr__(name: str) -> _Any:
    """Import what needs other packages at its first use."""
    if name == "optim":
        _require("torch", purpose="fastfisher.optim", install="'fastfisher[torch]'")
    if name in _LATER:
        return _import_module(f"fastfisher.{name}")
    raise AttributeError(f"module 'fastfisher' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATER})
