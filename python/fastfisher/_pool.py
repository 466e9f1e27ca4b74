# SPDX-License-Identifier: Apache-2.0
"""Memory of the host that dead arrays leave to new ones, for work that is done again and again.

What a system asks for fresh pages may be more than half of the time in which they are filled.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]

_SMALLEST = 1 << 18
"""Bytes from which memory is kept: below, the system's own allocator keeps it."""
_LENT = 1 << 22
"""Bytes from which a kept block is offered to the system: on large pages that costs nothing."""
_KEPT_SMALL = 1 << 27
"""Bytes of smaller blocks that a limited pool keeps, and of all where addresses are limited."""
_KEPT = min(1 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16)
"""Bytes for the work of calls that are kept where no pool is in use."""
_SLACK = 1.125
"""Of what calls had at once: their steps have different blocks, which would push each other out."""

_active: ContextVar[Pool | None] = ContextVar("active", default=None)


class _Block:
    """Memory that no array has."""

    __slots__ = ("raw",)

    def __init__(self, raw: Host) -> None:
        self.raw = raw


class Pool:
    """Keeps the memory of large arrays that are made within ``with pool.use():`` for the next ones.

    An array's memory comes back when nothing refers to it any more, wherever that is. What was
    there at the start of one use and was not needed in it goes back to the system at its end. With
    a `limit` it is kept from use to use instead, up to so many bytes, and never so much that it and
    what is in use exceed by an eighth what once was in use: the oldest goes first. Large blocks are
    meanwhile the system's to take where it runs short, which then costs fresh pages.

    Arrays die wherever a collector runs, in other threads and in the midst of these lines: no step
    waits for a lock, each is one that the interpreter does not divide.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self._limit = limit
        self._free: list[_Block] = []
        """In the order in which they came back."""
        self._old: list[_Block] = []
        self._uses = 0
        self._lent: dict[int, int] = {}
        """Bytes of the memory that arrays have, by its identity."""
        self._most = 0
        """Bytes that they once had together."""

    @contextmanager
    def use(self) -> Iterator[Pool]:
        """Make it the pool of `empty` in this thread."""
        if self._uses == 0 and self._limit == math.inf:
            self._old, self._free = self._free, []
        self._uses += 1
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)
            self._uses -= 1
            if self._uses == 0:
                self._old = []

    @contextmanager
    def use_if_none(self) -> Iterator[None]:
        """Make it the pool of `empty` in this thread unless there is one."""
        if _active.get() is not None:
            yield
            return
        with self.use():
            yield

    def __reduce__(self) -> tuple[type[Pool], tuple[float]]:
        """Leave the memory out of copies and files."""
        return Pool, (self._limit,)

    @property
    def size(self) -> int:
        """Bytes that no array has now."""
        return sum(block.raw.nbytes for block in [*self._free, *self._old])

    @property
    def in_use(self) -> int:
        """Bytes that arrays have now."""
        return sum(list(self._lent.values()))

    def take(self, size: int) -> Host:
        """Bytes that nobody else has."""
        raw = self._found(size)
        if raw is None and self._limit == math.inf:
            raw = np.empty(size, np.uint8)
        elif raw is None:
            self._shrink(max(0, int(_SLACK * self._most) - self.in_use - size))
            raw = _lendable(size)
        self._lent[id(raw)] = size
        if self._limit < math.inf:
            self._most = max(self._most, self.in_use)
        return raw

    def give(self, raw: Host) -> None:
        """Take bytes back."""
        self._lent.pop(id(raw), None)
        if self._limit == math.inf:
            self._free.append(_Block(raw))
            return
        _lend(raw)  # before anyone can have it
        self._free.append(_Block(raw))
        self._shrink(self._limit)
        # Addresses count with pages behind them or without.
        limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        self._shrink(_KEPT_SMALL, below=math.inf if limited else _LENT)

    def _shrink(self, most: float, below: float = math.inf) -> None:
        """Give the system what was not needed for the longest time, until `most` bytes are left.

        Of blocks of fewer than `below` bytes.
        """
        blocks = [block for block in list(self._free) if block.raw.nbytes < below]
        left = sum(block.raw.nbytes for block in blocks)
        for block in blocks:
            if left <= most:
                return
            left -= block.raw.nbytes
            with suppress(ValueError):  # another one may have it
                self._free.remove(block)

    def _found(self, size: int) -> Host | None:
        for kept in (self._free, self._old):
            for block in reversed(list(kept)):
                if block.raw.nbytes == size:
                    with suppress(ValueError):
                        kept.remove(block)
                        return block.raw
        return None


@cache
def keep_freed_memory() -> None:
    """Have malloc keep what libraries free in their work, as after any large array of the caller.

    glibc maps blocks beyond a size anew each time, and raises that size to that of a freed one, of
    32 MiB at most: the temporary arrays of a backward pass, 1 to 10 MB, else cost fresh pages each,
    a tenth to a sixth of the time of a capture.
    """
    np.empty((32 << 20) - (64 << 10), np.uint8)


def _lendable(size: int) -> Host:
    """Bytes whose pages the system may have while nobody uses them, large ones if possible."""
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"unable to allocate {size} bytes") from error
    with suppress(AttributeError, OSError):  # systems without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _lend(raw: Host) -> None:
    """Offer the pages of `raw` to the system until they are written again."""
    if raw.nbytes < _LENT:
        return
    with suppress(AttributeError, OSError):
        raw.base.obj.madvise(mmap.MADV_FREE)  # type: ignore[union-attr]


class _Lent:
    """Owner of an array's memory: it dies with the last view of it."""

    def __init__(self, pool: Pool, raw: Host) -> None:
        self._pool, self._raw = weakref.ref(pool), raw
        self.__array_interface__ = raw.__array_interface__

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool.give(self._raw)


def empty(shape: tuple[int, ...], dtype: str | type) -> Host:
    """Uninitialised array, of the memory of the pool in use if there is one."""
    return _array(shape, np.dtype(dtype), _active.get())


def workspace(size: int) -> Host:
    """Uninitialised bytes for one call, of the pool in use or of one that all calls share."""
    return _array((size,), np.dtype(np.uint8), _active.get() or _kept)


def _array(shape: tuple[int, ...], kind: np.dtype[Any], pool: Pool | None) -> Host:
    size = math.prod(shape) * kind.itemsize
    if pool is None or size < _SMALLEST:
        return np.empty(shape, kind)
    return np.asarray(_Lent(pool, pool.take(size))).view(kind).reshape(shape)


_kept = Pool(limit=_KEPT)
