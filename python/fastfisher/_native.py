# SPDX-License-Identifier: Apache-2.0
"""The native waist: typed calls to ``_core`` with arrays checked and outputs allocated.

Knows neither layers nor approximations; whoever calls turns a report into an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastfisher import _core
from fastfisher._arrays import Array, device_name, dtype_name, scratch, stream_of

GRAM_OUTPUTS = {"full": 0, "trace": 1, "diagonal": 2}
PRECISIONS = {"highest": 0, "high": 0, "exact": 1, "medium": 2}
GRAM_METHODS = ("S0", "S1", "S2", "S3", "S4")
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
OK, NON_FINITE, OVERFLOW, LOST = 0, 1, 2, 3

Factors = tuple[int, Array, Array, Array, bool, Any]
"""One layer as (form, a or None, g, w or None, bias, geometry or None)."""


class GramReport(NamedTuple):
    """What the native Gram found: a `kind` as above, and where."""

    kind: int
    side: int
    layer: int
    argument: int
    position: int
    network: int


class GramEstimate(NamedTuple):
    """What the native Gram needs and what it decided, with one choice a layer."""

    workspace_bytes: int
    blocks: int
    slabs: int
    choices: list[tuple[int, float, float]]
    """(index into GRAM_METHODS, multiply-adds, predicted seconds)."""


def gram(
    left: list[Factors],
    right: list[Factors],
    out: Array,
    *,
    outputs: str,
    precision: str,
    method: str,
    memory_limit: int,
    threads: int,
    batched: bool = False,
    progress: np.ndarray[Any, Any] | None = None,
) -> tuple[GramReport, GramEstimate]:
    """Gram of `left` with `right` (empty: with itself) into `out`."""
    kind = GRAM_OUTPUTS[outputs]
    stream = stream_of(out)
    number = -1 if method == "auto" else GRAM_METHODS.index(method)
    estimate = GramEstimate(
        *_core.gram_workspace(
            [_shapes(layer, number) for layer in left],
            [_shapes(layer, number) for layer in right],
            DTYPES[dtype_name(left[0][2])],
            stream != 0,
            kind,
            PRECISIONS[precision],
            batched,
            memory_limit,
            threads,
        )
    )
    workspace = scratch(estimate.workspace_bytes, out)
    report = _core.gram(
        [(*layer, number) for layer in left],
        [(*layer, number) for layer in right],
        out,
        workspace,
        progress,
        kind,
        PRECISIONS[precision],
        batched,
        memory_limit,
        stream,
        threads,
    )
    return GramReport(*report), estimate


def _shapes(layer: Factors, method: int) -> tuple[int, Any, Any, Any, bool, Any, int]:
    form, a, g, w, bias, geometry = layer
    return (
        form,
        None if a is None else a.shape,
        g.shape,
        None if w is None else w.shape,
        bias,
        geometry,
        method,
    )


class ProductReport(NamedTuple):
    """What a product with a Jacobian found: `kind` as in GramReport; layer -1 is the vector."""

    kind: int
    layer: int
    argument: int
    position: int


def jvp(layers: list[Factors], v: Array, out: Array, *, threads: int = 0) -> ProductReport:
    """``J v`` (n, c, k) into `out`, for v (p, k)."""
    return _product(_core.jvp, _core.jvp_workspace, layers, v, out, threads)


def vjp(layers: list[Factors], u: Array, out: Array, *, threads: int = 0) -> ProductReport:
    """``J^T u`` (p, k) into `out`, for u (n, c, k)."""
    return _product(_core.vjp, _core.vjp_workspace, layers, u, out, threads)


def _product(
    op: Callable[..., tuple[int, int, int, int]],
    query: Callable[..., int],
    layers: list[Factors],
    vector: Array,
    out: Array,
    threads: int,
) -> ProductReport:
    stream = stream_of(out)
    dtype = DTYPES[dtype_name(layers[0][2])]
    shapes = [_shapes(layer, -1) for layer in layers]
    size = query(shapes, dtype, stream != 0, vector.shape[-1], threads)
    numbered = [(*layer, -1) for layer in layers]
    workspace = scratch(size, out)
    return ProductReport(*op(numbered, vector, out, workspace, stream, threads))


def bmm(a: Array, b: Array, out: Array, *, threads: int = 0) -> None:
    """Write ``a @ b`` for a (n, k), b (k, m), or e of each, by the kernels of the Gram."""
    _core.bmm(a, b, out, stream_of(out), threads)


def matmul(a: Array, b: Array, out: Array, *, threads: int = 0) -> None:
    """Write the product of `a` (n, k) and `b` (k, m) to `out`, by the bundled BLAS."""
    _core.matmul(a, b, out, stream_of(out), threads)


def moments(
    arrays: list[Array], outs: list[Array], scales: list[float], *, threads: int = 0
) -> None:
    """``scale a^T a`` of each matrix `a` (n, i) to its out (i, i), both of one dtype.

    An out (i + 1, i + 1) takes ``scale [a 1]^T [a 1]``, with a column of ones behind `a`.
    """
    if not outs:
        return
    stream = stream_of(outs[0])
    most = max(out.shape[0] for out in outs)
    size = _core.moments_workspace(most, DTYPES[dtype_name(outs[0])], stream != 0, threads)
    workspace = scratch(size, outs[0])
    _core.moments(arrays, outs, scales, workspace, stream, threads)


class SandwichItem(NamedTuple):
    """One matrix of `sandwich`; `b` and `out_b` have no entries where there is no bias.

    `left` and `right` are matrices, or both factors of matrices whose inverses are meant.
    """

    left: Array
    w: Array
    b: Array
    right: Array
    out: Array
    out_b: Array


def sandwich(items: list[SandwichItem], *, threads: int = 0) -> None:
    """``[out out_b] = left [w b] right`` of each item, all arrays of one dtype."""
    if not items:
        return
    out = items[0].out
    stream = stream_of(out)
    rows = max(item.out.shape[0] for item in items)
    columns = max(item.w.shape[1] + (len(item.b) > 0) for item in items)
    kind, cuda = DTYPES[dtype_name(out)], device_name(out) != "cpu"
    size = _core.sandwich_workspace(rows, columns, kind, cuda, threads)
    workspace = scratch(size, out)
    _core.sandwich(list(items), workspace, stream, threads)


def lanczos_steps(
    a: Array,
    scale: Array,
    basis: Array,
    first: int,
    small: Array,
    *,
    fresh: bool,
    seed: int = -1,
    threads: int = 0,
) -> None:
    """Make passes of block Lanczos, one for each but the first row of `small`; read nothing back.

    On ``scale[e]^2 a[e]``, from rows ``first`` to ``first + b`` of `basis` (e, rows, n) on, which
    with `fresh` are any vectors, drawn if `seed` is not negative. `small`
    (count + 1, e, b, width), float64: for each step what of the product lies in the rows before,
    then the factor of the rest, and in the last place how far from orthonormal its block was.
    """
    stream, rows = stream_of(small), first + small.shape[0] * small.shape[2]
    size = _core.lanczos_steps_workspace(a, small.shape[2], rows, stream, threads)
    workspace = scratch(size, small)
    _core.lanczos_steps(a, scale, basis, first, fresh, seed, small, workspace, stream, threads)


def panel_combine(weights: Array, x: Array, y: Array, *, keep: bool, threads: int = 0) -> None:
    """Write ``weights[e] x[e]`` (e, j, n) to `y`, with `keep` added to it."""
    _core.panel_combine(weights, x, keep, y, stream_of(y), threads)


def panel_dots(x: Array, y: Array, out: Array, *, threads: int = 0) -> None:
    """Write the products ``<y[e, j], x[e, i]>`` (e, j, i) to `out`, float64."""
    _core.panel_dots(x, y, out, stream_of(out), threads)


def panel_remove(x: Array, y: Array, small: Array, *, threads: int = 0) -> None:
    """Take the part of `y` (e, j, n) in the span of `x` (e, i, n) out of it, in place, twice.

    `small` (e, j, i + j), float64: what was taken out, then the dots of what is left.
    """
    stream = stream_of(y)
    e, j, n = y.shape
    size = _core.panel_remove_workspace(e, x.shape[1], j, n, stream != 0, threads)
    workspace = scratch(size, y)
    _core.panel_remove(x, y, small, workspace, stream, threads)


SPECTRUM_ENDS = {"LA": 0, "SA": 1, "LM": 2, "BE": 3}


def eigh_ends(
    a: Array,
    scale: Array,
    which: str,
    values: Array,
    vectors: Array,
    residual_norms: Array,
    norm: Array,
    *,
    threads: int = 0,
) -> None:
    """Pairs at the ends of the spectrum of ``scale[e]^2 a[e]`` (e, n, n), in no order.

    `values` and `residual_norms` (e, k) and `norm` (e,), the largest magnitude, are float64;
    `vectors` (e, k, n) has the dtype of `a`.
    """
    stream, end = stream_of(values), SPECTRUM_ENDS[which]
    size = _core.eigh_ends_workspace(a, end, values.shape[1], stream, threads)
    workspace = scratch(size, values)
    _core.eigh_ends(
        a, scale, end, values, vectors, residual_norms, norm, workspace, stream, threads
    )


def small_eigh(a: Array, values: Array, vectors: Array, *, threads: int = 0) -> None:
    """Eigenvalues (e, m), ascending, and eigenvectors as rows (e, m, m) of float64 `a`."""
    _core.small_eigh(a, values, vectors, stream_of(values), threads)


def symm(a: Array, x: Array, scale: Array, out: Array, *, threads: int = 0) -> None:
    """``scale[e]^2 a[e] x[e, k]`` into `out` (e, k, n), for symmetric `a` (e, n, n)."""
    stream = stream_of(out)
    size = _core.symm_workspace(a, x.shape[1], stream, threads)
    workspace = scratch(size, out)
    _core.symm(a, x, scale, out, workspace, stream, threads)


def largest(x: Array, *, threads: int = 0) -> float:
    """Largest ``|x|`` of an array on the CPU; not finite if an entry is not, 0.0 if it is empty."""
    return _core.largest(x, threads)


def symmetry(a: Array, out: Array, *, threads: int = 0) -> None:
    """Largest ``|a_ij|`` and largest ``|a_ij - a_ji|`` of each matrix into `out` (e, 2)."""
    _core.symmetry(a, out, stream_of(out), threads)


PSD_TASKS = {
    "cholesky": 0, "inverse": 1, "solve": 2, "eigh": 3, "inverse_root": 4, "factor": 5
}  # fmt: skip
PSD_KINDS = ("ok", "damped", "non_finite", "indefinite", "overflow", "no_convergence")


class PsdItem(NamedTuple):
    """One matrix: positions in the lists of arrays and within their stacks; b -1 for none."""

    a: int
    a_index: int
    out: int
    out_index: int
    b: int
    b_index: int
    damping: float
    automatic: bool


class PsdReport(NamedTuple):
    """What happened to one matrix: `kind` counts PSD_KINDS."""

    kind: int
    damping: float
    condition: float
    position: int


def psd_factor_size(n: int, dtype: str, *, cuda: bool) -> int:
    """Numbers of a factor of n rows; NotImplementedError on a device without that task."""
    return _core.psd_factor_size(n, DTYPES[dtype], cuda)


def psd_workspace(task: str, sizes: list[int], dtype: str, *, cuda: bool, threads: int = 0) -> int:
    """Bytes of workspace of `psd`; NotImplementedError if it has no kernel for these sizes."""
    return _core.psd_workspace(sizes, DTYPES[dtype], PSD_TASKS[task], cuda, threads)


def psd(
    task: str,
    matrices: list[Array],
    outs: list[Array],
    items: list[PsdItem],
    *,
    sizes: list[int],
    sides: list[Array] | None = None,
    values: list[Array] | None = None,
    p: float = 2.0,
    threads: int = 0,
) -> list[PsdReport]:
    """Work of a task on every matrix of stacks or single ones, one report an item."""
    if not items:
        return []
    stream = stream_of(outs[0])
    number, cuda = PSD_TASKS[task], device_name(outs[0]) != "cpu"
    size = psd_workspace(task, sizes, dtype_name(outs[0]), cuda=cuda, threads=threads)
    workspace = scratch(size, outs[0])
    reports = _core.psd(
        matrices,
        sides or [],
        outs,
        values or [],
        items,
        workspace,
        number,
        p,
        stream,
        threads,
    )
    return list(map(PsdReport._make, reports))


@contextmanager
def beside_torch() -> Iterator[None]:
    """Run this thread's ops in the block on torch's own threads, where these are enough.

    After each function of torch they keep watch for some milliseconds, in the way of others.
    """
    before = _core.use_openmp_team(False)
    try:  # an interrupt before this line leaves nothing on
        _core.use_openmp_team(True)
        yield
    finally:
        _core.use_openmp_team(before)


def build_info() -> dict[str, Any]:
    """Version, compiler, BLAS, instruction set, threads and the state of each backend."""
    return _core.build_info()
