# SPDX-License-Identifier: Apache-2.0
"""From a torch model to its Jacobian as factors; imports torch, so import it where it is used."""

from __future__ import annotations

from fastfisher.capture.blocks import kernel
from fastfisher.capture.capture import Capture
from fastfisher.capture.inputs import input_gradients
from fastfisher.capture.model import gather, torch_model
from fastfisher.capture.run import check_dtypes, check_inputs
from fastfisher.capture.weighted import captured_rows, outputs_of

__all__ = [
    "Capture",
    "captured_rows",
    "check_dtypes",
    "check_inputs",
    "gather",
    "input_gradients",
    "kernel",
    "outputs_of",
    "torch_model",
]
