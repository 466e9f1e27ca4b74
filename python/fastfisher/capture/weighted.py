# SPDX-License-Identifier: Apache-2.0
"""A model followed by one linear map of its outputs for each sample: fewer rows to capture.

Row r of sample n is ``sum_c root[n, c, r] f_c(x_n)`` with a constant root: a sampled or an
empirical Fisher matrix needs one such row where the Jacobian has C, and fewer backward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastfisher.capture.model import Inputs, Model, recording, untouched

_ROOT, _X = "fastfisher: root", "fastfisher: x"


def outputs_of(model: Model, x: Inputs) -> torch.Tensor:
    """Compute outputs (n, C) in a run that leaves no trace."""
    with untouched(model), recording(), torch.no_grad():
        return model(x).detach()


def weighted(model: Model, x: Inputs, root: torch.Tensor) -> tuple[Model, Inputs]:
    """Model of the rows, and its inputs, for a `root` (n, C, R)."""

    def forward(given: Mapping[str, Any]) -> torch.Tensor:
        rest = {name: value for name, value in given.items() if name != _ROOT}
        y = model(rest.get(_X, rest))
        return (y[:, None, :] @ given[_ROOT].detach().to(y.dtype))[:, 0]

    inputs = dict(x) if isinstance(x, Mapping) else {_X: x}
    return Model(forward, model.parameters, model.module, None), {**inputs, _ROOT: root}
