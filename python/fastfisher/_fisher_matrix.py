# SPDX-License-Identifier: Apache-2.0
"""A Fisher matrix as an operator: products, solves, spectra; the work is done by its structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from fastfisher import linalg
from fastfisher._arrays import (
    Array,
    device_name,
    dtype_name,
    in_library,
    in_numpys_words,
    library,
)
from fastfisher._device_array import as_array, contiguous
from fastfisher._finite import is_finite
from fastfisher._fisher_eigsh import by_products, full_eigsh
from fastfisher._jacobian import Jacobian
from fastfisher._numbers import integer
from fastfisher._parameters import flatten, unflatten
from fastfisher.errors import NonFiniteError, NotPositiveDefiniteError, NumericalError
from fastfisher.likelihoods import Gaussian, Likelihood, likelihood_at, symmetric_root
from fastfisher.structures import Structure
from fastfisher.structures._rooted import in_numpy
from fastfisher.structures.coupled import Coupled
from fastfisher.structures.kfac import Kfac

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Fisher:
    """Fisher matrix (P, P) of `fastfisher.fisher`: symmetric, in the order of the parameters.

    It acts on vectors in the library and dtype of the model, and where the model is, a device too.
    Objects of scipy that want a linear operator take it as it is: arrays of numpy come back as
    such, and are moved for a model on a device.

    Attributes
    ----------
    jacobian : Jacobian or None
        Of the model; None where rows were made without it, for sampled and empirical ones.
    rows : Jacobian or None
        Rows ``S_n^T J_n``, with numpy's arrays, on a device in numpy's words:
        ``F = scale rows^T rows`` if it is full. None for what was added up over batches.
    scale : float
    structure : Structure
    likelihood : Likelihood
    kind : str
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((6, 3))
    >>> F = ff.fisher(ff.models.MLP((3, 8, 2)), x)
    >>> bool(np.isclose(F.trace(), np.trace(F.dense())))
    True
    >>> F.eigsh(2).values.shape
    (2,)
    """

    jacobian: Jacobian | None
    rows: Jacobian | None
    scale: float
    structure: Structure
    likelihood: Likelihood
    kind: str
    like: Array
    dtype: np.dtype[Any]
    shapes: Mapping[str, tuple[int, ...]] | None = None
    reduction: str = "mean"

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, P)``."""
        return self.structure.size, self.structure.size

    @property
    def space(self) -> str:
        """Where the full matrix is decomposed: ``"sample"`` or ``"parameter"``, the smaller."""
        few = self.rows is not None and self.rows.shape[0] < self.shape[0]
        return "sample" if few else "parameter"

    @property
    def T(self) -> Fisher:
        """Itself: it is symmetric."""
        return self

    def __matmul__(self, v: Array) -> Array:
        """``F v`` for v (P,) or (P, k)."""
        host, one = self._columns(v)
        return self._out(self.structure.matvec(host), one, v)

    def matvec(self, v: Array) -> Array:
        """``F v``, under scipy's name."""
        return self @ v

    matmat = rmatvec = rmatmat = matvec

    def solve(self, v: Array, *, damping: float, split: str | None = None) -> Array:
        """``(F + damping I)^-1 v`` for v (P,) or (P, k).

        Parameters
        ----------
        v : array
        damping : float
            Added to the diagonal, in units of the curvature.
        split : None | "plain" | "pi"
            For ``structure="kfac"``: put a damping on each factor instead, ``"plain"`` all of it,
            ``"pi"`` its root, scaled by the factor pi of Martens and Grosse 2015, section 6.3.

        Raises
        ------
        NotPositiveDefiniteError
            Without damping, for a matrix that is singular to rounding.
        NumericalError
            A damping that makes an indefinite matrix singular.

        Notes
        -----
        Backward stable: the residual is refined. Through the Gram matrix of the rows where these
        are fewer than the parameters (Woodbury), else through F itself.
        """
        _check_damping(damping)
        host, one = self._columns(v)
        if split is None:
            return self._out(self._solved(host, float(damping)), one, v)
        if not isinstance(self.structure, Kfac):
            raise ValueError(
                f"split: expected None for structure {self.structure.name!r}, got {split!r}"
            )
        return self._out(self._solved(host, float(damping), split), one, v)

    def inverse_sqrt(self, v: Array, *, damping: float) -> Array:
        """``(F + damping I)^(-1/2) v``, symmetric root."""
        _check_damping(damping)
        host, one = self._columns(v)
        self._refuse_singular(damping)
        return self._out(self.structure.function(_inverse_root(damping), host), one, v)

    def sample(self, n: int = 1, *, damping: float, seed: int = 0) -> Array:
        """Draws (n, P) from the normal distribution with covariance ``(F + damping I)^-1``.

        With ``reduction="sum"`` and the prior's precision as damping, the Laplace approximation.
        """
        n, seed = integer("n", n, least=0), integer("seed", seed, least=0)
        z = np.random.default_rng(seed).standard_normal((self.shape[0], n)).astype(self.dtype)
        _check_damping(damping)
        self._refuse_singular(damping)
        x = self.structure.function(_inverse_root(damping), np.asarray(z, like=self._kind))
        return self._out(contiguous(x.T), False)

    def eigsh(
        self,
        k: int,
        *,
        which: Any = "LA",
        tol: float = 0,
        v0: Array | None = None,
        seed: int = 0,
    ) -> linalg.EigshResult:
        """`k` eigenpairs, with residual norms and a certificate; see `fastfisher.linalg.eigsh`.

        Notes
        -----
        A full matrix is decomposed through the Gram matrix of its rows where that is smaller and
        cheaper than products, ``lambda`` the same and the vectors pulled back by ``J^T``.
        Of dense layers on the CPU, eigenvalues that stand out by far are found by few products, and
        proved complete up to a chance of 1e-6; residual norms are then upper bounds.
        """
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise TypeError(f"k: expected an integer, got {k!r}")
        start = None if v0 is None else self._columns(v0, "v0")[0]
        if isinstance(self.structure, Coupled) and self.structure.title == "full":
            found = full_eigsh(self.structure, k, which, tol, seed, start)
        else:
            found = by_products(self.structure, k, which, tol, seed, start)
        values, vectors, norms = (
            self._out(in_numpys_words(x), False)
            for x in (found.values, found.vectors, found.residual_norms)
        )
        return linalg.EigshResult(
            values, vectors, norms, found.converged, found.certified, found.matvecs
        )

    def density(self, **options: Any) -> linalg.Density:
        """Density of the eigenvalues; options of `fastfisher.linalg.spectral_density`."""
        return linalg.spectral_density(self, **options)

    def trace(self) -> float:
        """Sum of the diagonal, exact."""
        return self.structure.trace()

    def logdet(self, *, damping: float) -> float:
        """``log det(F + damping I)``, exact; -inf if singular."""
        _check_damping(damping)
        value = self.structure.logdet(float(damping))
        if math.isnan(value):
            raise NotPositiveDefiniteError(
                f"F: expected F + damping I to be positive definite, it has a negative eigenvalue; "
                f"got damping {damping}"
            )
        return value

    def frobenius_norm(self) -> float:
        """Root of the sum of squares of all entries, exact."""
        return self.structure.frobenius_norm()

    def effective_dimension(self, *, damping: float) -> float:
        """``tr F (F + damping I)^-1``, exact."""
        _check_damping(damping)
        return self.structure.effective_dimension(float(damping))

    def diagonal(self) -> Array:
        """Diagonal (P,)."""
        return self._out(self.structure.diagonal().astype(self.dtype, copy=False), False)

    def dense(self) -> Array:
        """Form the matrix, (P, P); for small models and tests."""
        return self._out(self.structure.dense().astype(self.dtype, copy=False), False)

    def dual(self) -> Array:
        """``F* = H^1/2 J J^T H^1/2 / N``, (N*C, N*C), with symmetric roots; of the full matrix.

        For "mc" and "empirical" the Gram matrix of the gradients, (N*R, N*R).
        """
        if self.rows is None:
            raise ValueError("dual: what was added up over batches has none; pass all samples")
        if self.kind != "exact" or type(self.likelihood) is Gaussian:
            n = self.rows.shape[0]
            return self._out(self.rows.gram().reshape(n, n) * self.dtype.type(self.scale), False)
        assert self.jacobian is not None  # what is exact has one
        j = in_numpy(self.jacobian)
        assert j.outputs is not None
        f = as_array(j.outputs, np.float64)
        root = symmetric_root(likelihood_at(self.likelihood, f).hessian(f))
        n, c = j.samples, j.n_outputs
        left = np.einsum("ncr,ncmd->nrmd", root, j.gram().astype(np.float64), optimize=True)
        both = np.einsum("mde,nrmd->nrme", root, left, optimize=True).reshape(n * c, n * c)
        both = 0.5 * (both + both.T) * self.scale
        return self._out(both.astype(self.dtype), False)

    def flatten(self, parameters: Mapping[str, Array]) -> Array:
        """Vector (P,) of named parameters."""
        return flatten(parameters, self._shapes)

    def unflatten(self, vector: Array) -> dict[str, Array]:
        """Named parameters of a vector (P,)."""
        return unflatten(vector, self._shapes)

    def __repr__(self) -> str:
        """Say what it is."""
        return (
            f"Fisher(shape={self.shape}, kind={self.kind!r}, "
            f"likelihood={type(self.likelihood).__name__.lower()!r}, "
            f"structure={self.structure.name!r}, dtype={self.dtype})"
        )

    @property
    def _kind(self) -> Host:
        """Array of the kind that the structure's are."""
        return in_numpys_words(self.like)

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        if self.shapes is not None:
            return self.shapes
        assert self.rows is not None
        return self.rows.parameter_shapes

    def _columns(self, v: Array, name: str = "v") -> tuple[Host, bool]:
        """Vectors of the caller as columns (P, k), and whether it is one vector."""
        # scipy's iterations hand over numpy's arrays whatever the model is made of.
        if library(v, name) not in ("numpy", library(self.like)):
            raise TypeError(f"{name}: expected library {library(self.like)}, got {library(v)}")
        if dtype_name(v) != str(self.dtype):
            raise TypeError(f"{name}: expected dtype {self.dtype}, got dtype {dtype_name(v)}")
        size = self.shape[0]
        if len(v.shape) not in (1, 2) or v.shape[0] != size:
            raise ValueError(
                f"{name}: expected shape ({size},) or ({size}, k), got {tuple(v.shape)}"
            )
        host = in_numpys_words(v, name)
        there = device_name(self.like)
        if device_name(v) not in ("cpu" if library(v) == "numpy" else there, there):
            raise TypeError(f"{name}: expected device {there}, got {device_name(v)}")
        host = np.asarray(host, like=self._kind)
        if not is_finite(host):
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(host))[0])
            raise NonFiniteError(
                f"{name}: expected finite numbers, got {host[where]} at index {where}"
            )
        return (host[:, None], True) if host.ndim == 1 else (host, False)

    def _out(self, host: Host, one: bool, v: Array | None = None) -> Array:
        """`host` in the library of `v`, by default that of the model."""
        result = contiguous(host[:, 0] if one else host)
        return in_library(result, self.like if v is None else v)

    def _solved(self, v: Host, damping: float, *split: str) -> Host:
        overflow = NumericalError(
            f"solve: the solution overflows dtype {self.dtype}; expected a larger damping"
        )
        try:
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                x = self.structure.solve(v, damping, *split)
        except NonFiniteError as error:  # vectors and factors are finite, so it is the solution
            raise overflow from error
        if not is_finite(x):
            raise overflow
        return x

    def _refuse_singular(self, damping: float) -> None:
        values = self.structure.spectrum()
        smallest = values.min(initial=math.inf) + damping
        if len(values) < self.shape[0]:
            smallest = min(smallest, damping)
        limit = float(np.finfo(self.dtype).eps) * values.max(initial=0.0)
        if self.shape[0] and smallest <= (limit if damping == 0 else 0.0):
            raise NotPositiveDefiniteError(
                f"F: expected F + damping I to be positive definite, got the smallest eigenvalue "
                f"{smallest:.3e}; expected a larger damping"
            )


def _inverse_root(damping: float) -> Callable[[Host], Host]:
    return lambda w: 1 / np.sqrt(np.maximum(w + damping, np.finfo(np.float64).tiny))


def _check_damping(damping: float) -> None:
    try:
        good = math.isfinite(damping) and damping >= 0
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ValueError(f"damping: expected a finite number >= 0, got {damping!r}")
