# SPDX-License-Identifier: Apache-2.0
"""What an optimiser with a preconditioner does around it: checks, momentum, clipping, scalers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fastfisher.errors import NonFiniteError
from fastfisher.optim._blocks import Mean, quadratic
from fastfisher.optim._options import check_group
from fastfisher.optim._sums import dots, finite
from fastfisher.optim._tensors import in_words, tensor_of

if TYPE_CHECKING:
    from fastfisher.optim.kfac import KFAC

Directions = dict[torch.Tensor, torch.Tensor]


class Preconditioned(torch.optim.Optimizer):  # type: ignore[misc]
    """Base of `KFAC`; the methods that it calls are there."""

    _step_supports_amp_scaling = True

    def step(self: KFAC, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model, runs ``backward`` and returns the loss.

        Returns
        -------
        What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        elif self.rule.due(self.steps):
            raise ValueError("closure: expected one with adaptive=True, got None")
        if self._overflowed():
            self._skip()
            return loss
        found = self._found(self._scale(), decay=True)
        if found is None:
            return loss
        clip = self._clip(found, self._slopes(decay=True))
        before = None
        if self.rule.due(self.steps):
            kept = {p: p.detach().clone() for p in found}
            slopes = {p: p.grad.detach().clone() for p in found if p.grad is not None}
            before = kept, slopes
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p in found:
                        self._move(p, found[p], clip, group)
        if before is not None and closure is not None:
            self._judge(closure, _value(loss), *before)
        self._advance()
        return loss

    def precondition(self: KFAC) -> None:
        """Replace the gradients by preconditioned ones, for the step of another optimiser.

        Without this optimiser's momentum and weight decay; `kl_clip` counts with its ``lr``. A step
        that is skipped for NaN sets the gradients to zero.
        """
        found = self._found(None, decay=False)
        with torch.no_grad():
            if found is None:
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            p.grad.zero_()
                return
            clip = self._clip(found, self._slopes(decay=False))
            for p, d in found.items():
                p.grad.copy_(d if clip == 1 else d * clip)
        self._advance()

    def zero_grad(self: KFAC, set_to_none: bool = True) -> None:
        """Forget gradients, and what was collected beside them."""
        super().zero_grad(set_to_none)
        self.curvature.forget()

    def add_param_group(self: KFAC, param_group: dict[str, Any]) -> None:
        """Add a group, whose options are checked."""
        check_group(self, param_group)
        super().add_param_group(param_group)
        names = {p: name for name, p in self.model.named_parameters()}
        for p in self.param_groups[-1]["params"]:
            if p.requires_grad and names.get(p) not in self.treated:
                self.param_groups.pop()
                raise ValueError(
                    f"param_group: {names.get(p, 'a tensor')!r} was frozen or in no group when the "
                    "optimiser was made; expected a new optimiser"
                )

    def _due(self: KFAC) -> bool:
        return self.steps % self.factor_every == 0

    def _found(self: KFAC, scale: float | None, *, decay: bool) -> Directions | None:
        """Preconditioned gradients, or None for a step that is skipped."""
        empirical = self.curvature.collector.kind == "empirical"
        if scale is None and self.grad_scaler is not None:
            scale = float(self.grad_scaler.get_scale())
        gain = 1 / scale**2 if scale and empirical else 1.0
        try:
            self._check_gradients()
            with self.pool.use():
                self.curvature.follow_dtypes()
                self._take(self.curvature.estimated(gain), gain)
                self._refresh()
                return self._directions(decay)
        except NonFiniteError:
            if self.on_nonfinite == "raise":
                self.curvature.drop(self._due())
                raise
            self._skip()
            return None

    def _take(self: KFAC, estimate: Any, gain: float) -> None:
        self.curvature.take(estimate)

    def _check_gradients(self: KFAC) -> None:
        names = {p: name for name, p in self.model.named_parameters()}
        dense = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                name = names.get(p, "?")
                if name not in self.treated:
                    raise ValueError(
                        f"{name}: has a gradient, but was frozen or in no group when the optimiser "
                        "was made; expected a new optimiser"
                    )
                if p.grad.is_sparse:
                    raise TypeError(f"{name}: expected a dense gradient, got a sparse one")
                dense[name] = p.grad
        for name, fine in zip(dense, finite(dense.values()), strict=True):
            if not fine:
                grad = dense[name]
                where = tuple(torch.nonzero(~torch.isfinite(grad))[0].tolist())
                raise NonFiniteError(
                    f"gradient of {name!r}: expected finite numbers, got {float(grad[where])} at "
                    f"index {where}"
                )

    def _slopes(self: KFAC, decay: bool) -> Directions:
        """Gradients, with the weight decay that belongs to them."""
        result: Directions = {}
        for group in self.param_groups:
            added = 0.0 if group["decoupled"] or not decay else group["weight_decay"]
            for p in group["params"]:
                if p.grad is not None:
                    g = p.grad.detach()
                    result[p] = g.add(p.detach(), alpha=added) if added else g
        return result

    def _directions(self: KFAC, decay: bool) -> Directions:
        result: Directions = {}
        slopes = self._slopes(decay)
        ready, parts = [], []
        for site in self.curvature.sites:
            if site.weight not in slopes:
                continue
            state = self.curvature.states.get(site)
            if state is None and not bool(site.weight.grad.any()):
                continue  # no samples yet
            if state is None:
                raise ValueError(
                    f"layer {site.name!r}: its weight has a gradient, but its factors are missing: "
                    "the module was not called, or not by the model that this optimiser was made "
                    f"for; expected a forward pass, or exclude=[{site.name!r}]"
                )
            if self._ready(state):
                ready.append((site, state))
            else:
                parts += [(p, slopes[p]) for p in (site.weight, site.bias) if p in slopes]
        parts += self._solved(ready, slopes)
        result.update({p: d for p, d in parts if p in slopes})
        for p, slope in slopes.items():
            if p not in result:
                result[p] = self._other(p, slope)
        for p, fine in zip(result, finite(result.values()), strict=True):
            if not fine:
                raise NonFiniteError(
                    "update: expected finite numbers, got NaN or infinity for a parameter of "
                    f"shape {tuple(p.shape)}; expected a larger damping"
                )
        return result

    def _other(self: KFAC, p: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Direction of a parameter without factors."""
        assert p.grad is not None
        if self.others == "gradient":
            return slope
        second = self.curvature.seconds.setdefault(p, Mean())
        if self._due() or not second.arrays:
            # In the terms of the factors: N times the square of the mean gradient.
            square = p.grad.detach().double().square()
            square *= self.curvature.samples if self.curvature.mean else 1
            second.add([in_words(square)], self.curvature.decay)
        curved = tensor_of(second.arrays[0]) + self.damping
        return (slope.double() / curved).to(p.dtype)

    def _clip(self: KFAC, found: Directions, slopes: Directions) -> float:
        if self.kl_clip is None:
            return 1.0
        rates = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        own = [p for p in rates if p in found]
        total = 0.0
        for p, slope in zip(own, dots([(found[p], slopes[p]) for p in own]), strict=True):
            total += rates[p] ** 2 * slope
        return min(1.0, math.sqrt(self.kl_clip / total)) if total > 0 else 1.0

    def _move(
        self: KFAC, p: torch.Tensor, d: torch.Tensor, clip: float, group: dict[str, Any]
    ) -> None:
        if group["momentum"]:
            state = self.state[p]
            if state.get("momentum") is not None and state["momentum"].dtype != p.dtype:
                state["momentum"] = state["momentum"].to(p.dtype)  # the model was converted
            if "momentum" not in state:
                state["momentum"] = (d * clip).to(p.dtype)
            elif clip == 1 and d.dtype == p.dtype:  # one pass over memory in place of two
                torch.add(d, state["momentum"], alpha=group["momentum"], out=state["momentum"])
            else:
                state["momentum"].mul_(group["momentum"]).add_(d, alpha=clip)
            d, clip = state["momentum"], 1.0
        if group["decoupled"] and group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(d.to(p.dtype), alpha=group["lr"] * clip)

    def _judge(
        self: KFAC,
        closure: Callable[[], Any],
        loss: float,
        kept: Directions,
        slopes: Directions,
    ) -> None:
        """Compare the loss after the step with the quadratic model of it."""
        self.curvature.collector.active = False
        with torch.enable_grad():
            now = _value(closure())
        moves = {p: p.detach() - kept[p] for p in kept}
        model = sum(float((moves[p].double() * slopes[p].double()).sum()) for p in slopes)
        model += 0.5 * self.damping * sum(float(d.double().square().sum()) for d in moves.values())
        for site, state in self.curvature.states.items():
            if site.weight in moves:
                bias = None
                if site.bias is not None:
                    bias = moves.get(site.bias, torch.zeros_like(site.bias))
                model += 0.5 * quadratic(state, site.matrices(moves[site.weight], bias))
        self.rule.judge(now - loss, model)

    def _overflowed(self) -> bool:
        """Whether a scaler found infinities."""
        found: Any = getattr(self, "found_inf", None)
        return found is not None and bool(found > 0)

    def _scale(self: KFAC) -> float | None:
        """Scale of the gradients that the factors were made of, and unscale the gradients."""
        if getattr(self, "found_inf", None) is None:
            return None  # no scaler's step
        scale = getattr(self, "grad_scale", None)
        if scale is None:
            if self.grad_scaler is None and self.curvature.collector.kind == "empirical":
                raise ValueError(
                    "grad_scaler: expected the scaler, got None: gradients are unscaled already, "
                    "and the factors of kind='empirical' need the scale; pass grad_scaler="
                )
            return None
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.div_(scale.to(p.grad.dtype))
        return float(scale)

    def _skip(self: KFAC) -> None:
        self.skipped += 1
        self.curvature.drop(self._due())

    def _advance(self: KFAC) -> None:
        self.steps += 1
        self.curvature.drop(self._due())


def _value(loss: Any) -> float:
    """Read the number of a loss that a closure returned."""
    return float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss)
