# SPDX-License-Identifier: Apache-2.0
"""What a Gram chose and predicted: the `info` of ``return_info=True``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """How the Gram of one layer was computed."""

    name: str
    form: str
    """``Dense``, ``Shared``, ``Conv`` or ``Explicit``."""
    method: str
    """``S0`` to ``S4``, see `fastfisher.gram`."""
    multiply_adds: float
    """Of the method, halved by symmetry."""
    predicted_seconds: float
    """From stored rates."""


@dataclass(frozen=True, slots=True)
class GramInfo:
    """How a Gram was computed.

    Attributes
    ----------
    layers : tuple of LayerInfo
        One entry a layer, in order.
    workspace_bytes : int
        Scratch memory that was used, at most ``memory_limit``.
    blocks, slabs : int
        Blocks of rows and, in each, slabs of parameters: how often factors were read and packed.
    seconds : float
        Wall time of the native call.
    """

    layers: tuple[LayerInfo, ...]
    workspace_bytes: int
    blocks: int
    slabs: int
    seconds: float

    @property
    def predicted_seconds(self) -> float:
        """Sum over the layers."""
        return sum(layer.predicted_seconds for layer in self.layers)
