"""Quality of the demo model, measured through edgert and, for comparison, through transformers.

    python -m benchmarks.quality_demo --models demo --engines int4 --part all
    python -m benchmarks.quality_demo --models demo --engines f32 --measures problems recall_1900
    python -m benchmarks.quality_demo --write

Every measurement is a line of `benchmarks/results/quality_demo.jsonl`. A measure is cut into
`--parts` even parts (part K takes every document or example number K, K + parts, ...; of every
paradigm in BLiMP); parts are measured one by one, so that no command needs to last long, and a
line already there is not measured again (`--again` does). `--write` joins them into the tables of
`benchmarks/DEMO_QUALITY.md` and of the model card.

Bits per byte: `edgert.evaluation.corpora`, documents on their own after the start token, windows of
at most 1024 tokens that do not overlap but for a document's last. Tasks:
`edgert.evaluation.zeroshot`. Engines: f32, f16, int8, int4 are bundles of that quantization (int4
of the demo model: the bundle that ships); f32 holds a bfloat16 checkpoint exactly. What is not int4
of the demo model needs its checkpoint, `lm-edgert-24m-think` in the shared data folder. What it is
asked to answer is in `quality_answers`. The engine
"transformers" computes logits with `AutoModelForCausalLM` in float32 from the stored weights;
everything else is the same code, so the two must agree.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from edgert.converters.convert import convert

from benchmarks import quality_answers
from benchmarks.quality_tables import TEXTS, write
from benchmarks.transformers_session import TransformersSession
from edgert.api import load
from edgert.bundle import Bundle
from edgert.cli.eval import start_id
from edgert.demo import demo_bundle, demo_checkpoint
from edgert.evaluation.corpora import load_text
from edgert.evaluation.perplexity import WINDOW, score_text
from edgert.evaluation.zeroshot import TASKS, Example, load_task, score_task
from edgert.session import SessionOptions, open_session
from edgert.session.base import Session
from edgert.text.tokenizer import Tokenizer
from recipes.demo_text.evaluate import PROMPTS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality_demo.jsonl"
ENGINES = ("transformers", "f32", "f16", "int8", "int4")
LONGEST_ANSWER = 320  # tokens
KEY = ("model", "engine", "measure", "parts", "part")

Line = dict[str, Any]


def checkpoints(data: Path) -> dict[str, Path]:
    """The models that are compared, by name."""
    return {
        "demo": data / "lm-edgert-24m-think",
        "tinystories-656k": data / "lm-tinystories-656k",
        "stories260k": demo_checkpoint(),
    }


def check_source(checkpoint: Path) -> None:
    """SystemExit unless a folder holds the checkpoint that the shipped bundle was made from."""
    with Bundle.open(demo_bundle()) as shipped:
        expected = shipped.manifest.provenance.sources["model.safetensors"]
    weights = checkpoint / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "no file"
    if found != expected:
        raise SystemExit(
            f"{weights}: {found}, expected the shipped bundle's source, SHA-256 {expected}; "
            "recipes/demo_text/README.md says where it is"
        )


@lru_cache(maxsize=8)
def documents(data: Path, name: str) -> list[str]:
    """All documents of a text."""
    return load_text(TEXTS[name], data)


@lru_cache(maxsize=8)
def _task(data: Path, name: str) -> list[Example]:
    return load_task(name, data)


def examples(data: Path, name: str, parts: int, part: int) -> list[Example]:
    """One part of a task, spread evenly over its groups."""
    groups = groupby(_task(data, name), lambda example: example.group)
    return [example for _, some in groups for example in list(some)[part::parts]]


def measure(
    session: Session, tokenizer: Tokenizer, start: int, data: Path, name: str, cut: tuple[int, int]
) -> Line:
    """Part `cut[1]` of `cut[0]` parts of one measure: `value` (bits per byte, or accuracy), and
    what it takes to join parts."""
    parts, part = cut
    if name not in TASKS:
        size = min(session.context, WINDOW)
        texts = documents(data, name)[part::parts]
        score = score_text(session, tokenizer, texts, start=start, window=size, stride=size)
        return {"value": score.bits_per_byte, "examples": score.documents, "bytes": score.bytes,
                "tokens": score.tokens}  # fmt: skip
    some = examples(data, name, parts, part)
    result = score_task(session, tokenizer, name, some, start=start)
    return {"value": result.metrics["acc"], "examples": result.examples} | result.metrics


@contextmanager
def bundle(model: str, checkpoint: Path, engine: str) -> Iterator[Path]:
    """The bundle of a model and engine; "transformers" takes its tokenizer from it."""
    if (model, engine) == ("demo", "int4"):
        yield demo_bundle()
        return
    if model == "demo":
        check_source(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.edge"
        quant = "f32" if engine == "transformers" else engine
        convert(checkpoint, made, quant=quant, method="rtn", golden=False, progress=False)
        yield made


def measured(
    path: Path, checkpoint: Path, keys: list[tuple[Any, ...]], args: argparse.Namespace
) -> Iterator[Line]:
    """The lines of `keys`, which share a model and an engine."""
    scored = [key for key in keys if key[2] not in quality_answers.MEASURES]
    if scored:
        yield from _scored(path, checkpoint, scored, args)
    answered = [key for key in keys if key[2] in quality_answers.MEASURES]
    if answered:
        with load(path, threads=args.threads) as model:
            for key in answered:
                began = time.perf_counter()
                found = quality_answers.measure(model, args.data, checkpoint, key[2], key[3:])
                seconds = round(time.perf_counter() - began, 1)
                yield dict(zip(KEY, key, strict=True)) | found | {"seconds": seconds}


def _scored(
    path: Path, checkpoint: Path, keys: list[tuple[Any, ...]], args: argparse.Namespace
) -> Iterator[Line]:
    with Bundle.open(path) as opened:
        tokenizer, start = Tokenizer.from_bundle(opened), start_id(opened)
        session: Session = (
            TransformersSession(checkpoint, threads=args.threads)
            if keys[0][1] == "transformers"
            else open_session(opened, SessionOptions(threads=args.threads))
        )
        try:
            for key in keys:
                began = time.perf_counter()
                found = measure(session, tokenizer, start, args.data, key[2], key[3:])
                seconds = round(time.perf_counter() - began, 1)
                yield dict(zip(KEY, key, strict=True)) | found | {"seconds": seconds}
        finally:
            session.close()


def answers(path: Path, checkpoint: Path, engine: str) -> Iterator[Line]:
    """Greedy answers to the model card's ten prompts, each a chat of its own."""
    if engine == "transformers":
        reply = _transformers_reply(checkpoint)
    else:
        model = load(path)
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": LONGEST_ANSWER}
        reply = lambda messages: model.chat(messages, **options, repeat_penalty=1.0).text
    for number, prompt in enumerate(PROMPTS):
        text = reply([{"role": "user", "content": prompt}])
        key = ("demo", engine, "answer", len(PROMPTS), number)
        yield dict(zip(KEY, key, strict=True)) | {"prompt": prompt, "text": text}


def _transformers_reply(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def reply(messages: list[dict[str, str]]) -> str:
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(
            **asked, do_sample=False, repetition_penalty=1.0, max_new_tokens=LONGEST_ANSWER
        )
        text: str = tokenizer.decode(
            out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return text

    return reply


def read(path: Path) -> dict[tuple[Any, ...], Line]:
    """The newest line of every key."""
    if not path.exists():
        return {}
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {tuple(line[name] for name in KEY): line for line in found}


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for and not there yet."""
    known = {} if args.again else read(args.results)
    parts = range(args.parts) if args.part == "all" else [int(args.part)]
    for model in args.models:
        checkpoint = checkpoints(args.data)[model]
        for engine in args.engines:
            keys = [(model, engine, m, args.parts, p) for m in args.measures for p in parts]
            keys = [key for key in keys if key not in known]
            if not keys and not args.answers:
                continue
            with bundle(model, checkpoint, engine) as path:
                if keys:
                    for line in measured(path, checkpoint, keys, args):
                        _keep(line, args.results)
                if args.answers and model == "demo":
                    for line in answers(path, checkpoint, engine):
                        _keep(line, args.results)


def _keep(line: Line, results: Path) -> None:
    line |= {"date": datetime.date.today().isoformat()}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    with open(results, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--part", default="0", help="number of a part, or all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="*", choices=list(checkpoints(Path())), default=[])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["f32"])
    parser.add_argument(
        "--measures",
        nargs="*",
        choices=[*TEXTS, *TASKS, *quality_answers.MEASURES],
        default=[*TEXTS, "blimp"],
    )
    parser.add_argument("--answers", action="store_true", help="also the ten prompts of the card")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the tables")
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    run(args)
    if args.write:
        write(list(read(args.results).values()))


if __name__ == "__main__":
    main()
