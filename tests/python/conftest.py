# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the array libraries and devices that exist here, and why others do not.

Where fastfisher's CUDA backend has a device, arrays of torch and cupy on it are two libraries more;
elsewhere `cuda_device` says why there is none. With FASTFISHER_PRETEND_DEVICE=1 tensors of
`pretend_device` are one more.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from fastfisher._arrays import to_numpy


def _cuda() -> dict:
    from fastfisher import _native

    return _native.build_info()["backends"]["cuda"]


LIBRARIES = ["numpy", "torch", "jax"]
if _cuda()["available"]:
    LIBRARIES += [name for name in ("torch-cuda", "cupy") if importlib.util.find_spec(name[:5])]
if os.environ.get("FASTFISHER_PRETEND_DEVICE"):
    LIBRARIES.append("torch-pretend")


def pytest_addoption(parser):
    parser.addoption(
        "--require-cuda",
        action="store_true",
        help="fail instead of skip where there is no CUDA device",
    )
    parser.addoption(
        "--cuda-stream",
        action="store_true",
        help="run every test on a CUDA stream of its own, of torch and of cupy",
    )


class ArrayLibrary:
    """What a test needs of one array library: make an array of it and read it back."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def on_device(self) -> bool:
        """Whether arrays are not on the CPU."""
        return self.name in ("torch-cuda", "cupy", "torch-pretend")

    def array(self, host: np.ndarray):
        if self.name == "torch":
            import torch

            return torch.from_numpy(host)
        if self.name == "torch-cuda":
            import torch

            return torch.from_numpy(np.ascontiguousarray(host)).cuda()
        if self.name == "cupy":
            import cupy

            return cupy.asarray(host)
        if self.name == "torch-pretend":
            from pretend_device import moved

            return moved(host)
        if self.name == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
            return jax.numpy.asarray(host)
        return host

    def host(self, x) -> np.ndarray:
        """`x` as an array of numpy."""
        return to_numpy(x) if self.on_device else np.asarray(x)

    def assert_same(self, got, expected: np.ndarray) -> None:
        """Same bits as on the CPU; on a device the same but for roundings."""
        if self.on_device:
            scale = np.abs(expected).max(initial=0.0)
            tolerance = 64 * np.finfo(expected.dtype).eps * scale
            np.testing.assert_allclose(self.host(got), expected, rtol=0, atol=tolerance)
        else:
            np.testing.assert_array_equal(np.asarray(got), expected)

    def kind(self) -> type:
        return type(self.array(np.zeros(1)))


@pytest.fixture(params=LIBRARIES)
def xp(request) -> Iterator[ArrayLibrary]:
    if importlib.util.find_spec(request.param.partition("-")[0]) is None:
        pytest.skip(f"{request.param} is not installed")
    device = contextlib.nullcontext()
    if request.param == "torch-pretend":
        from pretend_device import pretend

        device = pretend()
    with device:
        yield ArrayLibrary(request.param)


@pytest.fixture
def device(request) -> str:
    return "cpu"


@pytest.fixture(scope="session")
def cuda_device(request) -> str:
    """Device string of a GPU that fastfisher's CUDA backend can use."""
    state = _cuda()
    if state["available"]:
        return "cuda:0"
    reason = f"no CUDA device: {state['detail']}"
    if request.config.getoption("--require-cuda"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _own_stream(request):
    if not request.config.getoption("--cuda-stream"):
        yield
        return
    import cupy
    import torch

    # What the default stream was given before must be there.
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), cupy.cuda.Stream(non_blocking=True):
        yield
        torch.cuda.synchronize()


@pytest.fixture(autouse=True)
def _ignore_foreign_warnings():
    # Torch says so of the threads of its backward pass.
    warnings.filterwarnings("ignore", message=".*there was no current CUDA context.*")
    # Forking beside the threads of jax and torch is what the fork tests are about.
    warnings.filterwarnings("ignore", message=".*os.fork.*")
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*")
    return


@pytest.fixture(scope="module")
def one_thread():
    """One thread for torch: on small models its threads mostly wait for each other."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_products(monkeypatch):
    """Products of all sizes by our kernels within autograd's passes; counts them."""
    pytest.importorskip("torch")
    from fastfisher.capture import products

    counts = {"products": 0}
    native = products.bmm

    def counted(a, b, out):
        counts["products"] += 1
        native(a, b, out)

    monkeypatch.setattr(products, "enabled", True)
    monkeypatch.setattr(products, "_LEAST_WORK", 0)
    monkeypatch.setattr(products, "_LEAST_ROWS", 0)
    monkeypatch.setattr(products, "bmm", counted)
    return counts


@pytest.fixture
def seeded():
    """The same numbers from torch in each test."""
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20190604)
