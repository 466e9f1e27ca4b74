# SPDX-License-Identifier: Apache-2.0
"""Kernels in other libraries' layouts, against the definitions of these libraries."""

from __future__ import annotations

import numpy as np
import pytest

import fastfisher as ff

N, M, C, D, P = 4, 3, 2, 2, 7


@pytest.fixture
def jacobians(rng):
    return rng.standard_normal((N, C, P)), rng.standard_normal((M, D, P))


def ours(j, j2, outputs):
    """Kernel of explicit layers as `ff.ntk` gives it."""
    left, right = (ff.Jacobian.from_factors([ff.Explicit(x)]) for x in (j, j2))
    return left.gram(right, outputs=outputs)


# What each library computes, written with its own axes.
THEIRS = {
    ("neural-tangents", "full"): lambda j, j2: np.einsum("ncp,mdp->nmcd", j, j2),
    ("neural-tangents", "trace"): lambda j, j2: np.einsum("ncp,mcp->nm", j, j2) / C,
    ("neural-tangents", "diagonal"): lambda j, j2: np.einsum("ncp,mcp->nmc", j, j2),
    ("nngeometry", "full"): lambda j, j2: np.einsum("ncp,mdp->cndm", j, j2),
    ("torch-tutorial", "full"): lambda j, j2: np.einsum("Naf,Mbf->NMab", j, j2),
    ("torch-tutorial", "trace"): lambda j, j2: np.einsum("Naf,Maf->NM", j, j2),
    ("torch-tutorial", "diagonal"): lambda j, j2: np.einsum("Naf,Maf->NMa", j, j2),
}


@pytest.mark.parametrize(("library", "outputs"), THEIRS, ids="-".join)
def test_layouts_go_there_and_back(library, outputs, jacobians, xp):
    kernel = ours(*jacobians, outputs)
    there = ff.layouts.to_library(xp.array(kernel), library, outputs=outputs, n_outputs=C)
    np.testing.assert_allclose(xp.host(there), THEIRS[library, outputs](*jacobians), rtol=1e-12)
    back = ff.layouts.from_library(there, library, outputs=outputs, n_outputs=C)
    np.testing.assert_allclose(xp.host(back), kernel, rtol=1e-15)
    assert type(back) is type(xp.array(kernel))


def test_mistakes():
    kernel = np.zeros((2, 3, 2, 3))
    with pytest.raises(ValueError, match="library: expected one of"):
        ff.layouts.to_library(kernel, "jax")
    with pytest.raises(ValueError, match="outputs: expected 'full'"):
        ff.layouts.to_library(kernel[0, 0], "nngeometry", outputs="trace")
    with pytest.raises(ValueError, match="kernel: expected 2 axes"):
        ff.layouts.from_library(kernel, "torch-tutorial", outputs="trace")
    with pytest.raises(ValueError, match="n_outputs: expected the number of outputs"):
        ff.layouts.to_library(kernel[0, 0], "neural-tangents", outputs="trace")
    with pytest.raises(TypeError, match="kernel: expected a numpy"):
        ff.layouts.to_library([1.0], "torch-tutorial")
