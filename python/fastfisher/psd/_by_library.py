# SPDX-License-Identifier: Apache-2.0
"""Eigenvectors and inverse roots by ``linalg.eigh`` of the array's own library, one matrix a call.

For matrices on a device that are too large for its native kernel: scaling, damping and statuses
are those of the native op, decompositions in float64. Each matrix waits for the device to tell its
range and its spectrum.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from fastfisher import _native
from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    namespace,
    result_dtype,
    to_dtype,
    to_numpy,
    widened,
)

__all__ = ["native_rows", "spectral"]


def native_rows(task: str, a: Array) -> float:
    """Rows of the largest matrix like `a` that the native op takes for this task."""
    if task not in ("eigh", "inverse_root") or device_name(a) == "cpu":
        return math.inf
    return _rows(task, result_dtype(a))


@cache
def _rows(task: str, dtype: str) -> int:
    # The kernel keeps a matrix in the shared memory of the device: the op knows how much there is.
    least, most = 0, 1024
    while least < most:
        rows = (least + most + 1) // 2
        try:
            _native.psd_workspace(task, [rows], dtype, cuda=True)
        except NotImplementedError:
            most = rows - 1
        else:
            least = rows
    return least


def spectral(
    task: str,
    a: Array,
    *,
    damping: float,
    automatic: bool,
    p: float,
    out: Array,
    values: Array | None,
) -> _native.PsdReport:
    """Write the eigenvectors (or the root) of `a` (n, n) to `out`, the eigenvalues to `values`."""
    report = _work(task, a, damping, automatic, p, out, values)
    if _native.PSD_KINDS[report.kind] in ("ok", "damped"):
        return report
    out[...] = math.nan
    if values is not None:
        values[...] = math.nan
    return report._replace(condition=math.inf)


def _report(kind: str, damping: float, condition: float, position: int = 0) -> _native.PsdReport:
    return _native.PsdReport(_native.PSD_KINDS.index(kind), damping, condition, position)


def _work(
    task: str,
    a: Array,
    damping: float,
    automatic: bool,
    p: float,
    out: Array,
    values: Array | None,
) -> _native.PsdReport:
    xp, dtype = namespace(a), result_dtype(a)
    damping = 0.0 if automatic else damping
    low = xp.tril(widened(a))
    largest = float(abs(low).max())
    if not math.isfinite(largest):
        bad = ~np.isfinite(to_numpy(low))
        return _report("non_finite", damping, math.inf, int(bad.argmax()))
    # One power of two for all, in two factors, each of which is a normal number of the dtype.
    power = int((math.frexp(largest)[1] - 1) / 2) * 2 if largest > 0 else 0
    factor = 2.0 ** (-power // 2)
    try:
        # In float64: vectors of float32 were seen 16 to 80 n eps from orthogonal on a GPU.
        spectrum, vectors = xp.linalg.eigh(to_dtype(low * factor * factor, "float64"))
    except Exception as error:
        # A RuntimeError of torch, a ValueError of numpy.
        if not type(error).__name__.endswith("LinAlgError"):
            raise
        return _report("no_convergence", damping, math.inf)
    spectrum = to_dtype(spectrum, "float64") / factor / factor
    bottom, top = float(spectrum[0]), float(spectrum[-1])
    if not (math.isfinite(bottom) and math.isfinite(top)):
        return _report("no_convergence", damping, math.inf)
    if automatic:
        damping = _raised(bottom, top, float(abs(low.diagonal()).max()), len(low), dtype)
    bottom, top = bottom + damping, top + damping
    if (task == "inverse_root" or automatic) and not bottom > 0:
        return _report("indefinite", damping, math.inf)
    if not math.isfinite(top):
        return _report("overflow", damping, math.inf)
    finish = _finish_root if task == "inverse_root" else _finish_eigen
    if not finish(spectrum + damping, vectors, p, out, values):
        return _report("overflow", damping, math.inf)
    kind = "damped" if automatic and damping > 0 else "ok"
    return _report(kind, damping, top / bottom if bottom > 0 else math.inf)


def _raised(bottom: float, top: float, largest: float, n: int, dtype: str) -> float:
    """Damping by the smallest eigenvalue, on the ladder of attempts of the native op."""
    eps = float(np.finfo(dtype).eps)
    measure = largest if largest > 0 else 1.0
    # Eigenvalues are known to some eps of the largest one.
    enough = eps * max(top, 0.0)
    most = max(max(math.sqrt(eps), 8 * eps * n) * measure, 64 * enough)
    damping = 0.0
    while not bottom + damping > enough and damping < most:
        damping = min(most, 8 * eps * measure if damping == 0 else damping * 10)
    return damping


def _finish_eigen(spectrum: Array, vectors: Array, p: float, out: Array, values: Array) -> bool:
    values[...] = to_dtype(spectrum, dtype_name(values))
    out[...] = to_dtype(vectors, dtype_name(out))
    return math.isfinite(float(abs(values).max()))


def _finish_root(spectrum: Array, vectors: Array, p: float, out: Array, values: None) -> bool:
    rows = vectors * spectrum ** (-0.5 / p)
    low = namespace(out).tril(rows @ rows.T)
    # A product of the library may differ in the last bits across the diagonal.
    out[...] = low + namespace(out).tril(low, -1).T
    return math.isfinite(float(abs(out).max()))
