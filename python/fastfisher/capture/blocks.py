# SPDX-License-Identifier: Apache-2.0
"""Kernels of more samples than fit: blocks of samples are captured, kept or captured again.

A block costs its factors for as long as it is kept, and autograd's graph while it is captured.
With two blocks in memory at a time every pair meets once; each row of pairs is walked towards the
diagonal, so that its last block is the next row's first and is not captured again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fastfisher._gram_checks import Outputs, check_out, check_outputs
from fastfisher._info import GramInfo
from fastfisher._jacobian import Jacobian
from fastfisher._memory import free_memory, memory_bytes
from fastfisher._products import beside_torch
from fastfisher._progress import progress_numbers
from fastfisher.capture.capture import Capture
from fastfisher.capture.cost import Blocks, Cost, plan_at_once, plan_blocks
from fastfisher.capture.model import Inputs, samples_of, take, tensors_of
from fastfisher.capture.pieces import Costlier, DifferentPieces

_SHARE = 0.5  # of the memory that is free, where no limit is given


def kernel(
    capture: Capture,
    x: Inputs,
    x2: Inputs | None,
    *,
    outputs: Outputs,
    each: bool,
    out: Any | None,
    memory_limit: int | str | None,
    progress: bool,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, GramInfo]]:
    """Kernels by name of the module (`each`), or one under the name ""; and what was done.

    `out` is an array or None; `options` go to ``Jacobian.gram``.
    """
    n = samples_of(x)
    m = None if x2 is None else samples_of(x2)
    if memory_limit is None:
        limit = int(free_memory(tensors_of(x)[0]) * _SHARE)
    else:
        limit = memory_bytes(memory_limit)
    may_form = options["method"] in ("auto", "S1")
    given = dict(options)

    def plan(cost: Cost) -> Blocks:
        if at_once:
            return plan_at_once(n, m, cost, limit)
        return plan_blocks(n, m, cost, limit, may_form=may_form)

    at_once = False
    while True:
        blocks = plan(capture.cost)
        run = _Run(
            capture,
            (x, x if x2 is None else x2),
            (n, n if m is None else m),
            outputs=outputs,
            each=each,
            out=out,
            square=m is None,
            blocks=blocks,
            plan=plan,
        )
        if memory_limit is not None:
            given["memory_limit"] = blocks.workspace
        # Samples may take ways that the first ones did not: begin again with blocks for those.
        try:
            with beside_torch():
                return _walk(run, given, progress)
        except Costlier:
            pass
        except DifferentPieces:
            at_once = True
        except MemoryError as error:
            needed = re.search(r"gram: .* needs about (\d+) bytes", str(error))
            if needed is None or memory_limit is None:
                raise
            # Half of a small limit is workspace, of a large one a quarter.
            share = 2.2 if int(needed[1]) < 1 << 20 else 4.4
            raise MemoryError(
                f"memory_limit: {limit} bytes, expected about {int(share * int(needed[1]))}: the "
                f"Gram matrix of a block needs {needed[1]} bytes of workspace"
            ) from error


def _walk(
    run: _Run, options: Mapping[str, Any], progress: bool
) -> tuple[dict[str, Any], dict[str, GramInfo]]:
    if run.n == 0 or run.m == 0:
        return run.nothing()
    rows = _spans(run.n, run.blocks.left)
    columns = rows if run.square else _spans(run.m, run.blocks.right)
    pairs = len(rows) * (len(rows) + 1) // 2 if run.square else len(rows) * len(columns)
    if pairs == 1:
        run.meet(rows[0], columns[0], {**options, "progress": progress})
        return run.results()
    with progress_numbers(progress, "NTK, blocks of samples") as numbers:

        def step(row: slice, column: slice) -> None:
            run.meet(row, column, options)
            if numbers is not None:
                numbers[0] += 1

        if numbers is not None:
            numbers[1] = pairs
        for index, row in enumerate(rows):
            if run.square:
                step(row, row)
                for column in reversed(rows[index + 1 :]):
                    step(row, column)
            else:
                for column in columns if index % 2 == 0 else columns[::-1]:
                    step(row, column)
    return run.results()


def _spans(n: int, width: int) -> list[slice]:
    return [slice(k, min(k + width, n)) for k in range(0, n, max(width, 1))]


class _Run:
    """One kernel under way: the blocks that are in memory and the arrays that take tiles."""

    def __init__(
        self,
        capture: Capture,
        x: tuple[Inputs, Inputs],
        samples: tuple[int, int],
        *,
        outputs: Outputs,
        each: bool,
        out: Any | None,
        square: bool,
        blocks: Blocks,
        plan: Callable[[Cost], Blocks],
    ) -> None:
        self.capture, self.x, (self.n, self.m) = capture, x, samples
        self.outputs, self.each, self.out, self.square = outputs, each, out, square
        self.blocks, self.plan = blocks, plan
        self.kept: dict[tuple[int, int, int], Jacobian] = {}
        self.arrays: dict[str, Any] = {}
        self.infos: dict[str, GramInfo] = {}
        self.capture_seconds, self.captured, self.pairs = 0.0, 0, 0

    def jacobian(self, side: int, span: slice) -> Jacobian:
        """Block of `side`, from memory or captured."""
        key = (0 if self.square else side, span.start, span.stop)
        if key not in self.kept:
            start = time.perf_counter()
            samples = take(self.x[side], span)
            self.kept[key] = self.capture.jacobian(
                samples,
                piece=self.blocks.piece,
                compact=self.blocks.compact,
                first=span.start,
                fits=lambda cost: self.blocks.within(self.plan(cost)),
            )
            self.capture_seconds += time.perf_counter() - start
            self.captured += span.stop - span.start
        return self.kept[key]

    def meet(self, row: slice, column: slice, options: Mapping[str, Any]) -> None:
        """Compute one tile, and its mirror image."""
        wanted = {
            (0, row.start, row.stop),
            (0 if self.square else 1, column.start, column.stop),
        }
        for key in [key for key in self.kept if key not in wanted]:
            del self.kept[key]
        diagonal = self.square and row == column
        left = self.jacobian(0, row)
        right = None if diagonal else self.jacobian(1, column)
        whole = row.stop - row.start == self.n and column.stop - column.start == self.m
        if right is not None:
            left, right = left.aligned(right)
        parts = left.split() if self.each else {"": left}
        others = None if right is None else right.split() if self.each else {"": right}
        for name, part in parts.items():
            other = None if others is None else others[name]
            tile = None
            if not whole or self.out is not None:
                tile = self._view(name, part, row, column)
            result, info = part.gram(
                other, outputs=self.outputs, out=tile, return_info=True, **options
            )
            if whole and self.out is None:
                self.arrays[name] = result
            elif self.square and not diagonal:
                self._mirror(name, tile, row, column)
            self.infos[name] = self.infos[name].plus(info) if name in self.infos else info
        for name in self._modules():
            # No output reaches it from these samples.
            if name not in self.arrays:
                self.arrays[name] = self._array(left.n_outputs, left.layers[0].g)
        self.pairs += 1

    def _modules(self) -> list[str]:
        """Names of the kernels."""
        if not self.each:
            return [""]
        model = self.capture.model
        return list(dict.fromkeys(model.owner(name) for name in model.parameters))

    def _view(self, name: str, part: Jacobian, row: slice, column: slice) -> Any:
        if name not in self.arrays:
            self.arrays[name] = self._array(part.n_outputs, part.layers[0].g)
        array = self.arrays[name]
        if self._four():
            return array[row, :, column]
        return array[row, column]

    def _four(self) -> bool:
        return self.outputs == "full"

    def _array(self, c: int, like: torch.Tensor) -> Any:
        kind = check_outputs(self.outputs, c)
        shape = {
            "full": (self.n, c, self.m, c),
            "trace": (self.n, self.m),
            "diagonal": (self.n, self.m, c),
        }[kind]
        dtype = torch.float32 if like.dtype in (torch.bfloat16, torch.float16) else like.dtype
        if self.out is None:
            # With `each`, samples that do not reach a module leave its tiles as they are.
            make = torch.zeros if self.each else torch.empty
            return make(shape, dtype=dtype, device=like.device)
        check_out(self.out, shape, like, str(dtype).rpartition(".")[2])
        if isinstance(self.out, np.ndarray):
            if any(stride < 0 for stride in self.out.strides):
                raise ValueError("out: has negative strides, which torch does not support")
            return torch.from_numpy(self.out)
        return self.out

    def _mirror(self, name: str, tile: Any, row: slice, column: slice) -> None:
        array = self.arrays[name]
        if self._four():
            array[column, :, row] = tile.permute(2, 3, 0, 1)
        else:
            array[column, row] = tile.transpose(0, 1)

    def nothing(self) -> tuple[dict[str, Any], dict[str, GramInfo]]:
        """Kernels without entries, for a side without samples."""
        jacobian = self.capture.jacobian(take(self.x[0 if self.n else 1], slice(0, 0)))
        like = jacobian.layers[0].g
        self.arrays = {name: self._array(jacobian.n_outputs, like) for name in self._modules()}
        return self.results()

    def results(self) -> tuple[dict[str, Any], dict[str, GramInfo]]:
        """Arrays and infos by name."""
        names = self._modules()
        arrays = {name: self.arrays[name] if self.out is None else self.out for name in names}
        for name in names:
            self.infos.setdefault(name, GramInfo((), 0, 0, 0, 0.0))
        treated = self.capture.treated
        infos = {
            name: self.infos[name].with_capture(
                treated, self.captured, self.capture_seconds, self.pairs
            )
            for name in names
        }
        return arrays, infos
