# SPDX-License-Identifier: Apache-2.0
"""From arguments to one native call and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastfisher import _native
from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    empty,
    final,
    library,
    requires_grad,
    result_dtype,
    to_numpy,
)
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError, NumericalError
from fastfisher.psd import _by_library
from fastfisher.psd._results import EighResult, PsdResult

__all__ = ["run"]


def run(
    task: str,
    a: Array | Sequence[Array],
    *,
    damping: Any,
    on_error: str | None,
    p: float = 2.0,
    b: Any = None,
) -> Any:
    """Results of a task: one for one matrix, else a list."""
    if on_error not in (None, "status", "raise"):
        raise ValueError(f"on_error: expected 'status' or 'raise', got {on_error!r}")
    if task == "inverse_root" and not (p > 0 and math.isfinite(p)):
        raise ValueError(f"p: expected a positive number, got {p!r}")
    arrays = list(a) if isinstance(a, list | tuple) else [a]
    single = not isinstance(a, list | tuple) and len(getattr(a, "shape", ())) == 2
    stacked = not isinstance(a, list | tuple) and not single
    where = _places(arrays, stacked)
    dampings = _dampings(damping, len(where), single)
    sides, vectors = _sides(b, where, arrays, single) if task == "solve" else ([], [])
    if not where:
        return []
    results = _call(task, arrays, where, dampings, sides, vectors, p, on_error, single)
    return results[0] if single else results


def _places(arrays: list[Array], stacked: bool) -> list[tuple[int, int]]:
    """(array, index within it) of every matrix, shapes and dtypes checked."""
    rank = 3 if stacked else 2
    for k, x in enumerate(arrays):
        name = "a" if len(arrays) == 1 else f"a[{k}]"
        library(x, name)
        if len(x.shape) != rank or x.shape[-1] != x.shape[-2]:
            expected = "(n, n) or (b, n, n)" if len(arrays) == 1 else "(n, n)"
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
        if dtype_name(x) not in _native.DTYPES:
            raise TypeError(
                f"{name}: expected dtype float32, float64, bfloat16 or float16, "
                f"got dtype {dtype_name(x)}"
            )
        first = arrays[0]
        if dtype_name(x) != dtype_name(first) or device_name(x) != device_name(first):
            raise TypeError(
                f"{name}: got dtype {dtype_name(x)} on {device_name(x)}, expected dtype "
                f"{dtype_name(first)} on {device_name(first)} as the first matrix"
            )
        if library(x) != library(first):
            raise TypeError(f"{name}: expected an array of {library(first)}, got {library(x)}")
        if requires_grad(x):
            raise TypeError(f"{name}: requires grad; pass {name}.detach()")
    if stacked:
        return [(0, k) for k in range(arrays[0].shape[0])]
    return [(k, 0) for k in range(len(arrays))]


def _dampings(damping: Any, count: int, single: bool) -> list[tuple[float, bool]]:
    listed = not single and not isinstance(damping, str) and hasattr(damping, "__len__")
    given = list(damping) if listed else [damping]
    if listed and len(given) != count:
        raise ValueError(f"damping: got {len(given)} of them, expected {count}, one per matrix")
    pairs = []
    for value in given:
        if isinstance(value, str):
            if value != "auto":
                raise ValueError(f"damping: expected a number or 'auto', got {value!r}")
            pairs.append((0.0, True))
            continue
        number = float(value)
        if not (number >= 0 and math.isfinite(number)):
            raise ValueError(f"damping: expected a finite number >= 0, got {value!r}")
        pairs.append((number, False))
    return pairs if listed else pairs * count


def _sides(
    b: Any, where: list[tuple[int, int]], arrays: list[Array], single: bool
) -> tuple[list[Array], list[bool]]:
    """Right-hand sides as (n, k), each with whether it came as a vector."""
    if single:
        given = [b]
    elif isinstance(b, list | tuple) or len(getattr(b, "shape", ())) in (2, 3):
        given = list(b)
    else:
        raise ValueError("b: expected one right-hand side per matrix, in a list")
    if len(given) != len(where):
        raise ValueError(f"b: got {len(given)} of them, expected {len(where)}, one per matrix")
    sides, vectors = [], []
    for k, (x, (place, _)) in enumerate(zip(given, where, strict=True)):
        name = "b" if single else f"b[{k}]"
        like, n = arrays[place], arrays[place].shape[-1]
        if library(x, name) != library(like) or dtype_name(x) != result_dtype(like):
            raise TypeError(
                f"{name}: expected dtype {result_dtype(like)} of {library(like)}, "
                f"got dtype {dtype_name(x)} of {library(x)}"
            )
        if len(x.shape) not in (1, 2) or x.shape[0] != n:
            raise ValueError(f"{name}: expected shape ({n},) or ({n}, k), got {tuple(x.shape)}")
        if requires_grad(x):
            raise TypeError(f"{name}: requires grad; pass {name}.detach()")
        vectors.append(len(x.shape) == 1)
        sides.append(x.reshape(n, 1) if vectors[-1] else x)
    return sides, vectors


def _call(
    task: str,
    arrays: list[Array],
    where: list[tuple[int, int]],
    dampings: list[tuple[float, bool]],
    sides: list[Array],
    vectors: list[bool],
    p: float,
    on_error: str | None,
    single: bool,
) -> list[Any]:
    like = arrays[0]
    dtype = result_dtype(like)
    rows = [int(x.shape[-1]) for x in arrays]
    sizes = [rows[place] for place, _ in where]
    columns = [int(b.shape[1]) for b in sides] if sides else sizes
    # One stack for all results of a shape.
    stacks: dict[tuple[int, int], list[int]] = {}
    for k, shape in enumerate(zip(sizes, columns, strict=True)):
        stacks.setdefault(shape, []).append(k)
    outs, values, slots = [], [], [(0, 0)] * len(where)
    for number, (shape, members) in enumerate(stacks.items()):
        outs.append(empty((len(members), *shape), like, dtype))
        if task == "eigh":
            values.append(empty((len(members), shape[0]), like, dtype))
        for index, k in enumerate(members):
            slots[k] = (number, index)
    reports = _reports(task, arrays, where, slots, dampings, sides, p, sizes, outs, values)
    if on_error == "raise" or (on_error is None and single):
        for k, report in enumerate(reports):
            _raise(task, report, arrays, where[k], sides[k] if sides else None, single, k)
    # Lists of their matrices: an index into a tensor costs ten times one into a list.
    found = [list(final(x, like)) for x in outs]
    spectra = [list(final(x, like)) for x in values]
    results: list[Any] = []
    for report, (number, index), n in zip(reports, slots, sizes, strict=True):
        value = found[number][index]
        reason = _reason(report, n, dtype) if report.kind else ""
        state = (_STATUS[report.kind], report.damping, report.condition, reason)
        if spectra:
            results.append(EighResult(spectra[number][index], value, *state))
        elif vectors and vectors[len(results)]:
            results.append(PsdResult(value.reshape(n), *state))
        else:
            results.append(PsdResult(value, *state))
    return results


_STATUS = [kind if kind in ("ok", "damped") else "failed" for kind in _native.PSD_KINDS]


def _reports(
    task: str,
    arrays: list[Array],
    where: list[tuple[int, int]],
    slots: list[tuple[int, int]],
    dampings: list[tuple[float, bool]],
    sides: list[Array],
    p: float,
    sizes: list[int],
    outs: list[Array],
    values: list[Array],
) -> list[_native.PsdReport]:
    """Work on all matrices: natively at once, or the large ones of some tasks by their library."""
    most = _by_library.native_rows(task, arrays[0])
    native = [k for k, n in enumerate(sizes) if n <= most]
    items = [
        _native.PsdItem(*where[k], *slots[k], k if sides else -1, 0, *dampings[k]) for k in native
    ]
    mine = sizes if len(native) == len(sizes) else [sizes[k] for k in native]
    found = _native.psd(task, arrays, outs, items, sizes=mine, sides=sides, values=values, p=p)
    if len(native) == len(sizes):
        return found
    told = dict(zip(native, found, strict=True))
    for k in range(len(sizes)):
        number, index = slots[k]
        if k not in told:
            told[k] = _by_library.spectral(
                task,
                _matrix(arrays, where[k]),
                damping=dampings[k][0],
                automatic=dampings[k][1],
                p=p,
                out=outs[number][index],
                values=values[number][index] if values else None,
            )
    return [told[k] for k in range(len(sizes))]


def _matrix(arrays: list[Array], place: tuple[int, int]) -> Array:
    array = arrays[place[0]]
    return array if len(array.shape) == 2 else array[place[1]]


def _reason(report: _native.PsdReport, n: int, dtype: str) -> str:
    kind = _native.PSD_KINDS[report.kind]
    if kind == "ok":
        return ""
    if kind == "damped":
        return f"not positive definite without a damping of {report.damping:.3g}"
    if kind == "non_finite":
        if report.position < 0:
            return f"b holds NaN or infinity, first at position {-1 - report.position}"
        return f"NaN or infinity at index {divmod(report.position, n)}"
    if kind == "overflow":
        return f"the result overflows {dtype}"
    if kind == "no_convergence":
        return "the eigenvalue iteration did not converge"
    cause = f"the leading minor of order {report.position}" if report.position else "an eigenvalue"
    return f"not positive definite with damping {report.damping:.3g}: {cause} is not positive"


def _raise(
    task: str,
    report: _native.PsdReport,
    arrays: list[Array],
    place: tuple[int, int],
    side: Array | None,
    single: bool,
    number: int,
) -> None:
    kind = _native.PSD_KINDS[report.kind]
    if kind in ("ok", "damped"):
        return
    matrix = _matrix(arrays, place)
    n = int(matrix.shape[-1])
    name = "a" if single else f"a[{number}]"
    if kind == "non_finite":
        if report.position >= 0:
            index, found = divmod(report.position, n), matrix
        else:
            name = name.replace("a", "b", 1)
            assert side is not None
            index, found = divmod(-1 - report.position, int(side.shape[1])), side
        raise NonFiniteError(
            f"{name}: expected finite numbers, got {to_numpy(found)[index]} at index {index}"
        )
    if kind == "indefinite":
        host = to_numpy(matrix).astype(np.float64)
        low = np.tril(host) + np.tril(host, -1).T
        smallest = float(np.linalg.eigvalsh(low)[0])
        raise NotPositiveDefiniteError(
            f"{name}: not positive definite with damping {report.damping:.3g}: its smallest "
            f"eigenvalue is {smallest:.6g}"
        )
    raise NumericalError(f"psd.{task}: {name}: {_reason(report, n, result_dtype(matrix))}")
