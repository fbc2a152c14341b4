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
PAIR = """## {large} with {small}, {sampler}

{date}, {cpu}, one thread, load {load} on {cores} cores. {count} problems; right answers with the
half width of a 95 % interval (Wilson) in percent, and how many problems it loses and wins against
the large model. Seconds are of the whole answers, prompts included; speed is that of the large
model alone by CPU seconds; tau is tokens a step of the large model, where it has drafts.

{ways}
{verdict}

{calibration}
"""
SAMPLERS = {"greedy": "greedy", "sampled": "temperature 0.6, top-p 0.95, top-k 20"}
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


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Whether it holds here what RelayGen is for, in plain words."""
    by = {row["way"]: row for row in rows}
    large, small, relay = by["large"], by["small"], by["relay"]
    count = large["answers"]
    gap = large["right"] - small["right"]
    speed = large["cpu_s"] / relay["cpu_s"]
    spread = half_width(large["right"], count)
    said = [
        f"The relay has {relay['right']} of {count} right, the large model {large['right']}, the "
        f"small one {small['right']}; it takes {1 / speed:.2f} of the large model's CPU seconds "
        f"where the small one takes {small['cpu_s'] / large['cpu_s']:.2f}."
    ]
    if 100 * gap / count < spread:
        said.append(
            "The small model is as often right as the large one, within what so many problems "
            "can tell: there is no gap that a relay could close, and the small model alone is the "
            "better choice for these problems."
        )
    else:
        kept = (relay["right"] - small["right"]) / gap
        said.append(f"Of the gap between small and large the relay closes {kept:.0%}.")
    if speed < 1.29:
        said.append(f"It falls short of the paper's speed: {speed:.2f} of 1.29.")
    return "\n" + " ".join(said)


def calibration_text(found: dict[str, Any], seconds: float | None) -> str:
    kept = set(found["cues"])
    rows = [
        (f"`{one['cue']}`", "yes" if one["cue"] in kept else "", str(one["segments"]),
         f"{one['inside']:.3f}", f"{one['delta']:+.3f}",
         "" if one["error"] is None else f"{one['error']:.3f}")
        for one in found["scores"]
    ]  # fmt: skip
    head = ("cue", "kept", "segments", "margin behind it", "more than elsewhere", "error")
    took = "" if seconds is None else f", {seconds:.0f} CPU seconds"
    return (
        f"Calibration: {found['traces']} traces, {found['tokens']} tokens of thinking, mean margin "
        f"{found['margin']:.3f}{took}. {len(kept)} of {len(rows)} cues that occurred are kept.\n\n"
        + table(head, rows)
    )


def joined(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs over different problems as one; of the same problems, the latest."""
    taken: list[dict[str, Any]] = []
    seen: set[int] = set()
    for line in reversed(lines):
        mine = set(range(line["first"], line["first"] + line["rows"][0]["answers"]))
        if not seen & mine:
            taken, seen = [line, *taken], seen | mine
    rows = [dict(row) for row in taken[0]["rows"]]
    for line in taken[1:]:
        for row, other in zip(rows, line["rows"], strict=True):
            for key, value in other.items():
                if key == "hits" or isinstance(value, (int, float)):
                    row[key] += value
    for row in rows:
        row["tau"] = row["stepped"] / row["steps"] if row["steps"] else None
    return {**taken[-1], "rows": rows}


def pair_text(line: dict[str, Any], seconds: float | None) -> str:
    return PAIR.format(
        large=line["large"], small=line["small"], date=line["time"], cpu=line["machine"]["cpu"],
        sampler=SAMPLERS[line["sampler"]], cores=line["machine"]["cores"], load=line["load"],
        count=line["rows"][0]["answers"], ways=ways_table(line["rows"]),
        verdict=verdict(line["rows"]), calibration=calibration_text(line["calibration"], seconds),
    )  # fmt: skip


def write_page(results: Path) -> None:
    """The page of the latest measurements of each pair."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for text in results.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        groups.setdefault((line["large"], line["small"], line["sampler"]), []).append(line)
    pairs = [
        pair_text(joined(lines), next((s for x in lines if (s := x.get("calibration_s"))), None))
        for lines in groups.values()
    ]
    head = ("", "Qwen3: MATH500, AIME25, GPQA-D", "R1: the same", "speed", "by large")
    page = PAGE.format(pairs="\n".join(pairs), paper=table(head, PAPER))
    results.parent.with_name("RELAY.md").write_text(page, encoding="utf-8")
