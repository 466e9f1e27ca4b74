# SPDX-License-Identifier: Apache-2.0
"""Where the heavy parts of a report run: on the CPU, or on a GPU to which they move their arrays.

Sections keep numpy's arrays. Inside a block `use`, the functions here move what they are given to
the device, compute there by the library's public functions, and bring results back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher import _native, linalg
from fastfisher._arrays import empty_on, from_numpy, in_numpys_words, to_numpy
from fastfisher._extras import require
from fastfisher._jacobian import Jacobian
from fastfisher._lookup import Lookup
from fastfisher._sample_map import SampleMap

__all__ = ["DEVICES", "PARTS", "eigh", "eigvalsh", "gram", "largest", "moved", "use"]

DEVICES = ("cpu", "cuda")
PARTS = {
    "ntk-spectrum": "kernels, Fisher matrix, its eigenvectors; gradient descent on the CPU",
    "fisher-theory": "kernels, Fisher matrices, their eigenvalues",
    "normalization": "kernels, Fisher matrices, their eigenvalues",
    "isotropy": "natural gradients and their matrices",
    "fig1": "Fisher matrices, their largest eigenvalues; training on the CPU",
    "fig2": "nothing: all of it on the CPU",
    "fig3": "natural gradients; networks and regressions on the CPU",
    "softmax": "Fisher matrices, their eigenvalues; training on the CPU",
    "input-metric": "metrics and their eigenvalues",
    "ntk-mean": "kernels, their eigenvalues",
    "augmentation": "kernels, Fisher matrices, their eigenvalues; training on the CPU",
    "gp": "tangent kernels; ensembles and regressions on the CPU",
    "optim-digits": "nothing: all of it on the CPU",
    "optim-poisson": "nothing: all of it on the CPU",
}
"""What each section runs on the device."""

Floats = NDArray[Any]

_like: ContextVar[Any] = ContextVar("fastfisher_report_device", default=None)


@contextmanager
def use(device: str) -> Iterator[None]:
    """Run what the functions here are asked for on `device`, "cpu" or "cuda".

    Raises
    ------
    ValueError
        Another device, or a CUDA backend that is off; the message says why.
    MissingExtraError
        Without torch, for "cuda".
    """
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {list(DEVICES)}, got {device!r}")
    if device == "cpu":
        yield
        return
    state = _native.build_info()["backends"]["cuda"]
    if not state["available"]:
        why = state.get("reason") or state.get("detail") or "no reason given"
        raise ValueError(f"device: cuda is off: {why}; 'fastfisher doctor' says more")
    require("torch", purpose="a report on a GPU")
    token = _like.set(empty_on("cuda:0"))
    try:
        yield
    finally:
        _like.reset(token)


def moved(x: Any) -> Any:
    """`x` (array, or Jacobian) on the device."""
    like = _like.get()
    if like is None:
        return x
    if isinstance(x, Jacobian):
        return _moved_jacobian(x)
    return from_numpy(np.ascontiguousarray(x), like)


def gram(jacobian: Jacobian, **options: Any) -> Floats:
    """``J J^T`` in numpy; options of ``Jacobian.gram``."""
    return to_numpy(moved(jacobian).gram(**options))


def eigvalsh(matrix: Floats) -> Floats:
    """Eigenvalues, ascending."""
    if _like.get() is None:
        host: Floats = require("scipy.linalg", purpose="the report").eigvalsh(matrix)
        return host
    return to_numpy(np.linalg.eigvalsh(in_numpys_words(moved(matrix))))


def eigh(matrix: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and eigenvectors as columns."""
    if _like.get() is None:
        found: tuple[Floats, Floats] = require("scipy.linalg", purpose="the report").eigh(
            matrix, driver="evd"
        )
        return found
    values, vectors = np.linalg.eigh(in_numpys_words(moved(matrix)))
    return to_numpy(values), to_numpy(vectors)


def largest(matrix: Floats, k: int = 1, **options: Any) -> Floats:
    """Find the `k` largest eigenvalues, descending; options of `fastfisher.linalg.eigsh`."""
    return to_numpy(linalg.eigsh(moved(matrix), k, **options).values)


def _moved_jacobian(jacobian: Jacobian) -> Jacobian:
    layers = []
    for layer in jacobian.layers:
        new = copy.copy(layer)
        for name in ("a", "g", "w"):
            array = getattr(layer, name)
            if array is not None and not (name == "a" and isinstance(layer, Lookup)):
                setattr(new, name, moved(array))
        layers.append(new)
    kept = jacobian.sample_map
    return Jacobian(
        tuple(layers),
        None if jacobian.outputs is None else moved(jacobian.outputs),
        None if kept is None else SampleMap(moved(kept.basis), moved(kept.scale)),
        jacobian.parameters,
    )
