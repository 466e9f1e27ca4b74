# SPDX-License-Identifier: Apache-2.0
"""Kernels, Fisher matrices, updates, optimisers, diagnostics and the report on a GPU."""

from __future__ import annotations

import contextlib
import json
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastfisher as ff  # noqa: E402
from device_cases import CASES, problem, run_both  # noqa: E402
from fastfisher import optim  # noqa: E402

# Those that say more than others do, so that all of them take some twenty seconds.
LESS = ("isotropic", "ngd-block", "fisher-block", "fisher-diagonal", "ngd-diagonal", "batches")
CUDA_CASES = [
    case
    for case in CASES
    if not case.same_kernels
    and case.model not in ("numpy mean", "numpy batch")
    and (case.model == "mlp" or not case.id.startswith(("fisher", "ngd")) or case.model == "cnn")
    and not case.id.startswith(LESS)
]
ON_A_STREAM = {
    "cnn-kernels",
    "mlp-fisher-kfac-categorical-exact-expand",
    "mlp-fisher-full-categorical-exact-expand",
    "mlp-KFAC",
    "mlp-residuals",
}


@pytest.fixture(autouse=True, scope="module")
def products_of_float64(cuda_device):
    """Matrix products of torch at full precision, whatever the environment says."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(kept)


def moved(x):
    return torch.from_numpy(x).cuda() if isinstance(x, np.ndarray) else x.to("cuda:0")


def host(x) -> np.ndarray:
    assert x.device.type == "cuda", "left the device"
    return x.detach().cpu().numpy()


@pytest.mark.parametrize("case", CUDA_CASES, ids=str)
def test_device_equals_cpu(case, cuda_device) -> None:
    run_both(case, moved, host, contextlib.nullcontext())


@pytest.mark.parametrize("case", [x for x in CUDA_CASES if str(x) in ON_A_STREAM], ids=str)
def test_device_equals_cpu_on_a_stream(case, cuda_device) -> None:
    run_both(case, moved, host, torch.cuda.stream(torch.cuda.Stream()))


@pytest.mark.parametrize("kind", ["KFAC", "NGD"])
def test_two_runs_give_the_same_bits(kind, cuda_device) -> None:
    found = []
    for _ in range(2):
        model, x, y, t = (moved(part) for part in problem("mlp"))
        optimizer = optim.KFAC(model) if kind == "KFAC" else optim.NGD(model, lr=0.5)
        for _ in range(3):
            if kind == "KFAC":
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            else:
                optimizer.step(x=x, y=t)
        found.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*found)


def test_float32_is_as_good_as_on_the_cpu(cuda_device) -> None:
    model, x, *_ = problem("cnn")
    exact = ff.ntk(model, x).numpy()
    errors = []
    for where in ("cpu", "cuda:0"):
        got = ff.ntk(model.float().to(where), x.float().to(where))
        assert got.dtype == torch.float32
        errors.append(np.linalg.norm(got.cpu().numpy() - exact) / np.linalg.norm(exact))
    assert errors[1] <= max(2 * errors[0], 1e-6)


def test_step_of_kfac_waits_seldom(cuda_device) -> None:
    model, x, y, _ = (moved(part) for part in problem("mlp"))
    optimizer = optim.KFAC(model)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    with warnings.catch_warnings(record=True) as waited:
        warnings.simplefilter("always")  # torch warns of the mode itself, too
        torch.cuda.set_sync_debug_mode("warn")
        waited.clear()
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # torch says it of what it reads back itself; inverses read back through their own kernels.
    assert len([one for one in waited if "synchroniz" in str(one.message)]) <= 8


def test_memory_limit_of_the_device(cuda_device) -> None:
    from fastfisher._memory import free_memory

    x = torch.zeros(1, device=cuda_device)
    free, total = torch.cuda.mem_get_info()
    assert 0 < free_memory(x) <= total
    assert free_memory(x) >= free // 2
    model, x, *_ = problem("mlp")
    expected = ff.ntk(model, x)
    got, info = ff.ntk(moved(model), moved(x), memory_limit=2_000_000, return_info=True)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-9)
    assert info.blocks >= 1


def test_arrays_elsewhere_are_refused(cuda_device) -> None:
    model, x, _, t = (moved(part) for part in problem("mlp"))
    with pytest.raises(ValueError, match="x: expected device cuda:0"):
        ff.ntk(model, x.cpu())
    with pytest.raises(TypeError, match="cuda:0"):
        ff.ngd.update(ff.jacobian(model, x), t.cpu(), damping=0.1)
    with pytest.raises(TypeError, match="cuda:0"):
        optim.NGD(model, lr=1.0).step(x=x, y=t.cpu())


def test_cupy_factors(cuda_device) -> None:
    cupy = pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    a, g, v = rng.normal(size=(5, 3)), rng.normal(size=(5, 2, 4)), rng.normal(size=12)
    layers = [ff.Dense(cupy.asarray(a), cupy.asarray(g))]
    j, expected = ff.Jacobian.from_factors(layers), ff.Jacobian.from_factors([ff.Dense(a, g)])
    np.testing.assert_allclose(j.gram().get(), expected.gram(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((j @ cupy.asarray(v)).get(), expected @ v, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match=r"pass torch\.from_dlpack"):
        ff.fisher(j)


@pytest.mark.parametrize("section", ["ntk-spectrum", "fisher-theory"])
def test_report(section, cuda_device, tmp_path, capsys) -> None:
    for module in ("matplotlib", "jinja2", "scipy"):
        pytest.importorskip(module)
    from fastfisher.cli import main

    out = tmp_path / "report"
    command = ["report", "--quick", "--only", section, "--device", "cuda", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["device"] == "cuda"
    assert "--device cuda" in found["command"]
    assert "on cuda" in found["sections"][0]["settings"]
    capsys.readouterr()
