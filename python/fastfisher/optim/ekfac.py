# SPDX-License-Identifier: Apache-2.0
"""EKFAC: K-FAC's eigenvectors with the second moments of the gradients in them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fastfisher import psd
from fastfisher._jacobian import Jacobian
from fastfisher.optim._blocks import Fault, State, tensor
from fastfisher.optim._sites import Site
from fastfisher.optim._tensors import Host, in_words, tensor_of
from fastfisher.optim.kfac import KFAC
from fastfisher.structures._weights import weights
from fastfisher.structures.ekfac import _moments

__all__ = ["EKFAC"]


class EKFAC(KFAC):
    """K-FAC with the diagonal of the Fisher matrix in its eigenbasis (George et al. 2018).

    Parameters
    ----------
    model, params, **options
        As in `KFAC`; `inverse_every` is the number of steps between eigenbases. There is no
        `split`: rho is added to the second moments.

    Notes
    -----
    ``V <- Q_G ((Q_G^T V Q_A) / (S + rho)) Q_A^T`` with the eigenvectors Q of the factors and the
    running mean S of the squared gradients of samples in that basis. A new basis takes the diagonal
    that the old matrix has in it. Inputs and gradients of all passes between two steps stay in
    memory. On top of `KFAC` o i (o + i) multiply-adds more for a gradient, and for a sample's
    squares; eigenvectors cost some ten times an inverse.

    Examples
    --------
    >>> import torch
    >>> import fastfisher as ff
    >>> torch.manual_seed(0) and None
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = ff.optim.EKFAC(model, lr=1.0, momentum=0.0)
    >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
    >>> torch.nn.functional.cross_entropy(model(x), y).backward()
    >>> optimizer.step()
    """

    _needs_records: ClassVar[bool] = True

    def __init__(self, model: torch.nn.Module, params: Any = None, **options: Any) -> None:
        if "split" in options:
            raise TypeError("split: no option of EKFAC")
        super().__init__(model, params, **options)
        self._layers: Any = None

    def _take(self, estimate: Any, gain: float) -> None:
        super()._take(estimate, gain)
        _, layers, samples = estimate
        self._layers = layers, self.curvature.scale(samples) * gain

    def _refresh(self) -> None:
        states = self.curvature.states
        if self.steps % self.inverse_every:
            states = {site: one for site, one in states.items() if not self._ready(one)}
        if states:
            self._reported(_new_bases(states, self.steps))
        layers, scale = self._layers
        self._layers = None
        for site, own in layers.items():
            state = self.curvature.states.get(site)
            if own and state is not None and state.bases:
                state.moments.add(_squares(own, state, scale), self.curvature.decay)

    def _ready(self, state: State) -> bool:
        return bool(state.bases and state.moments.arrays)

    def _solved(
        self, ready: list[tuple[Site, State]], slopes: dict[torch.Tensor, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [part for site, state in ready for part in self._of_site(site, state, slopes)]

    def _of_site(
        self, site: Site, state: State, slopes: dict[torch.Tensor, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        result, v = [], site.gradients(slopes)
        for one, (q_a, q_g), s in zip(v, state.bases, state.moments.arrays, strict=True):
            inside = q_g.T @ one.to(q_g.dtype)
            inside = inside if q_a is None else inside @ q_a
            inside = (inside.double() / (tensor_of(s) + self.damping)).to(q_g.dtype)
            inside = q_g @ inside
            result.append((inside if q_a is None else inside @ q_a.T).to(one.dtype))
        return site.parts(result)


def _squares(layers: list[Any], state: State, scale: float) -> list[Host]:
    """Sum up squared gradients in the basis of each group, (o, i), float64."""
    totals: list[Host] = []
    for layer in layers:
        for k, weight in enumerate(weights(Jacobian((layer,)))):
            q_a, q_g = (None if q is None else in_words(q) for q in state.bases[k])
            assert q_g is not None
            block: Any = weight  # only its place is asked for
            found = scale * _moments(weight, block, q_a, q_g)
            if k < len(totals):
                totals[k] = totals[k] + found
            else:
                totals.append(found)
    return totals


def _new_bases(states: dict[Site, State], step: int) -> list[Fault]:
    """Eigenvectors of all factors in one call; the moments move to the new basis."""
    matrices: list[Host] = []
    for state in states.values():
        for a, g in zip(state.a.arrays, state.g.arrays, strict=True):
            matrices += [a, g] if a.ndim == 2 else [g]
    results: Any = psd.eigh(matrices) if matrices else []
    found = iter(results)
    faults = []
    for site, state in states.items():
        bases: list[tuple[torch.Tensor | None, torch.Tensor]] = []
        wrong = []
        for a in state.a.arrays:
            left: torch.Tensor | None = None
            if a.ndim == 2:
                one = next(found)
                left = tensor(one.vectors)
                wrong += [("A", one.reason)] if one.status == "failed" else []
            other = next(found)
            wrong += [("G", other.reason)] if other.status == "failed" else []
            bases.append((left, tensor(other.vectors)))
        if wrong:
            fallback = "last inverse" if state.bases else "gradient"
            faults += [Fault(step, site.name, which, why, fallback) for which, why in wrong]
            continue
        if state.moments.arrays:
            state.moments.arrays = [
                _moved(s, old, new)
                for s, old, new in zip(state.moments.arrays, state.bases, bases, strict=True)
            ]
        state.bases = bases
    return faults


def _moved(
    s: Host,
    old: tuple[torch.Tensor | None, torch.Tensor],
    new: tuple[torch.Tensor | None, torch.Tensor],
) -> Host:
    """Diagonal in the new basis of the matrix with the diagonal `s` in the old one."""
    moved = (new[1].T.double() @ old[1].double()).square() @ tensor_of(s)
    if old[0] is not None and new[0] is not None:
        moved = moved @ (old[0].T.double() @ new[0].double()).square()
    return in_words(moved)
