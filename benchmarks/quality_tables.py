"""Tables of `quality_demo`'s lines, in `benchmarks/DEMO_QUALITY.md`, in the demo model's card, and
in `edgert/demo/quality.json`, which `edgert demo` shows.

Nothing in them is typed by hand: both pages keep their own words outside of the marks
`<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgert.evaluation.zeroshot import TASKS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "DEMO_QUALITY.md"
CARD = ROOT / "recipes" / "demo_text" / "MODEL_CARD.md"
SHIPPED = ROOT / "edgert" / "demo" / "quality.json"
TEXTS = {  # measure: its name in `edgert eval --task`
    "wikipedia_valid": "wikipedia",
    "wikitext2_valid": "wikitext2",
    "novels_held_out": "novels",
}
HEADS = {
    "wikipedia_valid": "Wikipedia, bits per byte",
    "wikitext2_valid": "WikiText-2, bits per byte",
    "novels_held_out": "novels, bits per byte",
    "blimp": "BLiMP",
}
ENGINES = {
    "transformers": "stored weights, transformers (float32)",
    "f32": "stored weights, edgert f32",
    "f16": "edgert f16",
    "int8": "edgert int8",
    "int4": "edgert int4",
}
LEAST_BLIMP, MOST_BITS, EQUAL = 0.72, 1.30, 1e-3
LEAST_RIGHT = 0.95  # of the held-out problems, and of the facts
RECALL = ("recall_500", "recall_1000", "recall_1900")
ANSWERED = {
    "problems": "word problems",
    "problems_direct": "without thinking",
    "recall_500": "facts, 500 tokens",
    "recall_1000": "1,000 tokens",
    "recall_1900": "1,900 tokens",
    "gsm8k": "GSM8K",
}

Line = Mapping[str, Any]
Cells = dict[tuple[str, str, str], dict[str, Any]]


def joined(lines: Iterable[Line], *, only: int | None = None) -> Cells:
    """Parts put together, by (model, engine, measure); `only`: that part alone.

    Accuracies are weighted by examples, bits by bytes, log-perplexities by examples; `share` is the
    part of the measure that was measured.
    """
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if only is None or line["part"] == only:
            key = (line["model"], line["engine"], line["measure"])
            groups.setdefault(key, []).append(line)
    return {key: _join(some) for key, some in groups.items() if key[2] != "answer"}


def _join(lines: Sequence[Line]) -> dict[str, Any]:
    if len({line["parts"] for line in lines}) != 1:
        raise ValueError(f"lines of one measure are cut into different parts: {lines[:2]}")

    def mean(name: str, weight: str) -> float:
        total = sum(line[weight] for line in lines)
        return float(sum(line[name] * line[weight] for line in lines) / total)

    found: dict[str, Any] = {
        "examples": sum(line["examples"] for line in lines),
        "share": len(lines) / lines[0]["parts"],
        "date": max(line["date"] for line in lines),
    }
    if "bytes" in lines[0]:
        return found | {"value": mean("value", "bytes")}
    for name in ("acc", "acc_norm"):
        if name in lines[0]:
            p = mean(name, "examples")
            spread = math.sqrt(p * (1 - p) / (found["examples"] - 1))
            found |= {name: p, f"{name}_stderr": spread}
    if "groups" in lines[0]:
        found["groups"] = _added(line["groups"] for line in lines)
    if "perplexity" in lines[0]:
        logs = [{**line, "log": math.log(line["perplexity"])} for line in lines]
        total = sum(line["log"] * line["examples"] for line in logs)
        found["perplexity"] = math.exp(total / found["examples"])
    return found | {"value": found["acc"]}


def _added(groups: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, int]]:
    """(right, asked) by group."""
    found: dict[str, tuple[int, int]] = {}
    for some in groups:
        for name, (right, asked) in some.items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + right, before[1] + asked)
    return found


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    if "acc" not in cell:
        text = f"{cell['value']:.4f}"
    else:
        text = f"{100 * cell['acc']:.2f} ± {100 * cell['acc_stderr']:.2f} %"
    return text if cell["share"] > 1 - 1e-9 else f"{text} ({cell['share']:.0%} of it)"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def quality_table(cells: Cells) -> str:
    """A row a model and engine, a column a text and BLiMP."""
    models = sorted({key[0] for key in cells}, key=lambda m: (m != "demo", m))
    rows = []
    for model in models:
        for engine, words in ENGINES.items():
            found = [cells.get((model, engine, measure)) for measure in HEADS]
            if any(found):
                rows.append([f"{model}: {words}", *map(_cell, found)])
    return _table(["", *HEADS.values()], rows)


def task_table(cells: Cells) -> str:
    """A row a zero-shot task, for the demo model: int4 as it ships, and what else was measured."""
    measured = {engine for model, engine, task in cells if model == "demo" and task in TASKS}
    measured = {e for e in measured if any(("demo", e, t) in cells for t in TASKS if t != "blimp")}
    engines = [engine for engine in ("int4", "f32") if engine in measured]
    rows = []
    for task in TASKS:
        row = [task]
        for engine in engines:
            cell = cells.get(("demo", engine, task))
            extra = ""
            if cell and "acc_norm" in cell:
                extra = f"; acc_norm {100 * cell['acc_norm']:.2f} ± "
                extra += f"{100 * cell['acc_norm_stderr']:.2f} %"
            if cell and "perplexity" in cell:
                extra = f"; perplexity {cell['perplexity']:.1f}"
            row.append(_cell(cell) + extra)
        found = next((c for e in engines if (c := cells.get(("demo", e, task)))), None)
        rows.append([*row, str(found["examples"]) if found else "–"])
    return _table(["task, acc", *(ENGINES[engine] for engine in engines), "examples"], rows)


def answers_table(cells: Cells) -> str:
    """A row an engine of the demo model, a column what it was asked: share of right answers."""
    rows = []
    for engine, words in ENGINES.items():
        found = [cells.get(("demo", engine, measure)) for measure in ANSWERED]
        if any(found):
            rows.append([words, *(_right(cell) for cell in found)])
    asked = [
        max((c for e in ENGINES if (c := cells.get(("demo", e, m)))),
            key=lambda cell: int(cell["examples"]), default=None)
        for m in ANSWERED
    ]  # fmt: skip
    heads = [f"{words} ({cell['examples'] if cell else 0})"
             for words, cell in zip(ANSWERED.values(), asked, strict=True)]  # fmt: skip
    return _table(["right answers", *heads], rows)


def _right(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell['acc']:.1%}"
    return text if cell["share"] > 1 - 1e-9 else f"{text} ({cell['share']:.0%} of them)"


def depth_table(cells: Cells, engine: str = "int4") -> str:
    """Facts that the demo model found, by length of the text and by where they stood in it."""
    rows, heads = [], [""]
    for measure in RECALL:
        if cell := cells.get(("demo", engine, measure)):
            depths = _by_word(cell["groups"], 0)
            heads = ["facts stated at", *depths]
            rows.append([f"{ANSWERED[measure].split(', ')[-1]}", *map(_score, depths.values())])
    return _table(heads, rows)


def kinds_table(cells: Cells, engine: str = "int4") -> str:
    """Right answers by kind of problem, and by kind of fact."""
    problems = cells.get(("demo", engine, "problems"))
    direct = cells.get(("demo", engine, "problems_direct"))
    facts = [cell for m in RECALL if (cell := cells.get(("demo", engine, m)))]
    rows = []
    if problems and direct:
        rows += [
            [kind, _score(problems["groups"][kind]), _score(direct["groups"][kind])]
            for kind in sorted(problems["groups"])
        ]
    by_fact = _by_word(_added(cell["groups"] for cell in facts), 1)
    rows += [[f"fact: {kind}", _score(by_fact[kind]), "–"] for kind in sorted(by_fact)]
    return _table(["", "right answers", "without thinking"], rows)


def _by_word(groups: Mapping[str, tuple[int, int]], place: int) -> dict[str, tuple[int, int]]:
    return _added({name.split()[place]: value} for name, value in groups.items())


def _score(pair: Sequence[int]) -> str:
    return f"{pair[0]} of {pair[1]}"


def common(lines: Iterable[Line], measure: str, engines: tuple[str, str]) -> list[dict[str, Any]]:
    """The demo model's `measure` by two engines, over the parts that both have; else empty."""
    some = [line for line in lines if line["model"] == "demo" and line["measure"] == measure]
    mine = [[line for line in some if line["engine"] == engine] for engine in engines]
    parts = set.intersection(*({line["part"] for line in found} for found in mine))
    kept = [[line for line in found if line["part"] in parts] for found in mine]
    return [_join(found) for found in kept] if parts else []


def verdicts(lines: Sequence[Line]) -> str:
    """What was asked for, found and whether that is enough."""
    cells, rows = joined(lines), []
    for engine in ENGINES:
        for measure in ("problems", *RECALL):
            if cell := cells.get(("demo", engine, measure)):
                what = ("facts, " if measure in RECALL[1:] else "") + ANSWERED[measure]
                good = cell["value"] >= LEAST_RIGHT
                rows.append(
                    [f"{what}, {ENGINES[engine]}", _right(cell), f"≥ {LEAST_RIGHT:.0%}", _yes(good)]
                )
        for measure, bound in (("blimp", LEAST_BLIMP), ("wikipedia_valid", MOST_BITS)):
            cell = cells.get(("demo", engine, measure))
            if cell:
                good = cell["value"] >= bound if measure == "blimp" else cell["value"] <= bound
                asked = f"≥ {bound:.0%}" if measure == "blimp" else f"≤ {bound:.2f}"
                rows.append(
                    [f"{HEADS[measure]}, {ENGINES[engine]}", _cell(cell), asked, _yes(good)]
                )
    for measure, words in HEADS.items():
        if pair := common(lines, measure, ("transformers", "f32")):
            gap = abs(pair[0]["value"] - pair[1]["value"])
            what = f"{words}: edgert f32 against transformers, over {pair[0]['share']:.0%} of it"
            rows.append([what, f"{gap:.1e} apart", f"≤ {EQUAL:g}", _yes(gap <= EQUAL)])
    return _table(["", "found", "wanted", "reached"], rows)


def _yes(good: bool) -> str:
    return "yes" if good else "**no**"


def answers(lines: Iterable[Line]) -> str:
    """The ten prompts as the shipped bundle answers them, greedily."""
    found = sorted(
        (line for line in lines if line["measure"] == "answer" and line["engine"] == "int4"),
        key=lambda line: int(line["part"]),
    )
    return "\n\n".join(
        f"**{line['prompt']}**\n\n> " + str(line["text"]).replace("\n", "\n> ") for line in found
    )


def commands(lines: Iterable[Line]) -> str:
    """How to measure it all again."""
    groups: dict[tuple[str, str, int], set[str]] = {}
    for line in lines:
        if line["measure"] != "answer":
            key = (line["model"], line["engine"], line["parts"])
            groups.setdefault(key, set()).add(line["measure"])
    order = [*TEXTS, *TASKS, *ANSWERED]
    rows = []
    for (model, engine, parts), measures in groups.items():
        names = " ".join(sorted(measures, key=order.index))
        rows.append(f"    python -m benchmarks.quality_demo --parts {parts} --part all"
                    f" --models {model} --engines {engine} --measures {names}")  # fmt: skip
    rows.append("    python -m benchmarks.quality_demo --models demo --engines int4"
                " --measures --answers")  # fmt: skip
    return "\n".join([*rows, "    python -m benchmarks.quality_demo --write"])


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what stands between the marks of `name` replaced. ValueError without marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected {begin} and {end} once each")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def _when(cells: Cells) -> str:
    dates = sorted({cell["date"] for cell in cells.values()})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def contents(lines: Sequence[Line]) -> dict[Path, dict[str, str]]:
    """What stands between the marks of the page and of the card."""
    whole = joined(lines)
    page = {
        "when": f"Measured {_when(whole)}.",
        "verdicts": verdicts(lines),
        "quality": quality_table(whole),
        "answers": answers_table(whole),
        "depths": depth_table(whole),
        "kinds": kinds_table(whole),
        "tenth": quality_table(joined(lines, only=0)),
        "tasks": task_table(whole),
        "commands": commands(lines),
    }
    note = f"Measured {_when(whole)} with `python -m benchmarks.quality_demo` in edgert's source"
    tables = (answers_table, depth_table, quality_table, task_table)
    card = {
        "quality": "\n\n".join([f"{note} tree.", *(table(whole) for table in tables)]),
        "int4 answers": answers(lines),
    }
    return {PAGE: page, CARD: card}


def shipped_quality(lines: Sequence[Line]) -> dict[str, Any]:
    """What `edgert demo` shows of the model in f16 and in int4, over what both were measured on."""
    rows: list[dict[str, Any]] = []
    longest = max((m for m in RECALL if common(lines, m, ("f16", "int4"))), default="",
                  key=RECALL.index)  # fmt: skip
    for words, unit, measures, items in (
        ("Wikipedia, bits per byte", "bits", ["wikipedia_valid"], "articles"),
        ("BLiMP, grammatical pairs", "share", ["blimp"], "pairs"),
        ("word problems, thinking", "share", ["problems"], "problems"),
        ("the same without thinking", "share", ["problems_direct"], "problems"),
        (f"facts in up to {ANSWERED.get(longest, '').split(', ')[-1]}", "share", RECALL, "texts"),
    ):
        pairs = [pair for m in measures if (pair := common(lines, m, ("f16", "int4")))]
        if pairs:
            count = sum(pair[0]["examples"] for pair in pairs)
            values = [
                sum(pair[i]["value"] * pair[i]["examples"] for pair in pairs) / count
                for i in (0, 1)
            ]
            rows.append({"measure": words, "unit": unit, "f16": round(values[0], 4),
                         "int4": round(values[1], 4), "items": f"{count} {items}"})  # fmt: skip
    demo = joined(line for line in lines if line["model"] == "demo")
    return {"measured": _when(demo), "rows": rows}


def write(lines: Sequence[Line]) -> None:
    """Put the tables into the page and the card."""
    for path, sections in contents(lines).items():
        text = path.read_text(encoding="utf-8")
        for name, content in sections.items():
            text = replaced(text, name, content)
        path.write_text(text, encoding="utf-8")
    shipped = json.dumps(shipped_quality(lines), indent=1)
    SHIPPED.write_text(shipped + "\n", encoding="utf-8")
