"""Pictures of a conversion report, PNG, by matplotlib (`pip install "edgert[report]"`).

Each is drawn twice, for light and for dark pages. Names come from strangers' checkpoints: they are
drawn as plain text, ASCII, and cut.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ConvertError, printable
from ..extras import require

INKS = {"light": ("#1f2328", "#d0d7de"), "dark": ("#e6edf3", "#3d444d")}  # text, lines
BLUE, ORANGE, GREEN = "#4a90d9", "#e0823d", "#3fa46a"
NAMED = 36  # bars, up to which each has its name
WIDTH, DPI = 8.0, 110  # inches, dots per inch
_LONGEST = 38

Draw = Callable[[Any], None]
Rows = Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """PNGs of one picture on a light and on a dark page. text: what it shows, for who cannot."""

    title: str
    text: str
    light: bytes
    dark: bytes


def pictures(data: Mapping[str, Any]) -> list[Picture]:
    """What there is to see in a report's data (`report_page.write_report`). Raises ConvertError
    where matplotlib is not installed."""
    require("matplotlib", "an HTML report", ConvertError)
    layers, weights = finite(data.get("layers"), "error"), finite(data.get("weights"), "error")
    found = []
    if errors := layers or [row for row in weights if row["error"] > 0]:
        found.append(_bars("Error of each matrix", errors, "error", "relative error", BLUE))
    if allocated := finite(data.get("layers"), "ratio"):
        found.append(_bars("Allocation", allocated, "ratio", "share of the bits removed", ORANGE))
    if parts := _parts(data.get("bytes_by_part")):
        found.append(_bars("Bytes by part", parts, "size", "MB", GREEN))
    if choices := finite(finite(data.get("candidates"), "nbytes"), "bits_per_byte"):
        found.append(_quality(choices))
    return found


def finite(rows: Any, key: str) -> list[Mapping[str, Any]]:
    """Rows whose value of `key` is a finite number."""
    return [row for row in rows or () if is_number(row.get(key))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parts(sizes: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    return [
        {"name": name, "size": size / 1e6} for name, size in (sizes or {}).items()
        if is_number(size)
    ]  # fmt: skip


def label(name: Any) -> str:
    """A name as it is drawn."""
    text = printable(str(name)[:500]).encode("ascii", "replace").decode().replace("\n", " ")
    return text if len(text) <= _LONGEST else "..." + text[3 - _LONGEST :]


def _bars(title: str, rows: Rows, key: str, unit: str, colour: str) -> Picture:
    """A bar for each row: named and lying where there are few, else standing, by number."""
    values = [float(row[key]) for row in rows]
    few = len(rows) <= NAMED

    def draw(axes: Any) -> None:
        places = range(len(values))
        if few:
            axes.barh(places, values, color=colour, height=0.7)
            axes.set_yticks(places, [label(row.get("name", "")) for row in rows])
            axes.invert_yaxis()
            axes.set_xlabel(unit)
            axes.grid(axis="x")
        else:
            axes.bar(places, values, color=colour, width=0.9)
            axes.set_xlabel("matrix, in the order of the table")
            axes.set_ylabel(unit)
            axes.grid(axis="y")

    worst = max(range(len(values)), key=lambda i: values[i])
    text = (
        f"{len(rows)} bars, {unit}; the largest: {rows[worst].get('name', '')}, {values[worst]:.4g}"
    )
    return _picture(title, text, draw, 0.24 * len(rows) + 0.9 if few else 3.2)


def _quality(rows: Rows) -> Picture:
    """Candidates by size and quality; larger dots are faster, the chosen one has a ring."""
    fastest = max(
        (row["tokens_per_second"] for row in finite(rows, "tokens_per_second")), default=0
    )

    def draw(axes: Any) -> None:
        for row in rows:
            at = (row["nbytes"] / 1e6, row["bits_per_byte"])
            (speed,) = [r["tokens_per_second"] for r in finite([row], "tokens_per_second")] or [
                None
            ]
            share = speed / fastest if speed is not None and fastest > 0 else 0.5
            axes.scatter(*at, s=30 + 120 * max(0.0, share), color=BLUE, alpha=0.85, linewidths=0)
            if row.get("chosen"):
                axes.scatter(*at, s=320, facecolors="none", edgecolors=ORANGE, linewidths=2.2)
            axes.annotate(
                label(row.get("name", "")), at, xytext=(9, 6), textcoords="offset points",
                fontsize=8, parse_math=False,
            )  # fmt: skip
        axes.margins(0.15)
        axes.set_xlabel("MB")
        axes.set_ylabel("bits per byte, fewer are better")
        axes.grid()

    chosen = [str(row.get("name", "")) for row in rows if row.get("chosen")]
    text = f"{len(rows)} candidates; chosen: {', '.join(chosen) or 'none'}"
    return _picture("Quality against bytes", text, draw, 4.2)


def _picture(title: str, text: str, draw: Draw, height: float) -> Picture:
    return Picture(title, text, *(_png(draw, height, *INKS[page]) for page in ("light", "dark")))


def _png(draw: Draw, height: float, ink: str, line: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 9,
        "text.parse_math": False,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": ink,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "xtick.color": ink,
        "ytick.color": ink,
    }
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return out.getvalue()
