"""`benchmarks/LONG_CONTEXT.md` and its pictures, from the results of `long_context.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.line_picture import write_lines
from benchmarks.make_checkpoint import SHAPES
from benchmarks.results import number, table

Row = dict[str, Any]
Key = tuple[str, int, str, int]  # shape, threads, engine, depth
Cells = Mapping[tuple[str, int], Row]  # by engine and depth, of one shape
BASE, LINEAR, LLAMA = "softmax-f16", "2mamba", "llama.cpp"
PLAIN = ", plain"  # behind the name of a llama.cpp without flash attention
LLAMAS = (f"{LLAMA}-f16", f"{LLAMA}-f16{PLAIN}", f"{LLAMA}-q8_0")
ENGINES = (BASE, "softmax-int8", LINEAR, "hybrid", *LLAMAS)
LINEAR_GROWTH = 1.05  # exponent of a prompt's time that still counts as linear
PAGE = """# A long text: speed and memory at depth

Written by `python -m benchmarks.long_context --page` from `results/long_context.jsonl`; how it is
measured stands in `long_context.py`. {machine}. Random int4 weights; 2mamba has linear attention in
every layer, hybrid in three of four.

## Goals

Speeds are medians. {judged}

{goals}

![Tokens a second by the length of the text](results/{decode})

![Milliseconds that a prompt's token takes, by the text before it](results/{prompt})

{shapes}
"""
SHAPE = """## {shape}, {threads}

Tokens a second, in brackets over softmax with keys and values of 16 bits:

{decode}

A prompt's token, milliseconds at the depth, in brackets how many times as fast as softmax. ² of 64
tokens read at once, not 256. Left out is what would have taken too long, with the seconds that were
foretold for 64 tokens:

{prompt}

Seconds of a whole prompt, as sums of such pieces with straight lines between the depths, and the
exponent by which they grow from 4k on (1 is linear, 2 quadratic):

{whole}

Megabytes of keys, values and states:

{memory}
"""


def read(path: Path) -> list[Row]:
    """All lines of results, oldest first."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text("utf-8").splitlines() if text]


def latest(lines: Iterable[Row]) -> dict[Key, Row]:
    """The newest row of each cell."""
    return {
        (line["shape"], row["threads"], row["engine"], row["depth"]): row
        for line in lines for row in line["rows"]
    }  # fmt: skip


def write_page(results: Path) -> None:
    """The page of the processor that was measured last, and its pictures beside the results."""
    lines = read(results)
    if not lines:
        raise SystemExit(f"{results} holds no results, expected a run of benchmarks.long_context")
    lines = [line for line in lines if line["machine"]["cpu"] == lines[-1]["machine"]["cpu"]]
    groups: dict[tuple[str, int], dict[tuple[str, int], Row]] = {}
    for (shape, threads, engine, depth), row in sorted(latest(lines).items(), key=_order):
        groups.setdefault((shape, threads), {})[engine, depth] = row
    names = {part: f"{results.stem}_{part}.svg" for part in ("decode", "prompt")}
    titles = {key: f"{key[0]}, {_threads(key[1])}" for key in groups}
    pictures = {
        "decode": ("tokens a second", lambda row: 1e3 / row["decode_ms"]),
        "prompt": ("ms a token of a prompt", lambda row: row["prompt_ms"]),
    }
    for part, (up, value) in pictures.items():
        panels = {titles[key]: _series(cells, value) for key, cells in groups.items()}
        write_lines(results.with_name(names[part]), panels, across="tokens before", up=up)
    rows = [each for key, cells in groups.items() for each in goals(titles[key], cells)]
    head = ("figure", "model", "found", "must reach", "")
    counts = [sum(row[-1] == word for row in rows) for word in ("held", "missed")]
    page = PAGE.format(
        machine=_machine(lines), goals=table(head, rows), **names,
        judged=f"{counts[0]} goals are held, {counts[1]} missed.",
        shapes="\n".join(shape_text(key, cells) for key, cells in groups.items()),
    )  # fmt: skip
    page = "\n".join(line.rstrip() for line in page.rstrip().split("\n"))
    results.parent.with_name("LONG_CONTEXT.md").write_text(page + "\n", encoding="utf-8")


def _order(item: tuple[Key, Row]) -> tuple[int, ...]:
    """Shapes and engines as they are listed, then depths."""
    shape, threads, engine, depth = item[0]
    return list(SHAPES).index(shape), threads, ENGINES.index(engine), depth


def _machine(lines: Sequence[Row]) -> str:
    last = lines[-1]
    noisy = sum(line["run"]["noisy"] for line in lines)
    llama = next((v for x in reversed(lines) if (v := x["machine"].get("llama"))), None)
    said = f"{last['time']}, {last['machine']['cpu']}, {last['machine']['isa']}"
    said += f", llama-cpp-python {llama}" if llama else ""
    return said + (f"; other processes ran beside {noisy} of {len(lines)} lines" if noisy else "")


def _series(cells: Cells, value: Any) -> dict[str, list[tuple[float, float]]]:
    """Points of each engine, without those that were left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for (engine, depth), row in cells.items():
        if value(row):
            found.setdefault(engine, []).append((depth, value(row)))
    return found


# --- figures --------------------------------------------------------------------------------------


def whole_prompts(cells: Cells, engine: str) -> dict[int, float]:
    """Seconds of a prompt as long as each depth, up to the first whose piece was left out."""
    spent, before, cost, found = 0.0, 0, 0.0, {}
    for depth in sorted(d for name, d in cells if name == engine):
        here = cells[engine, depth]["prompt_ms"] / 1e3
        if not here:
            break
        spent += (depth - before) * ((cost or here) + here) / 2
        before, cost = depth, here
        found[depth] = spent
    return found


def growth(prompts: Mapping[int, float]) -> float | None:
    """The exponent of seconds over tokens by least squares of logarithms, from 4096 tokens on; None
    for fewer than two lengths."""
    points = [(n, seconds) for n, seconds in prompts.items() if n >= 4096]
    if len(points) < 2:
        return None
    return float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0])


def goals(title: str, cells: Cells) -> Iterator[tuple[str, ...]]:
    """What must be shown of a shape: figure, shape, found, wanted, verdict."""

    def judged(
        what: str, found: float | None, wanted: float, *, least: bool = True, bound: bool = True
    ) -> tuple[str, ...]:
        said = f"{'>=' if least else '<='} {wanted}" if bound else ""
        if found is None:
            return what, title, "not measured", said, ""
        held = found >= wanted if least else found <= wanted
        text = f"{found:.2f}" if found < 100 else number(found)
        return what, title, text, said, ("held" if held else "missed") if bound else ""

    small = title.startswith("135m")  # the goals of decoding are of this shape
    near, far = cells.get((LINEAR, 1024)), cells.get((LINEAR, 65536))
    steady = near["decode_ms"] / far["decode_ms"] if near and far else None
    more = abs(far["state_mb"] - near["state_mb"]) if near and far else None
    yield judged("2mamba's speed at 64k over its own at 1k", steady, 0.95)
    yield judged("megabytes that 2mamba takes more at 64k than at 1k", more, 1.0, least=False)
    for depth, wanted in ((16384, 2.5), (65536, 5.0)):
        found = faster(cells, BASE, depth)
        what = f"2mamba's speed over softmax f16, {depth // 1024}k"
        yield judged(what, found, wanted, bound=small)
    peers = [faster(cells, name, 16384) for name, d in cells if LLAMA in name and d == 16384]
    least = min((peer for peer in peers if peer), default=None)
    yield judged("2mamba's speed over llama.cpp's faster cache, 16k", least, 5.0, bound=small)
    ours, theirs = (whole_prompts(cells, name) for name in (LINEAR, BASE))
    ratio = theirs[16384] / ours[16384] if 16384 in ours and 16384 in theirs else None
    yield judged("a prompt of 16k, times as fast as softmax f16", ratio, 2.0)
    grows = growth(ours)
    yield judged("exponent of 2mamba's prompts, 4k to the longest", grows, LINEAR_GROWTH,
                 least=False)  # fmt: skip


def faster(cells: Cells, other: str, depth: int) -> float | None:
    """How many times as fast as another engine 2mamba writes."""
    ours, theirs = cells.get((LINEAR, depth)), cells.get((other, depth))
    return theirs["decode_ms"] / ours["decode_ms"] if ours and theirs else None


# --- tables ---------------------------------------------------------------------------------------


def shape_text(key: tuple[str, int], cells: Cells) -> str:
    depths = sorted({depth for _, depth in cells})
    head = ["", *(f"{depth // 1024}k" for depth in depths)]

    def filled(cell: Any) -> str:
        engines = dict.fromkeys(engine for engine, _ in cells)
        rows = [(e, *(cell(cells.get((e, d)), cells.get((BASE, d))) for d in depths))
                for e in engines]  # fmt: skip
        return table(head, rows)

    whole = []
    for engine in dict.fromkeys(engine for engine, _ in cells):
        prompts = whole_prompts(cells, engine)
        grows = growth(prompts)
        seconds = [number(prompts[d]) if d in prompts else None for d in depths]
        whole.append((engine, *seconds, None if grows is None else f"{grows:.2f}"))
    return SHAPE.format(
        shape=key[0], threads=_threads(key[1]), decode=filled(_decode), prompt=filled(_prompt),
        whole=table([*head, "exponent"], whole), memory=filled(_memory),
    )  # fmt: skip


def _decode(row: Row | None, base: Row | None) -> str:
    if row is None:
        return "not measured"
    ratio = f" ({base['decode_ms'] / row['decode_ms']:.2f})" if base else ""
    return number(1e3 / row["decode_ms"]) + ratio


def _prompt(row: Row | None, base: Row | None) -> str:
    if row is None:
        return "not measured"
    if not row["prompt_ms"]:
        return f"left out, {row['left_s']:.0f} s"
    ratio = base["prompt_ms"] / row["prompt_ms"] if base else 0.0
    mark = "²" if row["piece"] == 64 else ""
    return number(row["prompt_ms"]) + mark + (f" ({ratio:.2f})" if ratio else "")


def _memory(row: Row | None, base: Row | None) -> str:
    return "not measured" if row is None else number(row["state_mb"])


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
