# SPDX-License-Identifier: Apache-2.0
"""Running means of Kronecker factors, their inverses, and gradients multiplied by these."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fastfisher import psd
from fastfisher._arrays import empty
from fastfisher._device_array import as_array, contiguous
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher.optim._factors import Pass
from fastfisher.optim._layers import layers_of
from fastfisher.optim._sites import Site
from fastfisher.optim._tensors import Host, in_words, tensor_of
from fastfisher.structures import make
from fastfisher.structures._factor import factors, form, has_factors
from fastfisher.structures._kronecker import Block, split_dampings
from fastfisher.structures._sandwich import SandwichItem, sandwich
from fastfisher.structures.kfac import Kfac


@dataclass(frozen=True, slots=True)
class Fault:
    """A factor that could not be inverted.

    Attributes
    ----------
    step : int
    layer : str
    factor : "A" | "G"
        Of the activations or of the gradients.
    reason : str
    fallback : "last inverse" | "gradient"
        What the layer goes on with: its last good inverse, or its plain gradient.
    """

    step: int
    layer: str
    factor: str
    reason: str
    fallback: str


@dataclass(eq=False)
class Mean:
    """Exponential running mean of arrays, corrected for its start at zero."""

    arrays: list[Host] = field(default_factory=list)
    weight: float = 0.0

    def add(self, arrays: list[Host], decay: float) -> None:
        """Take new arrays in; the first ones are kept as they are, and changed later."""
        self.weight = decay * self.weight + (1 - decay)
        if not self.arrays:
            self.arrays = arrays
            return
        # With the weights corrected it is the mean itself that moves, in one pass over memory.
        for mean, x in zip(self.arrays, arrays, strict=True):
            tensor_of(mean).lerp_(tensor_of(x), (1 - decay) / self.weight)


@dataclass(eq=False)
class State:
    """What is known of one site: per group its factors and inverses, or its eigenbasis.

    Attributes
    ----------
    a, g : Mean
    inverses : list of pairs
        (A + rho)^-1, (G + rho)^-1 of each group; that of a diagonal A is a vector. Or what the
        native library multiplies by them with, see `form`.
    form : str
        Of Cholesky factors in place of inverses, which processors of that form read; else empty.
    bases : list of pairs
        Eigenvectors (or None) of A and G.
    moments : Mean
        Squared gradients in the eigenbasis.
    """

    a: Mean = field(default_factory=Mean)
    g: Mean = field(default_factory=Mean)
    inverses: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    form: str = ""
    bases: list[tuple[torch.Tensor | None, torch.Tensor]] = field(default_factory=list)
    moments: Mean = field(default_factory=Mean)

    def convert(self, kind: type[np.floating[Any]]) -> None:
        """Go on in another dtype, with new inverses."""
        for mean in (self.a, self.g):
            mean.arrays = [as_array(x, kind) for x in mean.arrays]
        self.inverses, self.form = [], ""
        like = torch.float64 if kind is np.float64 else torch.float32
        self.bases = [(None if a is None else a.to(like), g.to(like)) for a, g in self.bases]

    @property
    def ready(self) -> bool:
        """Whether there are inverses, in a form that is read here."""
        return bool(self.inverses) and self.form in ("", form())


def estimate(
    sites: list[Site], passes: list[Pass], sharing: str, scale: float, *, joined: bool
) -> tuple[dict[Site, list[Block]], dict[Site, list[Layer]]]:
    """Factors of each site that was used, G as `scale` times a sum, and the layers they are of.

    Raises
    ------
    NonFiniteError
        Inputs or gradients hold NaN or infinity.
    """
    layers: dict[Site, list[Layer]] = {site: [] for site in sites}
    for one in passes:
        for site in sites:
            mine = [record for record in one.records if record.site is site]
            layers[site] += layers_of(mine, joined=joined)
    found: dict[Site, list[Block]] = {}
    # One structure for all layers that have the same number of rows.
    turns = max((len(x) for x in layers.values()), default=0)
    for turn in range(turns):
        alike: dict[tuple[int, int, Any], list[tuple[Site, Layer]]] = {}
        for site, own in layers.items():
            if turn < len(own):
                key = (own[turn].samples, own[turn].n_outputs, own[turn].g.dtype)
                alike.setdefault(key, []).append((site, own[turn]))
        for pairs in alike.values():
            jacobian = Jacobian(tuple(layer for _, layer in pairs))
            structure = make("kfac", jacobian, scale, weight_sharing=sharing)
            assert isinstance(structure, Kfac)
            blocks = iter(structure.blocks)
            for site, _ in pairs:
                own_blocks = [next(blocks) for _ in range(site.groups)]
                found[site] = _merged(found.get(site), own_blocks, structure)
    return found, layers


def _merged(first: list[Block] | None, second: list[Block], like: Kfac) -> list[Block]:
    """Factors of both; of A the mean over all vectors."""
    if first is None:
        return second
    left = Kfac(first, like.size, like.dtype, like.weight_sharing)
    places = [replace(b, place=a.place) for a, b in zip(first, second, strict=True)]
    right = Kfac(places, like.size, like.dtype, like.weight_sharing)
    return list(left.with_samples_of(right).blocks)


def combined(
    one: dict[Site, list[Block]], two: dict[Site, list[Block]], sharing: str
) -> dict[Site, list[Block]]:
    """Add up two sets of passes."""
    result = dict(one)
    for site, blocks in two.items():
        like = Kfac([], 0, np.dtype(blocks[0].g.dtype), sharing)
        result[site] = _merged(result.get(site), blocks, like)
    return result


def invert(
    states: dict[Site, State], damping: float, split: str, step: int, *, factored: bool = False
) -> list[Fault]:
    """Inverses of all factors in one call; a factor that fails leaves its site as it is.

    With `factored` Cholesky factors in their place wherever these exist: a third of the time, but
    a product with them takes a tenth longer.
    """
    groups: dict[Site, list[Group]] = {}
    means = {
        site: list(zip(one.a.arrays, one.g.arrays, strict=True)) for site, one in states.items()
    }
    every = [pair for pairs in means.values() for pair in pairs]
    dampings = iter(split_dampings(every, damping, split))
    for site, pairs in means.items():
        groups[site] = [(a, g, next(dampings)) for a, g in pairs]
    if factored:
        done = _factor(states, groups)
        groups = {site: own for site, own in groups.items() if site not in done}
    return _invert(states, groups, step)


Group = tuple[Host, Host, tuple[float, float]]
"""Means of A and G, and the dampings of both."""


def _factor(states: dict[Site, State], groups: dict[Site, list[Group]]) -> set[Site]:
    """Cholesky factors for all sites that can have them; which these are."""
    fit = {
        site: own
        for site, own in groups.items()
        if all(a.ndim == 2 and has_factors(g) for a, g, _ in own)
    }
    parts = [part for own in fit.values() for part in own]
    found = iter(
        factors(
            [m for a, g, _ in parts for m in (a, g)], [on for _, _, both in parts for on in both]
        )
    )
    done = set()
    for site, own in fit.items():
        pairs = [(next(found), next(found)) for _ in own]
        sound = [(_shared(a), _shared(g)) for a, g in pairs if a is not None and g is not None]
        if len(sound) == len(own):
            states[site].inverses, states[site].form = sound, form()
            done.add(site)
    return done


def _invert(states: dict[Site, State], groups: dict[Site, list[Group]], step: int) -> list[Fault]:
    matrices: list[Host] = []
    added: list[float] = []
    for own in groups.values():
        for a, g, pair in own:
            if a.ndim == 2:
                matrices.append(a)
                added.append(pair[0])
            matrices.append(g)
            added.append(pair[1])
    results = iter(_inverses(matrices, added))
    faults = []
    for site, own in groups.items():
        state, inverses, wrong = states[site], [], []
        for a, _, (on_a, _) in own:
            if a.ndim == 2:
                one = next(results)
                left, why = one.value, one.reason if one.status != "ok" else ""
            else:
                left, why = _inverse_diagonal(a, on_a)
            other = next(results)
            wrong += [("A", why)] if why else []
            wrong += [("G", other.reason)] if other.status != "ok" else []
            inverses.append((tensor(left) if a.ndim == 1 else _shared(left), _shared(other.value)))
        if wrong:
            fallback = "last inverse" if state.ready else "gradient"
            faults += [Fault(step, site.name, which, why, fallback) for which, why in wrong]
        else:
            state.inverses, state.form = inverses, ""
    return faults


def _inverses(matrices: list[Host], dampings: list[float]) -> list[Any]:
    """Results of `psd.inverse`, those of one dtype by one call."""
    found: list[Any] = [None] * len(matrices)
    for kind in {m.dtype for m in matrices}:
        alike = [k for k, m in enumerate(matrices) if m.dtype == kind]
        done: Any = psd.inverse([matrices[k] for k in alike], damping=[dampings[k] for k in alike])
        for k, one in zip(alike, done, strict=True):
            found[k] = one
    return found


def _shared(x: Host) -> torch.Tensor:
    return tensor_of(contiguous(x))


def _inverse_diagonal(a: Host, damping: float) -> tuple[Host, str]:
    damped = a + a.dtype.type(damping)
    if (damped > 0).all() and np.isfinite(damped).all():
        return 1 / damped, ""
    return damped, f"not positive definite with damping {damping:.3g}: a row is never used"


def times_inverses(
    ready: list[tuple[Site, State]], slopes: dict[torch.Tensor, torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``(G + rho)^-1 V (A + rho)^-1`` of all sites, in one call: pairs (parameter, its part)."""
    items: list[SandwichItem] = []
    result = []
    for site, state in ready:
        weight, bias = slopes[site.weight], site.of_bias(slopes)
        kind = state.inverses[0][1].dtype
        if site.kind == "embedding":  # A is diagonal
            ((a, g),) = state.inverses
            result.append((site.weight, (weight.to(kind) @ g) * a[:, None]))
            continue
        v = weight.reshape(len(weight), -1).to(kind)
        b = v.new_empty(0) if bias is None else bias.to(kind)
        out, out_b = tensor_of(empty(tuple(v.shape), in_words(v))), torch.empty_like(b)
        groups = site.groups
        rows = [[x] * groups if x.numel() == 0 else x.chunk(groups) for x in (v, b, out, out_b)]
        for (a, g), *parts in zip(state.inverses, *rows, strict=True):
            w, of_b, to, to_b = map(in_words, parts)
            items.append(SandwichItem(in_words(g), w, of_b, in_words(a), to, to_b))
        result.append((site.weight, out.view_as(weight)))
        if site.bias is not None:
            result.append((site.bias, out_b))
    sandwich(items)
    return [(p, d.to(slopes.get(p, p).dtype)) for p, d in result]


def quadratic(state: State, matrices: list[torch.Tensor]) -> float:
    """``vec(V)^T (G (x) A) vec(V)``, summed over groups."""
    total = 0.0
    for v, a, g in zip(matrices, state.a.arrays, state.g.arrays, strict=True):
        wide = v.double()
        left, right = tensor_of(g).double(), tensor_of(a).double()
        bent = wide @ right if a.ndim == 2 else wide * right
        total += float((wide * (left @ bent)).sum())
    return total


def saved(state: State) -> dict[str, Any]:
    """State as tensors."""
    return {
        "a": saved_mean(state.a),
        "g": saved_mean(state.g),
        "moments": saved_mean(state.moments),
        "inverses": [[x.clone() for x in pair] for pair in state.inverses],
        "form": state.form,
        "bases": [[None if x is None else x.clone() for x in pair] for pair in state.bases],
    }


def sizes_of(given: dict[str, Any]) -> tuple[int, int] | None:
    """Rows of A and G in what `saved` made; None without factors."""
    sides = given["a"]["arrays"], given["g"]["arrays"]
    return (len(sides[0][0]), len(sides[1][0])) if all(sides) else None


def restored(given: dict[str, Any], device: torch.device) -> State:
    """State of what `saved` made, on a device; without factors of another form."""
    form_of = given.get("form", "")
    known = form_of in ("", form() if device.type == "cpu" else "")
    return State(
        restored_mean(given["a"], device),
        restored_mean(given["g"], device),
        [(_copied(a, device), _copied(g, device)) for a, g in given["inverses"]] if known else [],
        form_of if known else "",
        [
            (None if a is None else _copied(a, device), _copied(g, device))
            for a, g in given["bases"]
        ],
        restored_mean(given["moments"], device),
    )


def tensor(x: Host) -> torch.Tensor:
    """Copy of an array in memory of torch: products round alike only if it is aligned alike."""
    return tensor_of(contiguous(x)).clone()


def saved_mean(mean: Mean) -> dict[str, Any]:
    """Give a mean as tensors."""
    return {"arrays": [tensor(x) for x in mean.arrays], "weight": mean.weight}


def restored_mean(given: dict[str, Any], device: torch.device) -> Mean:
    """Mean of what `saved_mean` made, on a device."""
    return Mean([in_words(_copied(x, device)) for x in given["arrays"]], float(given["weight"]))


def _copied(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    return x.to(device, copy=True)
