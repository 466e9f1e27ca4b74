# SPDX-License-Identifier: Apache-2.0
"""From a model and a likelihood to the rows of its Fisher matrix, ``F = weight rows^T rows``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher._arrays import (
    Array,
    device_name,
    in_library,
    in_numpys_words,
    library,
    result_dtype,
)
from fastfisher._device_array import as_array
from fastfisher._jacobian import Jacobian
from fastfisher._ntk import Params, jacobian
from fastfisher._ntk import rows as sampled_rows
from fastfisher.errors import CaptureError, NonFiniteError
from fastfisher.factors import Explicit
from fastfisher.likelihoods import Categorical, Gaussian, Likelihood, likelihood_at
from fastfisher.structures._rooted import in_numpy, rooted

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for, apart from samples, structure and reduction."""

    likelihood: Likelihood
    kind: str
    samples: int
    seed: int | tuple[int, ...]
    select: Callable[[Any], Array] | None
    params: Params
    verify: bool
    axes: OutputAxes | None = None


class OutputAxes:
    """A `select` that notes the axes of a model's outputs before they are flattened into C."""

    def __init__(self, likelihood: Likelihood, select: Callable[[Any], Array] | None) -> None:
        self.single = isinstance(likelihood, Categorical) and likelihood.classes is None
        self.select = select
        self.shape: tuple[int, ...] = ()

    def __call__(self, returned: Any) -> Any:
        """Check outputs and give them back."""
        if self.select is None and not hasattr(returned, "shape"):
            raise CaptureError(
                f"the model returns {type(returned).__name__}, expected a tensor; pass select=, a "
                "function from what the model returns to the tensor of outputs"
            )
        found = returned if self.select is None else self.select(returned)
        shape = tuple(getattr(found, "shape", ()))
        if self.single and len(shape) > 2:
            raise ValueError(
                f"likelihood: 'categorical' has one softmax over all outputs of a sample, expected "
                f"outputs (N, C), got shape {shape}; for one softmax a position give outputs (N, "
                "..., classes), by select= where the axis is another, and "
                "fastfisher.likelihoods.Categorical(classes=...)"
            )
        self.shape = shape[1:]
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in numpy's words, the Jacobian they came from if any, and an array like results."""

    jacobian: Jacobian | None
    rows: Jacobian
    like: Array
    weight: float


def rows_of(model: Any, x: Any, y: Array | None, recipe: Recipe) -> Rows:
    """Rows of a model for some samples, or of a Jacobian."""
    options: dict[str, Any] = {
        "select": recipe.select, "params": recipe.params, "verify": recipe.verify
    }  # fmt: skip
    captured: Jacobian | None = None
    if isinstance(model, Jacobian):
        for name, value in (("x", x), ("select", recipe.select), ("params", recipe.params)):
            if value is not None:
                raise ValueError(f"{name}: expected None with a Jacobian, got one")
        captured = model
    elif x is None:
        raise ValueError("x: expected samples for a model, got None")
    elif recipe.kind == "exact" or getattr(model, "normalization", None) in ("mean", "batch"):
        captured = jacobian(model, x, **options)
    plain = recipe.kind == "exact" and type(recipe.likelihood) is Gaussian
    weight = 1 / recipe.samples if recipe.kind == "mc" else 1.0
    if captured is not None:
        host = in_numpy(captured)
        root = None
        if plain:
            assert isinstance(recipe.likelihood, Gaussian)
            weight = 1 / recipe.likelihood.variance
        else:
            root = _root(_outputs(host, recipe), y, recipe)
        return Rows(captured, _rows(host, root), captured.layers[0].g, weight)

    # Rows are made at the outputs: R backward passes, not C.
    def root_of(f: Array) -> Array:
        root = _root(in_numpys_words(f, "outputs").astype(np.float64), y, recipe)
        return in_library(root.astype(result_dtype(f)), f)

    draws = recipe.samples if recipe.kind == "mc" else 1
    given = sampled_rows(model, x, root_of, draws, **options)
    return Rows(None, in_numpy(given), given.layers[0].g, weight)


def _outputs(j: Jacobian, recipe: Recipe) -> Host:
    """Take the outputs (N, C) of the model, float64."""
    if j.outputs is None:
        raise ValueError(
            f"model: the Jacobian has no outputs, which likelihood "
            f"{type(recipe.likelihood).__name__.lower()} with kind={recipe.kind!r} needs; expected "
            "Jacobian.from_factors(..., outputs=...)"
        )
    f = as_array(j.outputs, np.float64)
    if not np.isfinite(f).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(f))[0])
        raise NonFiniteError(f"outputs: expected finite numbers, got {f[where]} at index {where}")
    return f


def _root(f: Host, y: Array | None, recipe: Recipe) -> Host:
    """Root S (N, C, R) of the curvature of each sample, up to the number of draws."""
    likelihood = likelihood_at(recipe.likelihood, f)
    if recipe.kind == "exact":
        return likelihood.root(f)
    if recipe.kind == "empirical":
        library(y, "y")
        given = _labels(y, f)
        own = recipe.axes.shape if recipe.axes is not None else ()
        if len(own) > 1:  # labels that have the axes of the outputs are flattened as these
            if isinstance(likelihood, Categorical) and given.shape[1:] == own[:-1]:
                given = given.reshape(len(given), -1)
            elif given.shape[1:] == own:
                given = given.reshape(len(given), f.shape[1])
        labels = likelihood.labels(given, f)
        if labels.ndim == 0 or len(labels) != len(f):
            raise ValueError(f"y: expected {len(f)} labels, got shape {labels.shape}")
        return _gradient(likelihood, f, labels)[:, :, None]
    rng = np.random.default_rng(recipe.seed)
    draws = [_gradient(likelihood, f, likelihood.sample(f, rng)) for _ in range(recipe.samples)]
    return np.stack(draws, -1)


def _labels(y: Array, f: Host) -> Host:
    """Labels in numpy's words, on the device of the outputs `f`."""
    if device_name(y) != device_name(f):
        raise TypeError(f"y: expected labels on {device_name(f)}, got some on {device_name(y)}")
    return in_numpys_words(y, "y")


def _gradient(likelihood: Likelihood, f: Host, labels: Host) -> Host:
    g = as_array(likelihood.gradient(f, labels), np.float64)
    if g.shape != f.shape:
        raise ValueError(f"gradient: expected shape {f.shape} as the outputs, got {g.shape}")
    return g


def _rows(j: Jacobian, root: Host | None) -> Jacobian:
    """Rows of the Fisher matrix; of outputs normalised over the batch written out."""
    if root is None or j.sample_map is None:
        return rooted(j, root)
    dense = j.dense().reshape(j.samples, j.n_outputs, -1)
    part = Jacobian((Explicit(dense, label="normalised"),), None, None, None)
    return rooted(part, root)
