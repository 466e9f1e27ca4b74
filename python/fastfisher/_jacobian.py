# SPDX-License-Identifier: Apache-2.0
"""The Jacobian of all outputs for all samples, held as per-layer factors and never formed.

``J[(n, c), p] = d f_c(x_n) / d theta_p``, rows sample-major. Parameters run layer by layer, each
layer as ``[W (o, i) row-major, b (o)]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfisher import _gram, _products
from fastfisher._align import aligned
from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    empty,
    is_negated,
    library,
    namespace,
    put_rows,
    result_dtype,
    take_rows,
    zeros,
)
from fastfisher._gram import Method, Precision
from fastfisher._gram_checks import Outputs
from fastfisher._info import GramInfo
from fastfisher._layer import Layer, check_layers
from fastfisher._lookup import cut
from fastfisher._parameters import Parameters, flatten, unflatten
from fastfisher._sample_map import SampleMap, mapped_gram
from fastfisher.factors import Explicit


@dataclass(frozen=True, eq=False, slots=True)
class Jacobian:
    """Jacobian of a model, (N*C) x P, as factors; made by `from_factors` or `fastfisher.jacobian`.

    Attributes
    ----------
    layers : tuple of layers
        Factors of each layer: `Dense`, `Shared`, `Conv`, `Explicit`.
    outputs : array, shape (N, C), or None
        Outputs of the model, where known.
    sample_map : SampleMap, optional
        Map R of sample space for outputs that are normalised over the batch: the Jacobian is then
        R J, with J the one of the layers.
    parameters : Parameters, optional
        Names and order of the parameters where they are not those of the layers.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> layer = ff.Dense(np.ones((4, 3)), np.ones((4, 2, 5)), bias=True)
    >>> J = ff.Jacobian.from_factors([layer])
    >>> J.shape
    (8, 20)
    >>> J.gram(outputs="trace").shape
    (4, 4)
    >>> (J.T @ (J @ np.ones(20))).shape
    (20,)
    """

    layers: tuple[Layer, ...]
    outputs: Array | None = None
    sample_map: SampleMap | None = None
    parameters: Parameters | None = None

    def __post_init__(self) -> None:
        check_layers(self.layers)
        repeated = len(self.layers) - len(set(self.names))
        if repeated:
            raise ValueError(f"layers: expected distinct labels, got {self.names}")
        expected = (self.samples, self.n_outputs)
        if self.outputs is not None and tuple(self.outputs.shape) != expected:
            raise ValueError(f"outputs: expected shape {expected}, got {tuple(self.outputs.shape)}")

    @classmethod
    def from_factors(cls, layers: Sequence[Layer], *, outputs: Array | None = None) -> Jacobian:
        """Jacobian of a model with the given layers.

        Parameters
        ----------
        layers : sequence of layers
            Factors, in the order of the parameters; samples, outputs, dtype and device agree.
        outputs : array, shape (N, C), optional
            Outputs of the model, kept for likelihoods that need them.

        Raises
        ------
        ValueError
            No layer, numbers of samples or outputs that differ, a label used twice.
        TypeError
            Something that is no layer, or mixed dtypes, libraries or devices.
        """
        if isinstance(layers, Layer) or not isinstance(layers, Iterable):
            raise TypeError(f"layers: expected a list of layers, got {type(layers).__name__}")
        return cls(tuple(layers), outputs)

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return self.layers[0].samples

    @property
    def n_outputs(self) -> int:
        """Number of outputs C."""
        return self.layers[0].n_outputs

    @property
    def shape(self) -> tuple[int, int]:
        """``(N*C, P)``."""
        return self.samples * self.n_outputs, self._parameter_count

    @property
    def names(self) -> list[str]:
        """Names of the layers: their labels, else their positions."""
        return [layer.label or str(index) for index, layer in enumerate(self.layers)]

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name (``"0.weight"``, ``"0.bias"``, ...), in their order."""
        if self.parameters is not None:
            return dict(self.parameters.shapes)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            for kind, shape in layer.parameter_shapes.items():
                shapes[f"{name}.{kind}"] = shape
        return shapes

    @property
    def T(self) -> TransposedJacobian:
        """Transposed view, for ``J.T @ u``."""
        return TransposedJacobian(self)

    def split(self) -> dict[str, Jacobian]:
        """Jacobian of each layer's parameters alone, by name of the layer.

        Of a captured model, of each module that owns parameters, by name of the module: ``""`` is
        the model itself. Of a captured function, by what names have before their last dot, else
        by the name.
        """
        parts: dict[str, list[Layer]] = {}
        owned: list[dict[str, Any]] = [{name: slice(None)} for name in self.names]
        if self.parameters is not None:
            owned = self.parameters.owners([layer.parameters for layer in self.layers])
        for owners, layer in zip(owned, self.layers, strict=True):
            for name, columns in owners.items():
                part = layer
                if len(owners) > 1:
                    # One product with the weights of several modules.
                    part = Explicit(layer.block()[..., columns], label=layer.label)
                parts.setdefault(name, []).append(part)
        return {
            name: Jacobian(tuple(layers), self.outputs, self.sample_map)
            for name, layers in parts.items()
        }

    def aligned(self, other: Jacobian) -> tuple[Jacobian, Jacobian]:
        """Make this and another Jacobian fit layer by layer, their product unchanged.

        What the layers of a captured model are may depend on the samples: those that do not fit are
        written out, as far as both sides have their columns. Other Jacobians come back as they are.

        Raises
        ------
        ValueError
            Captured models with other parameters.
        """
        if self.parameters is None or other.parameters is None:
            return self, other
        mine, theirs = list(self.parameters.shapes.items()), list(other.parameters.shapes.items())
        if mine != theirs:
            raise ValueError(f"other: expected the parameters {mine}, got {theirs}")
        return tuple(  # type: ignore[return-value]
            Jacobian(layers, source.outputs, source.sample_map, parameters)
            for source, (layers, parameters) in zip(
                (self, other),
                aligned((self.layers, self.parameters), (other.layers, other.parameters)),
                strict=True,
            )
        )

    def gram(
        self,
        other: Jacobian | None = None,
        *,
        outputs: Outputs = "full",
        precision: Precision = "highest",
        method: Method = "auto",
        out: Array | None = None,
        memory_limit: int | str | None = None,
        threads: int = 0,
        progress: bool = False,
        return_info: bool = False,
    ) -> Any:
        """Gram matrix ``J J^T``, or ``J other^T``: the empirical neural tangent kernel.

        Parameters
        ----------
        other : Jacobian, optional
            Jacobian of the same parameters for M other samples with D outputs.
        outputs : "full" | "trace" | "diagonal" | "sum" | int
            Which outputs: see Returns.
        precision, method, out, memory_limit, threads, progress, return_info
            As in `fastfisher.gram`. Outputs that are normalised over the batch need a few arrays of
            the size of the result besides; for "trace" and "sum" of batch-normalised ones, of the
            size of "diagonal" and "full".

        Returns
        -------
        array, in the library, dtype and device of the factors
            ``full`` (N, C, M, D), contiguous; ``trace`` (N, M), the sum over c of full[n, c, m, c];
            ``diagonal`` (N, M, C); an int c (N, M), full[:, c, :, c]; ``sum`` (N, M), of the summed
            outputs. Without `other` it is symmetric bit for bit, with a diagonal >= 0.

        Raises
        ------
        NonFiniteError
            Factors that hold NaN or infinity.
        ValueError, TypeError
            Arguments or Jacobians that do not fit; the message names them.
        """
        if other is not None and not isinstance(other, Jacobian):
            raise TypeError(f"other: expected a fastfisher.Jacobian, got {type(other).__name__}")
        ours, theirs = (self, None) if other is None else self.aligned(other)
        left, right = self.sample_map, self.sample_map if other is None else other.sample_map
        infos: list[GramInfo] = []

        def plain(form: Outputs, out: Array | None = None) -> Array:
            result, info = _gram.gram_factors(
                ours.layers,
                None if theirs is None else theirs.layers,
                outputs=form,
                precision=precision,
                method=method,
                out=out,
                memory_limit=memory_limit,
                threads=threads,
                progress=progress,
                return_info=True,
            )
            infos.append(info)
            return result

        if left is None and right is None:
            result = plain(outputs, out)
        else:
            square = other is None
            result = mapped_gram(plain, left, right, outputs=outputs, square=square, out=out)
        return (result, infos[0]) if return_info else result

    def __matmul__(self, v: Array) -> Array:
        """``J v`` for v (P,) or (P, k): (N*C,) or (N*C, k).

        Parameters
        ----------
        v : array, shape (P,) or (P, k)
            One vector or k of them as columns, any strides; library and device of the factors,
            their dtype, for 16-bit factors float32.

        Returns
        -------
        array, shape (N*C,) or (N*C, k)
            Of the library, device and dtype of `v`; the same bits for any number of threads.

        Raises
        ------
        ValueError
            A shape that does not fit, or layers of a batch of networks.
        TypeError
            Another library, device or dtype than that of the layers.
        NonFiniteError
            `v` or a factor holds NaN or infinity; the message says where.
        NumericalError
            The result overflows the dtype.

        Notes
        -----
        Two matrix products a layer with the stored factors, no pass of the model: for N samples
        with T positions ``N T o (i + C)`` multiply-adds a column. Fisher-vector products are
        ``J.T @ (H @ (J @ v)) / N`` for the curvature H of the loss in the outputs.
        """
        columns, shape = self._columns(v, "v", self.shape[1])
        layers, order = self._cut()
        if order is not None:
            columns = take_rows(columns, order)
        u = _products.jvp(layers, columns, v)
        if self.sample_map is not None:
            u = self.sample_map.apply(u)
        return u.reshape(shape)

    def dense(self) -> Array:
        """Form the matrix, (N*C, P), in the caller's library; for small models and tests.

        Raises
        ------
        NonFiniteError, NumericalError
            A factor holds NaN or infinity; an entry overflows.
        """
        blocks = [x.widened().block() for x in self.layers]
        j = namespace(blocks[0]).concatenate(blocks, -1)
        _products.check_dense(j, self.layers)
        if self.parameters is not None and self.parameters.order is not None:
            rows = zeros((self.parameters.size, *j.shape[1::-1]), j)
            j = put_rows(j.swapaxes(0, 2), self.parameters.order, rows).swapaxes(0, 2)
        if self.sample_map is not None:
            j = self.sample_map.apply(j)
        return j.reshape(self.shape)

    def flatten(self, parameters: Mapping[str, Array]) -> Array:
        """Vector (P,) of the named `parameters`, in the order of the columns.

        Raises
        ------
        ValueError
            A name that is missing or unknown, or a shape that does not fit.
        """
        if not self.parameter_shapes and not parameters:
            like = self.layers[0].g
            return empty((0,), like, result_dtype(like))
        return flatten(parameters, self.parameter_shapes)

    def unflatten(self, vector: Array) -> dict[str, Array]:
        """Named parameters of a `vector` (P,): weights (o, i) and biases (o,), as views of it.

        Raises
        ------
        ValueError
            A shape other than (P,).
        """
        return unflatten(vector, self.parameter_shapes)

    @property
    def _parameter_count(self) -> int:
        if self.parameters is not None:
            return self.parameters.size
        return sum(layer.parameters for layer in self.layers)

    def _cut(self) -> tuple[Sequence[Layer], np.ndarray[Any, Any] | None]:
        """Layers without tables, and the positions of their columns."""
        return cut(self.layers, None if self.parameters is None else self.parameters.order)

    def _columns(self, v: Array, name: str, rows: int) -> tuple[Array, tuple[int, ...]]:
        """`v` checked and as a matrix, and the shape of the product."""
        library(v, name)
        g = self.layers[0].g
        if self.layers[0].batch is not None:
            raise ValueError("layers: a batch of networks has no products, expected one network")
        for what, of in (("library", library), ("device", device_name)):
            if of(v) != of(g):
                raise TypeError(f"{name}: expected {what} {of(g)} as in the layers, got {of(v)}")
        if dtype_name(v) != result_dtype(g):
            raise TypeError(
                f"{name}: expected dtype {result_dtype(g)} for layers of dtype {dtype_name(g)}, "
                f"got dtype {dtype_name(v)}"
            )
        if is_negated(v):
            raise TypeError(f"{name}: has torch's negative bit set; pass {name}.resolve_neg()")
        if len(v.shape) not in (1, 2) or v.shape[0] != rows:
            raise ValueError(
                f"{name}: expected shape ({rows},) or ({rows}, k), got {tuple(v.shape)}"
            )
        length = self.shape[0] + self.shape[1] - rows
        return (v[:, None], (length,)) if len(v.shape) == 1 else (v, (length, v.shape[1]))


@dataclass(frozen=True, eq=False, slots=True)
class TransposedJacobian:
    """View ``J.T`` of a Jacobian; its one operation is ``J.T @ u``."""

    T: Jacobian

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, N*C)``."""
        rows, columns = self.T.shape
        return columns, rows

    def __matmul__(self, u: Array) -> Array:
        """``J^T u`` for u (N*C,) or (N*C, k): (P,) or (P, k); the rest as in ``J @ v``."""
        j = self.T
        columns, shape = j._columns(u, "u", j.shape[0])
        blocks = columns.reshape(j.samples, j.n_outputs, columns.shape[1])
        if j.sample_map is not None:
            blocks = j.sample_map.apply(blocks)
        layers, order = j._cut()
        result = _products.vjp(layers, blocks, u)
        if order is not None:
            result = put_rows(result, order, zeros((j.shape[1], *result.shape[1:]), result))
        return result.reshape(shape)
