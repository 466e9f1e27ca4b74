# SPDX-License-Identifier: Apache-2.0
"""What a Gram chose and predicted: the `info` of ``return_info=True``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """How the Gram of one layer was computed."""

    name: str
    form: str
    """Name of the layer's class, ``Dense`` for instance."""
    method: str
    """``S0`` to ``S4``, see `fastfisher.gram`; ``library`` on a device without native kernel."""
    multiply_adds: float
    """Of the method, halved by symmetry."""
    predicted_seconds: float
    """From stored rates."""
    bytes: int = 0
    """Of the layer's factors, both sides; of blocks of samples the sum."""

    def plus(self, other: LayerInfo) -> LayerInfo:
        """Add another call for the same layer."""
        known = other.method in self.method.split(",")
        return replace(
            self,
            multiply_adds=self.multiply_adds + other.multiply_adds,
            predicted_seconds=self.predicted_seconds + other.predicted_seconds,
            bytes=self.bytes + other.bytes,
            method=self.method if known else f"{self.method},{other.method}",
        )


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
        Wall time of the native calls; layers are added up tile by tile, so that single ones have
        times of their own with ``layers="each"`` only.
    parameters : mapping of str to str
        For a captured model: how each parameter was treated.
    captured_samples : int
        Samples that were captured, with those captured again.
    capture_seconds : float
        Wall time of the captures.
    sample_blocks : int
        Pairs of blocks of samples that met, one call each.
    """

    layers: tuple[LayerInfo, ...]
    workspace_bytes: int
    blocks: int
    slabs: int
    seconds: float
    parameters: Mapping[str, str] = field(default_factory=dict)
    captured_samples: int = 0
    capture_seconds: float = 0.0
    sample_blocks: int = 1

    def plus(self, other: GramInfo) -> GramInfo:
        """Add another call for the same model; layers that only one of them has stay."""
        layers = {(layer.name, layer.form): layer for layer in self.layers}
        for layer in other.layers:
            key = layer.name, layer.form
            layers[key] = layers[key].plus(layer) if key in layers else layer
        return replace(
            self,
            layers=tuple(layers.values()),
            workspace_bytes=max(self.workspace_bytes, other.workspace_bytes),
            blocks=self.blocks + other.blocks,
            slabs=self.slabs + other.slabs,
            seconds=self.seconds + other.seconds,
        )

    def with_capture(
        self, parameters: Mapping[str, str], samples: int, seconds: float, blocks: int
    ) -> GramInfo:
        """With what the capture of a model did."""
        return replace(
            self,
            parameters=parameters,
            captured_samples=samples,
            capture_seconds=seconds,
            sample_blocks=blocks,
        )

    @property
    def predicted_seconds(self) -> float:
        """Sum over the layers."""
        return sum(layer.predicted_seconds for layer in self.layers)
