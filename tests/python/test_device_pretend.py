# SPDX-License-Identifier: Apache-2.0
"""Everything that runs on a device, run on one that is none: nothing leaves it in silence."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastfisher as ff  # noqa: E402
from device_cases import CASES, kernels, problem, run_both  # noqa: E402
from fastfisher import (  # noqa: E402
    _arrays,
    _native,
    optim,
)
from fastfisher._device_array import DeviceArray  # noqa: E402
from pretend_device import DEVICE, host, moved, pretend, reads  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_device_equals_cpu(case) -> None:
    run_both(case, moved, host, pretend())


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer", "embedding"])
def test_kernels_without_native_ones_equal_the_cpus(model) -> None:
    case = next(one for one in CASES if one.run is kernels and one.model == model)
    run_both(case, moved, host, pretend("library"))


def test_fisher_without_native_kernels_equals_the_cpus() -> None:
    """Products, diagonals and duals need none; what inverts says that it does."""
    model, x, *_ = problem("cnn")

    def numbers(F):
        v = F.diagonal() + 1
        return [F @ v, v, F.dual(), F.dense()]

    expected = numbers(ff.fisher(model, x, likelihood="categorical"))
    plain = ff.fisher(model, x, structure="kfac").dense()
    with pretend("library"):
        F = ff.fisher(moved(model), moved(x), likelihood="categorical")
        for got, want in zip(numbers(F), expected, strict=True):
            np.testing.assert_allclose(host(got), want.numpy(), rtol=1e-7, atol=1e-8)
        got = ff.fisher(moved(model), moved(x), structure="kfac").dense()
        np.testing.assert_allclose(host(got), plain.numpy(), rtol=1e-9, atol=1e-12)
        with pytest.raises(NotImplementedError, match="psd"):
            F.solve(F.diagonal(), damping=0.1)


def test_arrays_in_numpys_words_cross_the_native_waist() -> None:
    a = A @ A.T
    got = ff.psd.inverse(DeviceArray(torch.from_numpy(a)))
    assert isinstance(got.value, DeviceArray)
    np.testing.assert_array_equal(got.value.tensor.numpy(), ff.psd.inverse(a).value)


def test_the_pretended_device_is_strict() -> None:
    x = np.arange(6.0).reshape(2, 3)
    with pretend():
        there = moved(x)
        assert str(there.device) == str(DEVICE)
        for bad in (np.asarray, lambda t: t.numpy(), lambda t: t.__dlpack__()):
            with pytest.raises((TypeError, BufferError)):
                bad(there)
        with pytest.raises(RuntimeError, match="on the same device"):
            there + torch.ones(2, 3)
        reads.clear()
        assert float((there @ there.T).sum()) == (x @ x.T).sum()
        assert sum(reads.values()) == 1
        np.testing.assert_array_equal(there.cpu().numpy(), x)


def test_a_step_of_kfac_waits_seven_times() -> None:
    with pretend():
        model, x, y, _ = (moved(part) for part in problem("mlp"))
        optimizer = optim.KFAC(model)
        counts = []
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            reads.clear()
            optimizer.step()
            counts.append(dict(reads))
        # Gradients, factors (twice), running means, traces, updates, the bound on the step.
        assert counts == [{"tolist": 7}] * 2


def test_nothing_of_the_size_of_factors_is_read() -> None:
    with pretend():
        model, x, *_ = (moved(part) for part in problem("mlp"))
        F = ff.fisher(model, x, structure="kfac", likelihood="categorical")
        F.solve(F.diagonal(), damping=0.1)
        assert not [name for name in reads if "_to_copy" in name]


MISPLACED = {
    "vector": lambda m, x, y, t: ff.fisher(m, x) @ torch.ones(629, dtype=torch.float64),
    "labels": lambda m, x, y, t: ff.fisher(
        m, x, y.cpu(), kind="empirical", likelihood="categorical"
    ),
    "residual": lambda m, x, y, t: ff.ngd.update(ff.jacobian(m, x), t.cpu(), damping=0.1),
    "targets": lambda m, x, y, t: ff.diagnostics.scores(m, x, y.cpu()),
    "ngd labels": lambda m, x, y, t: optim.NGD(m, lr=1.0).step(x=x, y=t.cpu()),
    "product": lambda m, x, y, t: ff.jacobian(m, x).T @ t.cpu().reshape(-1),
    "out": lambda m, x, y, t: ff.jacobian(m, x).gram(out=torch.zeros(7, 3, 7, 3).double()),
    "kernels": lambda m, x, y, t: ff.kernels.ntk(x, depth=2, sigma_w2=1.0, sigma_b2=0.0),
    "conditional": lambda m, x, y, t: ff.diagnostics.conditional_fisher(problem("numpy")[0], x[:1]),
}


@pytest.mark.parametrize("what", MISPLACED)
def test_arrays_elsewhere_are_refused_not_moved(what) -> None:
    with pretend():
        given = [moved(part) for part in problem("mlp")]
        with pytest.raises(TypeError, match=r"lazy:0"):
            MISPLACED[what](*given)


def test_models_in_two_places_are_refused() -> None:
    with pretend():
        given = [moved(part) for part in problem("mlp")]
        with pytest.raises(
            ValueError, match="x: expected device lazy:0 as the parameters, got cpu"
        ):
            ff.ntk(given[0], given[1].cpu())
        model = problem("mlp")[0]
        model[0] = moved(model[0])
        with pytest.raises(TypeError, match=r"all parameters on one device, got '0.weight' on"):
            optim.KFAC(model)
        with pytest.raises(TypeError, match="expected parameters on the CPU or a CUDA device"):
            optim.NGD(torch.nn.Linear(2, 2, device="meta"))


def test_arrays_of_numpy_come_back_as_such() -> None:
    model, x, *_ = problem("mlp")
    v = np.ones(sum(p.numel() for p in model.parameters()))
    expected = ff.fisher(model, x) @ v
    with pretend():
        got = ff.fisher(moved(model), moved(x)) @ v
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# numpy's words ------------------------------------

A = np.random.default_rng(0).standard_normal((4, 4)) + 4 * np.eye(4)
FUNCTIONS = {
    "arithmetic": lambda x: (2 - x) / 3 + x * x - x**2 + 1 / (1 + np.exp(-np.abs(x))),
    "promotion": lambda x: x.astype(np.float32) * np.ones(4) + np.float64(2),
    "comparisons": lambda x: (x > 0) & ~(x >= 1) | (x == 2),
    "extremes": lambda x: x.max(1, initial=0.0) + x.min(0) + np.maximum(x, 0).max(),
    "empty extremes": lambda x: x[:0].max(0, initial=-1.5),
    "sums": lambda x: x.sum((0, 1)) + x.mean(0) + (x > 0).mean() + x.sum(1, keepdims=True),
    "indices": lambda x: x[[0, 2]][:, np.array([True, False, True, False])],
    "backwards": lambda x: x[::-1],
    "where": lambda x: np.where(x > 0, x, 0) + np.where(x > 0, 1, x),
    "in place": lambda x: _written(x.copy()),
    "products": lambda x: np.einsum("ij,kj->ik", x, x) + np.tensordot(x, x, 1),
    "outer": lambda x: np.outer(x[0], x[1]) + x @ x,
    "traces": lambda x: np.trace(x) + np.diagonal(x) + np.trace(np.stack([x]), axis1=1, axis2=2)[0],
    "joined": lambda x: np.block([[x, x], [x, x]]) + np.tile(np.concatenate([x, x]), (1, 2)),
    "solved": lambda x: np.linalg.solve(x, np.eye(4)) - np.linalg.inv(x),
    "norms": lambda x: np.linalg.norm(x) + np.linalg.norm(x, axis=0) + np.linalg.norm(x, 1),
    "eigenvalues": lambda x: np.linalg.eigvalsh(x + x.T) - np.linalg.eigh(x + x.T)[0],
    "singular values": lambda x: np.linalg.svd(x, full_matrices=False)[1],
    "pseudo-inverse": lambda x: np.linalg.pinv(x),
    "made like it": lambda x: np.zeros(4, like=x) + np.eye(4, like=x) + np.ones((4, 4), like=x),
    "reshaped": lambda x: x.reshape(2, 8).T.swapaxes(0, 1).reshape((4, 4)).cumsum(0),
}  # fmt: skip


def _written(x):
    x[1:] += x[:-1]
    x *= 2.0
    np.matmul(x, x, out=x[:, :])
    np.add.at(x, np.array([0, 0, 1]), np.ones((3, 4)))
    x[np.arange(2), np.arange(2)] = 7
    return x


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpys_words(name) -> None:
    expected = FUNCTIONS[name](A)
    with pretend():
        got = FUNCTIONS[name](DeviceArray(moved(A)))
        assert isinstance(got, DeviceArray)
        assert (got.shape, got.dtype) == (np.shape(expected), expected.dtype)
        np.testing.assert_allclose(host(got.tensor), expected, rtol=1e-12, atol=1e-12)


def test_what_has_no_word_raises() -> None:
    x = DeviceArray(torch.ones(3))
    with pytest.raises(TypeError, match=r"pass x\.cpu\(\)"):
        np.asarray(x)
    for unknown in (np.fft.fft, np.arcsinh, np.add.reduce):
        with pytest.raises(TypeError):
            unknown(x)
    with pytest.raises(TypeError):
        np.zeros(3)[:] = x
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.solve(DeviceArray(torch.zeros(2, 2)), DeviceArray(torch.ones(2, 1)))
    assert repr(x) == "DeviceArray(shape=(3,), dtype=float32, device=cpu)"


def test_other_libraries_on_a_device_are_told_how() -> None:
    class ndarray:  # as cupy's
        device = type("Device", (), {"id": 0})()

    ndarray.__module__ = "cupy"
    with pytest.raises(TypeError, match=r"pass torch\.from_dlpack"):
        _arrays.in_numpys_words(ndarray(), "layers")


# The report ---------------------------------------


def test_report_says_why_cuda_is_off(tmp_path, capsys) -> None:
    from fastfisher.cli import main

    state = _native.build_info()["backends"]["cuda"]
    if state["available"]:
        pytest.skip("there is a GPU")
    assert main(["report", "--device", "cuda", "--out", str(tmp_path / "r")]) == 1
    said = capsys.readouterr().err
    assert f"device: cuda is off: {state['detail']}" in said
    assert not (tmp_path / "r").exists()


def test_report_moves_its_heavy_parts(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    from fastfisher.report import Settings, _device, chosen, write

    info = _native.build_info()
    info["backends"]["cuda"] = {"available": True, "detail": "pretended"}
    monkeypatch.setattr(_native, "build_info", lambda: info)
    monkeypatch.setattr(_device, "empty_on", lambda device: torch.empty(0, device=DEVICE))
    options = {"hidden": (20, 20), "samples": 12, "steps": 2, "grid": "quick"}
    only = chosen(("ntk-spectrum",))
    plain = write(Settings(**options), tmp_path / "cpu", sections=only)
    with pretend():
        there = write(Settings(**options, device="cuda"), tmp_path / "cuda", sections=only)
    (one,), (other,) = plain["sections"], there["sections"]
    assert there["device"] == "cuda"
    assert "gradient descent on the CPU" in other["settings"]["on cuda"]
    np.testing.assert_allclose(other["values"]["outliers"], one["values"]["outliers"], rtol=1e-9)
    assert {section.id for section in chosen(())} == set(_device.PARTS)
