"""Quality of the demo model, measured through edgert and, for comparison, through transformers.

    python -m benchmarks.quality_demo [--data ../shared/data] [--every 10] [--threads 2]
        [--models demo tinystories-656k stories260k] [--engines int4 f32 transformers]
        [--measures wikipedia_valid blimp piqa ...]

Every measurement is a line of `benchmarks/results/quality_demo.jsonl`; the table shows the newest
line of each model, engine and measure. `--every K` takes each K-th document and each K-th example
(of every paradigm in BLiMP), which is evenly spread, and is told in the line.

Bits per byte: documents on their own after the start token, windows of at most 1024 tokens that do
not overlap but for a document's last; novels are cut into documents of about 16 kB at spaces.
Tasks: `edgert.zeroshot`. The engine "transformers" computes logits with `AutoModelForCausalLM` in
float32 from the stored weights; everything else is the same code, so the two must agree.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from edgert.converters.convert import convert
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.cli.eval import start_id
from edgert.demo import demo_checkpoint
from edgert.evaluate import WINDOW, score_text
from edgert.session import open_session
from edgert.session.base import Feed, Session, State
from edgert.text.tokenizer import Tokenizer
from edgert.zeroshot import TASKS, Example, load_task, score_task
from recipes.demo_text.data import evaluation_texts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality_demo.jsonl"
TEXTS = ("wikipedia_valid", "wikitext2_valid", "novels_held_out")
ENGINES = ("f32", "int4", "transformers")
PIECE = 16_000  # characters of a piece of a novel


class _Tokens(State):
    """The committed ids themselves: a session without a cache computes them again."""

    ids: tuple[int, ...] = ()

    def snapshot(self) -> dict[str, Any]:
        return {"ids": self.ids[: self.length]}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.ids = tuple(snapshot["ids"])
        self.length, self.pending = len(self.ids), 0

    @property
    def nbytes(self) -> int:
        return 4 * len(self.ids)

    def close(self) -> None:
        self.ids = ()


class TransformersSession(Session):
    """A session whose logits come from transformers on the CPU, float32, without a cache."""

    device = "transformers"

    def __init__(self, checkpoint: Path, *, threads: int = 1, max_rows: int = 2048) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self.model = model.eval()
        self.context = int(model.config.max_position_embeddings)
        self.max_rows = max_rows
        self.graph: Any = SimpleNamespace(vocab_size=int(model.config.vocab_size))

    def new_state(self, expected: int = 0) -> State:
        return _Tokens(self.context)

    def step(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        torch = self._torch
        self.check_feeds(feeds)
        states: list[Any] = [feed.state for feed in feeds]
        lines = [
            (*state.ids[: state.length], *map(int, feed.tokens))
            for state, feed in zip(states, feeds, strict=True)
        ]
        answers: list[NDArray[np.float32]] = []
        batch = torch.zeros(len(lines), max(map(len, lines)), dtype=torch.long)
        for row, line in zip(batch, lines, strict=True):
            row[: len(line)] = torch.tensor(line)  # a causal model does not see what follows
        wanted = any(feed.logits != "none" for feed in feeds)
        with torch.no_grad():
            logits = self.model(batch, use_cache=False).logits if wanted else None
        for i, (state, feed, line) in enumerate(zip(states, feeds, lines, strict=True)):
            state.ids, state.pending = line, len(feed.tokens)
            count = {"none": 0, "last": 1, "all": len(feed.tokens)}[feed.logits]
            answers.append(
                np.zeros((0, self.graph.vocab_size), np.float32)
                if logits is None or not count
                else logits[i, len(line) - count : len(line)].numpy()
            )
        return answers

    def close(self) -> None:
        self.model = None


def checkpoints(data: Path) -> dict[str, Path]:
    """The models that are compared, by name."""
    return {
        "demo": ROOT / "recipes" / "demo_text" / "checkpoint",
        "tinystories-656k": data / "lm-tinystories-656k",
        "stories260k": demo_checkpoint(),
    }


def documents(data: Path, name: str, every: int) -> list[str]:
    """Each `every`-th document of a text."""
    found = evaluation_texts(data)[name]
    if name.startswith("novels"):
        found = [piece for novel in found for piece in _pieces(novel)]
    return found[::every]


def _pieces(novel: str) -> Iterator[str]:
    begin = 0
    while begin < len(novel):
        end = novel.find(" ", begin + PIECE) + 1 or len(novel)
        yield novel[begin:end]
        begin = end


def examples(data: Path, name: str, every: int) -> list[Example]:
    """Each `every`-th example of a task, in each of its groups."""
    groups = groupby(load_task(name, data), lambda example: example.group)
    return [example for _, some in groups for example in list(some)[::every]]


def measure(
    session: Session, tokenizer: Tokenizer, start: int, data: Path, name: str, every: int
) -> dict[str, Any]:
    """One measure on one session: `value` (bits per byte, or accuracy) and what belongs to it."""
    if name not in TASKS:
        size = min(session.context, WINDOW)
        texts = documents(data, name, every)
        score = score_text(session, tokenizer, texts, start=start, window=size, stride=size)
        return {"value": score.bits_per_byte, "examples": score.documents, "bytes": score.bytes,
                "tokens": score.tokens}  # fmt: skip
    result = score_task(session, tokenizer, name, examples(data, name, every), start=start)
    return {"value": result.metrics["acc"], "examples": result.examples} | result.metrics


def lines(
    model: str, checkpoint: Path, engine: str, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """All measures of one model and engine."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.edge"
        quant = "f32" if engine == "transformers" else engine
        convert(checkpoint, made, quant=quant, golden=False, progress=False)
        with Bundle.open(made) as bundle:
            tokenizer, start = Tokenizer.from_bundle(bundle), start_id(bundle)
            session: Session = (
                TransformersSession(checkpoint, threads=args.threads)
                if engine == "transformers"
                else open_session(bundle, threads=args.threads)
            )
            try:
                for name in args.measures:
                    began = time.perf_counter()
                    found = measure(session, tokenizer, start, args.data, name, args.every)
                    yield {"model": model, "engine": engine, "measure": name, "every": args.every,
                           **found, "seconds": round(time.perf_counter() - began, 1),
                           "date": datetime.date.today().isoformat()}  # fmt: skip
            finally:
                session.close()


def table(found: Sequence[dict[str, Any]], every: int) -> str:
    """Newest lines of one `every`: a row a measure, a column a model and engine."""
    newest = {
        (line["model"], line["engine"], line["measure"]): line
        for line in found
        if line["every"] == every
    }
    columns = sorted({key[:2] for key in newest}, key=lambda c: (c[0] != "demo", c))
    rows = [
        "| measure | " + " | ".join(f"{model}, {engine}" for model, engine in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in (*TEXTS, *TASKS):
        cells = [_cell(newest.get((*column, name))) for column in columns]
        if any(cells):
            rows.append(f"| {name} | " + " | ".join(cell or "–" for cell in cells) + " |")
    return "\n".join(rows)


def _cell(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    if line["measure"] not in TASKS:
        return f"{line['value']:.4f}"
    text = f"{100 * line['acc']:.2f} ± {100 * line['acc_stderr']:.2f} %"
    if "acc_norm" in line:
        text += f" (norm {100 * line['acc_norm']:.2f} %)"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["demo", "tinystories-656k", "stories260k"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["f32"])
    parser.add_argument(
        "--measures", nargs="*", choices=[*TEXTS, *TASKS], default=[*TEXTS, "blimp"]
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        for engine in args.engines:
            for line in lines(model, checkpoints(args.data)[model], engine, args):
                print(json.dumps(line), flush=True)
                with open(args.results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    kept = args.results.read_text(encoding="utf-8").splitlines()
    print(table([json.loads(line) for line in kept], args.every))


if __name__ == "__main__":
    main()
