# SPDX-License-Identifier: Apache-2.0
"""Cases every op has, and how results are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastfisher._arrays import to_numpy

LAYOUTS = {
    "packed": lambda a: a,
    "turned": np.asfortranarray,
    "backwards": lambda a: a[::-1, ::-1],
    "sliced": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, 1::2],
}
"""What one matrix may look like in memory."""


def as_float64(x) -> np.ndarray:
    host = to_numpy(x) if hasattr(x, "__dlpack__") else x
    return np.asarray(host, dtype=np.float64)


def assert_close(
    got, expected: np.ndarray, *, terms: int, dtype: str, scale: float | None = None
) -> None:
    """Norm-wise: |got - expected| <= sqrt(terms) eps |expected|, terms the reduction's length.

    `scale` stands for |expected| where that may be small by chance, all terms cancelling.
    """
    got = as_float64(got)
    assert got.shape == expected.shape
    error = np.linalg.norm(got - expected)
    # The reference is float64 itself, hence at least a few of its own roundings.
    scale = np.linalg.norm(expected) if scale is None else scale
    bound = max(4.0, np.sqrt(terms)) * np.finfo(dtype).eps * scale
    assert error <= bound, f"error {error:.3e} above {bound:.3e}"


@dataclass(frozen=True)
class GramCase:
    """Sizes of a Gram: `layers` are (i, o, bias)."""

    id: str
    n: int
    m: int
    c: int
    layers: tuple[tuple[int, int, bool], ...]

    def __str__(self) -> str:
        return self.id

    @property
    def terms(self) -> int:
        return max(i + self.c * o for i, o, _ in self.layers)

    def factors(self, rng, samples: int, dtype: str) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        return [
            (
                rng.standard_normal((samples, i)).astype(dtype),
                rng.standard_normal((samples, self.c, o)).astype(dtype),
                bias,
            )
            for i, o, bias in self.layers
        ]


GRAM_CASES = [
    GramCase("one-of-all", 1, 1, 1, ((1, 1, False),)),
    GramCase("one-sample", 1, 3, 4, ((5, 6, True),)),
    GramCase("no-samples", 0, 0, 2, ((3, 4, True),)),
    GramCase("no-second-samples", 3, 0, 2, ((3, 4, True),)),
    GramCase("no-outputs", 3, 2, 0, ((3, 4, True),)),
    GramCase("no-inputs", 3, 2, 2, ((0, 4, True),)),
    GramCase("no-inputs-no-bias", 3, 2, 2, ((0, 4, False),)),
    GramCase("no-features", 3, 2, 2, ((3, 0, False),)),
    GramCase("two-layers", 7, 5, 3, ((11, 13, True), (13, 3, False))),
    GramCase("one-output", 101, 67, 1, ((33, 17, True), (17, 29, False), (29, 1, True))),
    GramCase("tiles-exact", 96, 256, 1, ((256, 256, False),)),
    GramCase("off-the-tile", 97, 41, 3, ((257, 259, True),)),
    GramCase("ten-outputs", 37, 29, 10, ((30, 20, True), (20, 10, True))),
    GramCase("twenty-outputs", 13, 9, 20, ((30, 9, True), (20, 21, False))),
    GramCase("many-outputs", 3, 2, 130, ((4, 7, True),)),
    GramCase("wide", 5, 4, 2, ((3001, 2, True), (2, 1999, False))),
    GramCase("several-blocks", 700, 90, 2, ((5, 3, True),)),
    GramCase("many-layers", 9, 8, 2, ((4, 4, True),) * 40),
]
