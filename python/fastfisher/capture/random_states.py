# SPDX-License-Identifier: Apache-2.0
"""States of the random generators that a model may draw from: torch's, Python's and numpy's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomStates:
    """States of the global generators as they are now."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), _numpys()
        self._cpu = torch.get_rng_state()
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        self._cuda = {k: torch.cuda.get_rng_state(k) for k in devices}

    def moved(self) -> bool:
        """Whether one of them has another state now."""
        return not (
            torch.equal(self._cpu, torch.get_rng_state())
            and random.getstate() == self._python
            and _equal(_numpys(), self._numpy)
            and all(torch.equal(was, torch.cuda.get_rng_state(k)) for k, was in self._cuda.items())
        )

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._cpu)
        for k, state in self._cuda.items():
            torch.cuda.set_rng_state(state, k)
        random.setstate(self._python)
        # Not where the model put another bit generator in its place.
        if _numpys()["bit_generator"] == self._numpy["bit_generator"]:
            np.random.set_state(self._numpy)  # noqa: NPY002


def _numpys() -> Any:
    return np.random.get_state(legacy=False)  # noqa: NPY002 - what models draw from


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))
