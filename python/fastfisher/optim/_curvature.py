# SPDX-License-Identifier: Apache-2.0
"""From the passes since the last step to the running means of all factors."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch

from fastfisher._device_array import as_array
from fastfisher._layer import Layer
from fastfisher.errors import NonFiniteError
from fastfisher.optim._blocks import Mean, State, combined, estimate
from fastfisher.optim._factors import Collector, Pass, check_passes
from fastfisher.optim._sites import Site
from fastfisher.structures.kfac import Block

Host = np.ndarray[Any, Any]
Estimate = tuple[dict[Site, list[Block]], dict[Site, list[Layer]], int]


class Curvature:
    """Running means of factors by site; nothing enters them before it was found to be finite."""

    def __init__(
        self,
        collector: Collector,
        sites: list[Site],
        *,
        decay: float,
        sharing: str,
        mean: bool,
        keep_records: bool,
    ) -> None:
        self.collector, self.sites = collector, sites
        self.decay, self.sharing, self.mean = decay, sharing, mean
        self.joined = keep_records or sharing == "reduce"
        self.states: dict[Site, State] = {}
        self.seconds: dict[torch.Tensor, Mean] = {}
        self.samples = 1
        self._folded: tuple[dict[Site, list[Block]], int] | None = None
        self._error: Exception | None = None
        self.keep_records = keep_records
        self._listen()

    def _listen(self) -> None:
        """Be told by the collector of finished passes."""
        here = weakref.ref(self)

        def fold(passes: list[Pass]) -> None:
            found = here()
            if found is not None:
                found.fold(passes)

        def forget() -> None:
            found = here()
            if found is not None:
                found.forget()

        self.collector.forget = forget
        if not self.keep_records:
            self.collector.fold = fold

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copied state; passes under way are not of it."""
        vars(self).update(state)
        self._folded = self._error = None
        self._listen()

    def fold(self, passes: list[Pass]) -> None:
        """Make sums of finished passes, so that their inputs need not stay in memory."""
        if not passes or self._error is not None:
            return
        for one in passes:
            self.collector.passes.remove(one)
            for record in one.records:
                record.closed = True
        try:
            blocks, _, samples = self._added(passes, 1.0)
            self._folded = blocks, samples
        except (ArithmeticError, ValueError) as error:
            # A message in the middle of a forward pass would puzzle: it comes with the step.
            self._error = error

    def estimated(self, gain: float) -> Estimate:
        """Factors of all passes with a backward pass, and forget these passes.

        `gain` goes with the squares of gradients.

        Raises
        ------
        NonFiniteError
            NaN or infinity somewhere.
        """
        self.collector.refresh()
        passes = [one for one in self.collector.passes if one.live]
        try:
            if self._error is not None:
                raise self._error
            return self._summed(passes, gain)
        finally:
            self.drop(self.collector.active)

    def take(self, estimate_: Estimate) -> None:
        """Add an estimate to the running means."""
        blocks, _, samples = estimate_
        if not blocks:
            return
        factors = {
            site: ([_as(one.a, site) for one in own], [_as(one.g, site) for one in own])
            for site, own in blocks.items()
        }
        named = [
            (site, which, x)
            for site, pair in factors.items()
            for which, arrays in zip(("activation", "gradient"), pair, strict=True)
            for x in arrays
        ]
        # Of all factors at once: a device is waited for once.
        # They are sums of squares: their diagonals show what is not finite.
        diagonals = [x if x.ndim == 1 else np.diagonal(x) for _, _, x in named]
        flags = np.stack([np.isfinite(x).all() for x in diagonals]).tolist()
        for (site, which, _), fine in zip(named, flags, strict=True):
            if not fine:
                raise NonFiniteError(
                    f"layer {site.name!r}: expected finite numbers, got infinity in its "
                    f"{which} factor"
                )
        self.samples = max(1, samples)
        for site, (a, g) in factors.items():
            state = self.states.setdefault(site, State())
            state.a.add(a, self.decay)
            state.g.add(g, self.decay)

    def follow_dtypes(self) -> None:
        """Convert what is known of sites whose weights were, or came from a file in another."""
        for site, state in self.states.items():
            kind = _kind(site)
            if state.a.arrays and state.a.arrays[0].dtype != kind:
                state.convert(kind)

    def scale(self, samples: int) -> float:
        """Factor of the squares of gradients in the Fisher matrix of the loss."""
        if not self.mean:
            return 1.0
        return float(samples) if self.collector.kind == "empirical" else 1 / max(1, samples)

    def drop(self, active: bool) -> None:
        """Forget all passes; say whether the next ones count."""
        self.collector.passes.clear()
        self.collector.versions.clear()
        self.collector.active = active
        self._folded = self._error = None

    def forget(self) -> None:
        """Forget passes whose backward pass of the loss is over: their gradients are gone."""
        self.collector.passes = [one for one in self.collector.passes if not one.live]
        self.collector.versions.clear()
        self._folded = self._error = None

    def _summed(self, passes: list[Pass], gain: float) -> Estimate:
        if self._folded is None:
            return self._added(passes, self.scale(_count(passes)) * gain)
        blocks, layers, samples = self._added(passes, 1.0)
        scale = self.scale(samples) * gain
        with np.errstate(over="ignore"):
            for g in [one.g for own in blocks.values() for one in own]:
                g *= g.dtype.type(scale)  # in place: it is of this estimate alone
        return blocks, layers, samples

    def _added(self, passes: list[Pass], scale: float) -> Estimate:
        """Factors of passes and of those folded before, G as `scale` times a sum."""
        check_passes(passes)
        blocks, layers = estimate(self.sites, passes, self.sharing, scale, joined=self.joined)
        samples = _count(passes)
        if self._folded is not None:
            blocks = combined(self._folded[0], blocks, self.sharing)
            samples += self._folded[1]
        return blocks, layers, samples


def _count(passes: list[Pass]) -> int:
    return sum(one.count for one in passes)


def _as(x: Host, site: Site) -> Host:
    """Factor in the dtype of the running means; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return as_array(x, _kind(site))


def _kind(site: Site) -> type[np.floating[Any]]:
    return np.float64 if site.weight.dtype == torch.float64 else np.float32
