# SPDX-License-Identifier: Apache-2.0
"""Who else computes the kernel: hand-written torch, the recipe of torch.func, the libraries.

Each rival is a function (model, x, outputs) -> kernel, (N, C, N, C) or (N, N), or raises
`NotImplementedError` with what it lacks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

Rival = Callable[[nn.Module, torch.Tensor, str], torch.Tensor]
BUDGET = 2 << 30  # bytes of Jacobian that a rival may hold


class Tape:
    """Inputs and outputs of every layer with parameters, taken by hooks in one forward pass."""

    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm)

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.layers: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

        def keep(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.layers.append((module, args[0].detach(), output))

        parts = [m for m in model.modules() if isinstance(m, self.kinds)]
        handles = [m.register_forward_hook(keep) for m in parts]
        try:
            self.y = model(x)
        finally:
            for handle in handles:
                handle.remove()

    def cotangents(self) -> list[torch.Tensor]:
        """Gradients (n, c, ...) of every output by every layer's output; no weight gradients."""
        n, c = self.y.shape
        seeds = torch.eye(c, dtype=self.y.dtype)[:, None].expand(c, n, c)
        outputs = [z for _, _, z in self.layers]
        found = torch.autograd.grad(self.y, outputs, seeds, is_grads_batched=True)
        return [g.transpose(0, 1) for g in found]


def hand_hadamard(model: nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """Layers without positions: (A A^T + 1) times (G G^T), by tiles of the upper triangle."""
    tape = Tape(model, x)
    if any(a.dim() > 2 for _, a, _ in tape.layers):
        raise NotImplementedError("for layers without positions")
    cotangents = [g.contiguous() for g in tape.cotangents()]
    factors = [(a, g) for (_, a, _), g in zip(tape.layers, cotangents, strict=True)]
    n, c = tape.y.shape
    if outputs == "trace":
        kernel = x.new_zeros(n, n)
        for a, g in factors:
            g = g.flatten(1)
            kernel.addcmul_((a @ a.T).add_(1), g @ g.T)
        return kernel
    kernel = x.new_empty(n, c, n, c)
    size = 64
    for i in range(0, n, size):
        rows = slice(i, i + size)
        for j in range(i, n, size):
            columns, tile = slice(j, j + size), None
            for a, g in factors:
                left, right = g[rows], g[columns]
                products = left.flatten(0, 1) @ right.flatten(0, 1).T
                products = products.view(*left.shape[:2], *right.shape[:2])
                scale = (a[rows] @ a[columns].T).add_(1)[:, None, :, None]
                tile = products.mul_(scale) if tile is None else tile.addcmul_(products, scale)
            kernel[rows, :, columns] = tile
            if j > i:
                kernel[columns, :, rows] = tile.permute(2, 3, 0, 1)
    return kernel


def hand_formed(model: nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """Per-sample gradients layer by layer, then the upper triangle of J J^T by blocks of rows."""
    tape = Tape(model, x)
    n, c = tape.y.shape
    trace = outputs == "trace"
    rows = n if trace else n * c
    kernel = x.new_zeros(rows, rows)
    size = max(256, -(-rows // 8))
    for (module, a, _), g in zip(tape.layers, tape.cotangents(), strict=True):
        for j in _per_sample(module, a, g):
            j = j.reshape(rows, -1)
            if trace:  # few rows, long sums: a batch of products along the parameters
                length = 4096
                whole = j.shape[1] // length * length
                parts = j[:, :whole].reshape(rows, -1, length).transpose(0, 1)
                kernel.add_((parts @ parts.mT).sum(0)).addmm_(j[:, whole:], j[:, whole:].T)
                continue
            for start in range(0, rows, size):
                block = kernel[start : start + size, start:]
                block.addmm_(j[start : start + size], j[start:].T)
    if trace:
        return kernel
    kernel.triu_().add_(kernel.triu(1).T)
    return kernel.view(n, c, n, c)


def _per_sample(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> Iterator[torch.Tensor]:
    """Jacobians (n, c, p) of the parameters of one layer."""
    n, c = g.shape[:2]
    if isinstance(module, nn.Conv2d):
        options = {"padding": module.padding, "stride": module.stride, "dilation": module.dilation}
        a = nn.functional.unfold(a, module.kernel_size, **options)  # (n, i, s)
        yield torch.bmm(g.flatten(3).flatten(1, 2), a.transpose(1, 2)).view(n, c, -1)
        yield g.flatten(3).sum(-1)
    elif isinstance(module, nn.LayerNorm):
        normal = nn.functional.layer_norm(a, module.normalized_shape, eps=module.eps)
        yield (g * normal[:, None]).flatten(2, -2).sum(2)
        yield g.flatten(2, -2).sum(2)
    elif a.dim() == 2:
        yield (g[..., None] * a[:, None, None]).flatten(2)
        yield g
    else:
        yield torch.bmm(g.transpose(2, 3).reshape(n, -1, a.shape[1]), a).view(n, c, -1)
        yield g.sum(2)


def torch_func(model: nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """Follow the tutorial, ``vmap(jacrev)``, by pairs of blocks whose Jacobians fit."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(params: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return functional_call(model, params, (sample[None],))[0]

    def jacobian(samples: torch.Tensor) -> list[torch.Tensor]:
        return [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(params, samples).values()]

    with torch.no_grad():
        n, c = len(x), model(x[:1]).shape[1]
    bytes_each = 4 * c * sum(p.numel() for p in params.values())
    size = max(1, min(n, BUDGET // (2 * bytes_each)))
    formula = "Naf,Maf->NM" if outputs == "trace" else "Naf,Mbf->NaMb"
    kernel = x.new_empty((n, n) if outputs == "trace" else (n, c, n, c))
    blocks = [slice(i, i + size) for i in range(0, n, size)]
    for k, rows in enumerate(blocks):
        left = jacobian(x[rows])
        for columns in blocks[k:]:
            right = left if columns == rows else jacobian(x[columns])
            tile = sum(torch.einsum(formula, p, q) for p, q in zip(left, right, strict=True))
            if outputs == "trace":
                kernel[rows, columns], kernel[columns, rows] = tile, tile.T
            else:
                kernel[rows, :, columns] = tile
                kernel[columns, :, rows] = tile.permute(2, 3, 0, 1)
    return kernel


def nngeometry(model: nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """`GramMatrix`: it has the full kernel only."""
    gram = importlib.import_module("nngeometry.gram").GramMatrix
    data = torch.utils.data.TensorDataset(x, torch.zeros(len(x)))
    loader = torch.utils.data.DataLoader(data, batch_size=min(len(x), 64))
    full = gram(model, loader, function=lambda *d: model(d[0])).to_torch().detach()
    full = full.permute(1, 0, 3, 2)  # theirs has outputs before samples
    return full.contiguous() if outputs == "full" else torch.einsum("ncmc->nm", full)


def asdl(model: nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """Full from formed Jacobians; the trace from its kernels of each class."""
    kernels = importlib.import_module("asdl.kernel")
    if outputs == "full":
        return kernels.empirical_direct_ntk(model, x).detach().permute(0, 2, 1, 3).contiguous()
    # Its Hadamard kernels are faster, and wrong for convolutions.
    plain = not any(isinstance(m, nn.Conv2d) for m in model.modules())
    way = "hadamard" if plain else "direct"
    return getattr(kernels, f"empirical_class_wise_{way}_ntk")(model, x).detach().sum(-1)


def backpack(model: nn.Module, x: torch.Tensor, outputs: str) -> torch.Tensor:
    """`BatchGrad`, one class at a time, then J J^T parameter by parameter."""
    package = importlib.import_module("backpack")
    extensions = importlib.import_module("backpack.extensions")
    if not isinstance(model, nn.Sequential):
        raise NotImplementedError("for sequences of modules")
    model = package.extend(model)
    y = package.extend(nn.Identity())(model(x))
    n, c = y.shape
    parts: list[list[torch.Tensor]] = []
    for k in range(c):
        with package.backpack(extensions.BatchGrad(), retain_graph=k < c - 1):
            y[:, k].sum().backward(retain_graph=k < c - 1)
        parts.append([p.grad_batch.flatten(1) for p in model.parameters()])
        for p in model.parameters():
            del p.grad, p.grad_batch  # they would stay for as long as the model
    rows = n if outputs == "trace" else n * c
    kernel = x.new_zeros(rows, rows)
    for columns in zip(*parts, strict=True):
        j = torch.stack(columns, 1).reshape(rows, -1)
        kernel.addmm_(j, j.T)
    return kernel if outputs == "trace" else kernel.view(n, c, n, c)


RIVALS: dict[str, Rival] = {
    "hand-written torch, Hadamard": hand_hadamard,
    "hand-written torch, formed": hand_formed,
    "torch.func": torch_func,
    "nngeometry": nngeometry,
    "ASDL": asdl,
    "BackPACK": backpack,
}
MODULES = {"nngeometry": "nngeometry", "ASDL": "asdl", "BackPACK": "backpack"}


def present() -> tuple[dict[str, Rival], dict[str, Any]]:
    """Rivals that can be imported, and why the others cannot."""
    found, missing = dict(RIVALS), {}
    for name, module in MODULES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # an old library may fail in any way
            del found[name]
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing
