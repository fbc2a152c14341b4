"""`benchmarks/SPECULATION.md`, from the results of `speculation.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

Lines = Sequence[dict[str, Any]]

HEAD = (
    "kind", "temperature", "draft", "speed", "worst", "counted", "worst", "tau", "accepted",
)  # fmt: skip
PAGE = """# Speculative decoding

Written by `python -m benchmarks.speculation --page` from `results/speculation.jsonl`; how it is
measured stands in `speculation.py`. {date}, {cpu}, one thread, load {load}
on two cores: measured speeds of a row move by a tenth and more with the neighbours.

## What a step of m rows costs

v(m) is a step of m rows in steps of one, c a guess of the small model or of the model's head, o
what a cycle costs more.

{costs}

## Answers

Speed is the CPU seconds of plain decoding in those of the drafted answer, both behind their first
piece; tau is tokens a step. The geometric mean and the worst of the prompts of a kind. Edit and
copy write a text that they are told (`speculation.Told`). Counted is the same by what steps of so
many rows cost on their own, in the table above: neighbours on the machine do not move it, and
what sampling and Python cost for each guess is not in it. head-n guesses n tokens always, the
others as many as pay by what they measure meanwhile, which a busy machine misleads.

{prompts}

{peers}{batches}{replayed}"""
PEERS = """## Beside llama.cpp with its own drafts

`python -m benchmarks.speculation_peer`: the same codes and the same greedy texts, tokens a CPU
second behind the first one, one thread. llama.cpp's best is, for each prompt, the best of plain
decoding, llama-cpp-python's prompt lookup of 3, 7 and 10 tokens and, where a small model is named,
that as a draft of 2, 4 and 8. Geometric means of a kind; the last row is of all prompts, and below
it the worst prompt of each.

{peers}
"""
BATCHES = """## Several conversations and threads

`python -m benchmarks.speculation_batches`: all prompts that the model answers itself, so many at a
time, prompts included; times of plain decoding over those of drafted, by the time that passes.

{batches}
"""
REPLAYED = """
## Drafts of known acceptance

Random weights; tau / (v + o) beside what was measured, for fixed lengths. llama.cpp checks the same
drafts on the same weights (GGUF); rates are tokens a CPU second.

{replayed}

A text that copies its prompt but for every twelfth token, guessed by lookup in the text itself; of
llama.cpp the best length of llama-cpp-python's `LlamaPromptLookupDecoding`:

{copied}
"""
GUESSERS = {"c", "c_head"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write_page(results: Path) -> None:
    """The page of the latest measurement of each model."""
    runs = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    latest: dict[str, Lines] = {}
    for run in runs:
        lines = run["lines"]
        prompts = [line for line in lines if line["what"] == "prompt"]
        for kind in {(line["kind"], line["draft"]) for line in prompts}:
            mine = [line for line in prompts if (line["kind"], line["draft"]) == kind]
            latest[f"prompt {kind}"] = mine
        for model in {line["model"] for line in lines if "model" in line}:
            mine = [line for line in lines if line.get("model") == model]
            known = latest.get(model, [{}])[0]
            if set(known) & GUESSERS <= set(mine[0]):  # a run with those that guess says more
                latest[model] = mine
    peers = [mine for run in runs if (mine := [x for x in run["lines"] if x["what"] == "peer"])]
    batches = [line for run in runs for line in run["lines"] if line["what"] == "batch"]
    kinds = sorted(name for name in latest if name.startswith("prompt "))
    prompts = [line for name in kinds for line in latest.pop(name)]
    rest = [line for lines in latest.values() for line in lines]
    head = runs[-1]
    page = PAGE.format(
        date=head["time"],
        cpu=head["machine"]["cpu"],
        load=head["load"],
        costs=_costs([line for line in rest if line["what"] == "costs"]),
        prompts=_prompts(prompts),
        peers=_peers(peers[-1] if peers else ()),
        batches=_batches(batches),
        replayed=_replayed(rest),
    )
    (results.parent.parent / "SPECULATION.md").write_text(page, encoding="utf-8")


def _costs(lines: Lines) -> str:
    widths = [2, 3, 4, 5, 6, 7, 8, 9, 17]
    rows = [
        [
            line["model"], f"{line['t1_ms']:.2f}", *(f"{line[f'v{m}']:.2f}" for m in widths),
            *(f"{line[name]:.2f}" if name in line else "" for name in ("c", "c_head", "o")),
        ]
        for line in lines
    ]  # fmt: skip
    return table(["model", "ms", *(f"v({m})" for m in widths), "c small", "c head", "o"], rows)


def _prompts(lines: Lines) -> str:
    rows = []
    keys = dict.fromkeys((x["kind"], x["temperature"], x["draft"]) for x in lines)
    for kind, temperature, draft in keys:
        mine = [
            x for x in lines
            if (x["kind"], x["temperature"], x["draft"]) == (kind, temperature, draft)
        ]  # fmt: skip
        speeds, counted = ([x[name] for x in mine] for name in ("speed", "counted"))
        means = [sum(x[name] for x in mine) / len(mine) for name in ("tau", "alpha")]
        numbers = [
            geometric_mean(speeds), min(speeds), geometric_mean(counted), min(counted), *means,
        ]  # fmt: skip
        rows.append([kind, str(temperature), draft, *(f"{value:.2f}" for value in numbers)])
    return table(HEAD, rows)


def _peers(lines: Lines) -> str:
    """Rates, and how many times llama.cpp's best edgert's are."""
    if not lines:
        return ""
    ways = {"plain": "none", "n-gram": "ngram", "head": "head", "both": "ngram+head"}
    kinds = {kind: [x for x in lines if x["kind"] == kind] for kind in dict.fromkeys(
        line["kind"] for line in lines)}  # fmt: skip
    kinds["all"] = list(lines)
    rows = []
    for kind, mine in kinds.items():
        rates = [geometric_mean(x[name] for x in mine) for name in ("peer_plain", "peer_best")]
        times = [
            geometric_mean(x[f"rate_{way}"] / x["peer_best"] for x in mine) for way in ways.values()
        ]
        rows.append([kind, *(f"{r:.0f}" for r in rates), *(f"{t:.2f}" for t in times)])
    worst = [min(x[f"rate_{way}"] / x["peer_best"] for x in lines) for way in ways.values()]
    rows.append(["worst", "", "", *(f"{value:.2f}" for value in worst)])
    head = ["kind", "llama.cpp plain", "its best", *(f"edgert {way}, times" for way in ways)]
    return PEERS.format(peers=table(head, rows)) + "\n"


def _batches(lines: Lines) -> str:
    """The latest line of each setting, a row for each draft."""
    latest = {(x["threads"], x["callers"], x["draft"], x["temperature"]): x for x in lines}
    if not latest:
        return ""
    heat = sorted({key[3] for key in latest})
    rows = [
        [*map(str, row), *(f"{latest[(*row, t)]['speed']:.2f}" for t in heat)]
        for row in dict.fromkeys(key[:3] for key in latest)
    ]
    made = table(["threads", "at a time", "draft", *(f"temperature {t}" for t in heat)], rows)
    return BATCHES.format(batches=made)


def _replayed(lines: Lines) -> str:
    ours = [line for line in lines if line["what"] == "replayed"]
    if not ours:
        return ""
    theirs = {
        (line["model"], line["share"], line["gamma"]): line
        for line in lines if line["what"] == "llama"
    }  # fmt: skip
    head = (
        "shape", "right", "drafts", "tau", "foretold", "measured", "rate", "llama.cpp measured",
        "rate",
    )  # fmt: skip
    rows = [
        [
            line["model"], f"{line['share']}", str(line["gamma"]), f"{line['tau']:.2f}",
            f"{line['foretold']:.2f}", *_speed(line),
            *_speed(theirs.get((line["model"], line["share"], line["gamma"]))),
        ]
        for line in ours
    ]  # fmt: skip
    return REPLAYED.format(replayed=table(head, rows), copied=_copied(lines))


def _copied(lines: Lines) -> str:
    theirs = {line["model"]: line for line in lines if line["what"] == "llama-copied"}
    ours = [line for line in lines if line["what"] == "copied"]
    head = ("shape", "tau", "speed", "rate", "llama.cpp tau", "speed", "rate")
    rows = []
    for line in ours:
        peer = theirs.get(line["model"])
        tau = f"{peer['tau']:.2f}" if peer else ""
        rows.append([line["model"], f"{line['tau']:.2f}", *_speed(line), tau, *_speed(peer)])
    return table(head, rows)


def _speed(line: dict[str, Any] | None) -> list[str]:
    """Speed and tokens a second, of a line that may not be there, or may be older."""
    if line is None:
        return ["", ""]
    return [f"{line['speed']:.2f}", f"{line['rate']:.1f}" if "rate" in line else ""]
