# SPDX-License-Identifier: Apache-2.0
"""Rules of the backward pass for many cotangents: what each node makes of its gradient.

Gradients have the shape (cotangents, *result). The rules read what a run saved, and are right
for any shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fastfisher.capture import graph as ag
from fastfisher.capture.graph import Edge, Node

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From matrices (e, n, k), rows together, and (e, k, m) to their products in fresh memory.

Where one has fewer than e, a divisor of it, its matrices come again and again.
"""

_aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """Gradient of the part of a tensor that `place` views in the whole."""

    gradient: torch.Tensor
    place: Callable[[torch.Tensor], torch.Tensor]


Gradient: TypeAlias = torch.Tensor | Part | None


class Step:
    """A node on the way to a wanted edge, and which of its own edges lead there."""

    def __init__(
        self, node: Node, edges: tuple[Edge, ...], needed: tuple[bool, ...], product: Product
    ) -> None:
        self.node, self.edges, self.needed, self.product = node, edges, needed, product
        self.name = node.name()
        self.results = tuple((node, k) for k in range(ag.output_count(node)))
        self._known: dict[str, Any] = {}
        self._shapes: dict[Edge, tuple[int, ...]] = {}

    def saved(self, name: str) -> Any:
        """Return what the node saved; dims and offsets are signed again.

        Read once: a checkpoint runs its part of the model for it.
        """
        if name not in self._known:
            value = ag.saved(self.node, name)
            signed = tuple(map(_signed, value)) if isinstance(value, tuple) else _signed(value)
            self._known[name] = signed
        return self._known[name]

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """Shape of a tensor that the node received."""
        return self.shape_of(self.edges[slot])

    def shape_of(self, edge: Edge) -> tuple[int, ...]:
        """Shape of a tensor that the node received or made."""
        shape = self._shapes.get(edge)
        if shape is None:
            shape = self._shapes[edge] = ag.shape(edge)
        return shape

    def axis(self, dim: int, rank: int | None = None) -> int:
        """Axis of a gradient for a dim of a tensor of `rank`, that of the result if not given."""
        rank = len(self.shape_of((self.node, 0))) if rank is None else rank
        return dim % max(rank, 1) + 1


Rule = Callable[[Step, torch.Tensor], Gradient | Iterable[Gradient]]
"""From a step and the gradient of its result to those of what it received, by edge."""


def _signed(value: Any) -> Any:
    """Undo torch's way of telling negative integers."""
    return value - (1 << 64) if isinstance(value, int) and value >= 1 << 63 else value


def _sum_to(g: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Undo a broadcast from `shape`."""
    lead = g.ndim - 1 - len(shape)
    axes = list(range(1, 1 + lead))
    axes += [k for k, size in enumerate(shape, 1 + lead) if size == 1 and g.shape[k] != 1]
    return (g.sum(axes, keepdim=True) if axes else g).reshape(g.shape[0], *shape)


def _scaled(g: torch.Tensor, factor: float) -> torch.Tensor:
    return g if factor == 1 else g * factor


def _stacked(
    g: torch.Tensor, shape: tuple[int, ...], function: Callable[[torch.Tensor, torch.Tensor], Any]
) -> torch.Tensor:
    """Have `function` write each cotangent's result, of `shape`, into one tensor."""
    out = g.new_empty((g.shape[0], *shape))
    for part, target in zip(g.unbind(), out.unbind(), strict=True):
        function(part, target)
    return out


def _each(
    step: Step, g: torch.Tensor, function: Callable[[torch.Tensor], Sequence[torch.Tensor | None]]
) -> list[torch.Tensor | None]:
    """Stack the results of `function` for each cotangent, in the layout that it gives them."""
    outs: list[torch.Tensor | None] = [None] * len(step.edges)
    for k, part in enumerate(g.unbind()):
        for slot, result in enumerate(function(part)):
            if result is None or not step.needed[slot]:
                continue
            out = outs[slot]
            if out is None:
                dense = result.untyped_storage().nbytes() == result.nbytes
                like = result if dense else result.contiguous()
                strides = (result.numel(), *like.stride())
                out = outs[slot] = like.new_empty_strided((g.shape[0], *like.shape), strides)
            out[k] = result
    return outs


def plain_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Products of matrices by torch."""
    count = max(len(a), len(b)) if len(a) and len(b) else 0
    repeats = ((count // max(1, len(x)), 1, 1) for x in (a, b))
    return torch.bmm(*(x.repeat(counts) for x, counts in zip((a, b), repeats, strict=True)))


def _left(step: Step, g: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Gradient of A in ``A B``: rows of all cotangents meet a matrix B in one product."""
    shape = (*g.shape[:-1], right.shape[-2])
    if g.ndim == 3:
        return step.product(_rows(g, 1), right.mT[None]).view(shape)
    return step.product(_rows(g, g.shape[0] * g.shape[1]), right.mT).view(shape)


def _right(step: Step, g: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Gradient of B in ``A B``."""
    shape = (*g.shape[:-2], left.shape[-1], g.shape[-1])
    left = left.mT.contiguous()
    if g.ndim == 3:
        return step.product(left[None], g).view(shape)
    return step.product(left, g.flatten(0, 1)).view(shape)


def _rows(g: torch.Tensor, matrices: int) -> torch.Tensor:
    """Matrices whose rows lie together."""
    g = g.reshape(matrices, g.shape[:-1].numel() // max(1, matrices), g.shape[-1])
    return g if g.stride(-1) == 1 else g.contiguous()


def _product(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    """Product ``A B``, or ``beta C + alpha A B`` where it has three edges."""
    left, right = PRODUCTS[step.name]
    alpha = 1
    if len(step.edges) == 3:
        alpha = step.saved("alpha")
        yield _sum_to(_scaled(g, step.saved("beta")), step.shape()) if step.needed[0] else None
    a, b = step.needed[-2:]
    yield _scaled(_left(step, g, step.saved(right)), alpha) if a else None
    yield _scaled(_right(step, g, step.saved(left)), alpha) if b else None


def _reshape(step: Step, g: torch.Tensor) -> Gradient:
    return g.reshape(g.shape[0], *step.shape())


def _transpose(step: Step, g: torch.Tensor) -> Gradient:
    axes = step.axis(step.saved("dim0")), step.axis(step.saved("dim1"))
    return g.transpose(*axes) if g.ndim > 1 else g


def _permute(step: Step, g: torch.Tensor) -> Gradient:
    axes = [0, *(step.axis(dim) for dim in step.saved("dims"))]
    return g.permute(sorted(range(g.ndim), key=axes.__getitem__))


def _select(step: Step, g: torch.Tensor) -> Gradient:
    axis, index = step.axis(step.saved("dim"), len(step.shape())), step.saved("index")
    return Part(g, lambda whole: whole.select(axis, index))


def _slice(step: Step, g: torch.Tensor) -> Gradient:
    place = (step.axis(step.saved("dim")), *map(step.saved, ("start", "end", "step")))
    return Part(g, lambda whole: _aten.slice(whole, *place))


def cat_starts(step: Step) -> list[int | None]:
    """Where each tensor starts; unknown between two tensors that record no gradient."""
    dim = step.axis(step.saved("dim")) - 1
    # Tensors of shape (0,) may be among those of any rank.
    shapes = [None if m is None else ag.shape((m, k)) for m, k in step.edges]
    sizes = [s if s is None else 0 if s == (0,) else s[dim] for s in shapes]
    starts: list[int | None] = [None] * len(sizes)
    start, stop = 0, ag.shape((step.node, 0))[dim]
    for k, size in reversed(list(enumerate(sizes))):
        if size is None:
            break
        stop -= size
        starts[k] = stop
    for k, size in enumerate(sizes):
        if size is None:
            break
        starts[k] = start
        start += size
    return starts


def _cat(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    axis = step.axis(step.saved("dim"))
    for slot, start in enumerate(cat_starts(step)):
        if not step.needed[slot] or start is None:
            yield None
        elif step.shape(slot) == (0,):
            yield g.new_zeros((g.shape[0], 0))
        else:
            yield g.narrow(axis, start, step.shape(slot)[axis - 1])


def _sum(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    """``self + alpha * other``, or its difference."""
    sign = -1 if step.name == "SubBackward0" else 1
    yield _sum_to(g, step.shape(0)) if step.needed[0] else None
    yield _scaled(_sum_to(g, step.shape(1)), sign * step.saved("alpha")) if step.needed[1] else None


def _mul(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    for slot, other in enumerate(("other", "self")):
        yield _sum_to(g * step.saved(other), step.shape(slot)) if step.needed[slot] else None


def _div(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    other = step.saved("other")
    yield _sum_to(g / other, step.shape(0)) if step.needed[0] else None
    if step.needed[1]:
        yield _sum_to(g * -((step.saved("self") / other) / other), step.shape(1))
    else:
        yield None


def _reduction(step: Step, g: torch.Tensor) -> Gradient:
    """Sum or mean over all axes, or those of `dim`."""
    shape = step.shape()
    dims = getattr(step.node, "_saved_dim", None) or range(len(shape))
    axes = [step.axis(_signed(dim), len(shape)) for dim in dims] if shape else []
    if step.name.startswith("Mean"):
        g = g / math.prod(shape[k - 1] for k in axes)
    kept = [1 if k in axes else size for k, size in enumerate(shape, 1)]
    return g.reshape(g.shape[0], *kept).expand(g.shape[0], *shape)


def _slope(of: str, function: Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]) -> Rule:
    """Rule of a function of each entry, from (step, ones, what is saved as `of`) to its slope."""

    def rule(step: Step, g: torch.Tensor) -> Gradient:
        x = step.saved(of)
        return g * function(step, torch.ones_like(x), x)

    return rule


def _power(step: Step, one: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    exponent = step.saved("exponent")
    return exponent * x.pow(exponent - 1) if exponent else torch.zeros_like(x)


def _softmax(step: Step, g: torch.Tensor) -> Gradient:
    y, dim = step.saved("result"), step.saved("dim")
    backward, out = _aten._softmax_backward_data, "grad_input"
    if step.name == "LogSoftmaxBackward0":
        backward, out = _aten._log_softmax_backward_data, "out"
    return _stacked(g, y.shape, lambda p, into: backward(p, y, dim, y.dtype, **{out: into}))


def _layer_norm(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    names = ("input", "normalized_shape", "result1", "result2", "weight", "bias")
    saved, mask = [step.saved(name) for name in names], list(step.needed)
    return _each(step, g, lambda part: _aten.native_layer_norm_backward(part, *saved, mask))


def _attention(step: Step, g: torch.Tensor) -> Iterable[Gradient]:
    names = ("query", "key", "value", "output", "logsumexp", "dropout_p", "is_causal")
    saved = [step.saved(name) for name in names]
    options = {"attn_mask": step.saved("attn_mask"), "scale": step.saved("scale")}
    backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward
    g = g if g.stride(-1) == 1 else g.contiguous()
    return _each(step, g, lambda part: backward(part, *saved, **options))


JOINS = ("SplitBackward0", "SplitWithSizesBackward0", "UnbindBackward0")
PRODUCTS = {
    "AddmmBackward0": ("mat1", "mat2"),
    "BaddbmmBackward0": ("batch1", "batch2"),
    "BmmBackward0": ("self", "mat2"),
    "MmBackward0": ("self", "mat2"),
}
RESHAPES = (
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(("AddBackward0", "SubBackward0"), _sum),
    **dict.fromkeys(("AliasBackward0", "CloneBackward0"), lambda _, g: g),
    **dict.fromkeys((f"{k}Backward{n}" for k in ("Mean", "Sum") for n in (0, 1)), _reduction),
    **dict.fromkeys(("SoftmaxBackward0", "LogSoftmaxBackward0"), _softmax),
    "CatBackward0": _cat,
    "DivBackward0": _div,
    "ExpandBackward0": lambda step, g: _sum_to(g, step.shape()),
    "MulBackward0": _mul,
    "NativeLayerNormBackward0": _layer_norm,
    "NegBackward0": lambda _, g: -g,
    "PermuteBackward0": _permute,
    "ScaledDotProductFlashAttentionForCpuBackward0": _attention,
    "SelectBackward0": _select,
    "SliceBackward0": _slice,
    "StackBackward0": lambda step, g: g.unbind(step.axis(step.saved("dim"))),
    "TBackward0": lambda _, g: g.mT if g.ndim == 3 else g,
    "TransposeBackward0": _transpose,
    # Entry by entry:
    "EluBackward0": _slope(
        "self",
        lambda step, one, x: _aten.elu_backward(
            one, *map(step.saved, ("alpha", "scale", "input_scale")), False, x
        ),
    ),
    "GeluBackward0": _slope(
        "self",
        lambda s, one, x: _aten.gelu_backward(one, x, approximate=s.saved("approximate")),
    ),
    "LeakyReluBackward0": _slope(
        "self",
        lambda s, one, x: _aten.leaky_relu_backward(one, x, s.saved("negative_slope"), False),
    ),
    "PowBackward0": _slope("self", _power),
    "ReluBackward0": lambda step, g: _aten.threshold_backward(g, step.saved("result"), 0),
    "SigmoidBackward0": _slope("result", lambda _, one, y: _aten.sigmoid_backward(one, y)),
    "SiluBackward0": _slope("self", lambda _, one, x: _aten.silu_backward(one, x)),
    "SoftplusBackward0": _slope(
        "self",
        lambda s, one, x: _aten.softplus_backward(one, x, s.saved("beta"), s.saved("threshold")),
    ),
    "TanhBackward0": _slope("result", lambda _, one, y: _aten.tanh_backward(one, y)),
}
