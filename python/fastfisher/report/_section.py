# SPDX-License-Identifier: Apache-2.0
"""What a section of the report is given and what it hands back.

Strings called *markup* are HTML written by us (``&eta;<sub>c</sub>``); everything else is escaped
by the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastfisher.report.data import DataSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "QUICK_SECONDS",
    "QUICK_SECTION_SECONDS",
    "Context",
    "Fact",
    "Figure",
    "Grid",
    "Plot",
    "Points",
    "Progress",
    "Section",
    "SectionResult",
    "Settings",
    "Silent",
    "Table",
    "Text",
    "Tick",
]

T = TypeVar("T")

Grid = Literal["quick", "default", "full"]

# What --quick promises on two cores for all sections together, and what each may take of it. The
# sizes are fixed, so that a seed gives the same numbers everywhere: the clock decides nothing, the
# page and the command line say when a section was slower than this.
QUICK_SECONDS = 180.0
QUICK_SECTION_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the numbers of a report.

    `grid` is the size of everything that a section chooses itself: ``quick`` (a section may take
    some 15 seconds on two cores), ``default`` (some minutes in all), ``full`` (the sizes of the
    papers: hours, under 4 GB). `device` is where the heavy parts run, see ``_device.PARTS``.
    """

    data: str = "digits"
    hidden: tuple[int, ...] = (1024, 1024)
    activation: str = "relu"
    sigma_w2: float = 2.0
    sigma_b2: float = 0.1
    samples: int = 200
    seed: int = 0
    ratios: tuple[float, ...] = (0.8, 0.95, 1.05, 1.2)
    steps: int = 15
    grid: Grid = "default"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        """Check the names of the grid and of the device."""
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu or cuda, got {self.device!r}")
        if self.grid not in ("quick", "default", "full"):
            raise ValueError(f"grid: expected quick, default or full, got {self.grid!r}")

    @property
    def quick(self) -> bool:
        """Whether the grid is the smallest one."""
        return self.grid == "quick"

    def pick(self, *, quick: T, default: T, full: T) -> T:
        """Choose a size by the grid."""
        return {"quick": quick, "default": default, "full": full}[self.grid]


class Tick(Protocol):
    """What a section calls when it has got further, by default one step."""

    def __call__(self, steps: int = 1) -> None:
        """Count `steps` more as done."""


class Progress(Protocol):
    """Where a section says how far it is."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Tick]:
        """Open a task; the block is given a function to call after each of `total` steps.

        The time left is guessed from the speed of the steps: let them stand for equal work.
        """


class Silent:
    """A `Progress` that shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Tick]:
        """Do nothing, `total` times."""
        yield count_nothing


def count_nothing(steps: int = 1) -> None:
    """Count nothing."""


class Points(Protocol):
    """Where finished grid points of sections are kept."""

    def point(
        self, section: str, name: str, compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """Read a point, or compute and keep it."""


@dataclass(frozen=True)
class Context:
    """What every section may use."""

    settings: Settings
    data: DataSet
    progress: Progress = field(default_factory=Silent)
    section: str = ""
    points: Points | None = None

    def point(
        self, name: str, compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """Compute one point of a section's grid, or read it if a run before this one has done so.

        Parameters
        ----------
        name : str
            Tells the point from all others of the section: everything it depends on besides the
            settings, as ``"map mean 400 seed 3"``.
        compute : callable
            Makes the point, a dict of numeric arrays, from nothing but the settings and `name`.

        Returns
        -------
        dict of str to array
            What `compute` returned, as arrays. Only runs with ``grid="full"`` keep it on disk.
        """
        if self.points is not None:
            return self.points.point(self.section, name, compute)
        return {key: np.asarray(value) for key, value in compute().items()}


@dataclass(frozen=True)
class Text:
    """One paragraph (markup)."""

    markup: str


@dataclass(frozen=True)
class Plot:
    """One picture; `draw` runs once for a light page and once for a dark one."""

    name: str
    alt: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (7.0, 4.4)


@dataclass(frozen=True)
class Figure:
    """Pictures side by side (below each other in a narrow window) over one caption (markup)."""

    plots: tuple[Plot, ...]
    caption: str


@dataclass(frozen=True)
class Table:
    """One table: caption and column heads (markup), cells (plain text)."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Fact:
    """One headline figure: what it is (markup), its value and a remark (markup)."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class SectionResult:
    """A finished section: blocks for the page, plain values for results.json.

    `headline` is the one line (plain text) that the command line prints.
    """

    summary: str
    facts: tuple[Fact, ...]
    blocks: tuple[Text | Figure | Table, ...]
    settings: dict[str, Any]
    values: dict[str, Any]
    headline: str = ""


@dataclass(frozen=True)
class Section:
    """One row of the table of sections."""

    id: str
    title: str
    build: Callable[[Context], SectionResult]
