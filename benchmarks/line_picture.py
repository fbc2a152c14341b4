"""Lines over two logarithmic axes as SVG of a few kilobytes, for pages that are kept in git."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]
COLOURS = ("#1f77b4", "#17becf", "#d62728", "#2ca02c", "#7f7f7f", "#bcbd22")
WIDTH, HEIGHT, LEFT, TOP, GAP = 250, 210, 50, 30, 16  # of a panel's frame, and around it


def write_lines(
    path: Path, panels: Mapping[str, Mapping[str, Points]], *, across: str, up: str
) -> None:
    """A panel for each title, side by side, all with the same axes: lines by name. across, up: what
    the axes tell. Numbers must be above 0."""
    points = [p for lines in panels.values() for line in lines.values() for p in line]
    x, y = _Axis([p[0] for p in points], WIDTH), _Axis([p[1] for p in points], -HEIGHT)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    wide = LEFT + len(panels) * (WIDTH + GAP)
    tall = TOP + HEIGHT + 40 + 16 * -(-len(names) // 3)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" '
        f'font-family="sans-serif" font-size="11"><rect width="{wide}" height="{tall}" '
        'fill="#fff"/>',
        _text(4, 12, up),
    ]
    for at, (title, lines) in enumerate(panels.items()):
        left = LEFT + at * (WIDTH + GAP)
        out.append(f'<g transform="translate({left} {TOP})">')
        out += _frame(title, x, y, numbers=at == 0)
        out += [_line(points, x, y, COLOURS[names.index(n) % 6]) for n, points in lines.items()]
        out.append("</g>")
    out.append(_text(LEFT + WIDTH / 2, TOP + HEIGHT + 28, across, "middle"))
    for at, name in enumerate(names):
        left, top = LEFT + WIDTH * (at % 3) / 1.6, TOP + HEIGHT + 46 + 16 * (at // 3)
        colour = COLOURS[at % 6]
        out.append(f'<path d="M{left:.0f} {top - 4}h18" stroke="{colour}" stroke-width="2"/>')
        out.append(_text(left + 24, top, name))
    path.write_text("\n".join([*out, "</svg>", ""]), encoding="utf-8")


class _Axis:
    """Places of numbers along `length` pixels, from the other end where it is negative."""

    def __init__(self, values: Sequence[float], length: int) -> None:
        low, high = math.log2(min(values)), math.log2(max(values))
        room = 0.05 * (high - low) or 1.0
        self.low, self.high, self.length = low - room, high + room, length

    def at(self, value: float) -> float:
        share = (math.log2(value) - self.low) / (self.high - self.low)
        return share * self.length if self.length > 0 else (share - 1) * self.length

    def marks(self) -> Iterator[int]:
        """Powers of two inside, as exponents; every second one where they are many."""
        inside = range(math.ceil(self.low), math.floor(self.high) + 1)
        return iter(inside[:: 2 if len(inside) > 7 else 1])


def _frame(title: str, x: _Axis, y: _Axis, *, numbers: bool) -> Iterator[str]:
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>'
    yield _text(WIDTH / 2, -6, title, "middle")
    for power in x.marks():
        yield _text(x.at(2.0**power), HEIGHT + 13, _short(power), "middle")
    for power in y.marks():
        place = y.at(2.0**power)
        yield f'<path d="M0 {place:.1f}h{WIDTH}" stroke="#ddd"/>'
        if numbers:
            yield _text(-4, place + 4, _short(power), "end")


def _line(points: Points, x: _Axis, y: _Axis, colour: str) -> str:
    places = [f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in points]
    dots = "".join(f"M{place}h0" for place in places)
    return (
        f'<g fill="none" stroke="{colour}"><path d="M{"L".join(places)}" stroke-width="1.5"/>'
        f'<path d="{dots}" stroke-width="5" stroke-linecap="round"/></g>'
    )


def _short(power: int) -> str:
    """2^power: 64k, 512, 1/4."""
    if power >= 10:
        return f"{2 ** (power - 10)}k"
    return str(2**power) if power >= 0 else f"1/{2**-power}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
