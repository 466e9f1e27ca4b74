# SPDX-License-Identifier: Apache-2.0
"""A model followed by one linear map of its outputs for each sample: fewer rows to capture.

Row r of sample n is ``sum_c root[n, c, r] f_c(x_n)`` with a constant root: a sampled or an
empirical Fisher matrix needs one such row where the Jacobian has C, and fewer backward passes.
The root depends on the outputs, which are those of the run that is captured where all samples fit
into one. What is learned about the model before that holds for any root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastfisher._jacobian import Jacobian
from fastfisher.capture.capture import Capture
from fastfisher.capture.model import (
    Inputs,
    Model,
    all_finite,
    recording,
    samples_of,
    tensors_of,
    untouched,
)

_NUMBER, _X = "fastfisher: number of the sample", "fastfisher: x"
_AT_ONCE = 1 << 29  # bytes of a capture of all samples in one run


def captured_rows(
    model: Model,
    x: Inputs,
    root_of: Callable[[torch.Tensor], torch.Tensor],
    draws: int,
    *,
    verify: bool,
) -> Jacobian:
    """Jacobian of the rows of `model`, for a root (n, C, draws) of the outputs (n, C)."""
    root = _Root(model, root_of, samples_of(x), draws)
    numbers = torch.arange(root.samples, device=tensors_of(x)[0].device)
    inputs = {**(dict(x) if isinstance(x, Mapping) else {_X: x}), _NUMBER: numbers}
    capture = Capture(Model(root, model.parameters, model.module, None), inputs, verify=verify)
    if root.samples * capture.cost.capture > _AT_ONCE:
        with untouched(model), recording(), torch.no_grad():
            root.settle(model(x).detach())
        return capture.jacobian(inputs)
    root.waits = True
    return capture.jacobian(inputs, piece=max(1, root.samples))


class _Root:
    """Forward pass to the rows; any root will do until the outputs of all samples are there."""

    def __init__(
        self,
        model: Model,
        root_of: Callable[[torch.Tensor], torch.Tensor],
        samples: int,
        draws: int,
    ) -> None:
        self.model, self.root_of, self.samples, self.draws = model, root_of, samples, draws
        self.waits = False
        self._table: torch.Tensor | None = None

    def settle(self, outputs: torch.Tensor) -> None:
        """Take the root of the outputs of all samples."""
        self.waits = False
        self._table = self.root_of(outputs)

    def __call__(self, given: Mapping[str, Any]) -> torch.Tensor:
        """Rows (n, draws) of some samples."""
        rest = {name: value for name, value in given.items() if name != _NUMBER}
        y = self.model(rest.get(_X, rest))
        numbers = given[_NUMBER]
        values = y.detach()
        # Outputs that are not finite have no root; the run that meets them refuses them.
        if self.waits and len(numbers) == self.samples and all_finite(values):
            self.settle(values)
        if self._table is None:
            generator = torch.Generator().manual_seed(0)
            table = torch.randn((self.samples, y.shape[1], self.draws), generator=generator)
            self._table = table.to(y.device)
        return (y[:, None, :] @ self._table[numbers].to(y.dtype))[:, 0]
