# SPDX-License-Identifier: Apache-2.0
"""Pictures and the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastfisher._extras import require
from fastfisher.report._section import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["page", "picture", "picture_bytes", "picture_data"]

_URI = "data:image/png;base64,"

_COMMON = {
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "savefig.dpi": 170,
}
_LIGHT = {"text": "#1d2329", "muted": "#59626b", "back": "#ffffff"}
_DARK = {"text": "#e4e7ea", "muted": "#9aa4ad", "back": "#1b2025"}


def _style(colours: dict[str, str]) -> dict[str, Any]:
    return _COMMON | {
        "text.color": colours["text"],
        "axes.labelcolor": colours["text"],
        "axes.edgecolor": colours["muted"],
        "xtick.color": colours["muted"],
        "ytick.color": colours["muted"],
        "grid.color": colours["muted"],
        "figure.facecolor": colours["back"],
        "axes.facecolor": colours["back"],
        "savefig.facecolor": colours["back"],
    }


def picture(plot: Plot, *, dark: bool = False) -> bytes:
    """Draw one plot as PNG, for a light or a dark page."""
    matplotlib = require("matplotlib", purpose="the report")
    figures = require("matplotlib.figure", purpose="the report")
    # "default" first: a user's own matplotlibrc must not make the report unreadable. Figure, not
    # pyplot: no global figure list, no window system.
    with matplotlib.rc_context(matplotlib.rcParamsDefault | _style(_DARK if dark else _LIGHT)):
        figure: Figure = figures.Figure(figsize=plot.size, layout="constrained")
        plot.draw(figure.subplots())
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": "fastfisher"})
    return stream.getvalue()


def picture_data(png: bytes) -> str:
    """Turn a PNG into a data URI, so that the page is one file."""
    return _URI + base64.b64encode(png).decode("ascii")


def picture_bytes(data: str) -> bytes:
    """Turn what `picture_data` returned back into a PNG."""
    return base64.b64decode(data.removeprefix(_URI))


def page(**values: Any) -> str:
    """Render the HTML page."""
    jinja2 = require("jinja2", purpose="the report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return str(environment.get_template("report.html.j2").render(**values))
