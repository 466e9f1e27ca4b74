# SPDX-License-Identifier: Apache-2.0
"""Symmetric positive (semi-)definite matrices, many at once and of any sizes.

Every function takes a list of square matrices, a stacked array (b, n, n) or one matrix (n, n),
reads the lower triangles only, and gives one result per matrix: a bad one never loses the others
and changes no bit of them. Equal sizes are worked on as a batch, large matrices by all threads, the
largest first. On a CUDA device all matrices of a list go through each step together; every call
waits for the device once, to read the statuses, and once more for each round of ``"auto"``.

Damping is absolute: the number that is added to the diagonal. ``"auto"`` tries 0 first, then raises
it tenfold from 8 eps times the largest diagonal entry until the matrix is positive definite, up to
max(sqrt(eps), 8 n eps) times that entry (64 eps times the largest eigenvalue, if that is more,
where eigenvalues decide); a matrix that needs more is indefinite.
"""

from __future__ import annotations

from fastfisher.psd._functions import cholesky, eigh, inverse, inverse_root, solve
from fastfisher.psd._results import EighResult, PsdResult

__all__ = ["EighResult", "PsdResult", "cholesky", "eigh", "inverse", "inverse_root", "solve"]
