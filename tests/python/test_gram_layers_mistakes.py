# SPDX-License-Identifier: Apache-2.0
"""Arguments of layers and their Gram that do not fit: the error names the argument."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff
from fastfisher._gram import gram_factors

A, G = np.ones((6, 4, 5)), np.ones((6, 3, 4, 2))
X, H = np.ones((6, 4, 8, 7)), np.ones((6, 3, 2, 8, 7))
M, W = np.ones((6, 4, 2)), np.ones((3, 2))


def conv(x=X, g=H, *, kernel=3, padding=1, **options):
    return ff.Conv(x, g, kernel=kernel, padding=padding, **options)


MISTAKES = {
    "a of rank 2": (lambda: ff.Shared(A[0], G), ValueError, r"a: expected shape \(n, s, i\)"),
    "g of rank 3": (lambda: ff.Shared(A, G[0]), ValueError, r"g: expected shape \(n, c, s, o\)"),
    "samples": (lambda: ff.Shared(A[:4], G), ValueError, "a has 4 samples and g has 6"),
    "positions": (lambda: ff.Shared(A[:, :3], G), ValueError, "g: expected 3 positions"),
    "integers": (lambda: ff.Shared(A.astype(int), G), TypeError, "a: expected dtype"),
    "mixed dtypes": (lambda: ff.Shared(A, G.astype("f4")), TypeError, "a and g .*same dtype"),
    "a list": (lambda: ff.Shared(A.tolist(), G), TypeError, "a: expected a numpy"),
    "bias": (lambda: ff.Shared(A, G, bias=2), TypeError, "bias: expected True or False"),
    "label": (lambda: ff.Shared(A[:4], G, label="q"), ValueError, "layer 'q': a has 4"),
    "m of rank 4": (
        lambda: ff.Shared(A, ff.Separable(G, W)),
        ValueError,
        r"m: expected shape \(n, s, o\)",
    ),
    "m of other samples": (
        lambda: ff.Shared(A, ff.Separable(M[:5], W)),
        ValueError,
        "a has 6 samples and m has 5",
    ),
    "m of other positions": (
        lambda: ff.Shared(A, ff.Separable(M[:, :3], W)),
        ValueError,
        "m: expected 4 positions",
    ),
    "w of rank 1": (
        lambda: ff.Shared(A, ff.Separable(M, W[0])),
        ValueError,
        r"w: expected shape \(c, o\)",
    ),
    "w of other units": (
        lambda: ff.Shared(A, ff.Separable(M, W[:, :1])),
        ValueError,
        r"w: expected shape \(c, 2\)",
    ),
    "w of another dtype": (
        lambda: ff.Shared(A, ff.Separable(M, W.astype("f4"))),
        TypeError,
        "a and w .*same dtype",
    ),
    "separable dense": (lambda: ff.Dense(A[0], ff.Separable(M[0], W)), TypeError, "g: expected a"),
    "x of rank 2": (lambda: conv(X[0, 0]), ValueError, r"x: expected shape \(n, i, \*space\)"),
    "x of rank 6": (lambda: conv(X[..., None, None]), ValueError, "one to three spatial axes"),
    "g of a conv": (lambda: conv(X, H[0]), ValueError, r"g: expected shape \(n, c, o, h, w\)"),
    "samples of a conv": (lambda: conv(X[:2]), ValueError, "x has 2 samples and g has 6"),
    "extents": (
        lambda: conv(X, H[..., :6]),
        ValueError,
        r"g: expected spatial extents \(8, 7\).*got shape \(6, 3, 2, 8, 6\)",
    ),
    "kernel": (lambda: conv(kernel=0), ValueError, "kernel: expected an integer >= 1"),
    "kernel of 3": (lambda: conv(kernel=(3, 3, 3)), ValueError, "kernel: .* or 2 of them"),
    "kernel of text": (lambda: conv(kernel="3"), ValueError, "kernel: expected an integer"),
    "kernel infinite": (
        lambda: conv(kernel=(np.inf, 3)),
        ValueError,
        "kernel: expected an integer",
    ),
    "kernel bool": (lambda: conv(kernel=True), ValueError, "kernel: expected an integer"),
    "stride": (lambda: conv(stride=0), ValueError, "stride: expected an integer >= 1"),
    "padding": (lambda: conv(padding=-1), ValueError, "padding: expected an integer >= 0"),
    "padding beyond 32 bits": (lambda: conv(padding=2**31), ValueError, "padding: expected an"),
    "padding same": (lambda: conv(padding="same"), ValueError, "padding: expected an integer"),
    "dilation": (lambda: conv(dilation=1.5), ValueError, "dilation: expected an integer >= 1"),
    "groups": (lambda: conv(groups=3), ValueError, "groups: expected a divisor of 4 input and 2"),
    "no groups": (lambda: conv(groups=0), ValueError, "groups: expected an integer >= 1"),
    "half an x": (lambda: conv(X.astype("f2")), TypeError, "x and g .*same dtype"),
    "j of rank 2": (lambda: ff.Explicit(A[0]), ValueError, r"j: expected shape \(n, c, p\)"),
    "j of integers": (lambda: ff.Explicit(A.astype(int)), TypeError, "j: expected dtype"),
    "j a list": (lambda: ff.Explicit(A.tolist()), TypeError, "j: expected a numpy"),
    "other of rank 2": (
        lambda: ff.gram(A, G, other=(A[:, 0], G[:, :, 0])),
        ValueError,
        "other: layer 0",
    ),
    "other of other inputs": (
        lambda: ff.gram(A, G, other=(A[..., :3], G)),
        ValueError,
        "other: layer 0",
    ),
    "other of another kernel": (
        lambda: gram_factors([conv()], [conv(kernel=5, padding=2)]),
        ValueError,
        "other: layer 0",
    ),
    "other of other groups": (
        lambda: gram_factors([conv()], [conv(groups=2)]),
        ValueError,
        "other: layer 0",
    ),
    "other not separable": (
        lambda: ff.gram(A, ff.Separable(M, W), other=(A, G)),
        ValueError,
        "other: layer 0 expected cotangents that are Separable",
    ),
    "other with more parameters": (
        lambda: gram_factors([ff.Explicit(A)], [ff.Explicit(A[..., :3])]),
        ValueError,
        "other: layer 0",
    ),
    "other with fewer layers": (
        lambda: gram_factors([conv(), ff.Explicit(A[:, :3])], [conv()]),
        ValueError,
        "other: expected 2 layers",
    ),
    "layers of other outputs": (
        lambda: gram_factors([conv(), ff.Explicit(A)]),
        ValueError,
        r"layers\[1\]: g has \(n, c\) = \(6, 4\)",
    ),
    "method": (lambda: ff.gram(A, G, method="S9"), ValueError, "method: expected one of"),
    "no memory": (
        lambda: gram_factors([conv()], memory_limit=100),
        MemoryError,
        r"memory_limit: needs about \d+ bytes of workspace, got 100",
    ),
    "out overlaps an input": (
        lambda: ff.gram(A, G, outputs="trace", out=G.reshape(-1)[:36].reshape(6, 6)),
        ValueError,
        "out: overlaps",
    ),
    "out overlaps w": (
        lambda: ff.gram(
            A[:2], ff.Separable(M[:2], W), outputs="trace", out=W.reshape(-1)[:4].reshape(2, 2)
        ),
        ValueError,
        "out: overlaps",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_argument(name):
    call, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("rank", [1, 3])
def test_kernels_beyond_any_memory_are_refused(rank):
    x, g = np.ones((1, 2, *[2] * rank)), np.ones((1, 1, 1, *[4] * rank))
    with pytest.raises(ValueError, match=r"kernel: expected patches of fewer than 2\^31 entries"):
        ff.Conv(x, g, kernel=2**31 - 1, padding=2**30)


def test_numpy_bfloat16_names_the_argument():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = A.astype(ml_dtypes.bfloat16)
    with pytest.raises(TypeError, match=r"^a: numpy cannot hand over arrays of dtype bfloat16"):
        ff.gram(half, G.astype(ml_dtypes.bfloat16))
    with pytest.raises(TypeError, match=r"^layer 'x': a: numpy cannot"):
        ff.Shared(half, G, label="x")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_of_outputs_count_in_the_memory_limit(dtype):
    a, g = A.astype(dtype), G.astype(dtype)
    copies = 4 * g.size // g.shape[1] + (4 * a.size if dtype == "float16" else 0)
    for limit in (1, copies, copies + 1):
        message = rf"needs about \d+ bytes, {copies} of them for summed gradients, got {limit}"
        with pytest.raises(MemoryError, match=message) as error:
            ff.gram(a, g, outputs="sum", method="S1", memory_limit=limit)
    needed = int(str(error.value).split("about ")[1].split()[0])
    got = ff.gram(a, g, outputs="sum", method="S1", memory_limit=needed)
    assert np.array_equal(got, ff.gram(a, g, outputs="sum", method="S1"))


def test_mixed_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="x and g must have the same array library"):
        conv(X, torch.from_numpy(H))
    with pytest.raises(TypeError, match="a and w must have the same array library"):
        ff.Shared(A, ff.Separable(M, torch.from_numpy(W)))
    with pytest.raises(TypeError, match=r"x: cannot be borrowed: .*grad.*x.detach\(\)"):
        gram_factors([conv(torch.from_numpy(X).requires_grad_(), torch.from_numpy(H))])
    with pytest.raises(TypeError, match="j: has torch's negative bit"):
        ff.Explicit(torch.randn(6, 5, 4, dtype=torch.complex128).conj().imag)
