# SPDX-License-Identifier: Apache-2.0
"""Gradients of all outputs by our own backward pass.

Autograd takes one output after another, each a pass of small products and of functions that wait
for memory. Here a few outputs pass together, and weights meet the rows of all of them by the
kernels of the Gram. Those have threads of their own, which torch's, that keep watch for a while
after each function, would be in the way of: torch has one thread meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fastfisher._products import row_products
from fastfisher.capture.backward import Backward, Unsupported
from fastfisher.capture.graph import Edge

_TOGETHER_BYTES = 6 << 20  # of one result's gradients: more leaves the cache


def fill_gradients(y: torch.Tensor, results: Mapping[Edge, torch.Tensor]) -> bool:
    """Write the gradients of output k of y (n, c) for each edge to ``results[edge][k]``.

    False if the graph is not supported: then what is written has no meaning.
    """
    if y.device.type != "cpu":
        return False

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return row_products(a.detach(), b.detach())

    try:
        backward = Backward(y, list(results), product)
        with torch.no_grad(), _one_thread():
            _fill(y, results, backward)
    except (Unsupported, RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        # Autograd itself will tell what is wrong, or do what no rule foresaw.
        return False
    return True


def _fill(y: torch.Tensor, results: Mapping[Edge, torch.Tensor], backward: Backward) -> None:
    c, sizes = y.shape[1], [out[0].nbytes for out in results.values()]
    # A few gradients at a time are on their way: not much beside those that are kept.
    together = min(_TOGETHER_BYTES, c * sum(sizes) // 8) // max(1, *sizes, 1)
    passes = -(-c // max(1, together))
    cuts = [c * k // passes for k in range(passes + 1)]
    for start, stop in itertools.pairwise(cuts):
        cotangents = torch.zeros((stop - start, *y.shape), dtype=y.dtype)
        for k in range(start, stop):
            cotangents[k - start, :, k] = 1
        for out, gradients in zip(results.values(), backward(cotangents), strict=True):
            out[start:stop] = 0 if gradients is None else gradients


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leave torch one thread in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
