"""The README's tables, written from the registry and from measurements.

    python -m benchmarks.readme                             rewrite the tables
    python -m benchmarks.readme measure SRC [--name NAME]   convert and time a checkpoint
    python -m benchmarks.readme measure --random 135m       the same with random weights

Measurements are lines of `benchmarks/readme.jsonl`; a model's last line counts. Each command that
is timed runs in a process of its own; the second of two loads is the warm one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import SHAPES, make_checkpoint
from benchmarks.results import chosen, read_lines
from benchmarks.support import family_table

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "readme.jsonl"


def performance_table(lines: list[dict[str, Any]]) -> str:
    """One row a measured model and thread count."""
    if not lines:
        return "Not measured yet: `python -m benchmarks.readme measure SRC` adds a row."
    rows = [
        "| Model | Bundle | Convert | Convert peak | Load | Peak memory | Threads | Prompt 512 "
        "| Write 128 | p90 | Of read limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines = list({line["model"]: line for line in lines}.values())
    for line in lines:
        made, bench = line["convert"], line["bench"]
        cells = [
            line["model"],
            f"{made['bundle_bytes'] / 1e6:.0f} MB",
            f"{made['seconds']:.1f} s",
            f"{made['peak_rss'] / 1e6:.0f} MB",
            f"{bench['load_s']:.2f} s",
            f"{bench['peak_rss_mb']:.0f} MB",
        ]
        rows += ["| " + " | ".join([*cells, *speeds]) + " |" for speeds in _speeds(bench["rows"])]
    machines = sorted({f"{line['machine']}, {line['date']}" for line in lines})
    note = (
        "\n\nint4-g32 unless the name says otherwise; tokens per second, medians; "
        f"{'; '.join(machines)}. "
        "`edgert bench` measures your own machine."
    )
    return "\n".join(rows) + note


def _speeds(rows: list[dict[str, Any]]) -> list[list[str]]:
    found = []
    for threads in sorted({row["threads"] for row in rows}):
        tests = {row["test"]: row for row in rows if row["threads"] == threads}
        write = tests["tg128"]
        share = f"{write['read_share']:.0%}" if write["read_share"] else "–"
        found.append(
            [str(threads), f"{tests['pp512']['tps_median']:.0f}", f"{write['tps_median']:.1f}",
             f"{write['p90_ms']:.2f} ms", share]
        )  # fmt: skip
    return found


def peers_table() -> str:
    """How many times llama.cpp's speed, of the last measurements in benchmarks/results."""
    lines = [line for line in chosen(read_lines("text_peers")) if "llama" in line["peers"]]
    rows = []
    for line in lines:
        found = {
            (r["test"][:2], r["depth"], r["threads"]): f"{r['ratio']:.2f}"
            for r in line["ratios"]
            if r["engine"] == "edgert" and r["against"] == "llama.cpp"
        }
        cells = [
            " / ".join(found.get((test, depth, threads), "–") for threads in (1, 2))
            for test, depth in (("tg", 0), ("tg", 1024), ("tg", 4096), ("pp", 0))
        ]
        rows.append(f"| {line['model']} | " + " | ".join(cells) + " |")
    if not rows:
        return "Not measured yet: `python -m benchmarks.text_peers` does it."
    head = [
        "| Times llama.cpp's speed (1 / 2 threads) | Write | Write after 1024 | Write after 4096 "
        "| Prompt 512 |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(head + rows)


def filled(readme: str, sections: dict[str, str]) -> str:
    """The README with the text between each pair of marks exchanged."""
    for name, text in sections.items():
        pattern = rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)"
        readme, count = re.subn(
            pattern, lambda m, text=text: f"{m[1]}{text}\n{m[2]}", readme, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"README.md has {count} sections {name!r}, expected one")
    return readme


def sections() -> dict[str, str]:
    """Every generated section, by name."""
    lines = MEASURED.read_text(encoding="utf-8").splitlines() if MEASURED.is_file() else []
    return {
        "families": family_table(),
        "performance": performance_table([json.loads(line) for line in lines if line]),
        "peers": peers_table(),
    }


def measure(source: str, name: str) -> None:
    """Convert, load twice and time a checkpoint; append the line."""
    from edgert.machine.doctor import examine

    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/model.edge"
        made = _edgert("convert", source, "-o", out, "--json")
        _edgert("bench", out, "-p", "8", "-n", "8", "-r", "1", "--json")  # packs and compiles
        bench = _edgert("bench", out, "-t", "1", "-t", "2", "--json")
    line = {
        "model": name,
        "machine": f"{examine().cpu['model']}, {examine().cpu['instruction_set']}",
        "date": datetime.date.today().isoformat(),
        "convert": {key: made[key] for key in ("bundle_bytes", "seconds", "peak_rss")},
        "bench": {key: value for key, value in bench.items() if key != "bundle"},
    }
    with open(MEASURED, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _edgert(*args: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edgert", *args], stdout=subprocess.PIPE, check=False
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(f"edgert {' '.join(args)}: {found['error']['message']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("verb", nargs="?", choices=["measure"])
    parser.add_argument("source", nargs="?")
    parser.add_argument("--random", choices=list(SHAPES))
    parser.add_argument("--name")
    asked = parser.parse_args()
    if asked.verb == "measure" and asked.random:
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(asked.random, Path(folder))
            measure(folder, asked.name or f"Llama {asked.random.upper()}, random weights")
    elif asked.verb == "measure":
        if not asked.source:
            parser.error("measure needs a checkpoint, or --random")
        measure(asked.source, asked.name or Path(asked.source).name)
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), sections()), encoding="utf-8")


if __name__ == "__main__":
    main()
