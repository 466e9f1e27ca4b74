# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient descent in sample space, as an optimiser of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from fastfisher._memory import memory_bytes
from fastfisher._pool import Pool
from fastfisher.capture import Capture, torch_model
from fastfisher.capture.model import recording
from fastfisher.errors import NonFiniteError
from fastfisher.likelihoods import Likelihood, likelihood_of
from fastfisher.optim._alpha import alpha_of
from fastfisher.optim._options import (
    Groups,
    check_group,
    function_or_none,
    groups_of,
    member,
    module_of,
    names_of,
    number,
    own_state,
)
from fastfisher.optim._problem import Problem
from fastfisher.optim._rows import Rows
from fastfisher.optim._solver import Solver

__all__ = ["NGD"]

_STRUCTURES = ("full", "layer", "tridiagonal", "unit", "kfac")
_TRIES = 8
_KEPT = 1 << 29
"""Bytes of workspaces of the host that one step keeps for the next: the system had to find 0.5 s
worth of fresh pages for a factor of 10240 rows."""


class NGD(torch.optim.Optimizer):  # type: ignore[misc]
    """Exact natural gradient ``theta <- theta - lr (G + rho I)^-1 J^T e / N``, in sample space.

    Parameters
    ----------
    model : torch.nn.Module
        Of dtype float32 or float64, on the CPU or a GPU; samples and labels on the same device.
    params : iterable of tensors or of groups, optional
        Parameters of the model to train, as torch takes them; each group may have its own ``lr``.
    lr : float, optional
        Learning rate. By default ``c / alpha`` with the isotropic constant alpha of the structure
        (1 for "full"), which makes a step Newton's; ``param_groups[...]["lr"]`` is then c.
    c : float
        Between 0 and 2, exclusive; without a `lr`.
    likelihood : "gaussian" | "categorical" | "bernoulli" | Likelihood
        Of the labels, for steps with `x` and `y`: least squares, softmax, ....
    structure : "full" | "layer" | "tridiagonal" | "unit" | "kfac"
        G, as in `fastfisher.fisher`.
    damping : float, optional
        rho, in units of the curvature, loss / parameter^2.
    relative_damping : float, optional
        rho as a part of the mean eigenvalue of each matrix of sample space that is inverted. The
        default: 1e-4 in float32, 1e-6 in float64. Labels that are fitted perfectly have no
        curvature left, and this is none then: use `damping` or `adaptive` for classes.
    adaptive : bool
        Levenberg-Marquardt: a step that raises the loss is taken back and tried with four times the
        damping; it doubles where the loss fell by less than a quarter of what the quadratic model
        says, and drops to a third where it fell by more than three quarters.
    solve_dtype : "float64" | "float32"
        Of the solve with structure "full". The Gram matrix is made in the dtype of the model.
    centred : bool
        Remove the means over the samples from the Jacobian and from the residuals, as stochastic
        reconfiguration does (structures "full", "layer", "tridiagonal").
    memory_limit : int or str, optional
        Bytes beside the Gram matrix, for instance ``"2GB"``. Where the factors of all samples do
        not fit, blocks of samples are captured as needed ("full" only).
    select : callable, optional
        From what the model returns to the tensor of outputs.
    on_nonfinite : "raise" | "skip"
        What NaN or infinity in samples, outputs, residuals or the update does. Skipped steps change
        nothing and are counted in `skipped`.
    verify : bool
        As in `fastfisher.jacobian`.

    Attributes
    ----------
    damping_factor : float
        What the damping is multiplied by, 1 unless `adaptive`.
    skipped : int
    last : dict
        What the last step did: "loss", "damping", "alpha", "ratio", "tries".

    Notes
    -----
    ``(G + rho)^-1 J^T = J^T (K + rho)^-1`` (Karakida and Osawa 2020, section 3; Martens 2020). For
    "full": Gram matrix, N C < P, (N C)^3 / 6 multiply-adds for its Cholesky factor, one product
    with J^T; where P is smaller, and for other structures, `fastfisher.ngd.update`. Parameters
    without a gradient (unused ones) do not move; frozen ones do not count.
    Up to 512 MiB of workspace on the host are kept from one step to the next.

    Examples
    --------
    >>> import torch
    >>> import fastfisher as ff
    >>> torch.manual_seed(0) and None
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    >>> x = torch.randn(8, 3); y = x[:, :1].sin()
    >>> optimizer = ff.optim.NGD(model)
    >>> losses = [float(optimizer.step(x=x, y=y)) for _ in range(4)]
    >>> losses[-1] < 1e-3 * losses[0]
    True
    """

    def __init__(
        self,
        model: torch.nn.Module,
        params: Groups = None,
        *,
        lr: float | None = None,
        c: float = 1.0,
        likelihood: str | Likelihood = "gaussian",
        structure: Literal["full", "layer", "tridiagonal", "unit", "kfac"] = "full",
        damping: float | None = None,
        relative_damping: float | None = None,
        adaptive: bool = False,
        solve_dtype: Literal["float64", "float32"] = "float64",
        centred: bool = False,
        memory_limit: int | str | None = None,
        select: Callable[[Any], torch.Tensor] | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        verify: bool = True,
    ) -> None:
        self.model = module_of(model)
        self.likelihood = likelihood_of(likelihood)
        self.structure = member("structure", structure, _STRUCTURES)
        if damping is not None and relative_damping is not None:
            raise ValueError("relative_damping: expected None with a damping, got both")
        self.damping = None if damping is None else number("damping", damping)
        self.relative_damping = (
            None if relative_damping is None else number("relative_damping", relative_damping)
        )
        self.adaptive, self.centred = bool(adaptive), bool(centred)
        if self.centred and self.structure not in ("full", "layer", "tridiagonal"):
            raise ValueError(
                f"centred: expected structure 'full', 'layer' or 'tridiagonal', got {structure!r}"
            )
        if self.centred and self.adaptive:
            raise ValueError("adaptive: expected False with centred=True, whose loss is not known")
        self.solve_dtype = np.dtype(member("solve_dtype", solve_dtype, ("float64", "float32")))
        if memory_limit is not None:
            memory_bytes(memory_limit)
        self.memory_limit, self.verify = memory_limit, verify
        self.select = function_or_none("select", select)
        self.on_nonfinite = member("on_nonfinite", on_nonfinite, ("raise", "skip"))
        self.by_theory = lr is None
        rate = number("lr", lr) if lr is not None else number("c", c, above=True)
        if lr is None and rate >= 2:
            raise ValueError(f"c: expected a number between 0 and 2, got {c!r}")
        self.damping_factor, self.skipped, self.steps = 1.0, 0, 0
        self.pool = Pool(limit=_KEPT)
        self.last: dict[str, Any] = {}
        self._capture: Capture | None = None
        self._captured: tuple[Any, ...] = ()
        super().__init__(groups_of(self.model, params), {"lr": rate})

    def step(
        self,
        closure: Callable[[], Any]
        | Sequence[tuple[Callable[..., Any], torch.Tensor]]
        | None = None,
        *,
        x: Any = None,
        y: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """One update; give samples, or residuals, in one of four ways.

        Parameters
        ----------
        closure : callable or sequence of pairs, optional
            A callable without arguments that returns the residuals (N,) or (N, C) of a
            least-squares problem with their graph, or a list of such tensors: the loss is half the
            mean over N of their squares, summed over the list. It costs a backward pass a residual.
            Or pairs ``(function, points)``: ``function(f, x)`` is the residual of one sample x of
            `points`, with f the model for one sample; derivatives of f by ``torch.func``. That
            costs a backward pass of each sample only.
        x, y : tensors, optional
            Samples (a tensor or a mapping) and their labels, for the `likelihood`. Without `y`
            outputs of the model are themselves residuals (Gaussian likelihood).
        residual : tensor, shape (N, C), optional
            With `x`, in place of `y`: gradient of each sample's loss in the outputs, such as the
            local energies of variational Monte Carlo.

        Returns
        -------
        tensor or None
            The loss before the update, where it is known; None for a step that was skipped.

        Raises
        ------
        NonFiniteError
            NaN or infinity, with ``on_nonfinite="raise"``.
        CaptureError, NotPositiveDefiniteError, ValueError, TypeError
            As `fastfisher.jacobian` and `fastfisher.ngd.update`.
        """
        problem = Problem(self, closure, x, y, residual)
        try:
            with recording(), self.pool.use():
                return self._stepped(problem)
        except NonFiniteError:
            if self.on_nonfinite == "raise":
                raise
            self.skipped += 1
            return None

    def state_dict(self) -> dict[str, Any]:
        """State of torch's optimisers, and the damping and counts of this one."""
        own = {"damping_factor": self.damping_factor, "steps": self.steps, "skipped": self.skipped}
        return {**super().state_dict(), "ngd": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; training goes on bit for bit."""
        if "ngd" not in state_dict:
            raise ValueError("state_dict: expected one of this optimiser, got none of its state")
        super().load_state_dict({key: v for key, v in state_dict.items() if key != "ngd"})
        own = state_dict["ngd"]
        self.damping_factor = float(own["damping_factor"])
        self.steps, self.skipped = int(own["steps"]), int(own["skipped"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose options are checked."""
        check_group(self, param_group)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and files all but the capture, which is made anew."""
        return {**super().__getstate__(), "own": own_state(self, "_capture", "_captured")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a copied state, or one of torch's."""
        if "own" in state:
            self.__dict__.update(state["own"])
            self._capture, self._captured = None, ()
        super().__setstate__({k: v for k, v in state.items() if k != "own"})

    def _stepped(self, problem: Problem) -> torch.Tensor | None:
        parameters = self._parameters()
        if not parameters:
            raise ValueError("model: expected parameters that require gradients, got none")
        rows, e, loss = problem.rows(parameters)
        if e.numel() == 0:
            return None if loss is None else torch.tensor(loss, dtype=torch.float64)
        if self.adaptive and loss is None:
            raise ValueError("adaptive: expected a likelihood whose loss is known, or residuals")
        if not rows.factored and self.structure in ("unit", "kfac"):
            raise ValueError(
                f"structure: {self.structure!r} needs the factors of a model, expected x= and y=; "
                "got residual functions"
            )
        alpha = alpha_of(self.structure, rows, self.likelihood) if self.by_theory else 1.0
        if self.centred:
            rows, e = rows.centred(), e - e.mean(0)
        solver = Solver(self, rows, sum(p.numel() for p in parameters.values()), problem)
        rates = self._rates(parameters) / alpha
        kept = {name: p.detach().clone() for name, p in parameters.items()} if self.adaptive else {}
        used, ratio, tries = 0.0, math.nan, 0
        while True:
            tries += 1
            vector, used = self._direction(solver, rows, e, parameters)
            move = rates * vector
            if not bool(torch.isfinite(move).all()):
                raise NonFiniteError("update: expected finite numbers, got NaN or infinity")
            self._apply(parameters, move)
            if not self.adaptive:
                break
            assert loss is not None
            ratio, fine = self._judged(problem, rows, e, parameters, move, loss)
            if fine:
                break
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(kept[name])
            if tries == _TRIES:
                break
        self._remember(parameters, vector)
        self.steps += 1
        self.last = {"loss": loss, "damping": used, "alpha": alpha, "ratio": ratio, "tries": tries}
        return None if loss is None else torch.tensor(loss, dtype=torch.float64)

    def _direction(
        self, solver: Solver, rows: Rows, e: torch.Tensor, parameters: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float]:
        """Vector (P,) to subtract, and the damping."""
        return solver(e, self.damping_factor)

    def _remember(self, parameters: dict[str, torch.Tensor], vector: torch.Tensor) -> None:
        """Keep what the next step needs."""

    def _judged(
        self,
        problem: Problem,
        rows: Rows,
        e: torch.Tensor,
        parameters: dict[str, torch.Tensor],
        move: torch.Tensor,
        loss: float,
    ) -> tuple[float, bool]:
        """Compare the loss with its quadratic model, and change the damping."""
        n = rows.shape[0]
        change = rows.push(move.to(e.dtype)).double()
        bent = problem.curved(rows, change)
        model = float((-(e.double() * change).sum() + 0.5 * (change * bent).sum()) / n)
        now = problem.loss(parameters)
        if not (math.isfinite(now) and now <= loss):
            self.damping_factor *= 4
            return (now - loss) / model if model else math.nan, False
        ratio = (now - loss) / model if model < 0 else 1.0
        if ratio < 0.25:
            self.damping_factor *= 2
        elif ratio > 0.75:
            self.damping_factor /= 3
        return ratio, True

    def _apply(self, parameters: dict[str, torch.Tensor], move: torch.Tensor) -> None:
        start = 0
        with torch.no_grad():
            for p in parameters.values():
                p.sub_(move[start : start + p.numel()].reshape(p.shape).to(p.dtype))
                start += p.numel()

    def _parameters(self) -> dict[str, torch.Tensor]:
        return names_of(self.model, self.param_groups)

    def _rates(self, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """Learning rate of each entry (P,), or of all of them."""
        rates = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        each = [rates[p] for p in parameters.values()]
        if len(set(each)) == 1:
            return torch.tensor(each[0], dtype=torch.float64)
        return torch.cat(
            [
                torch.full((p.numel(),), rates[p], dtype=torch.float64, device=p.device)
                for p in parameters.values()
            ]
        )

    def _captures(self, x: Any, parameters: dict[str, torch.Tensor]) -> Capture:
        """Capture of the model; kept while parameters and modules are trained as they are now."""
        key = (tuple(parameters), tuple(module.training for module in self.model.modules()))
        if self._capture is None or self._captured != key:
            one = torch_model(self.model, select=self.select, params=list(parameters).__contains__)
            self._capture = Capture(one, x, verify=self.verify)
            self._captured = key
        return self._capture
