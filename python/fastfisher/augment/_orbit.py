# SPDX-License-Identifier: Apache-2.0
"""Kernel averaged over a group: what augmenting by the whole group does to a kernel method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfisher.augment._groups import OrthogonalGroup
from fastfisher.theory._checks import array

__all__ = ["averaged_kernel"]

Floats = NDArray[np.float64]

# Samples at which the invariance of the kernel is checked, and the deviation allowed: closed forms
# with arccos are good to 1e-8 for samples that nearly coincide.
CHECKED, INVARIANT = 3, 1e-6


def averaged_kernel(
    kernel: Callable[..., ArrayLike],
    group: OrthogonalGroup,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    check: bool = True,
) -> Floats:
    """Average ``(1/|G|) sum_g k(x, g x')`` of a kernel over a finite group.

    Parameters
    ----------
    kernel : callable
        ``kernel(a, b)`` with samples (n, d) and (m, d) gives (n, m); ``kernel(a)`` the kernel of
        samples with themselves, with an exact diagonal. For instance
        ``functools.partial(ff.kernels.ntk, depth=3)``.
    group : OrthogonalGroup
        G, for instance `cyclic_shifts` or `flips`.
    x : array, shape (n, d)
        Samples.
    y : array, shape (m, d), optional
        Other samples; `x` by default.
    check : bool
        Whether to check on a few samples that the kernel does not change when both arguments are
        mapped, as those of fully connected networks do not.

    Returns
    -------
    array, shape (n, m), float64
        Positive semi-definite for one set of samples.

    Raises
    ------
    ValueError
        Wrong shapes, NaN or infinity; a kernel that the group does change.
    TypeError
        A group that is none.

    Notes
    -----
    With the full orbits of N samples as training set, gradient descent and ridge regression with k
    are, at every step and at every point, the same as with this kernel on the N samples alone
    (derived for this library). A ridge lambda on the orbits is lambda / |G| here; learning rates
    are the same if the loss is a mean over samples, N |G| of them or N. As a prior of Gaussian
    processes this is the covariance of functions averaged over the group.

    Cost: |G| kernels. Where a map takes one sample exactly to another, the value is taken from
    ``kernel(a)``: between equal samples ``kernel(a, b)`` may lose half of the digits.

    Examples
    --------
    >>> from fastfisher.augment import cyclic_shifts
    >>> def linear(a, b=None):
    ...     return a @ (a if b is None else b).T
    >>> averaged_kernel(linear, cyclic_shifts(2), [[1.0, 0.0], [2.0, 4.0]])
    array([[ 0.5,  3. ],
           [ 3. , 18. ]])
    """
    if not isinstance(group, OrthogonalGroup):
        raise TypeError(
            f"group: expected an OrthogonalGroup, as group() makes one, got {type(group).__name__}"
        )
    left = array("x", x, rank=2)
    right = left if y is None else array("y", y, rank=2, shape=None)
    for name, samples in (("x", left), ("y", right)):
        if samples.shape[1] != group.size:
            raise ValueError(f"{name}: expected shape (n, {group.size}), got {samples.shape}")
    if left.size == 0 or right.size == 0:
        return np.zeros((len(left), len(right)))
    if check:
        _check_invariance(kernel, group, left, right)
    places = defaultdict(list)
    for i, sample in enumerate(left + 0.0):  # -0.0 and 0.0 are equal
        places[sample.tobytes()].append(i)
    own: Floats | None = None
    total = np.zeros((len(left), len(right)))
    for mapped in group.apply(right):
        values = _values(kernel(left, mapped), total.shape)
        for j, sample in enumerate(mapped + 0.0):
            rows = places.get(sample.tobytes())
            if rows:
                if own is None:
                    own = np.diagonal(_values(kernel(left), (len(left), len(left))))
                values[rows, j] = own[rows]
        total += values
    total /= len(group)
    return (total + total.T) / 2 if y is None else total


def _values(values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    return array("kernel", values, rank=2, shape=shape).copy()


def _check_invariance(
    kernel: Callable[..., ArrayLike], group: OrthogonalGroup, x: Floats, y: Floats
) -> None:
    a, b = x[:CHECKED], y[:CHECKED]
    expected = _values(kernel(a, b), (len(a), len(b)))
    scale = np.abs(expected).max()
    for k, (mapped, other) in enumerate(zip(group.apply(a), group.apply(b), strict=True)):
        off = np.abs(_values(kernel(mapped, other), expected.shape) - expected).max()
        if off > INVARIANT * scale:
            raise ValueError(
                f"kernel: expected one that the group does not change, got {off / scale:.2g} of "
                f"its size between k(g x, g y) and k(x, y) for map {k}"
            )
