# SPDX-License-Identifier: Apache-2.0
"""The linear system of one natural-gradient step, solved for any damping."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastfisher.ngd import update
from fastfisher.ngd._dual import dual_of
from fastfisher.ngd._update import matrix_for_updates
from fastfisher.optim._problem import Problem
from fastfisher.optim._rows import Rows
from fastfisher.optim._tensors import in_words, tensor_of

if TYPE_CHECKING:
    from fastfisher.optim.ngd import NGD

_RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-6}


class Solver:
    """``(G + rho I)^-1 J^T e / N`` for one set of rows and several dampings."""

    def __init__(self, optimizer: NGD, rows: Rows, size: int, problem: Problem) -> None:
        self.of, self.rows, self.problem = optimizer, rows, problem
        self.dual = optimizer.structure == "full" and math.prod(rows.shape) <= size
        if rows.jacobian is None and not self.dual:
            raise MemoryError(
                f"memory_limit: {optimizer.memory_limit} is less than the factors of all samples, "
                f"which structure {optimizer.structure!r} with {math.prod(rows.shape)} rows and "
                f"{size} parameters needs"
            )
        self._kernel: np.ndarray[Any, Any] | None = None
        self._matrix: Any = None

    def __call__(self, e: torch.Tensor, factor: float) -> tuple[torch.Tensor, float]:
        """Vector (P,) for residuals e (N, C), and the largest damping."""
        absolute, relative = self._dampings(e.dtype)
        if not self.dual:
            return self._by_structure(e, absolute * factor, relative, factor)
        outputs = in_words(self.rows.values)
        if self._kernel is None:
            self._kernel = self.rows.gram(self.of.memory_limit)
        system = dual_of(
            self._kernel, in_words(e), likelihood=self.problem.likelihood, outputs=outputs,
            dtype=self.of.solve_dtype,
        )  # fmt: skip
        rho = system.damping(absolute, relative) * factor
        z = tensor_of(system.solve(rho)).reshape(e.shape)
        return self.rows.pull(z.to(e.dtype)), rho

    def _by_structure(
        self, e: torch.Tensor, absolute: float, relative: float | None, factor: float
    ) -> tuple[torch.Tensor, float]:
        if self._matrix is None:
            jacobian = self.rows.jacobian
            assert jacobian is not None
            self._matrix = matrix_for_updates(
                jacobian, self.of.structure, likelihood=self.problem.likelihood
            )
        found = update(
            self._matrix, e,
            damping=absolute if relative is None else None,
            relative_damping=None if relative is None else relative * factor,
        )  # fmt: skip
        return found.vector, max(found.damping.values(), default=0.0)

    def _dampings(self, dtype: torch.dtype) -> tuple[float, float | None]:
        absolute, relative = self.of.damping, self.of.relative_damping
        if absolute is None and relative is None:
            relative = _RELATIVE[dtype]
        return absolute or 0.0, relative
