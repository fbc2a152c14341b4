"""Perplexity of a checkpoint in each encoding, beside f32.

    python -m benchmarks.quality_text CHECKPOINT [CHECKPOINT ...] --text stories.jsonl.gz
        [--documents 200] [--quant f32 f16 int8 int4] [--json out.jsonl]
        [--page benchmarks/QUALITY.md]

The text is a file of JSON strings, one document a line (.gz is unpacked). Each checkpoint is
converted into a temporary bundle and scored with `edgert.evaluation.perplexity` on the CPU
session. --page writes the table into a page, between its `quality` marks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgert.converters.convert import convert

from benchmarks.results import rewritten
from edgert.bundle import Bundle
from edgert.evaluation.perplexity import score_text
from edgert.session import open_session
from edgert.text.tokenizer import Tokenizer

QUANTS = ("f32", "f16", "int8", "int4 rtn", "int4", "int3 rtn", "int3")
COLUMNS = ("model", "quant", "bytes", "tokens", "nll", "perplexity", "against_f32")


def documents(path: Path, count: int) -> list[str]:
    """The first `count` documents of a file of JSON strings."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


def measure(checkpoint: Path, quant: str, texts: Sequence[str]) -> dict[str, Any]:
    """One row of the table. quant: an encoding, and "rtn" for codes to nearest."""
    encoding, _, method = quant.partition(" ")
    with tempfile.TemporaryDirectory() as folder:
        report = convert(
            checkpoint, Path(folder) / "m.edge", quant=encoding, method=method or None,
            golden=False, progress=False,
        )  # fmt: skip
        with Bundle.open(report.path) as bundle:
            session = open_session(bundle)
            try:
                start = bundle.manifest.text.bos_token_id
                first = bundle.manifest.text.eos_token_ids[0] if start is None else start
                score = score_text(session, Tokenizer.from_bundle(bundle), texts, start=first)
            finally:
                session.close()
    return {
        "model": checkpoint.name,
        "quant": quant,
        "bytes": report.bundle_bytes,
        "tokens": score.tokens,
        "nll": score.nll_per_token,
        "perplexity": score.perplexity,
    }


def table(
    checkpoint: Path, texts: Sequence[str], quants: Sequence[str] = QUANTS
) -> list[dict[str, Any]]:
    """Rows of one checkpoint; `against_f32` is the perplexity over that of the first row."""
    rows = [measure(checkpoint, quant, texts) for quant in quants]
    for row in rows:
        row["against_f32"] = row["perplexity"] / rows[0]["perplexity"]
    return rows


def shown(row: dict[str, Any]) -> str:
    """A row as text."""
    cells = [f"{row[c]:.4f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS]
    return " | ".join(cells)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table of a page; changes against f32 in per cent."""
    lines = [
        "| model | encoding | bundle | tokens scored | nats per token | perplexity | against f32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        change = f"{r['against_f32'] - 1:+.2%}" if r["quant"] != "f32" else ""
        lines.append(
            f"| {r['model']} | {r['quant']} | {r['bytes'] / 1e6:.2f} MB | {r['tokens']} | "
            f"{r['nll']:.4f} | {r['perplexity']:.3f} | {change} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--quant", nargs="+", default=list(QUANTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    texts = documents(args.text, args.documents)
    print(" | ".join(COLUMNS))
    for checkpoint in args.checkpoints:
        for row in table(checkpoint, texts, args.quant):
            rows.append(row)
            print(shown(row), flush=True)
            if args.json:
                with open(args.json, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    if args.page:
        page = rewritten(args.page.read_text("utf-8"), {"quality": markdown(rows)})
        args.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
