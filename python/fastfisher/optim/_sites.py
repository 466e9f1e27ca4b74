# SPDX-License-Identifier: Apache-2.0
"""Weights of a model that Kronecker factors are made for, and why the others have none."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(eq=False)
class Site:
    """One weight, with its bias if that is trained too, and the modules that use it.

    Attributes
    ----------
    name : of its first module
    kind : "linear" | "conv" | "embedding"
    weight, bias : Parameter, Parameter or None
    names : of the parameters
    modules : list of Module
        More than one where they share the weight.
    """

    name: str
    kind: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    names: tuple[str, ...]
    modules: list[nn.Module]

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(getattr(self.modules[0], "groups", 1))

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows of A, a bias counts, and of G, of one group."""
        weight = self.weight.shape
        if self.kind == "embedding":
            return weight[0], weight[1]
        return math.prod(weight[1:]) + (self.bias is not None), weight[0] // self.groups

    def gradients(self, given: dict[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        """Matrices (o, i), one a group, with the bias as last input."""
        return self.matrices(given[self.weight], self.of_bias(given))

    def of_bias(self, given: dict[torch.Tensor, torch.Tensor]) -> torch.Tensor | None:
        """Gradient of the bias, zero where it has none; None without a bias."""
        if self.bias is None:
            return None
        found = given.get(self.bias)
        return torch.zeros_like(self.bias) if found is None else found

    def matrices(self, weight: torch.Tensor, bias: torch.Tensor | None) -> list[torch.Tensor]:
        """Matrices (o, i) of something like the parameters."""
        if self.kind == "embedding":
            return [weight.T]
        flat = weight.reshape(len(weight), -1)
        if bias is not None:
            flat = torch.cat([flat, bias[:, None]], 1)
        return list(flat.chunk(self.groups))

    def parts(self, matrices: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs (parameter, its part) of matrices as above."""
        if self.kind == "embedding":
            return [(self.weight, matrices[0].T)]
        flat = torch.cat(matrices)
        if self.bias is None:
            return [(self.weight, flat.reshape(self.weight.shape))]
        return [
            (self.weight, flat[:, :-1].reshape(self.weight.shape)),
            (self.bias, flat[:, -1].reshape(self.bias.shape)),
        ]


def find_sites(
    model: nn.Module, trained: dict[str, torch.Tensor], exclude: Collection[str], max_dim: int
) -> tuple[list[Site], dict[str, str]]:
    """Sites of the parameters that are `trained`, and of each other one why it is none."""
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    known = {p: name for name, p in trained.items()}
    modules = dict(model.named_modules(remove_duplicate=True))
    unknown = [name for name in exclude if name not in modules and name not in trained]
    if unknown:
        raise ValueError(
            f"exclude: {unknown[0]!r} is neither a module nor a parameter that is trained; "
            f"expected some of {[name for name in modules if name]}"
        )
    users: dict[torch.Tensor, list[tuple[str, nn.Module]]] = {}
    for name, module in modules.items():
        for p in module._parameters.values():
            if p is not None and p in known:
                users.setdefault(p, []).append((name, module))
    sites, why = [], {}
    for p, uses in users.items():
        name, module = uses[0]
        weight = getattr(module, "weight", None)
        if weight is not p:
            continue  # a bias goes with its weight
        reason = _reason(uses, exclude, known[p], max_dim)
        bias = getattr(module, "bias", None)
        if bias is not None and (bias not in known or known[bias] in exclude):
            bias = None
        if not reason and any(getattr(m, "bias", None) is not module.bias for _, m in uses[1:]):
            reason = "modules that share the weight have other biases"
        if not reason and bias is not None and len(users[bias]) != len(uses):
            reason = "the bias is shared with other weights"
        if reason:
            why[known[p]] = reason
            continue
        names = (known[p],) if bias is None else (known[p], known[bias])
        sites.append(Site(name or "model", _kind(module), p, bias, names, [m for _, m in uses]))
    covered = {name for site in sites for name in site.names}
    for name in trained:
        if name not in covered:
            why.setdefault(name, "no weight of a linear, convolution or embedding layer")
    return sites, why


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    return "embedding" if isinstance(module, nn.Embedding) else "conv"


def _reason(
    uses: list[tuple[str, nn.Module]], exclude: Collection[str], name: str, max_dim: int
) -> str:
    """Why a weight has no factors; empty if it has."""
    known = (nn.Linear, nn.Embedding, *CONVOLUTIONS)
    for owner, module in uses:
        if owner in exclude or name in exclude:
            return "excluded"
        kind = type(module).__name__
        if not isinstance(module, known) or isinstance(module, _TRANSPOSED):
            return f"{kind} has no Kronecker factors"
        if kind == "NonDynamicallyQuantizableLinear":
            return "attention uses it without calling the module"
        if isinstance(module, nn.Embedding) and (module.sparse or module.scale_grad_by_freq):
            return "an embedding with sparse or rescaled gradients"
    if len({_kind(module) for _, module in uses}) > 1:
        return "modules of several kinds share the weight"
    module = uses[0][1]
    weight: torch.Tensor = module.weight
    if isinstance(module, nn.Embedding):
        sides: tuple[int, ...] = (int(weight.shape[1]),)  # the other factor is diagonal
    else:
        groups = int(getattr(module, "groups", 1))
        sides = (len(weight) // groups, math.prod(weight.shape[1:]))
    if max(sides) > max_dim:
        return f"a side of {max(sides)}, more than max_dim = {max_dim}"
    return ""
