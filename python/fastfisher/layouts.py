# SPDX-License-Identifier: Apache-2.0
"""Kernels in the axis orders and scalings of other libraries, and back.

Ours are ``full`` (N, C, M, D), ``trace`` (N, M) as a plain sum over outputs, ``diagonal``
(N, M, C). All functions give views where the layout allows it, in the caller's library.

=================== ====================== ================================ ==================
library             full                   trace                            diagonal
=================== ====================== ================================ ==================
neural-tangents     (N, M, C, D)           mean over outputs: sum / C       (N, M, C)
nngeometry          (C, N, D, M)           -                                -
torch's tutorial    (N, M, C, D)           sum                              (N, M, C)
=================== ====================== ================================ ==================

References
----------
neural-tangents 0.6.5, ``empirical_ntk_fn`` (``trace_axes``, ``diagonal_axes``, divided by the size
of the traced axes); nngeometry 0.4, ``FMatDense``; torch.func tutorial on neural tangent kernels.
"""

from __future__ import annotations

from typing import Literal

from fastfisher._arrays import Array
from fastfisher._arrays import library as library_of

__all__ = ["LIBRARIES", "from_library", "to_library"]

Library = Literal["neural-tangents", "nngeometry", "torch-tutorial"]
Form = Literal["full", "trace", "diagonal"]

LIBRARIES: tuple[Library, ...] = ("neural-tangents", "nngeometry", "torch-tutorial")
_RANK = {"full": 4, "trace": 2, "diagonal": 3}
# Our axes (n, c, m, d) = (0, 1, 2, 3) in the order of each library.
_FULL = {
    "neural-tangents": (0, 2, 1, 3),
    "nngeometry": (1, 0, 3, 2),
    "torch-tutorial": (0, 2, 1, 3),
}


def to_library(
    kernel: Array, library: Library, *, outputs: Form = "full", n_outputs: int | None = None
) -> Array:
    """Kernel of `fastfisher.ntk` as another library would give it.

    Parameters
    ----------
    kernel : array, shape (N, C, M, D), (N, M) or (N, M, C)
        As `outputs` says.
    library : "neural-tangents" | "nngeometry" | "torch-tutorial"
        Whose layout.
    outputs : "full" | "trace" | "diagonal"
        Form of `kernel`.
    n_outputs : int, optional
        Number of outputs C: needed for the trace of neural-tangents, which is a mean.

    Returns
    -------
    array
        A view of `kernel`, or for the trace of neural-tangents a scaled copy.

    Raises
    ------
    ValueError
        A form that the library does not have, or a kernel of another rank.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> full = ff.ntk(ff.models.MLP((3, 8, 2)), np.ones((5, 3)), np.ones((4, 3)))
    >>> ff.layouts.to_library(full, "nngeometry").shape
    (2, 5, 2, 4)
    >>> ff.layouts.to_library(full, "neural-tangents").shape
    (5, 4, 2, 2)
    """
    return _converted(kernel, library, outputs, n_outputs, inverse=False)


def from_library(
    kernel: Array, library: Library, *, outputs: Form = "full", n_outputs: int | None = None
) -> Array:
    """Kernel of another library as `fastfisher.ntk` would give it; inverse of `to_library`.

    Parameters
    ----------
    kernel : array
        In the layout of `library`.
    library, outputs, n_outputs
        As in `to_library`.

    Returns
    -------
    array
        A view of `kernel`, or for the trace of neural-tangents a scaled copy.

    Raises
    ------
    ValueError
        A form that the library does not have, or a kernel of another rank.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.layouts.from_library(np.ones((2, 5, 2, 4)), "nngeometry").shape
    (5, 2, 4, 2)
    """
    return _converted(kernel, library, outputs, n_outputs, inverse=True)


def _converted(
    kernel: Array, library: Library, outputs: Form, n_outputs: int | None, *, inverse: bool
) -> Array:
    _check(kernel, library, outputs)
    if outputs == "full":
        order = _FULL[library]
        return _permuted(kernel, tuple(map(order.index, range(4))) if inverse else order)
    if outputs == "trace" and library == "neural-tangents":
        count = _count(n_outputs)
        return kernel * count if inverse else kernel / count
    return kernel


def _check(kernel: Array, name: str, outputs: str) -> None:
    library_of(kernel, "kernel")
    if name not in LIBRARIES:
        raise ValueError(f"library: expected one of {LIBRARIES}, got {name!r}")
    if outputs not in _RANK:
        raise ValueError(f"outputs: expected one of {tuple(_RANK)}, got {outputs!r}")
    if name == "nngeometry" and outputs != "full":
        raise ValueError(f"outputs: expected 'full', the only form of nngeometry, got {outputs!r}")
    if len(kernel.shape) != _RANK[outputs]:
        raise ValueError(
            f"kernel: expected {_RANK[outputs]} axes for outputs={outputs!r}, got shape "
            f"{tuple(kernel.shape)}"
        )


def _count(n_outputs: int | None) -> int:
    if n_outputs is None or n_outputs < 1:
        raise ValueError(
            f"n_outputs: expected the number of outputs, which the trace of neural-tangents is "
            f"divided by, got {n_outputs!r}"
        )
    return n_outputs


def _permuted(x: Array, axes: tuple[int, ...]) -> Array:
    return x.permute(axes) if library_of(x) == "torch" else x.transpose(axes)
