# SPDX-License-Identifier: Apache-2.0
"""Data augmentation: self-paced selection, kernels averaged over groups, the kernel regime.

Self-paced augmentation (Takase, Karakida and Asoh 2021, Neurocomputing 442; arXiv 2010.15434) looks
at the loss of each sample first and augments only those on one side of a threshold. `select` and
`mix` are that choice for arrays of any library, `SelfPaced` puts it into a training loop of torch,
`self_paced_descent` follows it in the limit of wide networks. `averaged_kernel` is what a kernel
method becomes when a whole orbit of each sample is in the training set. Spectra of augmented data
are in `fastfisher.theory`.
"""

from __future__ import annotations

from fastfisher.augment._descent import SelfPacedRun, self_paced_descent
from fastfisher.augment._groups import OrthogonalGroup, cyclic_shifts, flips, group
from fastfisher.augment._orbit import averaged_kernel
from fastfisher.augment._selection import Selection, mix, select
from fastfisher.augment._training import SelfPaced

__all__ = [
    "OrthogonalGroup",
    "Selection",
    "SelfPaced",
    "SelfPacedRun",
    "averaged_kernel",
    "cyclic_shifts",
    "flips",
    "group",
    "mix",
    "select",
    "self_paced_descent",
]
