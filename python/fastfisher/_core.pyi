# SPDX-License-Identifier: Apache-2.0
from typing import Any

def build_info() -> dict[str, Any]: ...
def gram(
    left: list[tuple[Any, Any, bool]],
    right: list[tuple[Any, Any, bool]],
    out: Any,
    workspace: Any,
    outputs: int,
    exact: bool,
    memory_limit: int,
    stream: int,
    threads: int,
    /,
) -> tuple[int, int, int, int, int]: ...
def gram_workspace(
    left: list[tuple[Any, Any]],
    right: list[tuple[Any, Any]],
    item_bytes: int,
    cuda: bool,
    outputs: int,
    exact: bool,
    memory_limit: int,
    threads: int,
    /,
) -> int: ...
def matmul(a: Any, b: Any, out: Any, stream: int, threads: int, /) -> None: ...
