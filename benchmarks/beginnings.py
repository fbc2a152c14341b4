"""How soon a request starts whose beginning is known, in the same process and in a later one.

    python -m benchmarks.beginnings [BUNDLE] [--tokens 1500] [--threads 1] [--rounds 5]

Each round has a folder of its own for the prompt cache, and two processes, one after the other:
each feeds a beginning of `--tokens` tokens and a question, then the same beginning and another
question. The first request of the first process computes the beginning; the second one finds it in
memory, the first of the second process on the disk. Times to the first token are seconds of CPU of
the process; every answer is compared with the one of a model that knows nothing. Prints medians,
the share of the first request's time, and the pages that eight conversations with one system
prompt hold. Exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import edgert
from edgert.demo import demo_bundle
from edgert.session.pages import PAGE_TOKENS

GOAL = 0.05  # of the first request's time to its first token
QUESTIONS = ((50, 60), (70, 80, 90))
ANSWER: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "draft": "none"}


def started(model: edgert.TextModel, tokens: list[int]) -> tuple[float, Any]:
    """Seconds of CPU to the first token, and the answer."""
    start = time.process_time()
    stream = model.stream(tokens, **ANSWER)
    next(stream, None)
    spent = time.process_time() - start
    return spent, stream.finish()


def asked(args: argparse.Namespace) -> None:
    """One process: prints the times and the answers of both requests."""
    with edgert.load(args.bundle, threads=args.threads, prompt_cache=args.cache) as model:
        model.generate([9, 8, 7], **ANSWER)  # what is made once
        beginning = [10 + 7 * i % (model.tokenizer.size - 20) for i in range(args.tokens)]
        found = [started(model, [*beginning, *question]) for question in QUESTIONS]
    rows = [(spent, got.usage.cached_tokens, got.token_ids) for spent, got in found]
    print(json.dumps(rows))


def child(args: argparse.Namespace, cache: Path) -> list[Any]:
    command = [sys.executable, "-m", "benchmarks.beginnings", str(args.bundle)]
    command += ["--tokens", str(args.tokens), "--threads", str(args.threads), "--cache", str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def pages_of_eight(bundle: Path, threads: int, tokens: int, cache: Path) -> tuple[int, int]:
    """Pages that eight conversations hold together, and those of their system prompt."""
    with edgert.load(bundle, threads=threads, prompt_cache=cache) as model:
        system = "You are a patient clerk who answers in a few words. " * 400
        ids = model.tokenize(system)[:tokens]
        system = model.detokenize(ids)
        chats = [model.conversation(system) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda chat: chat.say("Who are you?", **ANSWER), chats))
        pool_: Any = model.session.pool  # type: ignore[attr-defined]
        held = pool_.pages - pool_.indices.free
        return held, len(model.tokenize(system)) // PAGE_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=demo_bundle())
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cache is not None:
        asked(args)
        return
    times: dict[str, list[float]] = {"first": [], "in memory": [], "on disk": []}
    with edgert.load(args.bundle, threads=args.threads) as model:
        model.engine.prefixes = None
        beginning = [10 + 7 * i % (model.tokenizer.size - 20) for i in range(args.tokens)]
        plain = [list(started(model, [*beginning, *q])[1].token_ids) for q in QUESTIONS]
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            first, later = (child(args, Path(folder)) for _ in range(2))
            held, prompt = pages_of_eight(args.bundle, args.threads, args.tokens, Path(folder))
        if any([row[2] for row in rows] != plain for rows in (first, later)):
            raise SystemExit("answers differ from those of a model that knows nothing")
        times["first"].append(first[0][0])
        times["in memory"].append(first[1][0])
        times["on disk"].append(later[0][0])
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, value in middle.items():
        print(f"{name}: {value * 1000:.1f} ms of CPU, {value / middle['first']:.4f} of the first")
    print(f"eight conversations: {held} pages, {prompt} of them full ones of the system prompt")
    sys.exit(0 if max(middle["in memory"], middle["on disk"]) <= GOAL * middle["first"] else 1)


if __name__ == "__main__":
    main()
