# SPDX-License-Identifier: Apache-2.0
"""Finite groups of orthogonal maps of the input space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfisher.theory._checks import array, count

__all__ = ["OrthogonalGroup", "cyclic_shifts", "flips", "group"]

# Largest entry of Q^T Q - I that still counts as orthogonal.
ORTHOGONAL = 1e-8


@dataclass(frozen=True, eq=False)
class OrthogonalGroup:
    """A finite group of orthogonal maps of vectors of length d; see `group` to make one.

    Attributes
    ----------
    maps : array, shape (g, d) of int or (g, d, d) of float64
        Permutations p with ``(p x)[i] = x[p[i]]``, or matrices Q with ``Q x``.
    """

    maps: NDArray[Any]

    def __len__(self) -> int:
        """Return the number of maps, |G|."""
        return int(self.maps.shape[0])

    @property
    def size(self) -> int:
        """Length d of the vectors."""
        return int(self.maps.shape[1])

    def apply(self, x: ArrayLike) -> NDArray[np.float64]:
        """Orbits: all maps of all samples.

        Parameters
        ----------
        x : array, shape (n, d)
            Samples.

        Returns
        -------
        array, shape (g, n, d), float64

        Raises
        ------
        ValueError
            Wrong shape, NaN or infinity.

        Examples
        --------
        >>> cyclic_shifts(3).apply([[1.0, 2.0, 3.0]])[:, 0].tolist()
        [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]]
        """
        samples = array("x", x, rank=2)
        if samples.shape[1] != self.size:
            raise ValueError(f"x: expected shape (n, {self.size}), got {samples.shape}")
        if self.maps.ndim == 2:
            return np.ascontiguousarray(samples[:, self.maps].swapaxes(0, 1))
        mapped: NDArray[np.float64] = samples @ self.maps.swapaxes(1, 2)
        return mapped


def cyclic_shifts(
    shape: int | Sequence[int], *, axes: Sequence[int] | None = None
) -> OrthogonalGroup:
    """All cyclic shifts of flattened arrays.

    Parameters
    ----------
    shape : int or sequence of int
        Extents of one sample before it is flattened, row by row: (height, width) of an image.
    axes : sequence of int, optional
        Axes to shift along; all by default.

    Returns
    -------
    OrthogonalGroup
        As many maps as the product of the extents shifted along, the identity first.

    Raises
    ------
    ValueError
        Bad extents or axes.

    Examples
    --------
    >>> len(cyclic_shifts((8, 8))), len(cyclic_shifts((8, 8), axes=[1]))
    (64, 8)
    """
    extents = _extents(shape)
    along = _axes(axes, len(extents))
    index = np.arange(np.prod(extents, dtype=int)).reshape(extents)
    steps = itertools.product(*(range(extents[axis]) for axis in along))
    return OrthogonalGroup(np.array([np.roll(index, by, along).ravel() for by in steps]))


def flips(shape: int | Sequence[int], *, axes: Sequence[int] | None = None) -> OrthogonalGroup:
    """All reversals of flattened arrays along axes.

    Parameters
    ----------
    shape, axes
        As for `cyclic_shifts`.

    Returns
    -------
    OrthogonalGroup
        2^k maps for k axes longer than one, the identity first.

    Raises
    ------
    ValueError
        Bad extents or axes.

    Examples
    --------
    >>> flips((2, 2), axes=[1]).maps.tolist()
    [[0, 1, 2, 3], [1, 0, 3, 2]]
    """
    extents = _extents(shape)
    # Along an axis of one nothing changes: the same map twice would not be a group.
    along = [axis for axis in _axes(axes, len(extents)) if extents[axis] > 1]
    index = np.arange(np.prod(extents, dtype=int)).reshape(extents)
    subsets = itertools.product(*([(), (axis,)] for axis in along))
    return OrthogonalGroup(np.array([np.flip(index, sum(axes, ())).ravel() for axes in subsets]))


def group(maps: ArrayLike) -> OrthogonalGroup:
    """Group of given maps, after a check that they are one.

    Parameters
    ----------
    maps : array, shape (g, d) of int or (g, d, d) of float
        Permutations of 0..d-1, or orthogonal matrices.

    Returns
    -------
    OrthogonalGroup

    Raises
    ------
    ValueError
        No permutations or orthogonal matrices, a map that is there twice, or a product of two maps
        that is none of them.
    TypeError
        A dtype that fits neither.

    Notes
    -----
    Finite and closed under products is enough for a group. The check takes g^2 d steps for
    permutations and some g^2 d (g + d) for matrices.

    Examples
    --------
    >>> import numpy as np
    >>> quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> len(group([np.linalg.matrix_power(quarter, k) for k in range(4)]))
    4
    """
    given = np.asarray(maps)
    if given.ndim not in (2, 3) or 0 in given.shape:
        raise ValueError(f"maps: expected shape (g, d) or (g, d, d), got {given.shape}")
    if given.ndim == 2:
        return OrthogonalGroup(_permutations(given))
    return OrthogonalGroup(_matrices(given))


def _permutations(given: NDArray[Any]) -> NDArray[Any]:
    if given.dtype.kind not in "iu":
        raise TypeError(f"maps: expected permutations of an integer dtype, got dtype {given.dtype}")
    perms = given.astype(np.intp)
    wrong = (np.sort(perms, axis=1) != np.arange(perms.shape[1])).any(axis=1)
    if wrong.any():
        first, last = perms[wrong][0].tolist(), perms.shape[1] - 1
        raise ValueError(f"maps: expected permutations of 0..{last}, got {first}")
    known = {row.tobytes() for row in perms}
    _check_distinct(len(known), len(perms))
    for k, perm in enumerate(perms):
        for j, product in enumerate(perms[:, perm]):
            if product.tobytes() not in known:
                _not_closed(j, k)
    return perms


def _matrices(given: NDArray[Any]) -> NDArray[Any]:
    if given.dtype.kind not in "fiu":
        raise TypeError(f"maps: expected matrices of a real dtype, got dtype {given.dtype}")
    q = array("maps", given, rank=3)
    g, d = q.shape[:2]
    if q.shape[2] != d:
        raise ValueError(f"maps: expected square matrices, got shape {q.shape}")
    defects = np.abs(q.swapaxes(1, 2) @ q - np.eye(d)).reshape(g, -1).max(axis=1)
    if defects.max() > ORTHOGONAL:
        raise ValueError(
            f"maps: expected orthogonal matrices, got one at [{int(defects.argmax())}] with "
            f"Q^T Q off the identity by {defects.max():.2g}"
        )
    # Maps are told apart by where they send one random vector: equal only if the maps are.
    v = np.random.default_rng(0).standard_normal(d)
    images = q @ (v / np.linalg.norm(v))

    def nearest(points: NDArray[np.float64]) -> NDArray[np.intp]:
        index: NDArray[np.intp] = (points @ images.T).argmax(axis=1)
        return index

    _check_distinct(len({int(k) for k in _same(images)}), g)
    for k in range(g):
        products = images @ q[k].T
        gaps = np.abs(products - images[nearest(products)]).max(axis=1)
        if gaps.max() > 1e-6:
            _not_closed(k, int(gaps.argmax()))
    return q


def _same(images: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each image the first that is equal to it."""
    gaps = np.array([np.abs(images - image).max(axis=1) for image in images])
    first: NDArray[np.intp] = (gaps < 1e-6).argmax(axis=1)
    return first


def _check_distinct(different: int, given: int) -> None:
    if different < given:
        raise ValueError(f"maps: expected distinct maps, got {given}, of them {different} distinct")


def _not_closed(first: int, second: int) -> None:
    raise ValueError(
        f"maps: expected a group, but the product of maps {first} and {second} is not among them"
    )


def _extents(shape: int | Sequence[int]) -> tuple[int, ...]:
    given = (shape,) if np.ndim(shape) == 0 else tuple(shape)  # type: ignore[arg-type]
    if not given:
        raise ValueError("shape: expected one extent or more, got ()")
    return tuple(count("shape", extent) for extent in given)  # type: ignore[arg-type]


def _axes(axes: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(rank))
    if np.ndim(axes) != 1:
        raise ValueError(f"axes: expected a sequence of distinct axes, got {axes!r}")
    chosen = tuple(axes)
    valid = all(isinstance(a, int | np.integer) and -rank <= a < rank for a in chosen)
    if not valid or len({int(a) % rank for a in chosen}) < len(chosen):
        raise ValueError(f"axes: expected distinct axes of {rank}, got {axes!r}")
    return tuple(int(a) % rank for a in chosen)
