# SPDX-License-Identifier: Apache-2.0
"""What a section of the report is given and what it hands back.

Strings called *markup* are HTML written by us (``&eta;<sub>c</sub>``); everything else is escaped
by the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fastfisher.report.data import DataSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Context",
    "Fact",
    "Figure",
    "Plot",
    "Progress",
    "Section",
    "SectionResult",
    "Settings",
    "Silent",
    "Table",
    "Text",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the numbers of a report."""

    data: str = "digits"
    hidden: tuple[int, ...] = (1024, 1024)
    activation: str = "relu"
    sigma_w2: float = 2.0
    sigma_b2: float = 0.1
    samples: int = 200
    seed: int = 0
    ratios: tuple[float, ...] = (0.8, 0.95, 1.05, 1.2)
    steps: int = 15
    quick: bool = False


class Progress(Protocol):
    """Where a section says how far it is."""

    def task(
        self, description: str, total: int | None = None
    ) -> AbstractContextManager[Callable[[], None]]:
        """Open a task; the block is given a function to call after each of `total` steps."""


class Silent:
    """A `Progress` that shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Do nothing, `total` times."""
        yield lambda: None


@dataclass(frozen=True)
class Context:
    """What every section may use."""

    settings: Settings
    data: DataSet
    progress: Progress = field(default_factory=Silent)


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
