# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptrons with random Gaussian or orthogonal weights, and their Jacobians.

    u^l = W^l h^{l-1} + b^l,    h^0 = x,    h^l = phi(u^l) for l < L,    f = u^L

The Jacobian comes from one backward pass for all C outputs, by plain matrix products:
delta^L = I, delta^l = phi'(u^l) * (delta^{l+1} W^{l+1}); layer l has the factors a = h^{l-1} and
g = delta^l.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fastfisher._arrays import Array, from_numpy, library, namespace, to_numpy
from fastfisher._jacobian import Jacobian
from fastfisher._layer import Layer
from fastfisher._parameters import flatten, unflatten
from fastfisher.errors import NumericalError
from fastfisher.factors import Dense, Shared
from fastfisher.models import coupled
from fastfisher.models._checks import (
    checked_dtype,
    checked_widths,
    require_dtype,
    require_finite,
    require_member,
)
from fastfisher.models.activations import ACTIVATIONS
from fastfisher.models.normalization import NORMALIZATIONS, derivative, normalise, through

PARAMETERIZATIONS = ("standard", "ntk", "orthogonal")


class MLP:
    """Multilayer perceptron of L affine layers.

    Parameters
    ----------
    widths : sequence of int
        (M_0, ..., M_L): widths of the input and of the hidden layers, number of outputs C = M_L.
    activation : "relu" | "tanh" | "erf" | "linear" | "hard-tanh"
        phi of the hidden layers; the last layer is linear.
    sigma_w2, sigma_b2 : float
        Variances of weights (times the width below) and of biases.
    parameterization : "standard" | "ntk" | "orthogonal"
        ``standard``: trainable W ~ N(0, sigma_w2 / M_in), b ~ N(0, sigma_b2). ``ntk``: trainable
        omega, beta ~ N(0, 1) with W = sqrt(sigma_w2 / M_in) omega, b = sqrt(sigma_b2) beta, and no
        biases if sigma_b2 = 0. ``orthogonal``: W = sigma_w O with O Haar orthogonal, for
        M_out != M_in semi-orthogonal and scaled by sqrt(max(1, M_out / M_in)), biases as in
        ``standard``.
    normalization : None | "mean" | "batch" | "layer"
        Of the outputs: subtract the mean over samples, also divide by the standard deviation over
        samples (1/N), or do both over the outputs of each sample. No small constant is added to the
        deviation.
    hidden_normalization : None | "mean" | "batch"
        The same of the hidden pre-activations, over samples. The Jacobian then takes memory of
        order N^2 C M a layer.
    seed : int
        Seed of the parameters.
    dtype : "float64" | "float32"
        dtype of parameters and of everything computed.

    Attributes
    ----------
    parameters : dict of str to numpy array
        Trainables by name in the order of the Jacobian's columns: ``"0.weight"`` (M_1, M_0),
        ``"0.bias"`` (M_1,), ``"1.weight"``, ... For samples on a device they are moved there at
        each call.

    Raises
    ------
    ValueError, TypeError
        Widths, names or variances out of range; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> mlp = ff.models.MLP((3, 16, 2), activation="tanh", sigma_w2=1.5)
    >>> mlp(np.ones((5, 3))).shape
    (5, 2)
    >>> mlp.jacobian(np.ones((5, 3))).shape
    (10, 98)
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Literal["relu", "tanh", "erf", "linear", "hard-tanh"] = "relu",
        sigma_w2: float = 2.0,
        sigma_b2: float = 0.0,
        parameterization: Literal["standard", "ntk", "orthogonal"] = "standard",
        normalization: Literal["mean", "batch", "layer"] | None = None,
        hidden_normalization: Literal["mean", "batch"] | None = None,
        seed: int = 0,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        require_member("activation", activation, ACTIVATIONS)
        require_member("parameterization", parameterization, PARAMETERIZATIONS)
        require_member("normalization", normalization, NORMALIZATIONS)
        require_member("hidden_normalization", hidden_normalization, coupled.HIDDEN_NORMALIZATIONS)
        self.widths = checked_widths(widths)
        if normalization == "layer" and self.widths[-1] == 1:
            raise ValueError("normalization: 'layer' needs two outputs or more, widths[-1] is 1")
        for name, value, allowed in (
            ("sigma_w2", sigma_w2, sigma_w2 > 0),
            ("sigma_b2", sigma_b2, sigma_b2 >= 0),
        ):
            if not (allowed and math.isfinite(value)):
                bound = "> 0" if name == "sigma_w2" else ">= 0"
                raise ValueError(f"{name}: expected a finite number {bound}, got {value}")
        self.activation = activation
        self.sigma_w2 = float(sigma_w2)
        self.sigma_b2 = float(sigma_b2)
        self.parameterization = parameterization
        self.normalization = normalization
        self.hidden_normalization = hidden_normalization
        self.dtype = checked_dtype(dtype)
        rng = np.random.default_rng(seed)
        self.parameters: dict[str, np.ndarray[Any, Any]] = {
            name: self._draw(rng, shape).astype(self.dtype)
            for name, shape in self._parameter_shapes().items()
        }

    def __repr__(self) -> str:
        """Show the constructor's call, less the seed."""
        return (
            f"MLP({self.widths}, activation={self.activation!r}, sigma_w2={self.sigma_w2}, "
            f"sigma_b2={self.sigma_b2}, parameterization={self.parameterization!r}, "
            f"normalization={self.normalization!r}, "
            f"hidden_normalization={self.hidden_normalization!r}, dtype={self.dtype!r})"
        )

    def __call__(self, x: Array) -> Array:
        """Compute the outputs (N, C) for samples x (N, M_0), in the library of `x`.

        Raises
        ------
        TypeError
            `x` is no array or has another dtype than the model.
        ValueError
            Shape other than (N, M_0); outputs that cannot be normalised since they do not vary.
        NonFiniteError
            NaN or infinity in `x` or in a parameter.
        NumericalError
            The outputs overflow.
        """
        _, pre_activations, _ = self._forward(x)
        return normalise(pre_activations[-1], self.normalization)[0]

    def jacobian(self, x: Array, *, root_of: Callable[[Array], Array] | None = None) -> Jacobian:
        """Jacobian with respect to all trainables for samples x (N, M_0), as factors.

        With `root_of`, a function from the outputs f (N, C) to an array S (N, C, R), that of
        ``sum_c S[n, c, r] f_c(x_n)`` with S held constant: one backward pass for R rows.

        Raises as ``mlp(x)`` does, and ValueError for a torch tensor `x` that requires grad.
        """
        if getattr(x, "requires_grad", False):
            raise ValueError("x: got a tensor that requires grad; pass x.detach()")
        inputs, pre_activations, deviations = self._forward(x)
        outputs, deviation = normalise(pre_activations[-1], self.normalization)
        delta, sample_map = derivative(outputs, deviation, self.normalization)
        if delta is None:  # shared by all samples, until the first slopes come in
            delta = from_numpy(np.eye(self.widths[-1], dtype=self.dtype)[None], x)
        if root_of is not None:
            root = root_of(outputs).swapaxes(1, 2)  # (n, r, c)
            delta = through(root, delta, sample_map)
            sample_map = None
        known = outputs if root_of is None else None
        slope = ACTIVATIONS[self.activation].slope
        slopes = [slope(u, h) for u, h in zip(pre_activations, inputs[1:], strict=False)]
        if self.hidden_normalization is not None:
            given = (inputs, pre_activations, deviations, slopes, delta)
            return Jacobian(coupled.layers(self, *given), known, sample_map)
        layers: list[Layer] = []
        for index in reversed(range(len(inputs))):
            g = namespace(x).broadcast_to(delta, (x.shape[0], *delta.shape[1:]))
            layers.append(self._factors(index, inputs[index], g))
            if index:
                delta = self._backward(index, delta) * slopes[index - 1][:, None, :]
        return Jacobian(tuple(reversed(layers)), known, sample_map)

    def with_parameters(self, parameters: Mapping[str, Array] | Array) -> MLP:
        """Model of the same kind with a copy of `parameters`: a dict by name, or a vector (P,).

        Raises
        ------
        ValueError
            Names or shapes that do not fit.
        TypeError
            A dtype other than the model's.
        """
        shapes = self._parameter_shapes()
        vector = flatten(parameters, shapes) if isinstance(parameters, Mapping) else parameters
        library(vector, "parameters")
        require_dtype("parameters", vector, self.dtype)
        new = copy.copy(self)
        new.parameters = {name: p.copy() for name, p in unflatten(to_numpy(vector), shapes).items()}
        return new

    def astype(self, dtype: Literal["float64", "float32"]) -> MLP:
        """Copy of the model with its parameters rounded or widened to `dtype`."""
        new = copy.copy(self)
        new.dtype = checked_dtype(dtype)
        new.parameters = {name: p.astype(new.dtype) for name, p in self.parameters.items()}
        return new

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for index, (i, o) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            shapes[f"{index}.weight"] = (o, i)
            if self._scales(index)[1] > 0:
                shapes[f"{index}.bias"] = (o,)
        return shapes

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Random parameter, float64; a weight if `shape` is (o, i), a bias if it is (o,)."""
        gaussian = rng.standard_normal(shape)
        if self.parameterization == "ntk":
            return gaussian
        if len(shape) == 1:
            return math.sqrt(self.sigma_b2) * gaussian
        o, i = shape
        if self.parameterization == "standard":
            return math.sqrt(self.sigma_w2 / i) * gaussian
        q, r = np.linalg.qr(gaussian if o >= i else gaussian.T)
        q *= np.sign(np.diagonal(r))  # without the signs q is not Haar distributed
        return math.sqrt(self.sigma_w2 * max(1.0, o / i)) * (q if o >= i else q.T)

    def _scales(self, index: int) -> tuple[float, float]:
        """Factors from trainables to weight and bias of a layer; the second is 0 without bias."""
        if self.parameterization != "ntk":
            return 1.0, 1.0
        return math.sqrt(self.sigma_w2 / self.widths[index]), math.sqrt(self.sigma_b2)

    def _forward(self, x: Array) -> tuple[list[Array], list[Array], list[Array | None]]:
        """Run the network: inputs h^{l-1} and pre-activations u^l of every layer.

        Hidden pre-activations are the normalised ones; third are what they were divided by, if so.
        """
        self._check(x)
        value = ACTIVATIONS[self.activation].value
        inputs: list[Array] = [x]
        pre_activations: list[Array] = []
        deviations: list[Array | None] = []
        for index in range(len(self.widths) - 1):
            if index:
                inputs.append(value(pre_activations[-1]))
            weight_scale, bias_scale = self._scales(index)
            weight = from_numpy(self.parameters[f"{index}.weight"], x)
            u = _scaled(inputs[-1] @ weight.T, weight_scale)
            if bias_scale > 0:
                u = u + _scaled(from_numpy(self.parameters[f"{index}.bias"], x), bias_scale)
            kind = self.hidden_normalization if index < len(self.widths) - 2 else None
            u, deviation = normalise(u, kind, f"units of layer {index}")
            pre_activations.append(u)
            deviations.append(deviation)
        if not bool(namespace(x).isfinite(pre_activations[-1]).all()):
            raise NumericalError(f"outputs: overflow of dtype {self.dtype}")
        return inputs, pre_activations, deviations

    def _backward(self, index: int, delta: Array) -> Array:
        """``delta W`` for layer `index`, delta (m, c, o), as one product."""
        weight = from_numpy(self.parameters[f"{index}.weight"], delta)
        (m, c, o), i = delta.shape, weight.shape[1]
        return _scaled(delta.reshape(m * c, o) @ weight, self._scales(index)[0]).reshape(m, c, i)

    def _factors(self, index: int, a: Array, g: Array) -> Dense | Shared:
        """Layer `index` with respect to its trainables, from its factors with respect to (W, b)."""
        weight_scale, bias_scale = self._scales(index)
        form = Dense if len(g.shape) == 3 else Shared
        if bias_scale == 0:
            return form(_scaled(a, weight_scale), g, label=str(index))
        # The bias column of a is 1 and never stored, so the bias' factor goes into g.
        a, g = _scaled(a, weight_scale / bias_scale), _scaled(g, bias_scale)
        return form(a, g, bias=True, label=str(index))

    def _check(self, x: Array) -> None:
        library(x, "x")
        if len(x.shape) != 2 or x.shape[1] != self.widths[0]:
            raise ValueError(f"x: expected shape (N, {self.widths[0]}), got {tuple(x.shape)}")
        require_dtype("x", x, self.dtype)
        for name, array in (("x", x), *self.parameters.items()):
            require_finite(name, array)


def _scaled(x: Array, factor: float) -> Array:
    return x if factor == 1.0 else x * factor
