# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from typing import Any

# A layer: (form, a or None, g, w or None, bias, geometry or None, method); for gram_workspace with
# shapes in place of arrays.
_Layer = tuple[int, Any, Any, Any, bool, Any, int]

def build_info() -> dict[str, Any]: ...
def gram(
    left: list[_Layer],
    right: list[_Layer],
    out: Any,
    workspace: Any,
    progress: Any,
    outputs: int,
    precision: int,
    batched: bool,
    memory_limit: int,
    stream: int,
    threads: int,
    /,
) -> tuple[int, int, int, int, int, int]: ...
def gram_workspace(
    left: list[_Layer],
    right: list[_Layer],
    dtype: int,
    cuda: bool,
    outputs: int,
    precision: int,
    batched: bool,
    memory_limit: int,
    threads: int,
    /,
) -> tuple[int, int, int, list[tuple[int, float, float]]]: ...
def jvp(
    layers: list[_Layer], v: Any, out: Any, workspace: Any, stream: int, threads: int, /
) -> tuple[int, int, int, int]: ...
def jvp_workspace(
    layers: list[_Layer], dtype: int, cuda: bool, columns: int, threads: int, /
) -> int: ...
def matmul(a: Any, b: Any, out: Any, stream: int, threads: int, /) -> None: ...
def bmm(a: Any, b: Any, out: Any, stream: int, threads: int, /) -> None: ...
def moments(
    arrays: list[Any],
    outs: list[Any],
    scales: list[float],
    workspace: Any,
    stream: int,
    threads: int,
    /,
) -> None: ...
def moments_workspace(most: int, dtype: int, cuda: bool, threads: int, /) -> int: ...
def sandwich(
    items: list[tuple[Any, Any, Any, Any, Any, Any]],
    workspace: Any,
    stream: int,
    threads: int,
    /,
) -> None: ...
def sandwich_workspace(rows: int, columns: int, dtype: int, cuda: bool, threads: int, /) -> int: ...
def lanczos_steps(
    a: Any,
    scale: Any,
    basis: Any,
    first: int,
    fresh: bool,
    seed: int,
    small: Any,
    workspace: Any,
    stream: int,
    threads: int,
    /,
) -> None: ...
def lanczos_steps_workspace(a: Any, b: int, rows: int, stream: int, threads: int, /) -> int: ...
def panel_combine(
    weights: Any, x: Any, keep: bool, y: Any, stream: int, threads: int, /
) -> None: ...
def panel_dots(x: Any, y: Any, out: Any, stream: int, threads: int, /) -> None: ...
def panel_remove(
    x: Any, y: Any, small: Any, workspace: Any, stream: int, threads: int, /
) -> None: ...
def panel_remove_workspace(
    networks: int, i: int, j: int, n: int, cuda: bool, threads: int, /
) -> int: ...
def eigh_ends(
    a: Any,
    scale: Any,
    end: int,
    values: Any,
    vectors: Any,
    residual_norms: Any,
    norm: Any,
    workspace: Any,
    stream: int,
    threads: int,
    /,
) -> None: ...
def eigh_ends_workspace(a: Any, end: int, k: int, stream: int, threads: int, /) -> int: ...
def small_eigh(a: Any, values: Any, vectors: Any, stream: int, threads: int, /) -> None: ...
def symm(
    a: Any, x: Any, scale: Any, out: Any, workspace: Any, stream: int, threads: int, /
) -> None: ...
def symm_workspace(a: Any, vectors: int, stream: int, threads: int, /) -> int: ...
def largest(x: Any, threads: int, /) -> float: ...
def symmetry(a: Any, out: Any, stream: int, threads: int, /) -> None: ...
def psd(
    matrices: list[Any],
    sides: list[Any],
    outs: list[Any],
    values: list[Any],
    items: Sequence[tuple[int, int, int, int, int, int, float, bool]],
    workspace: Any,
    task: int,
    p: float,
    stream: int,
    threads: int,
    /,
) -> list[tuple[int, float, float, int]]: ...
def psd_factor_size(n: int, dtype: int, cuda: bool, /) -> int: ...
def psd_workspace(sizes: list[int], dtype: int, task: int, cuda: bool, threads: int, /) -> int: ...
def use_openmp_team(wanted: bool, /) -> bool: ...
def vjp(
    layers: list[_Layer], u: Any, out: Any, workspace: Any, stream: int, threads: int, /
) -> tuple[int, int, int, int]: ...
def vjp_workspace(
    layers: list[_Layer], dtype: int, cuda: bool, columns: int, threads: int, /
) -> int: ...
