# SPDX-License-Identifier: Apache-2.0
"""Products of autograd's passes by our kernels: where they act, and where they must not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip
from torch.autograd import forward_ad  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastfisher as ff  # noqa: E402
from fastfisher import _native  # noqa: E402
from fastfisher.capture import products  # noqa: E402

CPU = torch.device("cpu")


def mlp(dtype=torch.float64, width=48):
    torch.manual_seed(0)
    layers = nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
    return nn.Sequential(*layers).to(dtype), torch.randn(40, 8, dtype=dtype)


def both(a, b):
    """``a @ b`` by torch and, with how many were ours, in a block of our products."""
    with torch.no_grad():
        expected = a @ b
        with products.own_products(CPU):
            return expected, a @ b


class Seen(TorchDispatchMode):
    """Names of the functions that pass through a mode of the caller's."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kernel_is_that_of_torchs_products(dtype, outputs, own_products, monkeypatch):
    model, x = mlp(dtype)
    got = ff.ntk(model, x, outputs=outputs)
    assert own_products["products"] >= 6
    monkeypatch.setattr(products, "enabled", False)
    expected = ff.ntk(model, x, outputs=outputs)
    assert (got - expected).norm() <= 20 * torch.finfo(dtype).eps * expected.norm()


def test_small_products_stay_with_torch(monkeypatch):
    monkeypatch.setattr(products, "enabled", True)
    monkeypatch.setattr(products, "bmm", None)
    model, x = mlp()
    ff.ntk(model, x)


@pytest.mark.parametrize(
    "shapes",
    [((6, 5), (5, 7)), ((6, 0), (0, 7)), ((0, 5), (5, 7)), ((4, 6, 5), (4, 5, 7))],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_of_any_strides(shapes, dtype, own_products):
    a, b = (torch.randn(shape, dtype=dtype) for shape in shapes)
    for left in (a, a.mT.contiguous().mT, a.flip(-1), a.repeat_interleave(2, -1)[..., ::2]):
        for right in (b, b.mT.contiguous().mT, torch.nn.Parameter(b)):
            expected, got = both(left, right)
            torch.testing.assert_close(got, expected)
            assert got.is_contiguous()
            assert not got.requires_grad
    # Arrays without numbers have no memory, which would be a reason to leave them to torch.
    assert own_products["products"] == (12 if a.numel() and b.numel() else 0)


def dual(x):
    return forward_ad.make_dual(x, torch.ones_like(x))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.randn(3, 4, dtype=torch.complex64), torch.randn(4, 5, dtype=torch.complex64)),
        (torch.randn(3, 4, dtype=torch.complex64).conj().imag, torch.randn(4, 5)),
        (torch.randn(3, 4).bfloat16(), torch.randn(4, 5).bfloat16()),
        (torch.arange(12).view(3, 4), torch.arange(20).view(4, 5)),
        (torch.eye(3, 4).to_sparse(), torch.randn(4, 5)),
        (torch._efficientzerotensor(3, 4), torch.randn(4, 5)),
    ],
    ids=["complex", "negated", "bfloat16", "integers", "sparse", "zeros"],
)
def test_other_products_are_torchs(a, b, own_products):
    expected, got = both(a, b)
    torch.testing.assert_close(got, expected)
    assert own_products["products"] == 0


def test_tensors_without_memory_are_torchs_to_refuse(own_products):
    a, b = torch.randn(6, 5), torch.randn(5, 7)
    b.untyped_storage().resize_(0)
    with torch.no_grad(), products.own_products(CPU), suppress(RuntimeError):
        a @ b
    wrapped = torch._to_functional_tensor(torch.randn(5, 7))
    with torch.no_grad(), products.own_products(CPU):
        assert (a @ wrapped).shape == (6, 7)
    assert own_products["products"] == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_torchs(own_products):
    nested = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)])
    right = torch.nested.nested_tensor([torch.randn(5, 4), torch.randn(5, 4)])
    with torch.no_grad(), products.own_products(CPU):
        got = torch.bmm(nested, right)
    for part, left, weight in zip(got, nested, right, strict=True):
        torch.testing.assert_close(part, left @ weight)
    assert own_products["products"] == 0


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_tangents_are_kept(own_products):
    a, b = torch.randn(6, 5), torch.randn(5, 7)
    with torch.no_grad(), products.own_products(CPU), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(dual(a) @ b).tangent
    torch.testing.assert_close(tangent, torch.ones(6, 5) @ b)


def test_autocast_within_a_pass_acts(own_products):
    a, b = torch.randn(6, 5), torch.randn(5, 7)
    with torch.no_grad(), products.own_products(CPU), torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
    assert own_products["products"] == 0


def test_modes_that_begin_within_a_pass_see_torchs_products(own_products):
    a, b = torch.randn(6, 5), torch.randn(5, 7)
    with torch.no_grad(), products.own_products(CPU), Seen() as seen:
        a @ b
    assert seen.names == ["aten.mm.default"]
    assert own_products["products"] == 0


def test_products_that_need_much_memory_are_torchs(own_products, monkeypatch):
    monkeypatch.setattr(products, "_MOST_PACKED", 5 * 7 * 4)
    a, b = torch.randn(6, 5), torch.randn(5, 8)
    torch.testing.assert_close(*both(a, b))
    assert own_products["products"] == 0
    torch.testing.assert_close(*both(a, b[:, :7].contiguous()))
    assert own_products["products"] == 1


def test_threads_that_begin_together_find_one_key(own_products, monkeypatch):
    known = products._registered()
    monkeypatch.setattr(products, "_keys", [])
    monkeypatch.setattr(products, "_registrations", [])
    monkeypatch.setattr(products, "_register", lambda: (time.sleep(0.05), known)[1])
    found = []
    others = [threading.Thread(target=lambda: found.append(products._registered())) for _ in "abc"]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert found == [known] * 3
    assert products._keys == [known]


def test_products_under_vmap_are_torchs(own_products):
    a, b = torch.randn(5, 3, 4), torch.randn(4, 6)
    with torch.no_grad(), products.own_products(CPU):
        got = torch.func.vmap(lambda left: left @ b)(a)
    torch.testing.assert_close(got, a @ b)


def test_products_that_are_differentiated_are_torchs(own_products):
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    with products.own_products(CPU):
        y = a @ b
    assert own_products["products"] == 0
    torch.testing.assert_close(torch.autograd.grad(y.sum(), a)[0], b.sum(1).expand(3, 4))


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (torch.mm, ((3, 4), (5, 6))),
        (torch.bmm, ((2, 3, 4), (3, 4, 5))),
        (torch.mm, ((2, 3, 4), (2, 4, 5))),
        (torch.bmm, ((3, 4), (4, 5))),
        (torch.mm, ((), (4, 5))),
        (torch.mm, ((3,), (3,))),
    ],
)
def test_mistakes_raise_torchs_errors(op, shapes, own_products):
    a, b = map(torch.randn, shapes)
    with (
        torch.no_grad(),
        products.own_products(CPU),
        pytest.raises(RuntimeError, match=r"mat|batch"),
    ):
        op(a, b)


def test_hooks_of_the_user_act(own_products):
    model, x = mlp()

    def kernel():
        handles = []

        def double(module, inputs, y):
            if y.requires_grad:
                handles.append(y.register_hook(lambda g: g * torch.arange(1.0, 49.0).double()))

        handles.append(model[1].register_forward_hook(double))
        result = ff.ntk(model, x, params=["2.weight", "4.weight"], verify=False)
        for handle in handles:
            handle.remove()
        return result, len(handles)

    ours, count = kernel()
    assert own_products["products"] > 0
    products.enabled = False
    theirs, same = kernel()
    assert count == same > 1
    torch.testing.assert_close(ours, theirs)


def test_modes_of_the_caller_see_torchs_products(own_products):
    model, x = mlp()
    with Seen() as seen:
        ff.ntk(model, x)
    assert "aten.mm.default" in seen.names
    assert own_products["products"] == 0


def test_only_the_block_and_its_thread_are_concerned(own_products):
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    counts = []
    with torch.no_grad(), products.own_products(CPU):
        other = threading.Thread(target=lambda: (a @ b, counts.append(own_products["products"])))
        other.start()
        other.join()
        a @ b
        with suppress(RuntimeError):
            torch.mm(a, b[:3])
        a @ b
    a @ b
    assert counts == [0]
    assert own_products["products"] == 2
    with suppress(ZeroDivisionError), products.own_products(CPU):
        1 / 0  # noqa: B018
    with torch.no_grad():
        a @ b
    assert own_products["products"] == 2


def test_a_torch_without_the_key_has_its_own_products(own_products, monkeypatch):
    monkeypatch.setattr(products, "_keys", [])
    monkeypatch.setattr(products, "_KEY", "NoSuchKey")
    model, x = mlp()
    ff.ntk(model, x)
    assert own_products["products"] == 0


def test_on_torchs_threads_results_are_the_same():
    """Bit for bit: with its team, without, with more threads than it has, within other threads."""
    a, b = (torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(0)) for _ in "ab")
    before = torch.get_num_threads()
    results = []

    def product(threads):
        out = torch.empty_like(a)
        with _native.beside_torch():
            _native.bmm(a, b, out, threads=threads)
        results.append(out)

    try:
        for team in (1, 2, 3):
            torch.set_num_threads(team)
            torch.randn(1 << 18).exp()  # starts them
            for threads in (1, 2, 3):
                product(threads)
        others = [threading.Thread(target=product, args=(2,)) for _ in range(4)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert len(results) == 13
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], a @ b, rtol=1e-4, atol=1e-4)


def test_a_forked_child_does_not_wait_for_torchs_threads(rng):
    a, g = rng.standard_normal((300, 200)), rng.standard_normal((300, 1, 200))
    torch.randn(1 << 18).exp()

    def gram():
        with _native.beside_torch():
            return ff.gram(a, g, threads=2)

    expected = gram()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(gram(), expected) else 2
        finally:
            os._exit(status)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(gram(), expected)


_FORK = """
import os, sys
import numpy as np, torch
import fastfisher as ff
torch.randn(1 << 20).exp()  # starts torch's threads, none of ours
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
x = torch.randn(40, 64)
child = os.fork()
if child == 0:
    # Large functions of torch itself would wait for its threads.
    os._exit(0 if np.isfinite(ff.ntk(model, x).numpy()).all() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_of_a_parent_that_never_used_threads_of_ours_ends():
    assert subprocess.run([sys.executable, "-c", _FORK], timeout=60, check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="sends itself a signal")
def test_an_interrupt_stops_a_kernel_and_leaves_torch_as_it_was(own_products):
    model, x = mlp(torch.float32, width=1024)
    x = x.repeat(40, 1)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()

    def endless():
        while True:
            ff.ntk(model, x, outputs="trace")

    with pytest.raises(KeyboardInterrupt):
        endless()
    timer.join()
    assert own_products["products"] > 0
    count = own_products["products"]
    with torch.no_grad():
        x @ x.T
    assert own_products["products"] == count
    assert ff.ntk(model, x[:3]).isfinite().all()
