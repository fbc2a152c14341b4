"""Tables of `benchmarks/IMAGE_CACHING.md`, from the lines of `benchmarks.image_caching`.

Text outside the marked regions is written by hand and stays. Of each model the protocol with the
most drawings counts, of several such the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.image_measures import bootstrap, correlations
from benchmarks.results import FOLDER, rewritten, table

PAGE = FOLDER / "IMAGE_CACHING.md"
OURS, TUNED = "SenCache", "SenCache, n tuned"
ACCEPTED_AT = 25.0  # evaluations at which the acceptance is judged
Line = dict[str, Any]
# (model of the paper, evaluations of both, other method, PSNR of SenCache and of it, SSIM of both)
PAPER = (
    ("Wan 2.1, fast", "21 / 25", "TeaCache", 29.14, 25.07, 0.9219, 0.8697),
    ("Wan 2.1, fast", "21 / 21", "MagCache", 29.14, 28.37, 0.9219, 0.9143),
    ("CogVideoX", "22 / 23", "MagCache", 22.09, 21.85, 0.7786, 0.7332),
    ("LTX-Video", "27 / 28", "MagCache", 23.67, 23.37, 0.8293, 0.8224),
)  # fmt: skip


class Outcome:
    """All lines of one protocol on one model."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.first = lines[0]
        self.model, self.protocol = self.first["model"], self.first["protocol"]
        self.rows = {(x["method"], x["target"]): x for x in lines if x["kind"] == "row"}
        one = {x["kind"]: x for x in lines}
        self.reference, self.agreement = one["reference"], one.get("agreement")

    @property
    def targets(self) -> list[float]:
        return sorted({t for m, t in self.rows if m != "Fixed-2"}, reverse=True)

    def at(self, target: float) -> dict[str, Line]:
        return {m: x for (m, t), x in self.rows.items() if t == target and m != "Fixed-2"}

    def difference(self, ours: str, other: str, target: float, figure: str = "psnr") -> Line | None:
        """Mean of the pairs' differences, ours above the other, and its interval."""
        rows = self.at(target)
        if ours not in rows or other not in rows:
            return None
        apart = np.array(rows[ours][figure]) - np.array(rows[other][figure])
        low, high = bootstrap(apart)
        return {"mean": float(apart.mean()), "low": low, "high": high,
                "share": float((apart > 0).mean())}  # fmt: skip


def outcomes(path: Path) -> list[Outcome]:
    """One for each model."""
    lines = [json.loads(x) for x in path.read_text("utf-8").splitlines() if x]
    found: dict[str, str] = {}
    size: dict[str, int] = {}
    for line in lines:
        test = line["protocol"]["test"]
        if line["kind"] == "row" and test >= size.get(line["model"], 0):
            found[line["model"]], size[line["model"]] = line["key"], test
    return [Outcome([x for x in lines if x["key"] == key]) for key in found.values()]


def middle(values: Sequence[float], digits: int) -> str:
    """Mean / median."""
    return f"{np.mean(values):.{digits}f} / {np.median(values):.{digits}f}"


def share_right(line: Line) -> str:
    return "" if line["right"] is None else f"{100 * np.mean(line['right']):.1f} %"


def told(settings: Line) -> str:
    """A policy's settings that matter."""
    left = ("first", "last", "guided", "shape", "norm", "beta", "channel_stride", "strict", "never",
            "begin", "end", "retain", "after", "epsilon_start")  # fmt: skip
    some = {k: v for k, v in settings.items() if k not in left and v is not None}
    if "evaluations" in some:
        some.pop("interval", None)
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                     for k, v in some.items())  # fmt: skip


def main_tables(o: Outcome) -> Iterator[str]:
    head = ("method", "evaluations, mean (least to most)", "deviation", "PSNR, dB", "SSIM",
            "latent L2", "scenes right", "CPU s", "settings")  # fmt: skip
    for target in o.targets:
        rows = o.at(target)
        order = sorted(rows.values(), key=lambda x: -float(np.mean(x["psnr"])))
        body = [[
            x["method"], f"{np.mean(x['evaluations']):.2f} ({min(x['evaluations'])} to "
            f"{max(x['evaluations'])})", f"{np.std(x['evaluations']):.2f}", middle(x["psnr"], 2),
            middle(x["ssim"], 4), middle(x["l2"], 4), share_right(x), f"{x['seconds']:.2f}",
            told(x["settings"]),
        ] for x in order]  # fmt: skip
        steps, ref = o.protocol["steps"], o.reference
        body.append(["uncached", str(steps), None, None, None, None, share_right(ref),
                     f"{ref['seconds']:.2f}", None])  # fmt: skip
        yield (f"**{o.model}, {target:g} of {steps} evaluations**, {o.protocol['test']} drawings, "
               f"mean / median:\n\n{table(head, body)}")  # fmt: skip


def interval(found: Line | None) -> str | None:
    if found is None:
        return None
    return (f"{found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f}), above in "
            f"{100 * found['share']:.0f} %")  # fmt: skip


def difference_table(o: Outcome) -> str:
    """PSNR of SenCache above the others'."""
    body = []
    for target in o.targets:
        others = [m for m in o.at(target) if m not in (OURS, TUNED)]
        body += [
            [f"{target:g}", other, *(interval(o.difference(own, other, target))
                                     for own in (OURS, TUNED))]
            for other in sorted(others)
        ]  # fmt: skip
        if TUNED in o.at(target):
            body.append([f"{target:g}", OURS, None, interval(o.difference(TUNED, OURS, target))])
    return f"**{o.model}**\n\n" + table(("evaluations", "other", OURS, TUNED), body)


def paper_table(o: Outcome) -> str:
    body = []
    for model, counts, other, ours, theirs, ssim, their_ssim in PAPER:
        cells: list[Any] = [other, model, counts, f"{ours:.2f} - {theirs:.2f} = "
                            f"{ours - theirs:+.2f}", f"{ssim - their_ssim:+.4f}"]  # fmt: skip
        for target in o.targets[:2]:
            near, alike = (o.difference(OURS, other, target, f) for f in ("psnr", "ssim"))
            cells.append(near and f"{near['mean']:+.2f} dB, SSIM {alike and alike['mean']:+.4f}")
        body.append(cells)
    head = ["SenCache above", "paper's model", "evaluations, SenCache / other", "PSNR, paper",
            "SSIM, paper", *(f"here at {t:g}" for t in o.targets[:2])]  # fmt: skip
    return f"**{o.model}**\n\n" + table(head, body)


def shortfalls(o: Outcome) -> Iterator[str]:
    """Plain sentences on where SenCache is not first."""
    for target in o.targets:
        rows = o.at(target)
        for own in (OURS, TUNED):
            if own not in rows:
                continue
            for other in sorted(set(rows) - {OURS, TUNED}):
                found = o.difference(own, other, target)
                if found is None or found["low"] > 0:
                    continue
                said = ("is behind" if found["high"] < 0 else
                        "cannot be told from" if found["mean"] < 0 else
                        "is ahead, but not surely, of")  # fmt: skip
                yield (f"- {o.model} at {target:g} evaluations: {own} {said} {other}: "
                       f"{interval(found)} of the drawings.")  # fmt: skip
        for x in rows.values():
            if abs(np.mean(x["evaluations"]) - target) > 0.5:
                yield (f"- {o.model}: {x['method']} takes {np.mean(x['evaluations']):.2f} "
                       f"evaluations where {target:g} were wanted.")  # fmt: skip


def acceptance(o: Outcome) -> str:
    body: list[list[Any]] = []

    def judged(what: str, found: str, wanted: str, passed: bool) -> None:
        body.append([what, found, wanted, "PASS" if passed else "MISS"])

    rows = o.at(ACCEPTED_AT)
    for own in (x for x in (OURS, TUNED) if x in rows):
        for other in ("TeaCache", "Fixed"):
            gap = o.difference(own, other, ACCEPTED_AT)
            if gap:
                judged(f"{own}, PSNR above {other} at {ACCEPTED_AT:g}", interval(gap) or "",
                       "> 0, interval without 0", gap["low"] > 0)  # fmt: skip
        row = rows[own]
        if row["right"] is not None:
            lost = 100 * float(np.mean(o.reference["right"]) - np.mean(row["right"]))
            judged(f"{own}, scenes right, points below uncached", f"{lost:+.1f}", "<= 1", lost <= 1)
    for target in o.targets:
        for own in (OURS, TUNED):
            adaptivity(o, own, target, judged)
    if o.agreement and len(set(o.agreement["runs"])) == 2:
        few, many = o.agreement["runs"]
        for target, share in o.agreement["agreement"].items():
            judged(f"decisions by tables of {few} and {many} runs agree, at {target}",
                   f"{100 * share:.1f} %", ">= 95 %", share >= 0.95)  # fmt: skip
    return f"**{o.model}**\n\n" + table(("figure", "found", "must reach", ""), body)


def adaptivity(o: Outcome, own: str, target: float, judged: Callable[..., None]) -> None:
    """Whether samples get different numbers of evaluations, and those that need them more."""
    row, fixed = o.at(target).get(own), o.rows.get(("Fixed-2", 26.0))
    if row is None:
        return
    spread = float(np.std(row["evaluations"]))
    judged(f"{own} at {target:g}, deviation of evaluations", f"{spread:.2f}", "> 0", spread > 0)
    if fixed is None:
        return
    linear, ranked = correlations(np.array(row["evaluations"], float), np.array(fixed["l2"], float))
    judged(
        f"{own} at {target:g}, evaluations correlate with Fixed-2's error",
        f"{ranked:.2f} by ranks, {linear:.2f} linear", "> 0.2 by ranks", ranked > 0.2,
    )  # fmt: skip


def setup(o: Outcome) -> str:
    p, m = o.protocol, o.first["machine"]
    return (
        f"- {o.model}: {p['steps']} steps of flow Euler, shift {p['shift']}, guidance "
        f"{p['guidance']}; {p['calibration']} runs for calibration (the table in use has "
        f"{min(16, p['calibration'])}), {p['tuning']} for tuning, {p['test']} for the test, "
        f"prompts {'of scenes' if p['scenes'] else 'built in'}; {m['cpu']}, {m['isa']}, "
        f"{o.reference['processes']} processes with one thread each."
    )


def sections(found: Sequence[Outcome]) -> dict[str, str]:
    return {
        "setup": "\n".join(map(setup, found)),
        "tables": "\n\n".join(text for o in found for text in main_tables(o)),
        "differences": "\n\n".join(map(difference_table, found)),
        "paper": "\n\n".join(map(paper_table, found)),
        "shortfalls": "\n".join(text for o in found for text in shortfalls(o)) or "None.",
        "acceptance": "\n\n".join(map(acceptance, found)),
    }


def write_page(results: Path, page: Path = PAGE) -> None:
    """Rewrite the page's regions."""
    found = sections(outcomes(results))
    page.write_text(rewritten(page.read_text("utf-8"), found), encoding="utf-8")
    print(f"{page.name}: {sum(len(text.splitlines()) for text in found.values())} lines")
