# SPDX-License-Identifier: Apache-2.0
"""Groups of orthogonal maps, and kernels averaged over them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import fastfisher as ff
from fastfisher import augment

INF, NAN = float("inf"), float("nan")

# --- groups ---------------------------------------------------------------------------------------


def test_shifts_and_flips_of_images():
    image = np.arange(6.0).reshape(2, 3)
    shifted = augment.cyclic_shifts((2, 3)).apply(image.reshape(1, 6)).reshape(6, 2, 3)
    expected = [np.roll(image, (i, j), (0, 1)) for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(shifted, expected)
    flipped = augment.flips((2, 3)).apply(image.reshape(1, 6)).reshape(4, 2, 3)
    expected = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    np.testing.assert_array_equal(flipped, expected)
    # They are groups by the general check as well.
    for group in (augment.cyclic_shifts((2, 3)), augment.flips((2, 3)), augment.flips((1, 1))):
        assert len(augment.group(group.maps)) == len(group)
    assert len(augment.flips((1, 4))) == 2
    assert augment.cyclic_shifts(5, axes=[]).maps.tolist() == [[0, 1, 2, 3, 4]]
    assert augment.cyclic_shifts(1).apply(np.zeros((0, 1))).shape == (1, 0, 1)


def test_matrices_and_permutations_of_one_group_do_the_same():
    shifts = augment.cyclic_shifts(4)
    matrices = augment.group(np.eye(4)[shifts.maps])
    x = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_allclose(matrices.apply(x), shifts.apply(x), rtol=1e-14)
    assert len(augment.group(np.ones((1, 1, 1), int))) == 1


@pytest.mark.parametrize(
    ("maps", "error", "match"),
    [
        ([0, 1], ValueError, r"maps: expected shape \(g, d\) or \(g, d, d\), got \(2,\)"),
        (np.zeros((0, 3), int), ValueError, "maps: expected shape"),
        ([[0, 2]], ValueError, r"permutations of 0\.\.1, got \[0, 2\]"),
        ([[0, 0]], ValueError, r"permutations of 0\.\.1, got \[0, 0\]"),
        ([[0.0, 1.0]], TypeError, "integer dtype, got dtype float64"),
        ([[0, 1, 2], [1, 2, 0]], ValueError, "product of maps 1 and 1 is not among them"),
        ([[0, 1], [1, 0], [1, 0]], ValueError, "expected distinct maps, got 3, of them 2"),
        ([[[2.0]]], ValueError, "expected orthogonal matrices"),
        ([np.eye(2), [[0.6, -0.8], [0.8, 0.6]]], ValueError, "product of maps 1 and 1"),
        ([np.eye(2), np.eye(2)], ValueError, "expected distinct maps, got 2, of them 1"),
        (np.ones((1, 2, 3)), ValueError, "expected square matrices"),
        ([[[1.0, NAN], [0.0, 1.0]]], ValueError, "maps: expected finite"),
        ([[[1j]]], TypeError, "real dtype, got dtype complex128"),
    ],
)
def test_what_is_no_group_is_refused(maps, error, match):
    with pytest.raises(error, match=match):
        augment.group(maps)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: augment.cyclic_shifts(0), "shape: expected an integer >= 1, got 0"),
        (lambda: augment.cyclic_shifts(()), "shape: expected one extent"),
        (lambda: augment.cyclic_shifts((2, 2.5)), "shape: expected an integer"),
        (lambda: augment.cyclic_shifts((2, 2), axes=[2]), "axes: expected distinct axes of 2"),
        (lambda: augment.flips((2, 2), axes=[1, -1]), "axes: expected distinct axes of 2"),
        (lambda: augment.cyclic_shifts((2, 2), axes=1), "axes: expected a sequence"),
        (lambda: augment.flips(3).apply(np.ones((2, 4))), r"x: expected shape \(n, 3\)"),
        (lambda: augment.flips(3).apply([[1, 2, NAN]]), "x: expected finite"),
    ],
)
def test_group_mistakes(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- averaged kernels -----------------------------------------------------------------------------

NTK = partial(ff.kernels.ntk, depth=2)


def test_averaged_kernel_is_exact_where_maps_leave_a_sample_as_it_is():
    # This kernel is as inaccurate for equal samples as closed forms with arccos are.
    def rough(a, b=None):
        return NTK(a) if b is None else NTK(a, b) * (1 - 1e-8)

    x = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, -0.0]])
    got = augment.averaged_kernel(rough, augment.cyclic_shifts(3), x)
    np.testing.assert_allclose(np.diagonal(got), np.diagonal(NTK(x)), rtol=1e-14)


def test_averaged_kernel_of_few_and_of_one_map():
    x = np.random.default_rng(1).standard_normal((3, 4))
    one = augment.group([[0, 1, 2, 3]])
    np.testing.assert_allclose(augment.averaged_kernel(NTK, one, x), NTK(x), rtol=1e-14)
    shifts = augment.cyclic_shifts(4)
    assert augment.averaged_kernel(NTK, shifts, x[:0]).shape == (0, 0)
    assert augment.averaged_kernel(NTK, shifts, x[:1], x[:0]).shape == (1, 0)
    assert augment.averaged_kernel(NTK, shifts, x[:1]).shape == (1, 1)
    # Integers, and slices, are samples like others.
    whole = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(
        augment.averaged_kernel(NTK, shifts, whole),
        augment.averaged_kernel(NTK, shifts, np.repeat(whole.astype(float), 2, axis=0)[::2]),
    )


def test_averaged_kernel_refuses():
    shifts = augment.cyclic_shifts(3)
    x = np.random.default_rng(2).standard_normal((4, 3))
    local = np.diag([1.0, 2.0, 3.0])

    def weighted(a, b=None):
        return a @ local @ (a if b is None else b).T

    with pytest.raises(ValueError, match="kernel: expected one that the group does not change"):
        augment.averaged_kernel(weighted, shifts, x)
    assert augment.averaged_kernel(weighted, shifts, x, check=False).shape == (4, 4)
    with pytest.raises(ValueError, match=r"x: expected shape \(n, 3\), got \(3, 4\)"):
        augment.averaged_kernel(NTK, shifts, x.T)
    with pytest.raises(ValueError, match=r"y: expected shape \(n, 3\)"):
        augment.averaged_kernel(NTK, shifts, x, x[:, :2])
    with pytest.raises(ValueError, match="x: expected finite"):
        augment.averaged_kernel(NTK, shifts, np.full((2, 3), NAN))
    with pytest.raises(ValueError, match=r"kernel: expected shape \(3, 3\)"):
        augment.averaged_kernel(lambda a, b=None: np.eye(2), shifts, x)
    with pytest.raises(TypeError, match=r"group: expected an OrthogonalGroup, .* got ndarray"):
        augment.averaged_kernel(NTK, np.eye(3), x)
