# SPDX-License-Identifier: Apache-2.0
"""MLP: outputs and Jacobian against finite differences, torch autograd and other libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import fastfisher as ff
from fastfisher.reference.mlp import mlp as reference_mlp
from fastfisher.reference.mlp import mlp_jacobian as reference_jacobian

ACTIVATIONS = ["tanh", "relu", "erf", "linear", "hard-tanh"]
PARAMETERIZATIONS = ["standard", "ntk", "orthogonal"]
NORMALIZATIONS = [None, "mean", "batch", "layer"]
KINDS = [
    {"activation": a, "parameterization": p, "normalization": n}
    for a, p, n in itertools.product(ACTIVATIONS, PARAMETERIZATIONS, NORMALIZATIONS)
]
VARIANCES = {"sigma_w2": 1.7, "sigma_b2": 0.3}


def kind_id(kind):
    return "-".join(str(value) for value in kind.values())


def samples(n, width, seed=1, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(dtype)


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def torch_outputs(parameters, x, kind):
    """The network in torch, from trainables by name."""
    torch = pytest.importorskip("torch")
    phi = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "erf": torch.erf,
        "linear": lambda u: u,
        "hard-tanh": torch.nn.functional.hardtanh,
    }[kind["activation"]]
    ntk = kind["parameterization"] == "ntk"
    h = x
    for layer in range(sum(name.endswith("weight") for name in parameters)):
        weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
        weight = weight * math.sqrt(VARIANCES["sigma_w2"] / weight.shape[1]) if ntk else weight
        bias = bias * math.sqrt(VARIANCES["sigma_b2"]) if ntk else bias
        h = torch.nn.functional.linear(phi(h) if layer else h, weight, bias)
    if kind["normalization"] is None:
        return h
    axis = 1 if kind["normalization"] == "layer" else 0
    centred = h - h.mean(axis, keepdim=True)
    if kind["normalization"] == "mean":
        return centred
    return centred / h.std(axis, keepdim=True, correction=0)


@pytest.mark.parametrize("kind", KINDS, ids=kind_id)
def test_outputs_and_jacobian_equal_finite_differences(kind):
    mlp = ff.models.MLP((3, 5, 4, 3), **kind, **VARIANCES)
    x = samples(5, 3)

    jacobian = mlp.jacobian(x)

    options = {**kind, **VARIANCES}
    expected = reference_mlp(mlp.parameters, x, **options)
    assert relative_error(mlp(x), expected) < 1e-13
    assert relative_error(jacobian.outputs, expected) < 1e-13
    assert relative_error(jacobian.dense(), reference_jacobian(mlp.parameters, x, **options)) < 1e-8


@pytest.mark.parametrize("kind", KINDS, ids=kind_id)
def test_jacobian_equals_torch_autograd(kind):
    torch = pytest.importorskip("torch")
    mlp = ff.models.MLP((3, 5, 4, 3), **kind, **VARIANCES)
    x = torch.from_numpy(samples(5, 3))
    parameters = {name: torch.tensor(p) for name, p in mlp.parameters.items()}

    blocks = torch.autograd.functional.jacobian(
        lambda *values: torch_outputs(dict(zip(parameters, values, strict=True)), x, kind),
        tuple(parameters.values()),
    )

    expected = torch.cat([block.reshape(15, -1) for block in blocks], 1).numpy()
    assert relative_error(mlp.jacobian(x).dense().numpy(), expected) < 1e-13


@pytest.mark.parametrize(
    ("activation", "normalization"),
    [(a, None) for a in ACTIVATIONS] + [("tanh", n) for n in NORMALIZATIONS[1:]],
)
@pytest.mark.parametrize(
    ("library", "dtype"), [("torch", "float32"), ("torch", "float64"), ("jax", "float64")]
)
def test_other_libraries_give_the_same_numbers(library, dtype, activation, normalization):
    if library == "torch":
        convert = pytest.importorskip("torch").from_numpy
    else:
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        convert = jax.numpy.from_dlpack
    mlp = ff.models.MLP(
        (3, 8, 3),
        activation=activation,
        normalization=normalization,
        parameterization="ntk",
        sigma_b2=0.1,
        dtype=dtype,
    )
    x = samples(6, 3, dtype=dtype)
    there = convert(x)

    jacobian = mlp.jacobian(there)

    tolerance = 50 * np.finfo(dtype).eps
    for got, expected in (
        (mlp(there), mlp(x)),
        (jacobian.gram(), mlp.jacobian(x).gram()),
    ):
        assert type(got) is type(there)
        assert got.dtype == there.dtype
        assert relative_error(np.asarray(got), expected) < tolerance


def test_factors_share_the_callers_memory():
    torch = pytest.importorskip("torch")
    mlp = ff.models.MLP((3, 8, 2))
    x = torch.from_numpy(samples(6, 3))

    assert mlp.jacobian(x).layers[0].a is x


@pytest.mark.parametrize(("i", "o"), [(6, 6), (9, 4), (4, 9)])
def test_orthogonal_weights_keep_the_mean_square(i, o):
    weight = ff.models.MLP((i, o), parameterization="orthogonal", sigma_w2=1.5).parameters[
        "0.weight"
    ]

    gram = weight @ weight.T if o <= i else weight.T @ weight

    expected = 1.5 * max(1, o / i) * np.eye(min(i, o))
    np.testing.assert_allclose(gram, expected, atol=1e-13)


def test_gaussian_weights_have_the_stated_variance():
    standard = ff.models.MLP((300, 400), sigma_w2=3.0, sigma_b2=0.5).parameters
    ntk = ff.models.MLP((300, 400), sigma_w2=3.0, sigma_b2=0.5, parameterization="ntk").parameters

    assert standard["0.weight"].var() == pytest.approx(3.0 / 300, rel=0.03)
    assert standard["0.bias"].var() == pytest.approx(0.5, rel=0.3)
    assert ntk["0.weight"].var() == pytest.approx(1.0, rel=0.03)


def test_ntk_parameterization_without_bias_variance_has_no_biases():
    mlp = ff.models.MLP((3, 4, 2), parameterization="ntk")

    assert list(mlp.parameters) == ["0.weight", "1.weight"]
    assert mlp.jacobian(samples(5, 3)).shape == (10, 20)


def test_ntk_equals_standard_network_with_the_same_effective_weights():
    ntk = ff.models.MLP((3, 6, 2), parameterization="ntk", sigma_w2=2.0, sigma_b2=0.4, seed=3)
    scales = {"weight": lambda p: math.sqrt(2.0 / p.shape[1]), "bias": lambda p: math.sqrt(0.4)}
    standard = ff.models.MLP((3, 6, 2)).with_parameters(
        {name: scales[name[2:]](p) * p for name, p in ntk.parameters.items()}
    )
    x = samples(5, 3)

    np.testing.assert_allclose(ntk(x), standard(x), rtol=1e-13)


def test_seed_decides_the_parameters():
    first, again, other = (ff.models.MLP((3, 4, 2), seed=seed).parameters for seed in (5, 5, 6))

    np.testing.assert_array_equal(first["0.weight"], again["0.weight"])
    assert not np.array_equal(first["0.weight"], other["0.weight"])


def test_with_parameters_copies_dicts_and_vectors():
    mlp = ff.models.MLP((3, 4, 2), seed=1)
    jacobian = mlp.jacobian(samples(2, 3))
    vector = jacobian.flatten(mlp.parameters)

    for source in (vector, mlp.parameters):
        new = mlp.with_parameters(source)
        new.parameters["0.weight"][...] = 0
        assert np.array_equal(vector, jacobian.flatten(mlp.parameters))
        assert mlp.parameters["0.weight"].any()


def test_astype_rounds():
    mlp = ff.models.MLP((3, 4, 2), seed=1)

    small = mlp.astype("float32")

    assert small(samples(5, 3, dtype=np.float32)).dtype == np.float32
    assert mlp.parameters["0.weight"].dtype == np.float64
    np.testing.assert_array_equal(
        small.parameters["0.weight"],
        ff.models.MLP((3, 4, 2), seed=1, dtype="float32").parameters["0.weight"],
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2)])
def test_no_samples(widths, normalization):
    mlp = ff.models.MLP(widths, normalization=normalization)
    x = np.empty((0, 3))

    jacobian = mlp.jacobian(x)

    assert mlp(x).shape == (0, 2)
    assert jacobian.dense().shape == jacobian.shape
    assert jacobian.gram().shape == (0, 2, 0, 2)
    assert jacobian.gram(outputs="trace").shape == (0, 0)
    assert not (jacobian.T @ np.empty(0)).any()


@pytest.mark.parametrize("widths", [(3, 1), (3, 4, 1), (1, 1, 1)])
def test_single_sample_single_output(widths):
    mlp = ff.models.MLP(widths, activation="tanh")
    x = samples(1, widths[0])
    row = mlp.jacobian(x).dense()

    assert mlp.jacobian(x).gram().item() == pytest.approx(row.ravel() @ row.ravel())
    centred = ff.models.MLP(widths, activation="tanh", normalization="mean").jacobian(x)
    assert not centred.dense().any()
    assert not centred.gram().any()


def test_strided_samples():
    mlp = ff.models.MLP((3, 4, 2), activation="tanh")
    x = samples(8, 6)[::-2, ::2]

    expected = mlp.jacobian(np.ascontiguousarray(x)).gram()

    np.testing.assert_allclose(mlp.jacobian(x).gram(), expected, rtol=1e-13)
    np.testing.assert_allclose(mlp.jacobian(np.asfortranarray(x)).gram(), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": (3,)}, ValueError, "widths"),
        ({"widths": (3, 0)}, ValueError, "widths"),
        ({"widths": (3, 2.5)}, ValueError, "widths"),
        ({"widths": 3}, ValueError, "widths"),
        ({"widths": (3, 2), "activation": "gelu"}, ValueError, "activation"),
        ({"widths": (3, 2), "parameterization": "NTK"}, ValueError, "parameterization"),
        ({"widths": (3, 2), "normalization": "group"}, ValueError, "normalization"),
        ({"widths": (3, 1), "normalization": "layer"}, ValueError, "normalization"),
        ({"widths": (3, 2), "sigma_w2": 0}, ValueError, "sigma_w2"),
        ({"widths": (3, 2), "sigma_b2": -1}, ValueError, "sigma_b2"),
        ({"widths": (3, 2), "sigma_b2": math.nan}, ValueError, "sigma_b2"),
        ({"widths": (3, 2), "dtype": "float16"}, TypeError, "dtype"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ff.models.MLP(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0, 2.0, 3.0]], TypeError, "x: expected"),
        (np.ones((5, 4)), ValueError, r"x: expected shape \(N, 3\)"),
        (np.ones(3), ValueError, "x: expected shape"),
        (np.ones((5, 3), np.float32), TypeError, "x: .*dtype float64"),
        (np.ones((5, 3), int), TypeError, "x: .*dtype"),
        (
            np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]]),
            ff.errors.NonFiniteError,
            r"x: .*\[1, 1\]",
        ),
        (np.array([[1.0, -np.inf, 3.0]]), ff.errors.NonFiniteError, r"x: .*\[0, 1\]"),
    ],
)
def test_bad_samples(x, error, message):
    mlp = ff.models.MLP((3, 4, 2))
    for call in (mlp, mlp.jacobian):
        with pytest.raises(error, match=message):
            call(x)


def test_bad_parameters():
    mlp = ff.models.MLP((3, 4, 2))
    vector = mlp.jacobian(samples(1, 3)).flatten(mlp.parameters)

    with pytest.raises(ValueError, match="vector: expected shape"):
        mlp.with_parameters(vector[1:])
    with pytest.raises(TypeError, match=r"parameters: .*dtype float64"):
        mlp.with_parameters(vector.astype(np.float32))
    with pytest.raises(TypeError, match="parameters: expected"):
        mlp.with_parameters(vector.tolist())
    with pytest.raises(ValueError, match="names"):
        mlp.with_parameters({"0.weight": vector})
    small = {**mlp.parameters, "0.bias": mlp.parameters["0.bias"].astype(np.float32)}
    with pytest.raises(TypeError, match="parameters: expected one dtype"):
        mlp.with_parameters(small)
    mlp.parameters["1.bias"][1] = np.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"1\.bias: .*\[1\]"):
        mlp(samples(2, 3))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_overflow_is_an_error():
    mlp = ff.models.MLP((3, 4, 2), activation="linear", dtype="float32")

    with pytest.raises(ff.errors.NumericalError, match="overflow"):
        mlp(np.full((2, 3), 3e38, np.float32))


def test_constant_outputs_cannot_be_normalised():
    x = np.repeat(samples(1, 3), 4, axis=0)
    with pytest.raises(ValueError, match=r"x: normalization='batch' .*outputs \[0, 1\]"):
        ff.models.MLP((3, 4, 2), activation="tanh", normalization="batch")(x)
    mlp = ff.models.MLP((3, 2), normalization="layer")
    with pytest.raises(ValueError, match=r"x: normalization='layer' .*samples \[1\]"):
        mlp(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))


def test_tensor_that_requires_grad_is_refused():
    torch = pytest.importorskip("torch")
    x = torch.ones((2, 3), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"x: .*detach"):
        ff.models.MLP((3, 2)).jacobian(x)
