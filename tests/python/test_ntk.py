# SPDX-License-Identifier: Apache-2.0
"""ff.ntk and ff.jacobian: forms, layers, two sets of samples, errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import fastfisher as ff


@pytest.fixture
def mlp():
    return ff.models.MLP((4, 9, 8, 3), activation="erf", parameterization="ntk", sigma_b2=0.1)


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((6, 4))


@pytest.fixture
def x2():
    return np.random.default_rng(2).standard_normal((5, 4))


def test_full_is_the_product_of_jacobians(mlp, x, x2):
    j, j2 = ff.jacobian(mlp, x).dense(), ff.jacobian(mlp, x2).dense()

    np.testing.assert_allclose(ff.ntk(mlp, x).reshape(18, 18), j @ j.T, rtol=1e-12, atol=1e-13)
    cross = ff.ntk(mlp, x, x2)
    assert cross.shape == (6, 3, 5, 3)
    np.testing.assert_allclose(cross.reshape(18, 15), j @ j2.T, rtol=1e-12, atol=1e-13)


def test_forms_follow_from_full(mlp, x, x2):
    full = ff.ntk(mlp, x, x2)
    expected = {
        "trace": np.einsum("ncmc->nm", full),
        "diagonal": np.einsum("ncmc->nmc", full),
        "sum": full.sum((1, 3)),
        1: full[:, 1, :, 1],
    }
    for outputs, value in expected.items():
        got = ff.ntk(mlp, x, x2, outputs=outputs)
        np.testing.assert_allclose(got, value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("normalization", [None, "mean", "batch", "layer"])
def test_layers_sum_to_the_whole(x, x2, normalization, outputs):
    mlp = ff.models.MLP((4, 9, 8, 3), normalization=normalization)

    each = ff.ntk(mlp, x, x2, outputs=outputs, layers="each")

    assert list(each) == ["0", "1", "2"]
    whole = ff.ntk(mlp, x, x2, outputs=outputs)
    np.testing.assert_allclose(sum(each.values()), whole, rtol=1e-11, atol=1e-12)


def test_each_layer_is_square_and_symmetric(mlp, x):
    for kernel in ff.ntk(mlp, x, outputs="trace", layers="each").values():
        np.testing.assert_array_equal(kernel, kernel.T)


def test_options_reach_the_gram(mlp, x):
    expected = ff.ntk(mlp, x, outputs="trace")
    out = np.empty((6, 6))

    got = ff.ntk(mlp, x, outputs="trace", out=out, threads=2, memory_limit="8MB")

    assert got is out
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="precision"):
        ff.ntk(mlp, x, precision="low")


def test_errors(mlp, x):
    for function in (ff.jacobian, ff.ntk):
        with pytest.raises(TypeError, match=r"model: .*MLP, got function"):
            function(lambda x: x, x)
    with pytest.raises(ValueError, match="layers"):
        ff.ntk(mlp, x, layers="all")
    with pytest.raises(ValueError, match="out"):
        ff.ntk(mlp, x, layers="each", out=np.empty((6, 6)))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 4\)"):
        ff.ntk(mlp, x, x[:, :3])


def test_info_progress_and_method_reach_the_gram(capsys):
    model = ff.models.MLP((3, 8, 2), sigma_b2=0.1)
    x = np.random.default_rng(0).standard_normal((5, 3))
    kernel = ff.ntk(model, x)
    got, info = ff.ntk(model, x, method="S1", return_info=True, progress=True)
    np.testing.assert_allclose(got, kernel, rtol=1e-12, atol=1e-13)
    assert [layer.method for layer in info.layers] == ["S1", "S1"]
    assert "100%" in capsys.readouterr().err
    kernels, infos = ff.ntk(model, x, layers="each", return_info=True)
    assert list(kernels) == list(infos) == ["0", "1"]
    assert infos["0"].layers[0].method == "S0"


def test_without_torch_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import fastfisher as ff\n"
        "pair = (lambda p, x: x, {})\n"
        "calls = lambda: ff.optim, lambda: ff.ntk(pair, None), lambda: ff.jacobian(pair, 1)\n"
        "for call in calls:\n"
        "    try:\n"
        "        call()\n"
        "    except ff._extras.MissingExtraError as error:\n"
        "        print(error)\n"
        "assert 'optim' in dir(ff) and 'plot' in dir(ff) and 'annotations' not in dir(ff)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "needs torch" in line]
    assert len(lines) == 3
    assert all("pip install 'fastfisher[torch]'" in line for line in lines)
