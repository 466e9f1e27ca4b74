# SPDX-License-Identifier: Apache-2.0
"""The reference of the layers against autograd, and the blocks of our layers against it."""

from __future__ import annotations

import numpy as np
import pytest

from cases import as_float64
from fastfisher import reference
from layer_cases import BY_ID, LAYER_CASES
from layer_forms import C, LayerCase, mapped, our_layer, ours

torch = pytest.importorskip("torch")


def per_sample_jacobian(y, parameters) -> np.ndarray:
    """Gradients (n, c, p) of outputs (n, c), one call of autograd each."""
    rows = []
    for output in y.reshape(-1):
        gradients = torch.autograd.grad(output, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows).reshape(*y.shape, -1).numpy()


def cotangents(y, h) -> np.ndarray:
    """Gradients (n, c, *h.shape[1:]) of y (n, c) with respect to h, samples being independent."""
    each = [torch.autograd.grad(y[:, c].sum(), h, retain_graph=True)[0] for c in range(y.shape[1])]
    return torch.stack(each, 1).numpy()


def head(h, c: int):
    """Outputs (n, c) that see every entry of h through something curved."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(c, *h.shape[1:], generator=generator, dtype=h.dtype)
    axes = tuple(range(2, h.ndim + 1))
    return (torch.tanh(h)[:, None] * weight).sum(axes)


def module(kind, *arguments, **options):
    torch.manual_seed(0)
    return kind(*arguments, **options, dtype=torch.float64)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def close(got, expected):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("bias", [True, False])
def test_dense_reference_equals_autograd(bias):
    linear, x = module(torch.nn.Linear, 5, 4, bias=bias), draw(3, 5)
    h = linear(x)
    y = head(h, 2)
    got = reference.dense_jacobian([(x.numpy(), cotangents(y, h), bias)])
    close(got, per_sample_jacobian(y, list(linear.parameters())))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 6])
def test_shared_reference_equals_autograd_on_tokens(tokens, bias):
    linear, x = module(torch.nn.Linear, 5, 4, bias=bias), draw(3, tokens, 5)
    h = linear(x)
    y = head(h, 2)
    got = reference.dense_jacobian([reference.Shared(x.numpy(), cotangents(y, h), bias)])
    close(got, per_sample_jacobian(y, list(linear.parameters())))


def test_shared_reference_equals_autograd_for_a_weight_used_twice():
    linear, x = module(torch.nn.Linear, 4, 4), draw(3, 4)
    first = linear(x)
    middle = torch.tanh(first)
    second = linear(middle)
    y = head(second + first**2, 2)
    a = torch.stack([x, middle], 1).detach().numpy()
    g = np.stack([cotangents(y, first), cotangents(y, second)], 2)
    got = reference.dense_jacobian([reference.Shared(a, g, True)])
    close(got, per_sample_jacobian(y, list(linear.parameters())))


CONVOLUTIONS = [
    spec
    for case in LAYER_CASES
    for spec in case.layers
    # torch has no convolution without channels, nor one of nothing but padding.
    if isinstance(spec, C)
    and min(spec.channels, spec.o, spec.positions, *spec.space) > 0
    and spec.parameters < 400
    and spec.positions <= 200
]


def torch_conv(spec):
    kind = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[len(spec.kernel) - 1]
    options = dict(spec.geometry, bias=spec.bias)
    return module(kind, spec.channels, spec.o, options.pop("kernel"), **options)


@pytest.mark.parametrize("spec", CONVOLUTIONS, ids=str)
def test_conv_reference_equals_autograd(spec):
    conv, x = torch_conv(spec), draw(2, spec.channels, *spec.space)
    h = conv(x)
    assert tuple(h.shape[2:]) == spec.out_space(spec.space)
    y = head(h, 2)
    layer = reference.Conv(x.numpy(), cotangents(y, h), **spec.geometry, bias=spec.bias)
    close(reference.dense_jacobian([layer]), per_sample_jacobian(y, list(conv.parameters())))


def test_separable_reference_equals_autograd_below_pooling_and_a_linear_head():
    conv = module(torch.nn.Conv2d, 3, 6, 3, stride=2, padding=1)
    last = module(torch.nn.Linear, 6, 4)
    x = draw(3, 3, 7, 6)
    h = conv(x)
    y = last(torch.tanh(h).mean((2, 3)))
    m = ((1 - torch.tanh(h) ** 2) / h[0, 0].numel()).detach().numpy()
    geometry = C(3, (7, 6), 6, (3, 3), (2, 2), (1, 1)).geometry
    g = reference.Separable(m, last.weight.detach().numpy())
    got = reference.dense_jacobian([reference.Conv(x.numpy(), g, **geometry, bias=True)])
    close(got, per_sample_jacobian(y, list(conv.parameters())))


def test_separable_reference_equals_autograd_on_tokens():
    linear, last = module(torch.nn.Linear, 5, 6), module(torch.nn.Linear, 6, 4)
    x = draw(3, 7, 5)
    h = linear(x)
    y = last(torch.sigmoid(h).mean(1))
    m = (torch.sigmoid(h) * torch.sigmoid(-h) / 7).detach().numpy()
    g = reference.Separable(m, last.weight.detach().numpy())
    got = reference.dense_jacobian([reference.Shared(x.numpy(), g, True)])
    close(got, per_sample_jacobian(y, list(linear.parameters())))


def test_gram_of_a_network_equals_autograd():
    conv, last = module(torch.nn.Conv2d, 2, 3, 3, padding=1), module(torch.nn.Linear, 3, 4)
    x = draw(3, 2, 5, 4)
    h = conv(x)
    pooled = torch.tanh(h).mean((2, 3))
    y = last(pooled)
    geometry = C(2, (5, 4), 3, (3, 3), padding=(1, 1)).geometry
    layers = [
        reference.Conv(x.numpy(), cotangents(y, h), **geometry, bias=True),
        (pooled.detach().numpy(), cotangents(y, y), True),
    ]
    j = per_sample_jacobian(y, [*conv.parameters(), *last.parameters()])
    full = np.einsum("ncp,mdp->ncmd", j, j)
    close(reference.gram(layers), full)
    close(reference.gram(layers, outputs="trace"), np.einsum("ncmc->nm", full))
    close(reference.gram(layers, outputs="diagonal"), np.einsum("ncmc->nmc", full))
    close(reference.gram(layers, outputs="sum"), full.sum((1, 3)))
    close(reference.gram(layers, outputs=2), full[:, 2, :, 2])
    close(reference.gram(layers, [*layers[:1], (layers[1][0], layers[1][1], True)]), full)


# Our layers


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_block_equals_reference(case, xp, rng):
    if xp.name == "jax" and LAYER_CASES.index(case) % 4 and "no-" not in case.id:
        pytest.skip("each shape is compiled by jax: a quarter of the cases will do")
    for layer in case.draw(rng, "float64"):
        expected = reference.dense_jacobian([layer])
        got = our_layer(mapped(layer, xp.array))
        assert got.parameters == sum(np.prod(x) for x in got.parameter_shapes.values())
        block = got.block()
        assert type(block) is xp.kind()
        assert tuple(block.shape) == expected.shape == (case.n, case.c, got.parameters)
        np.testing.assert_allclose(as_float64(block), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in LAYER_CASES if case.c], ids=str)
def test_layer_of_one_output_equals_reference(case, rng):
    for layer in case.draw(rng, "float64"):
        expected = reference.dense_jacobian([layer])
        ours = our_layer(layer)
        last = ours.with_outputs(lambda x, axis: np.take(x, [-1], axis))
        total = ours.with_outputs(lambda x, axis: x.sum(axis, keepdims=True))
        np.testing.assert_allclose(last.block(), expected[:, -1:], rtol=1e-12, atol=1e-12)
        summed = expected.sum(1, keepdims=True)
        np.testing.assert_allclose(total.block(), summed, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["conv2d-everything", "separable-conv2d", "shared-and-dense"])
def test_block_of_16_bit_floats(name, dtype, rng):
    case = BY_ID[name]
    small = LayerCase(case.id, 2, 2, 2, case.layers)
    for layer in small.draw(rng, "float32"):
        stored = mapped(layer, lambda x: torch.from_numpy(x).to(getattr(torch, dtype)))
        widened = mapped(stored, lambda x: x.double().numpy())
        expected = reference.dense_jacobian([widened])
        error = np.linalg.norm(our_layer(stored).block().double().numpy() - expected)
        assert error < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_sizes_of_a_batch(case, rng):
    for layer in case.draw(rng, "float32"):
        one = our_layer(layer)
        many = our_layer(mapped(layer, lambda x: np.stack([x] * 3)), batch=True)
        assert one.batch is None
        assert many.batch == 3
        for name in ("samples", "n_outputs", "parameters", "parameter_shapes", "signature"):
            assert getattr(one, name) == getattr(many, name), name


def test_names_of_the_arrays(rng):
    layers = ours(BY_ID["network"].draw(rng, "float32"))
    names = [tuple(layer.arrays) for layer in layers]
    assert names == [
        ("x", "g"),
        ("x", "g"),
        ("x", "m", "w"),
        ("a", "g"),
        ("j",),
        ("a", "g"),
        ("a", "g"),
    ]
