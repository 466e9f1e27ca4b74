# SPDX-License-Identifier: Apache-2.0
"""Between torch's tensors and arrays in numpy's words: both share memory, on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastfisher._arrays import in_numpys_words
from fastfisher._device_array import DeviceArray

Host = np.ndarray[Any, Any]

__all__ = ["Host", "in_words", "tensor_of"]


def in_words(x: torch.Tensor) -> Host:
    """`x` for code written in numpy's words."""
    return in_numpys_words(x)


def tensor_of(x: Host) -> torch.Tensor:
    """Tensor with the memory of an array of such code."""
    return x.tensor if isinstance(x, DeviceArray) else torch.from_numpy(x)
