# SPDX-License-Identifier: Apache-2.0
"""Natural gradient in sample space with the last step projected into it: SPRING."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastfisher.optim._options import number
from fastfisher.optim._rows import Rows
from fastfisher.optim._solver import Solver
from fastfisher.optim.ngd import NGD

__all__ = ["SPRING"]


class SPRING(NGD):
    """Sample-space update with momentum where the samples say nothing.

    Parameters
    ----------
    model, params, lr, c, likelihood, damping, relative_damping, solve_dtype, centred
        As in `NGD`, with structure "full".
    memory_limit, select, on_nonfinite, verify
        As in `NGD`.
    momentum : float
        mu, at least 0 and below 1.
    norm_constraint : float, optional
        Largest squared norm of ``lr * phi``, the step; by default none. Where the residuals are
        not linear in the parameters (physics-informed networks) full steps overshoot at the start
        without it; it lets go near the solution, where steps are short.

    Notes
    -----
    Of all vectors, the one that solves the damped least-squares problem around the last step,

        phi = argmin ||J phi - e||^2 / N + rho ||phi - mu phi_last||^2
            = mu phi_last + J^T (J J^T / N + rho)^-1 (e - mu J phi_last) / N

    (Goldshlager, Abrahamsen and Lin 2024, Kaczmarz-inspired natural gradient); with
    another likelihood ``mu H J phi_last``. mu = 0 is `NGD`. The last phi is kept in ``state`` as
    "phi", a tensor a parameter; it starts at zero.

    Examples
    --------
    >>> import torch
    >>> import fastfisher as ff
    >>> torch.manual_seed(0) and None
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    >>> optimizer = ff.optim.SPRING(model, damping=1e-3)
    >>> def residual(f, x):  # of one sample: f' = cos in the first direction
    ...     return torch.func.grad(lambda z: f(z)[0])(x)[0] - x[0].cos()
    >>> losses = [float(optimizer.step([(residual, torch.rand(64, 2))])) for _ in range(20)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    """

    def __init__(
        self,
        model: torch.nn.Module,
        params: Any = None,
        *,
        momentum: float = 0.9,
        norm_constraint: float | None = None,
        **options: Any,
    ) -> None:
        for name in ("structure", "adaptive"):
            if name in options:
                raise TypeError(f"{name}: no option of SPRING")
        self.momentum = number("momentum", momentum)
        if self.momentum >= 1:
            raise ValueError(f"momentum: expected a number below 1, got {momentum!r}")
        self.norm_constraint = (
            None
            if norm_constraint is None
            else number("norm_constraint", norm_constraint, above=True)
        )
        super().__init__(model, params, **options)

    def _direction(
        self, solver: Solver, rows: Rows, e: torch.Tensor, parameters: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float]:
        last = torch.cat([self._last(p).reshape(-1) for p in parameters.values()]).to(e.dtype)
        if self.momentum and bool(last.any()):
            pushed = rows.push(last).double()
            e = e - self.momentum * solver.problem.curved(rows, pushed).to(e.dtype)
        vector, rho = solver(e, self.damping_factor)
        vector = vector + self.momentum * last
        self._phi = vector
        if self.norm_constraint is not None:
            rates = self._rates(parameters)
            size = float((rates * vector).double().norm())
            vector = vector * min(1.0, math.sqrt(self.norm_constraint) / max(size, 1e-300))
        return vector, rho

    def _remember(self, parameters: dict[str, torch.Tensor], vector: torch.Tensor) -> None:
        start = 0
        for p in parameters.values():
            self.state[p]["phi"] = self._phi[start : start + p.numel()].reshape(p.shape).clone()
            start += p.numel()
        del self._phi

    def _last(self, p: torch.Tensor) -> torch.Tensor:
        found = self.state[p].get("phi") if p in self.state else None
        return torch.zeros_like(p, requires_grad=False) if found is None else found
