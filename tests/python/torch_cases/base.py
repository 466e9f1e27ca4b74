# SPDX-License-Identifier: Apache-2.0
"""What a case of a torch model is, and the small parts that the tables are written with."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

N, M = 4, 3  # samples of the two sets; many cases have other axes of length 4 on purpose


class Net(nn.Module):
    """Parts by name, and a forward pass given as a function of the module and its input.

    A tensor among the parts becomes a parameter.
    """

    def __init__(self, run: Callable[[Any, torch.Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            bare = isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter)
            setattr(self, name, nn.Parameter(part) if bare else part)
        self._run = run

    def forward(self, x: torch.Tensor) -> Any:
        return self._run(self, x)


def par(*shape: int) -> nn.Parameter:
    """A parameter drawn from the seed of the case."""
    return nn.Parameter(0.5 * torch.randn(shape))


def frozen(module: nn.Module) -> nn.Module:
    """`module` with parameters that must not be counted."""
    return module.requires_grad_(False)


def tokens(vocabulary: int, *shape: int) -> Callable[[int], torch.Tensor]:
    """Integer inputs (n, *shape)."""
    return lambda n: torch.randint(vocabulary, (n, *shape))


@dataclass(frozen=True)
class TorchCase:
    """One model, and what `ff.ntk` must do with it.

    kind
        "works": the kernel equals the oracle's. "refused": an error whose message matches `match`.
        "either": one of the two; never a wrong number.
    make
        Builds the model, in float32 and training mode, from torch's global generator: an
        `nn.Module`, or a pair (function, params) called as ``function(params, x)``.
    x
        Shape of a sample without the batch axis, or a function from n to the inputs (n, ...).
    wrap
        Applied to the finished model (compiled, scripted, ...) and an example batch; the oracle
        sees the model without it.
    around
        Context in which the user calls, for instance autocast.
    rounding
        dtype whose precision the result has, where that is not the model's.
    """

    id: str
    make: Callable[[], Any]
    x: tuple[int, ...] | Callable[[int], torch.Tensor]
    kind: str = "works"
    match: str = ""
    error: tuple[str, ...] = ("CaptureError",)
    select: Callable[[Any], torch.Tensor] | None = None
    evaluate: bool = False
    dtypes: tuple[str, ...] = ("float64", "float32")
    wrap: Callable[[Any, torch.Tensor], Any] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    rounding: str | None = None
    notes: str = ""

    def __str__(self) -> str:
        return self.id

    def samples(self, n: int, *, seed: int = 0, dtype: str = "float64") -> torch.Tensor:
        """Inputs of `n` samples: float32 numbers in `dtype`, or integers as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + seed)
            x = torch.randn(n, *self.x) if isinstance(self.x, tuple) else self.x(n)
        return x.to(getattr(torch, dtype)) if x.is_floating_point() else x

    def build(self, dtype: str = "float64", *, wrapped: bool = True) -> Any:
        """The model; parameters are float32 numbers whatever `dtype` is, so all dtypes agree."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.id.encode()))
            model = self.make()
            if isinstance(model, tuple):
                function, params = model
                return function, {
                    k: v.detach().to(getattr(torch, dtype)) for k, v in params.items()
                }
            _disturb(model)
        if dtype != "float32":
            with warnings.catch_warnings():
                # Complex parameters to a real dtype; the case about them is refused anyway.
                warnings.simplefilter("ignore")
                model.to(getattr(torch, dtype))
        if self.evaluate:
            model.eval()
        if wrapped and self.wrap is not None:
            return self.wrap(model, self.samples(2, seed=9, dtype=dtype))
        return model


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    """Move parameters and statistics off the ones and zeros they start with."""
    for parameter in model.parameters():
        if not isinstance(parameter, nn.UninitializedParameter) and not parameter.is_inference():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
