# SPDX-License-Identifier: Apache-2.0
"""Which samples to augment, from their losses, and the batch with just those augmented."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastfisher._arrays import Array, dtype_name, library, put_rows, take_rows, to_numpy
from fastfisher.errors import NonFiniteError
from fastfisher.theory._checks import member

__all__ = ["MODES", "Selection", "check_rule", "mix", "select"]

MODES = ("above", "below")


@dataclass(frozen=True, eq=False)
class Selection:
    """Samples chosen for augmentation.

    Attributes
    ----------
    chosen : array of bool, shape (n,)
        Whether each sample is to be augmented.
    threshold : float
        Loss that decided, in units of the losses; of a quantile the loss found there.
    """

    chosen: NDArray[np.bool_]
    threshold: float

    @property
    def count(self) -> int:
        """Number of samples chosen."""
        return int(self.chosen.sum())

    @property
    def fraction(self) -> float:
        """Share of samples chosen, r_t in the paper."""
        return self.count / self.chosen.size


def select(
    losses: Any,
    *,
    threshold: float | None = None,
    quantile: float | None = None,
    mode: Literal["above", "below"] = "above",
) -> Selection:
    """Choose the samples whose loss is on one side of a threshold.

    Parameters
    ----------
    losses : array, shape (n,)
        Loss of each sample before augmentation; numbers of any real dtype in an array of any
        library, or a list.
    threshold : float, optional
        tau, in units of the losses; infinities are allowed. Give this or `quantile`.
    quantile : float, optional
        Take this quantile of the given losses, from 0 to 1, for tau: with 0.75 a quarter is
        augmented in mode ``"above"``, if no losses are equal.
    mode : "above" | "below"
        ``"above"`` chooses losses >= tau, ``"below"`` the others: losses < tau. For losses >= 0,
        tau = 0 chooses all and tau = inf none in the first mode, the other way round in the second.

    Returns
    -------
    Selection
        On the host.

    Raises
    ------
    ValueError
        No losses, wrong rank, a threshold of NaN or a quantile outside [0, 1], both or neither of
        them.
    NonFiniteError
        A loss is NaN or infinite.
    TypeError
        Losses of a dtype without order.

    Notes
    -----
    Losses are compared in float64, to which every other float converts exactly. Losses on a GPU are
    copied to the host: that waits for them.

    Examples
    --------
    >>> import numpy as np
    >>> picked = select(np.array([0.1, 2.0, 0.7, 0.0]), threshold=0.5)
    >>> picked.chosen.tolist(), picked.fraction
    ([False, True, True, False], 0.5)
    """
    check_rule(threshold, quantile, mode)
    values = _losses(losses)
    if quantile is not None:
        # Differences of the largest numbers overflow; a power of two keeps every digit.
        half = 0.5 if np.abs(values).max() > np.finfo(np.float64).max / 4 else 1.0
        tau = float(np.quantile(half * values, quantile)) / half
    else:
        assert threshold is not None
        tau = float(threshold)
    above = values >= tau
    return Selection(above if mode == "above" else ~above, tau)


def mix(x: Array, chosen: Any, augment: Callable[[Array], Array]) -> Array:
    """Batch in which the chosen samples are augmented and the others are as they were.

    Parameters
    ----------
    x : array, shape (n, ...)
        Samples, in an array of numpy, torch, cupy or jax.
    chosen : array of bool, shape (n,)
        Of `select`.
    augment : callable
        Takes samples (k, ...) and returns as many of the same shape and dtype, one for one, in an
        array of the same library. It sees the chosen samples only, in their order, and is not
        called if there are none. It must not write into its argument.

    Returns
    -------
    array, shape (n, ...)
        `x` itself if nothing was chosen; what ``augment(x)`` returned if everything was; else new.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    TypeError
        `chosen` is not of dtype bool, `x` is no array, or `augment` changed library or dtype.

    Notes
    -----
    An augmentation that draws random numbers draws none for samples that are left alone. Hence
    choosing all samples equals plain augmentation, and choosing none equals no augmentation, bit
    for bit, the state of random number generators included.

    Examples
    --------
    >>> import numpy as np
    >>> mix(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([False, True]), lambda x: x[:, ::-1])
    array([[1., 2.],
           [4., 3.]])
    """
    owner = library(x, "x")
    mask = np.asarray(chosen if isinstance(chosen, list | tuple) else to_numpy(chosen))
    if mask.dtype != np.bool_:
        raise TypeError(f"chosen: expected dtype bool, got {mask.dtype}")
    if len(x.shape) == 0 or mask.shape != (x.shape[0],):
        raise ValueError(
            f"chosen: expected one value a sample, shape {tuple(x.shape[:1])}, got {mask.shape}"
        )
    rows = np.flatnonzero(mask)
    if rows.size == 0:
        return x
    whole = rows.size == mask.size
    changed = augment(x if whole else take_rows(x, rows))
    _check_augmented(changed, x, rows.size, owner)
    if whole:
        return changed
    base = x if owner == "jax" else x.clone() if owner == "torch" else x.copy()
    return put_rows(changed, rows, base)


def check_rule(threshold: object, quantile: object, mode: str) -> None:
    """Require a mode and exactly one of a threshold and a quantile, before any work."""
    member("mode", mode, MODES)
    if (threshold is None) == (quantile is None):
        raise ValueError(
            "threshold: expected either a threshold or a quantile, got "
            + ("neither" if threshold is None else "both")
        )
    name, value = ("threshold", threshold) if quantile is None else ("quantile", quantile)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    if quantile is not None and not 0 <= number <= 1:
        raise ValueError(f"quantile: expected a number from 0 to 1, got {value!r}")


def _losses(losses: Any) -> NDArray[np.float64]:
    try:
        host = np.asarray(losses) if isinstance(losses, list | tuple) else to_numpy(losses)
    except ValueError:
        raise ValueError(f"losses: expected one number a sample, got {losses!r}") from None
    if host.dtype.kind not in "fiu":
        raise TypeError(f"losses: expected a real dtype, got dtype {host.dtype}")
    if host.ndim != 1 or host.size == 0:
        raise ValueError(
            f"losses: expected one number a sample, shape (n,) with n >= 1, got shape {host.shape}"
        )
    values = host.astype(np.float64)
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise NonFiniteError(f"losses: expected finite numbers, got {values[index]} at [{index}]")
    return values


def _check_augmented(changed: Array, x: Array, rows: int, owner: str) -> None:
    if library(changed, "augment") != owner:
        raise TypeError(f"augment: expected an array of {owner}, got one of {library(changed)}")
    if dtype_name(changed) != dtype_name(x):
        raise TypeError(
            f"augment: expected samples of dtype {dtype_name(x)}, got {dtype_name(changed)}"
        )
    expected = (rows, *x.shape[1:])
    if tuple(changed.shape) != expected:
        raise ValueError(f"augment: expected shape {expected}, got {tuple(changed.shape)}")
