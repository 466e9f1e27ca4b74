# SPDX-License-Identifier: Apache-2.0
"""Jacobian: every product against the dense matrix, with and without normalisation over samples."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

import fastfisher as ff

FORMS = ["full", "trace", "diagonal", "sum", 0, 2, -1]
NORMALIZATIONS = [None, "mean", "batch", "layer"]


def layers(n=4, c=3, dtype=np.float64, seed=0, convert=lambda x: x):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return convert(rng.standard_normal(shape).astype(dtype))

    return [
        ff.Dense(draw(n, 5), draw(n, c, 6), bias=True),
        ff.Dense(draw(n, 6), draw(n, c, 2)),
    ]


def normalised(normalization, n=6, seed=1, library=None, dtype="float64", c=3):
    mlp = ff.models.MLP(
        (4, 7, c), activation="tanh", sigma_b2=0.2, normalization=normalization, dtype=dtype
    )
    x = np.random.default_rng(seed).standard_normal((n, 4)).astype(dtype)
    return mlp.jacobian(x if library is None else converter(library)(x))


def converter(library):
    if library == "torch":
        return pytest.importorskip("torch").from_numpy
    if library == "jax":
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        return jax.numpy.asarray
    return np.asarray


def dense_gram(left, right, outputs):
    """Gram from the dense matrices, in the form `outputs`."""
    n, c, m, d = left.samples, left.n_outputs, right.samples, right.n_outputs
    k = (np.asarray(left.dense()) @ np.asarray(right.dense()).T).reshape(n, c, m, d)
    if outputs == "full":
        return k
    if outputs == "sum":
        return k.sum((1, 3))
    diagonal = np.einsum("ncmc->nmc", k)
    if outputs == "diagonal":
        return diagonal
    return diagonal.sum(-1) if outputs == "trace" else diagonal[..., outputs]


def close(got, expected, tolerance=1e-13):
    got = np.asarray(got)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=1)


def test_dense_by_hand():
    a, g = np.array([[2.0, 3.0]]), np.array([[[1.0, 10.0]]])

    jacobian = ff.Jacobian.from_factors([ff.Dense(a, g, bias=True)])

    np.testing.assert_array_equal(jacobian.dense(), [[2.0, 3.0, 20.0, 30.0, 1.0, 10.0]])
    assert jacobian.shape == (1, 6)
    assert (jacobian.samples, jacobian.n_outputs, jacobian.outputs) == (1, 1, None)


@pytest.mark.parametrize(
    ("library", "columns"),
    [(library, k) for library in ("numpy", "torch") for k in ((), (0,), (1,), (5,))]
    + [("jax", (5,))],
)
def test_products_equal_dense(columns, library):
    convert = converter(library)
    jacobian = ff.Jacobian.from_factors(layers(convert=convert))
    rng = np.random.default_rng(3)
    rows, parameters = jacobian.shape
    v = rng.standard_normal((parameters, *columns))
    u = rng.standard_normal((rows, *columns))
    matrix = np.asarray(jacobian.dense())

    close(jacobian @ convert(v), matrix @ v)
    close(jacobian.T @ convert(u), matrix.T @ u)
    assert type(jacobian @ convert(v)) is type(convert(v))
    assert jacobian.T.shape == (parameters, rows)
    assert jacobian.T.T is jacobian


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_products_of_normalised_outputs_equal_dense(normalization):
    jacobian = normalised(normalization)
    rng = np.random.default_rng(3)
    v, u = rng.standard_normal((jacobian.shape[1], 2)), rng.standard_normal(jacobian.shape[0])

    close(jacobian @ v, jacobian.dense() @ v)
    close(jacobian.T @ u, jacobian.dense().T @ u)


def test_products_never_form_the_matrix():
    rng = np.random.default_rng(0)
    layer = ff.Dense(rng.standard_normal((64, 300)), rng.standard_normal((64, 4, 300)), bias=True)
    jacobian = ff.Jacobian.from_factors([layer])
    v = np.ones(jacobian.shape[1])

    tracemalloc.start()
    jacobian.T @ (jacobian @ v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 8 * jacobian.shape[0] * jacobian.shape[1] / 20


@pytest.mark.parametrize(
    ("library", "normalization", "outputs"),
    [
        *itertools.product(("numpy", "torch"), NORMALIZATIONS, FORMS),
        ("jax", "batch", "sum"),
    ],
)
def test_gram_equals_dense(library, normalization, outputs):
    left = normalised(normalization, library=library)
    right = normalised(normalization, n=5, seed=2, library=library)

    square, cross = left.gram(outputs=outputs), left.gram(right, outputs=outputs)

    left_numpy, right_numpy = normalised(normalization), normalised(normalization, n=5, seed=2)
    close(square, dense_gram(left_numpy, left_numpy, outputs), 1e-12)
    close(cross, dense_gram(left_numpy, right_numpy, outputs), 1e-12)
    assert type(square) is type(cross) is type(left.outputs)


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize("normalization", [*NORMALIZATIONS[1:], None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_square_gram_is_symmetric_with_diagonal_not_negative(dtype, normalization, outputs):
    jacobian = normalised(normalization, n=7, dtype=dtype)

    k = jacobian.gram(outputs=outputs)

    assert k.dtype == dtype
    assert k.flags.c_contiguous
    rows = jacobian.shape[0] if outputs == "full" else jacobian.samples
    matrix = k.reshape(rows, rows, -1)
    np.testing.assert_array_equal(matrix, matrix.swapaxes(0, 1))
    assert (np.einsum("iik->ik", matrix) >= 0).all()


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("normalization", ["mean", "batch"])
def test_float32_error_is_small_against_the_plain_gram(normalization, outputs):
    single = normalised(normalization, n=40, dtype="float32")
    double = normalised(normalization, n=40)
    plain = ff.Jacobian.from_factors(double.layers).gram(outputs=outputs)

    error = np.linalg.norm(single.gram(outputs=outputs) - double.gram(outputs=outputs))

    # The statistics of the batch are float32 as well: hence the factor before eps.
    scale = 1 if normalization == "mean" else double.sample_map.scale.max() ** 2
    assert error < 20 * np.finfo("float32").eps * scale * np.linalg.norm(plain)


def test_duplicate_samples_keep_the_diagonal_from_going_negative():
    mlp = ff.models.MLP((4, 30, 2), normalization="mean", dtype="float32", sigma_b2=1.0)
    x = np.ones((9, 4), np.float32)

    k = mlp.jacobian(x).gram(outputs="trace")

    assert (np.diagonal(k) >= 0).all()
    assert np.abs(k).max() < 1e-4


@pytest.mark.parametrize("pair", [("mean", None), (None, "batch"), ("mean", "batch")])
@pytest.mark.parametrize("outputs", FORMS)
def test_differently_normalised_jacobians_meet(pair, outputs):
    left, right = normalised(pair[0]), normalised(pair[1], n=5, seed=2)

    close(left.gram(right, outputs=outputs), dense_gram(left, right, outputs), 1e-12)


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal", "sum", 1])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("normalization", [None, "mean", "batch"])
def test_out_is_written_and_returned(normalization, library, outputs):
    jacobian = normalised(normalization, library=library)
    expected = jacobian.gram(outputs=outputs)
    buffer = converter(library)(np.full((*expected.shape, 2), np.nan))
    out = buffer[..., 0]

    assert jacobian.gram(outputs=outputs, out=out) is out

    np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))
    assert np.isnan(np.asarray(buffer[..., 1])).all()


@pytest.mark.parametrize("normalization", [None, "mean", "batch"])
@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.empty((6, 5)), ValueError),
        (np.empty((6, 6), np.float32), TypeError),
        (np.broadcast_to(0.0, (6, 6)), ValueError),
    ],
)
def test_bad_out(normalization, out, error):
    with pytest.raises(error, match="out"):
        normalised(normalization).gram(outputs="trace", out=out)


@pytest.mark.parametrize("normalization", [None, "mean", "batch"])
@pytest.mark.parametrize("outputs", ["half", 3, -4, None, True, 1.5])
def test_bad_outputs(normalization, outputs):
    with pytest.raises(ValueError, match="outputs"):
        normalised(normalization).gram(outputs=outputs)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_flatten_and_unflatten(library):
    jacobian = ff.Jacobian.from_factors(layers(convert=converter(library)))
    vector = converter(library)(np.arange(float(jacobian.shape[1])))

    parameters = jacobian.unflatten(vector)

    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        "0.weight": (6, 5),
        "0.bias": (6,),
        "1.weight": (2, 6),
    }
    np.testing.assert_array_equal(jacobian.flatten(parameters), vector)
    shuffled = dict(reversed(parameters.items()))
    np.testing.assert_array_equal(jacobian.flatten(shuffled), vector)
    np.testing.assert_array_equal(parameters["0.weight"][1], np.arange(5.0, 10.0))


def test_labels_name_the_parameters():
    a, g = np.ones((2, 3)), np.ones((2, 1, 4))
    jacobian = ff.Jacobian.from_factors([ff.Dense(a, g, label="head"), ff.Dense(a, g)])

    assert list(jacobian.unflatten(np.ones(24))) == ["head.weight", "1.weight"]
    with pytest.raises(ValueError, match="distinct labels"):
        ff.Jacobian.from_factors([ff.Dense(a, g, label="head")] * 2)


def test_flatten_errors():
    jacobian = ff.Jacobian.from_factors(layers())
    parameters = jacobian.unflatten(np.zeros(jacobian.shape[1]))

    with pytest.raises(ValueError, match="names"):
        jacobian.flatten({"0.weight": parameters["0.weight"]})
    with pytest.raises(ValueError, match=r"parameters\['0.bias'\]: expected shape \(6,\)"):
        jacobian.flatten({**parameters, "0.bias": np.zeros(5)})
    with pytest.raises(TypeError, match="one dtype"):
        jacobian.flatten({**parameters, "0.bias": np.zeros(6, np.float32)})
    with pytest.raises(ValueError, match="vector: expected shape"):
        jacobian.unflatten(np.zeros(3))


@pytest.mark.parametrize(("n", "c"), [(0, 3), (1, 1), (3, 0), (1, 4)])
def test_small_sizes(n, c):
    jacobian = ff.Jacobian.from_factors(layers(n, c))

    close(jacobian.gram(), dense_gram(jacobian, jacobian, "full"))
    close(jacobian @ np.ones(jacobian.shape[1]), jacobian.dense().sum(1))
    close(jacobian.T @ np.ones(n * c), jacobian.dense().sum(0))


def test_split_sums_to_the_whole():
    jacobian = normalised("batch")

    parts = jacobian.split()

    assert list(parts) == ["0", "1"]
    close(sum(part.gram() for part in parts.values()), jacobian.gram(), 1e-12)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: [], ValueError, "layers"),
        (lambda: [np.ones(3)], TypeError, r"layers\[0\]"),
        (lambda: [*layers(), *layers(n=5)], ValueError, r"layers\[2\]"),
        (lambda: [*layers(), *layers(c=2)], ValueError, r"layers\[2\]"),
        (lambda: [*layers(), *layers(dtype=np.float32)], TypeError, r"layers\[2\].*dtype"),
        (lambda: [*layers(), *layers(convert=converter("torch"))], TypeError, r"layers\[2\]"),
    ],
)
def test_bad_layers(build, error, message):
    with pytest.raises(error, match=message):
        ff.Jacobian.from_factors(build())


def test_bad_outputs_array():
    with pytest.raises(ValueError, match=r"outputs: expected shape \(4, 3\)"):
        ff.Jacobian.from_factors(layers(), outputs=np.ones((4, 2)))


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        (np.ones(7), ValueError, "v: expected shape"),
        (np.ones((48, 2, 1)), ValueError, "v: expected shape"),
        (np.ones(48, np.float32), TypeError, "v: expected dtype float64"),
        ([1.0] * 48, TypeError, "v"),
    ],
)
def test_bad_vectors(v, error, message):
    jacobian = ff.Jacobian.from_factors(layers())
    with pytest.raises(error, match=message):
        jacobian @ v
    with pytest.raises(error, match="u" + message[1:]):
        jacobian.T @ v


def test_bad_other():
    jacobian = ff.Jacobian.from_factors(layers())
    with pytest.raises(TypeError, match="other"):
        jacobian.gram(np.ones((3, 3)))
    with pytest.raises(ValueError, match="other"):
        jacobian.gram(ff.Jacobian.from_factors(layers()[:1]))


@pytest.mark.parametrize("normalization", [None, "mean"])
def test_non_finite_factors_are_named(normalization):
    jacobian = normalised(normalization)
    jacobian.layers[1].a[2, 3] = np.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"'1'.*\(2, 3\)"):
        jacobian.gram()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dense_matrices_are_finite_and_wide_enough(dtype: str) -> None:
    a, g = np.full((1, 2), 300, dtype), np.full((1, 1, 2), 300, dtype)
    dense = ff.Jacobian.from_factors([ff.Dense(a, g)]).dense()
    assert dense.dtype == ("float64" if dtype == "float64" else "float32")
    assert (dense == 90_000).all()
    a[0, 1] = np.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"^a: .* got nan at index \(0, 1\)"):
        ff.Jacobian.from_factors([ff.Dense(a, g)]).dense()
    if dtype != "float16":
        big = np.full((1, 2), np.sqrt(np.finfo(dtype).max) * 4, dtype)
        wide = ff.Jacobian.from_factors([ff.Dense(big, big[:, None])])
        message = f"dense: .* overflows {dtype}"
        with np.errstate(over="ignore"), pytest.raises(ff.errors.NumericalError, match=message):
            wide.dense()


def test_factors_that_are_missing_are_named() -> None:
    x = np.ones((2, 3))
    for make, name in (
        (lambda: ff.Dense(x, None), "g"),
        (lambda: ff.Dense(None, x[:, None]), "a"),
        (lambda: ff.Explicit(None), "j"),
        (lambda: ff.Conv(x[:, None], None, kernel=1), "g"),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected an array, got None"):
            make()
    for wrong in (ff.Explicit(x[:, None]), None):
        with pytest.raises(TypeError, match="layers: expected a list of layers"):
            ff.Jacobian.from_factors(wrong)
    assert repr(ff.Explicit(x[:, None])) == "Explicit(j=(2, 1, 3), bias=False, float64)"


def test_batches_of_samples_of_an_mlp() -> None:
    model, x = ff.models.MLP((3, 4, 2)), np.random.default_rng(0).standard_normal((5, 3))
    batches = [x[:2], (x[2:], "labels")]
    assert np.array_equal(ff.ntk(model, batches), ff.ntk(model, x))
    assert np.array_equal(ff.ntk(model, x, iter(batches)), ff.ntk(model, x, x))
    assert np.array_equal(ff.jacobian(model, batches).dense(), ff.jacobian(model, x).dense())
    with pytest.raises(TypeError, match="x: expected batches of arrays, got one of float"):
        ff.ntk(model, [1.0])
    with pytest.raises(ValueError, match="x2: expected at least one batch"):
        ff.ntk(model, x, [])
