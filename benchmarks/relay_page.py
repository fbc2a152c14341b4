"""`benchmarks/RELAY.md`, from the results of `relay.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = """# RelayGen

Written by `python -m benchmarks.relay --page` from `results/relay.jsonl`; how it is measured stands
in `relay.py`. **Not lossless**: what two models write is neither model's own text.

{pairs}
## The paper

pass@1 in percent and speed against the large model (A100, five problems); Qwen3-32B with 1.7B, and
R1-Distill-32B with 1.5B.

{paper}
"""
PAIR = """## {large} with {small}

{date}, {cpu}, one thread, load {load} on {cores} cores. {count} problems; right
answers with the half width of a 95 % interval (Wilson) in percent. Seconds are of the whole run,
prompts included; speed is that of the large model alone by CPU seconds.

{tables}

{calibration}
"""
PAPER = (
    ("small", "88.60, 31.67, 37.33", "86.10, 28.33, 30.30", "", ""),
    ("large", "95.27, 70.00, 64.58", "93.50, 53.30, 60.61", "1.00", "100 %"),
    ("large, EAGLE-3", "as large", "as large", "1.79", "100 %"),
    ("Speculative Thinking", "91.35, 40.83, 41.29", "89.40, 30.00, 42.68", "2.21", "25.5 %"),
    ("R2R", "94.30, 62.50, 61.62", "89.65, 52.50, 48.99", "1.30", "19.3 %"),
    ("RelayGen", "94.80, 68.33, 63.64", "91.70, 50.00, 56.82", "1.29", "69.8 %"),
    ("RelayGen, EAGLE-3", "as RelayGen", "as RelayGen", "2.20", "69.5 %"),
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def half_width(right: int, count: int, z: float = 1.96) -> float:
    """Of Wilson's interval for a share, in percent."""
    share = right / count
    spread = math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 100 * z * spread / (1 + z**2 / count)


def right_text(right: int, count: int) -> str:
    return f"{100 * right / count:.1f} ± {half_width(right, count):.1f}"


def lost(row: dict[str, Any], large: dict[str, Any]) -> str:
    """Problems that the large model alone solves and this way does not, and the other way round."""
    pairs = list(zip(row["hits"], large["hits"], strict=True))
    worse, better = pairs.count(("0", "1")), pairs.count(("1", "0"))
    return f"-{worse} +{better}"


def ways_table(rows: Sequence[dict[str, Any]]) -> str:
    large = next(row for row in rows if row["way"] == "large")
    head = ("way", "right", "against large", "CPU s", "wall s", "speed", "by large", "turns",
            "tokens", "tau")  # fmt: skip
    return table(head, [
        (
            row["way"],
            right_text(row["right"], row["answers"]),
            lost(row, large), f"{row['cpu_s']:.1f}", f"{row['wall_s']:.1f}",
            f"{large['cpu_s'] / row['cpu_s']:.2f}",
            f"{row['large'] / row['tokens']:.1%}", str(row["switches"]), str(row["tokens"]),
            f"{row['tau']:.2f}" if row["tau"] else "",
        )
        for row in rows
    ])  # fmt: skip


def calibration_text(found: dict[str, Any]) -> str:
    kept = set(found["cues"])
    rows = [
        (f"`{cue}`", "yes" if cue in kept else "", str(segments), f"{inside:.3f}", f"{delta:+.3f}",
         "" if error is None else f"{error:.3f}")
        for cue, segments, inside, delta, error in found["scores"]
    ]  # fmt: skip
    return (
        f"Calibration: {found['traces']} traces, {found['tokens']} tokens of thinking, mean margin "
        f"{found['margin']:.3f}, {found['cpu_s']:.0f} CPU seconds. {len(kept)} of {len(rows)} cues "
        "that occurred are kept.\n\n"
        + table(
            ("cue", "kept", "segments", "margin behind it", "more than elsewhere", "error"), rows
        )
    )


def pair_text(line: dict[str, Any]) -> str:
    samplers = dict.fromkeys(row["sampler"] for row in line["rows"])
    titles = {"greedy": "Greedy:", "sampled": "Temperature 0.6, top-p 0.95, top-k 20:"}
    tables = [
        f"{titles[name]}\n\n" + ways_table([r for r in line["rows"] if r["sampler"] == name])
        for name in samplers
    ]
    return PAIR.format(
        large=line["large"], small=line["small"], date=line["time"], cpu=line["machine"]["cpu"],
        cores=line["machine"]["cores"], load=line["load"], count=line["problems"],
        tables="\n\n".join(tables), calibration=calibration_text(line["calibration"]),
    )  # fmt: skip


def write_page(results: Path) -> None:
    """The page of the latest measurement of each pair."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    latest = {(line["large"], line["small"]): line for line in lines}
    head = ("", "Qwen3: MATH500, AIME25, GPQA-D", "R1: the same", "speed", "by large")
    text = PAGE.format(pairs="\n".join(map(pair_text, latest.values())), paper=table(head, PAPER))
    results.parent.with_name("RELAY.md").write_text(text, encoding="utf-8")
