"""Tables of benchmarks/RESULTS.md, written from benchmarks/results/*.jsonl.

    python -m benchmarks.results            rewrite the tables
    python -m benchmarks.results --print    print them only

Of each model (and machine) the last run on a quiet machine counts; where there is none, the last
noisy one is shown and marked. Text outside the marked regions is written by hand and stays.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "RESULTS.md"
Line = dict[str, Any]


def read_lines(kind: str, folder: Path = FOLDER / "results") -> list[Line]:
    """All result lines of a kind, oldest first."""
    path = folder / f"{kind}.jsonl"
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text]


def chosen(lines: Iterable[Line]) -> list[Line]:
    """One line for each model and set of peers on each CPU: the last quiet one, else the last."""
    best: dict[tuple[str, ...], Line] = {}
    for line in lines:
        machine, peers = line["machine"], sorted(line.get("peers", ()))
        key = machine["cpu"], machine["isa"], line["model"], *peers
        if key not in best or best[key]["run"]["noisy"] or not line["run"]["noisy"]:
            best[key] = line
    return list(best.values())


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; None is an empty cell."""
    head = list(head)
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    out += ["| " + " | ".join("" if c is None else str(c) for c in row) + " |" for row in rows]
    return "\n".join(out)


def noise(line: Line) -> str:
    return " (noisy)" if line["run"]["noisy"] else ""


def number(value: float) -> str:
    """Three or four significant digits, no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def wanted(ratio: Line) -> str:
    return f">= {ratio['target']} {ratio['verdict']}" if ratio["target"] else ""


def must_reach(lines: list[Line]) -> str:
    """The demanded ratios only, with their targets."""
    rows = [
        (
            line["model"] + noise(line), f"{r['test']}, depth {r['depth']}", r["threads"],
            f"{r['ratio']:.2f}", f"{r['ratio_best']:.2f}", f">= {r['target']}", r["verdict"],
        )
        for line in lines for r in line["ratios"] if r["target"]
    ]  # fmt: skip
    if not rows:
        return "Not measured yet."
    head = ("model", "figure", "threads", "median", "best", "must reach", "")
    passed = sum(row[-1] == "PASS" for row in rows)
    return f"{passed} of {len(rows)} reached.\n\n" + table(head, rows)


def ratio_table(lines: list[Line]) -> str:
    """Every ratio that was measured."""
    rows = [
        (
            line["model"] + noise(line), r["engine"], r["test"], r["depth"], r["threads"],
            r["against"], f"{r['ratio']:.2f}", f"{r['ratio_best']:.2f}", wanted(r),
        )
        for line in lines for r in line["ratios"]
    ]  # fmt: skip
    if not rows:
        return "Not measured yet."
    head = ("model", "engine", "test", "depth", "threads", "against", "median", "best", "target")
    return table(head, rows)


def speed_table(lines: list[Line]) -> str:
    """Tokens a second and milliseconds of every program."""
    rows = [
        (
            line["model"] + noise(line), r["test"], r["depth"], r["threads"], r["engine"],
            number(r["tps"]), number(r["tps_best"]), number(r["median_ms"]), number(r["p90_ms"]),
            r["count"],
        )
        for line in lines for r in line["rows"]
    ]  # fmt: skip
    if not rows:
        return "Not measured yet."
    head = (
        "model", "test", "depth", "threads", "program", "tok/s median", "best", "ms median", "p90",
        "samples",
    )  # fmt: skip
    return table(head, rows)


def logits_table(lines: list[Line]) -> str:
    """How far apart the programs' logits were before anything was timed."""
    rows = []
    for line in lines:
        for peer, facts in line["peers"].items():
            found = facts["logits"]
            rows.append((
                line["model"], peer, f"{found['relative_rms']:.2%}",
                f"{found['worst_position']:.2%}", f"{found['argmax_agreement']:.1%}",
                found["positions"],
            ))  # fmt: skip
        rows += [
            (line["model"], peer, why, None, None, None) for peer, why in line["missing"].items()
        ]
    if not rows:
        return "Not measured yet."
    head = ("model", "peer", "relative RMS", "worst position", "same best token", "positions")
    return table(head, rows)


def check_table(lines: list[Line]) -> str:
    """Memory, start and busy core."""
    rows = [
        (
            line["model"] + noise(line), c["check"], f"{c['value']:.3g} {c['unit']}", c["limit"],
            c["verdict"],
        )
        for line in lines for c in line["checks"]
    ]  # fmt: skip
    if not rows:
        return "Not measured yet."
    return table(("model", "check", "value", "limit", ""), rows)


def gpu_section(lines: list[Line]) -> str:
    """The last run of `benchmarks.gpu_peers`: what it ran on, targets, every row."""
    rows = [line for line in lines if line["kind"] == "row"]
    if not rows:
        return "Not measured yet."
    machine = next(line for line in lines if line["kind"] == "machine")
    copied = [line["gbps"] for line in lines if line["kind"] == "copy"][-1]  # nothing else ran
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    head = ("model", "program", "decode tok/s", "prefill tok/s", "reads GB/s", "of copy", "checked")
    body = [
        (
            row["model"], row["runner"], f"{row['decode_tps']:.1f}", f"{row['prefill_tps']:.0f}",
            f"{row['read_gbps']:.0f}" if "read_gbps" in row else None,
            f"{row['share']:.0%}" if "share" in row else None, row.get("note"),
        )
        for row in rows
    ]  # fmt: skip
    checked = [f"- {line['model']}: {line['note']}" for line in lines if line["kind"] == "checked"]
    return "\n\n".join([
        f"{machine['gpu']}, {machine['date']}, {versions}; copy bandwidth {copied:.0f} GB/s (read "
        "and written bytes together).",
        gpu_targets(rows), table(head, body), *checked,
    ])  # fmt: skip


def gpu_targets(rows: list[Line]) -> str:
    """The demanded figures of the 1.1B int4 shape."""
    mine = [r for r in rows if r["model"] == "1.1b int4" and r["runner"].startswith("edgert")]
    peer = next(r for r in rows if r["model"] == "1.1b f16" and r["runner"].endswith("compiled"))
    best = max(mine, key=lambda r: float(r["decode_tps"]))
    ratio = best["decode_tps"] / peer["decode_tps"]
    found = (
        ("1.1B int4 decode over transformers compiled f16", f"{ratio:.2f}", 1.5, ratio),
        ("1.1B int4 decode, share of copy bandwidth", f"{best['share']:.0%}", 0.2, best["share"]),
    )
    body = [(what, text, f">= {w}", "PASS" if v >= w else "MISS") for what, text, w, v in found]
    return table(("figure", "found", "must reach", ""), body)


def machine_list(lines: list[Line]) -> str:
    """What the shown runs ran on."""
    said = []
    for line in lines:
        m, run = line["machine"], line["run"]
        speeds = ", ".join(
            f"{g:.1f} GB/s ({t} threads)" for t, g in line.get("read_gbps", {}).items()
        )
        parts = [
            f"{m['cpu']}, {m['cores']} cores, kernels for {m['isa']}, {m['memory_gb']} GB, "
            f"{m['system']}",
            f"started {run['started']}, {run['seconds']:.0f} s, load {run['load_start']} to "
            f"{run['load_end']}, other processes used {run['other_cores']:.2f} cores"
            f"{' (noisy)' if run['noisy'] else ''}",
            f"streaming read {speeds}" if speeds else "",
            ", ".join(f"{k} {v}" for k, v in m["versions"].items()),
            line.get("peers", {}).get("llama", {}).get("system_info", ""),
        ]
        said.append(f"- {line['kind']} {line['model']}: " + "; ".join(p for p in parts if p))
    return "\n".join(said) or "Nothing measured yet."


def sections() -> dict[str, str]:
    """Text of each marked region."""
    peers = chosen(read_lines("text_peers"))
    checks = chosen(read_lines("runtime_checks"))
    return {
        "must-reach": must_reach(peers),
        "checks": check_table(checks),
        "ratios": ratio_table(peers),
        "speeds": speed_table(peers),
        "logits": logits_table(peers),
        "machines": machine_list(peers + checks),
        "gpu": gpu_section(read_lines("gpu_peers")),
    }


def rewritten(page: str, found: dict[str, str]) -> str:
    """The page with each region's text replaced; ValueError for a region that is not there."""
    for name, text in found.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        whole = f"{begin}\n{text}\n{end}"
        page, count = pattern.subn(lambda _, whole=whole: whole, page)
        if count != 1:
            raise ValueError(f"{count} regions {name!r} in the page, expected 1")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    found = sections()
    if args.only_print:
        for name, text in found.items():
            print(f"## {name}\n\n{text}\n")
        return
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(f"{PAGE.name}: {sum(len(t.splitlines()) for t in found.values())} lines of tables")


if __name__ == "__main__":
    main()
