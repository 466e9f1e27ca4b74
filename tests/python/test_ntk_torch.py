# SPDX-License-Identifier: Apache-2.0
"""`ff.ntk` and `ff.jacobian` of torch models: arguments, blocks of samples, memory, info."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfisher as ff

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


def small() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    return model.double()


def words() -> Any:
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).double()


def samples(n: int, seed: int = 0) -> Any:
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(model: Any, x: Any) -> Any:
    """J (n, c, p) by one backward pass an output."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    y = model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, parameters, retain_graph=True)])
        for v in y.reshape(-1)
    ]
    return torch.stack(rows).reshape(*y.shape, -1)


def forms(j: Any, j2: Any) -> dict[Any, Any]:
    full = torch.einsum("ncp,mdp->ncmd", j, j2)
    diagonal = torch.einsum("ncmc->nmc", full)
    return {
        "full": full,
        "trace": diagonal.sum(-1),
        "diagonal": diagonal,
        "sum": full.sum((1, 3)),
        1: full[:, 1, :, 1],
    }


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(got), expected, rtol=1e-10, atol=1e-10)


# About 15 kB of factors: the second limit makes blocks of a few samples.
LIMITS = [None, "24KB"]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal", "sum", 1])
def test_blocks_of_samples_give_the_whole(outputs: Any, limit: Any) -> None:
    model, x, x2 = small(), samples(37), samples(11, 1)
    j, j2 = dense(model, x), dense(model, x2)
    square, info = ff.ntk(model, x, outputs=outputs, memory_limit=limit, return_info=True)
    close(square, forms(j, j)[outputs])
    assert (info.sample_blocks > 1) == (limit is not None)
    close(ff.ntk(model, x, x2, outputs=outputs, memory_limit=limit), forms(j, j2)[outputs])
    close(ff.ntk(model, x2, x, outputs=outputs, memory_limit=limit), forms(j2, j)[outputs])
    n = square.shape[0]
    matrix = square.reshape(n * 3, n * 3) if outputs == "full" else square
    assert torch.equal(matrix, matrix.transpose(0, 1))


@pytest.mark.parametrize("limit", LIMITS)
def test_layers_each_add_up(limit: Any) -> None:
    model, x = small(), samples(37)
    each = ff.ntk(model, x, layers="each", memory_limit=limit)
    assert list(each) == ["0", "2", "4"]
    close(sum(each.values()), ff.ntk(model, x))


@pytest.mark.parametrize("kind", ["torch", "numpy", "memmap"])
@pytest.mark.parametrize("limit", LIMITS)
def test_out_takes_tiles(kind: str, limit: Any, tmp_path: Path) -> None:
    model, x = small(), samples(37)
    shape = (37, 3, 37, 3)
    out = {
        "torch": lambda: torch.full(shape, torch.nan, dtype=torch.float64),
        "numpy": lambda: np.full(shape, np.nan),
        "memmap": lambda: np.memmap(tmp_path / "k.bin", np.float64, "w+", shape=shape),
    }[kind]()
    assert ff.ntk(model, x, out=out, memory_limit=limit) is out
    close(torch.as_tensor(np.asarray(out)), ff.ntk(model, x))


def test_recapture_keeps_the_block_of_the_diagonal() -> None:
    x = samples(37)
    _, info = ff.ntk(small(), x, memory_limit="24KB", return_info=True)
    blocks = round((np.sqrt(8 * info.sample_blocks + 1) - 1) / 2)
    assert blocks * (blocks + 1) // 2 == info.sample_blocks
    width = -(-37 // blocks)
    assert info.captured_samples <= width * (1 + blocks * (blocks - 1) // 2)


def test_batches_of_an_iterable_are_put_together() -> None:
    model, x = small(), samples(10)
    expected = ff.ntk(model, x)
    data = torch.utils.data.TensorDataset(x, torch.zeros(10))
    close(ff.ntk(model, torch.utils.data.DataLoader(data, batch_size=4)), expected)
    close(ff.ntk(model, (x[k : k + 3] for k in range(0, 10, 3))), expected)
    with pytest.raises(ValueError, match="x: expected at least one batch"):
        ff.ntk(model, [])
    with pytest.raises(TypeError, match="x: expected a torch tensor"):
        ff.ntk(model, x.numpy())
    with pytest.raises(TypeError, match="batches of torch tensors"):
        ff.ntk(model, [x.numpy()])


def test_mappings_are_keyword_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3).double()

        def forward(self, left: Any, right: Any = None) -> Any:
            return self.layer(left) * right

    model, x, y = Two(), samples(9), samples(9, 2)[:, :3]
    got = ff.ntk(model, {"left": x, "right": y}, memory_limit="10KB")
    parameters = list(model.parameters())
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, parameters, retain_graph=True)])
        for v in model(x, y).reshape(-1)
    ]
    j = torch.stack(rows).reshape(9, 3, -1)
    close(got, forms(j, j)["full"])


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ("0", ["0.weight", "0.bias"]),
        (["4.bias", "0.weight"], ["0.weight", "4.bias"]),
        (lambda name: name.endswith("weight"), ["0.weight", "2.weight", "4.weight"]),
        ([], []),
    ],
)
def test_parameter_subsets(params: Any, names: list[str]) -> None:
    model, x = small(), samples(4)
    jacobian = ff.jacobian(model, x, params=params)
    assert list(jacobian.parameter_shapes) == names
    j = dense(model, x)
    starts = np.cumsum([0] + [p.numel() for p in model.parameters()])
    columns = np.concatenate(
        [np.empty(0, int)]
        + [
            np.arange(starts[k], starts[k + 1])
            for k, (name, _) in enumerate(model.named_parameters())
            if name in names
        ]
    )
    close(jacobian.dense().reshape(4, 3, -1), j[..., columns])
    close(ff.ntk(model, x, params=params), forms(j[..., columns], j[..., columns])["full"])


def test_unknown_parameters_are_errors() -> None:
    with pytest.raises(ValueError, match=r"params: '1\.weight' is no parameter"):
        ff.ntk(small(), samples(2), params="1.weight")


@pytest.mark.parametrize(("make", "n"), [(small, 6), (words, 5)])
def test_products_and_dictionaries(make: Any, n: int) -> None:
    model = make()
    x = samples(n) if make is small else torch.randint(9, (n, 3))
    jacobian, j = ff.jacobian(model, x), dense(model, x)
    matrix = j.reshape(-1, j.shape[-1])
    assert jacobian.shape == tuple(matrix.shape)
    close(jacobian.dense(), matrix)
    v = torch.randn(matrix.shape[1], 2, dtype=torch.float64)
    u = torch.randn(matrix.shape[0], dtype=torch.float64)
    close(jacobian @ v, matrix @ v)
    close(jacobian.T @ u, matrix.T @ u)
    close(jacobian.outputs, model(x).detach())
    named = jacobian.unflatten(jacobian.T @ u)
    assert {k: tuple(t.shape) for k, t in named.items()} == {
        k: tuple(p.shape) for k, p in model.named_parameters()
    }
    close(jacobian.flatten(named), matrix.T @ u)
    close(jacobian.gram(), forms(j, j)["full"])


def test_tables_of_both_sides_meet() -> None:
    model = words()
    x, x2 = torch.randint(9, (5, 3)), torch.randint(9, (4, 3))
    j, j2 = dense(model, x), dense(model, x2)
    close(ff.jacobian(model, x).gram(ff.jacobian(model, x2)), forms(j, j2)["full"])
    close(ff.ntk(model, x, x2, memory_limit="80KB"), forms(j, j2)["full"])


def test_functions_of_parameters() -> None:
    def run(params: dict[str, Any], x: Any) -> Any:
        return torch.tanh(x @ params["w"]) @ params["v"]

    params = {"w": torch.randn(6, 4).double(), "v": torch.randn(4, 2).double()}
    x = samples(5)
    got = ff.jacobian((run, params), x)
    assert list(got.parameter_shapes) == ["w", "v"]
    jac = torch.func.jacrev(run)(params, x)
    close(got.dense(), torch.cat([jac[k].reshape(10, -1) for k in params], 1))
    assert not params["w"].requires_grad


def test_info_says_what_was_done() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(4, 3))
    _, info = ff.ntk(model, torch.randn(5, 1, 20, 20), return_info=True)
    assert [layer.form for layer in info.layers] == ["Conv", "Conv", "Dense"]
    assert info.layers[1].method == "S4"  # below pooling and the linear head
    assert all(layer.bytes > 0 for layer in info.layers)
    assert set(info.parameters) == {name for name, _ in model.named_parameters()}
    assert info.captured_samples == 5


def test_empty_and_single_samples() -> None:
    model = small()
    assert ff.ntk(model, samples(0)).shape == (0, 3, 0, 3)
    assert ff.ntk(model, samples(2), samples(0), outputs="trace").shape == (2, 0)
    j = dense(model, samples(1))
    close(ff.ntk(model, samples(1)), forms(j, j)["full"])


def test_samples_that_cannot_be_are_errors() -> None:
    model, x = small(), samples(4)
    x[2, 1] = torch.nan
    with pytest.raises(ff.errors.NonFiniteError, match=r"x: .*\(2, 1\)"):
        ff.ntk(model, x)
    with pytest.raises(ff.errors.NonFiniteError, match="x2"):
        ff.ntk(model, samples(3), x)
    with torch.no_grad():
        model[2].weight[1, 2] = torch.inf
    with pytest.raises(ff.errors.NonFiniteError, match=r"'2\.weight'.*\(1, 2\)"):
        ff.ntk(model, samples(2))


def test_limits_that_are_too_small_name_the_need() -> None:
    with pytest.raises(MemoryError, match=r"memory_limit: 500 bytes, expected at least \d+"):
        ff.ntk(small(), samples(9), memory_limit=500)


@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    model, x = small(), samples(20)
    jacobian = ff.jacobian(model, x)
    assert torch.equal(jacobian.gram(threads=threads), jacobian.gram(threads=2))


MEMORY = """
import resource, sys, torch, fastfisher as ff
from torch import nn
torch.manual_seed(0)
if sys.argv[1] == "images":  # gradients are smaller than factors: kept as gradients
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Tanh(), nn.Linear(16, 10))
    x = torch.randn(96, 3, 24, 24)
elif sys.argv[1] == "experts":  # routes that the first samples do not show, and cannot be cut
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 24, 3, padding=1)
            self.experts = nn.ModuleList(nn.Conv2d(24, 32, 3, padding=1) for _ in range(2))
            self.head = nn.Linear(32, 10)
        def forward(self, x):
            h, chosen = torch.relu(self.conv(x)), x[:, 0, 0, 0] > 0
            y = h.new_zeros(len(x), 32, *h.shape[2:])
            y[chosen], y[~chosen] = self.experts[0](h[chosen]), self.experts[1](h[~chosen])
            return self.head(torch.relu(y).mean((2, 3)))
    model, x = Experts(), torch.randn(128, 3, 12, 12)
    x[:, 0, 0, 0] = torch.where(torch.arange(128) % 7 < 3, 1.0, -1.0)
else:  # tokens: blocks of samples
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 64, 10))
    x = torch.randn(600, 32, 64)
limit = int(sys.argv[2])
ff.ntk(model, x[:4], outputs="trace")
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, info = ff.ntk(model, x, outputs="trace", memory_limit=limit, return_info=True)
forms = "".join(layer.form[0] for layer in info.layers)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base), info.sample_blocks, forms)
"""


@pytest.mark.parametrize(
    ("model", "limit", "blocks", "forms"),
    [
        ("images", 80 << 20, 1, "ECD"),
        ("tokens", 60 << 20, 10, "SSD"),
        ("tokens", 120 << 20, 3, "SSD"),
        ("experts", 30 << 20, 20, "CEEEEDEC"),
    ],
)
def test_memory_limit_bounds_the_peak(model: str, limit: int, blocks: int, forms: str) -> None:
    command = [sys.executable, "-c", MEMORY, model, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, pairs, kinds = done.stdout.split()[-3:]
    assert kinds == forms
    assert int(pairs) >= blocks
    # The allocator keeps some of what was freed.
    assert int(peak) <= limit + (16 << 20)


STREAM = """
import resource, sys, numpy as np, torch, fastfisher as ff
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
    nn.Linear(256, 10))
x, x2 = torch.randn(20, 100), torch.randn(6000, 100)  # 130 MB of factors
out = np.memmap(sys.argv[1], np.float32, "w+", shape=(20, 6000))
ff.ntk(model, x[:4], outputs="trace")
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ff.ntk(model, x, x2, outputs="trace", memory_limit="40MB", out=out)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base))
part = ff.ntk(model, x, x2[3500:3600], outputs="trace")
print(float(np.abs(out[:, 3500:3600] - part.numpy()).max() / np.abs(out).max()))
"""


def test_cross_kernel_streams_to_a_file_in_bounded_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STREAM, str(tmp_path / "kernel.bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, error = map(float, done.stdout.split()[-2:])
    assert peak <= 40e6 + (16 << 20)
    assert error < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_in_16_bits_give_float32(dtype: str) -> None:
    model, x = small(), samples(9)
    j = dense(model, x)
    kernel = ff.ntk(model.to(getattr(torch, dtype)), x.to(getattr(torch, dtype)))
    assert kernel.dtype == torch.float32
    expected = forms(j, j)["full"].float()
    # Weights, inputs and every intermediate result are rounded to the model's dtype.
    assert (kernel - expected).norm() <= 10 * torch.finfo(
        getattr(torch, dtype)
    ).eps * expected.norm()


def test_gradient_hooks_change_nothing_or_are_refused() -> None:
    model, x = small(), samples(5)
    expected = ff.ntk(model, x)
    model[2].weight.register_hook(lambda g: g / 2)
    close(ff.ntk(model, x), expected)

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6, dtype=torch.float64))

        def forward(self, x: Any) -> Any:
            return x @ self.weight[2:5].T

    sliced = Sliced()
    j = dense(sliced, x)
    close(ff.ntk(sliced, x), forms(j, j)["full"])
    sliced.weight.register_hook(lambda g: g / 2)
    with pytest.raises(ff.errors.CaptureError, match=r"\(8, 6\) has a gradient hook"):
        ff.ntk(sliced, x)


def test_samples_that_the_model_refuses() -> None:
    with pytest.raises(TypeError, match=r"x: expected dtype torch.float64 as the parameters"):
        ff.ntk(small(), samples(3).float())
    with pytest.raises(RuntimeError, match="shapes") as caught:
        ff.ntk(small(), samples(3)[:, :5])
    assert any("x of shape [(3, 5)]" in note for note in caught.value.__notes__)
