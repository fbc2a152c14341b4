"""A conversion's report as one HTML page: no script, nothing fetched, light or dark as the reader's
system is. Names come from strangers' checkpoints and are escaped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConvertError, ResourceError, printable
from ..storage.aside import replace_file
from .report_pictures import is_number, pictures

MARK = '<meta name="generator" content="edgert report">'
PAGE = "index.html"
_HEAD = 4096  # bytes of a page in which its mark stands

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d0d7de; --dim: #59636e;
  --row: #f6f8fa; --mark: #fff1e3 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #3d444d;
  --dim: #9198a1; --row: #151b23; --mark: #3a2a17 } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 60rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem }
p.dim, td.dim { color: var(--dim) }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0 }
dl div { padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .5rem }
dt { color: var(--dim); font-size: .8rem }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums }
pre { padding: .7rem .9rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--row); white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
figure { margin: 0 } img { display: block; width: 100%; height: auto }
.scroll { overflow-x: auto }
table { width: 100%; border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 12rem }
tbody tr:nth-child(even) { background: var(--row) } tbody tr.chosen { background: var(--mark) }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{{ mark }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: edgert report</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ name }}</h1>
{% if source %}<p class="dim">converted from {{ source }}</p>{% endif %}
{% if facts %}<dl>{% for what, value in facts %}
<div><dt>{{ what }}</dt><dd>{{ value }}</dd></div>{% endfor %}
</dl>{% endif %}
{% if command %}<pre>{{ command }}</pre>{% endif %}
{% for picture in pictures %}
<h2>{{ picture.title }}</h2>
<figure><picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ picture.dark }}">
<img src="{{ picture.light }}" alt="{{ picture.text }}">
</picture></figure>
{% endfor %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="scroll"><table>
<thead><tr>{% for cell in table.head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr{% if row.chosen %} class="chosen"{% endif %}>{% for cell in row.cells %}<td>{{ cell }}</td>\
{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
</body>
</html>
"""

# Title, key of the data, and columns: heading, key, how it is shown.
TABLES = (
    (
        "Candidates", "candidates",
        (("name", "name", "text"), ("MB", "nbytes", "mb"), ("bits per byte", "bits_per_byte", "4"),
         ("tokens/s here", "tokens_per_second", "1"), ("chosen", "chosen", "yes")),
    ),
    (
        "Matrices", "layers",
        (("name", "name", "text"), ("inputs", "m", "text"), ("outputs", "n", "text"),
         ("atoms", "k", "text"), ("of them each output", "s", "text"), ("form", "form", "text"),
         ("bits removed", "ratio", "%"), ("error", "error", "%")),
    ),
    (
        "Weights", "weights",
        (("name", "name", "text"), ("shape", "shape", "shape"), ("encoding", "encoding", "text"),
         ("MB", "nbytes", "mb"), ("error", "error", "%")),
    ),
)  # fmt: skip


def write_report(directory: Path, data: Mapping[str, Any]) -> Path:
    """Write `directory`/index.html, whole or not at all; its path.

    data, each key optional: name, source, command; seconds, stages {name: seconds}; peak_rss,
    source_bytes, bundle_bytes; weights [{name, shape, encoding, nbytes, error}]; bytes_by_part
    {part: bytes}; layers [{name, m, n, k, s, ratio, error, form}]; perplexity {before, after,
    tokens, text}; candidates [{name, nbytes, bits_per_byte, tokens_per_second, chosen}]. Others are
    left out, so that `ConvertReport.to_dict()` will do. Raises ConvertError where matplotlib is not
    installed or `directory` holds something else than a report, ResourceError where it cannot be
    written.
    """
    check_target(directory)
    text = page(data)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{directory} could not be made: {error.strerror or error}, expected a writable folder",
            code="write",
            hint="check its permissions, or write elsewhere",
        ) from None
    replace_file(directory / PAGE, text.encode("utf-8", "replace"))
    return directory / PAGE


def check_target(directory: Path, bundle: Path | None = None) -> None:
    """Raise ConvertError where a report would replace what is none, or where one of its folder and
    the bundle's would lie in the other; good to ask before the work."""
    here, there = Path(os.path.realpath(directory)), Path(os.path.realpath(bundle or os.devnull))
    if here == there or here in there.parents or there in here.parents:
        raise ConvertError(
            f"the report's folder {directory} and the bundle {bundle} lie in each other, expected "
            "two places",
            code="report-place",
            hint="choose another folder for the report",
        )
    if not directory.exists() and not directory.is_symlink():
        _check_parent(here)
        return
    if directory.is_dir():
        if not any(directory.iterdir()):
            return
        try:
            with open(directory / PAGE, "rb") as file:
                if MARK.encode() in file.read(_HEAD):
                    return
        except OSError:
            pass
    raise ConvertError(
        f"{directory} exists and is no edgert report, expected a new name",
        code="output-exists",
        hint="choose another folder for the report",
    )


def _check_parent(directory: Path) -> None:
    """Raise ConvertError where a folder cannot be made, as far as can be told."""
    parent = next(path for path in directory.parents if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConvertError(
            f"{directory} cannot be made in {parent}, expected a writable folder",
            code="write",
            hint="choose another folder for the report",
        )


def page(data: Mapping[str, Any]) -> str:
    """The page's HTML."""
    from jinja2 import Environment
    from markupsafe import Markup

    drawn = [
        {"title": p.title, "text": printable(p.text), "light": _uri(p.light), "dark": _uri(p.dark)}
        for p in pictures(data)
    ]
    template = Environment(autoescape=True, trim_blocks=False).from_string(TEMPLATE)
    return template.render(
        mark=Markup(MARK),
        style=Markup(STYLE),
        name=_text(data.get("name") or "model"),
        source=_text(data.get("source") or ""),
        command=_text(data.get("command") or ""),
        facts=_facts(data),
        pictures=drawn,
        tables=[
            table
            for title, key, columns in TABLES
            if (table := _table(title, data.get(key), columns))
        ],
    )


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers of the whole conversion."""
    found = [
        (what, shown(data[key], how))
        for what, key, how in (
            ("checkpoint", "source_bytes", "mb+"),
            ("bundle", "bundle_bytes", "mb+"),
            ("time", "seconds", "s"),
            ("peak memory", "peak_rss", "mb+"),
        )
        if is_number(data.get(key))
    ]
    perplexity = data.get("perplexity") or {}
    about = perplexity.get("text")
    place = f" on {_text(about)}" if about else ""
    if is_number(perplexity.get("tokens")):
        place += f", {perplexity['tokens']} tokens"
    for when in ("before", "after"):
        if is_number(perplexity.get(when)):
            found.append((f"perplexity {when}{place}", shown(perplexity[when], "3")))
    stages = (data.get("stages") or {}).items()
    return found + [(f"stage {_text(n)}", shown(s, "s")) for n, s in stages if is_number(s)]


def _table(title: str, rows: Any, columns: tuple[tuple[str, str, str], ...]) -> dict[str, Any]:
    """A table of those columns that any row has."""
    rows = list(rows or ())
    kept = [c for c in columns if any(row.get(c[1]) is not None for row in rows)]
    return {} if not rows else {
        "title": title,
        "head": [heading for heading, _, _ in kept],
        "rows": [
            {
                "cells": [shown(row.get(key), how) for _, key, how in kept],
                "chosen": row.get("chosen") is True,
            }
            for row in rows
        ],
    }  # fmt: skip


def shown(value: Any, how: str) -> str:
    """A value for people. how: "text", "shape", "yes", "%", "s", "mb", "mb+" (with its unit), or
    decimals."""
    if value is None:
        return ""
    if how == "shape":
        return " × ".join(map(str, value)) or "1"
    if how == "yes":
        return "yes" if value else ""
    if how == "text" or not is_number(value):
        return _text(value)
    if how.startswith("mb"):
        return f"{value / 1e6:,.2f}" + " MB" * (how == "mb+")
    if how == "s":
        return f"{value:,.1f} s"
    return f"{value:.2%}" if how == "%" else f"{value:.{how}f}"


def _text(value: Any) -> str:
    return printable(str(value))
