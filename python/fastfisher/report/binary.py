# SPDX-License-Identifier: Apache-2.0
"""Two classes of real digits as a regression with targets +-1/2, train and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfisher.report.data import DATA_SETS

__all__ = ["BinarySplit", "load_binary"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BinarySplit:
    """Images of two classes.

    Attributes
    ----------
    title : str
        The collection's name on the page.
    x, test_x : arrays, shapes (n, i) and (m, i), float64
        Images; each split standardised by its own mean and deviation over all pixels, then each
        image scaled to norm 1.
    y, test_y : arrays, shapes (n, 1) and (m, 1)
        -1/2 for the first class, +1/2 for the second.
    """

    title: str
    x: Floats
    y: Floats
    test_x: Floats
    test_y: Floats


def load_binary(
    name: str, *, train: int, test: int, seed: int, classes: tuple[int, int] = (0, 1)
) -> BinarySplit:
    """Draw images of two classes, as Karakida and Osawa 2020 prepared theirs.

    Parameters
    ----------
    name : str
        A key of `fastfisher.report.data.DATA_SETS`.
    train, test : int
        Numbers of images, at least one each; the two splits share none.
    seed : int
        Seed of the draw.
    classes : pair of int

    Returns
    -------
    BinarySplit

    Raises
    ------
    ValueError
        Unknown name; more images than there are of these classes.
    MissingExtraError
        The package that carries the data set is not installed.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data: expected one of {', '.join(DATA_SETS)}, got {name!r}")
    title, read = DATA_SETS[name]
    images, labels = (np.asarray(part) for part in read())
    members = np.flatnonzero(np.isin(labels, classes))
    if train < 1 or test < 1 or train + test > members.size:
        raise ValueError(
            f"train: expected train, test >= 1 of at most {members.size} images together, "
            f"got {train} and {test}"
        )
    chosen = np.random.default_rng(seed).permutation(members)[: train + test]
    x = np.asarray(images, np.float64)[chosen]
    y = np.where(labels[chosen] == classes[0], -0.5, 0.5)[:, None]
    return BinarySplit(
        title, _standardised(x[:train]), y[:train], _standardised(x[train:]), y[train:]
    )


def _standardised(x: Floats) -> Floats:
    centred = (x - x.mean()) / x.std()
    unit: Floats = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit
