"""What keys and values of fewer bits cost a model: bits a byte, KL and greedy answers.

    python -m benchmarks.kv_precision CHECKPOINT... [--bits 16 8 4] [--text FILE] [--windows 16]

Each model is converted with weights of `--quant` once and run with a cache of 32 bits and with each
of `--bits`, on one thread of the CPU session. Windows of the text fill the model's context; every
token is scored (bits a byte), and its distribution compared with that of the 32-bit cache (KL in
nats, share of equal most likely tokens). Greedy answers of 64 tokens continue the first quarter of
each window; what counts is how many are equal to the last token. Results go to
benchmarks/results/kv_precision.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.convert import convert
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.runners import Ids, SessionRunner
from edgert.bundle import Bundle
from edgert.evaluation.perplexity import read_text
from edgert.text.tokenizer import Tokenizer

RESULTS = Path(__file__).resolve().parent / "results" / "kv_precision.jsonl"
ANSWER = 64
Row = dict[str, Any]
F64 = NDArray[np.float64]


def log_softmax(logits: NDArray[np.float32]) -> F64:
    """Natural logarithms of probabilities, rows of float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    out: F64 = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return out


def greedy(runner: SessionRunner, prompt: Ids) -> list[int]:
    """ANSWER tokens behind a prompt."""
    runner.trim(0)
    found = [int(runner.step(prompt)[-1].argmax())]
    while len(found) < ANSWER:
        found.append(int(runner.step(np.array(found[-1:], np.int32))[-1].argmax()))
    return found


def measure(bundle: Bundle, windows: list[Ids], size: int, bits: list[int]) -> list[Row]:
    """A row for 32 bits and for each of `bits`. size: bytes of text in the windows."""
    context = len(windows[0])
    exact = SessionRunner(bundle, (1,), context=context, kv_bits=32)
    others = {b: SessionRunner(bundle, (1,), context=context, kv_bits=b) for b in bits}
    sums = {b: np.zeros(4) for b in (32, *bits)}  # nll, KL, equal tokens, equal answers
    for ids in windows:
        given = np.arange(len(ids) - 1), ids[1:]
        exact.trim(0)
        expected = log_softmax(exact.step(ids, every=True))
        answer = greedy(exact, ids[: context // 4])
        sums[32] += -expected[given].sum(), 0, len(ids), 1
        for b, runner in others.items():
            runner.trim(0)
            found = log_softmax(runner.step(ids, every=True))
            kl = (np.exp(expected) * (expected - found)).sum()
            same = (expected.argmax(-1) == found.argmax(-1)).sum()
            sums[b] += -found[given].sum(), kl, same, greedy(runner, ids[: context // 4]) == answer
    for runner in (exact, *others.values()):
        runner.close()
    rows, tokens = list[Row](), sum(map(len, windows))
    for b, (nll, kl, same, answers) in sums.items():
        rows.append({
            "kv_bits": b, "bits_per_byte": nll / np.log(2) / size, "kl": kl / tokens,
            "top1": same / tokens, "answers": answers / len(windows), "tokens": tokens,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--quant", default="f16")
    args = parser.parse_args()
    for checkpoint in args.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.edge"
            convert(checkpoint, path, quant=args.quant, golden=False, progress=False)
            with Bundle.open(path) as bundle:
                context = min(args.context, bundle.graph().context)
                tokenizer = Tokenizer.from_bundle(bundle)
                text = read_text(args.text)[: 8 * context * args.windows]
                ids = np.array(tokenizer.encode(text), np.int32)
                cut = [ids[i * context : (i + 1) * context] for i in range(args.windows)]
                windows = [part for part in cut if len(part) == context]
                size = sum(len(tokenizer.decode(part.tolist()).encode()) for part in windows)
                rows = measure(bundle, windows, size, args.bits)
        shown = {"model": checkpoint.name, "quant": args.quant, "text": args.text.parent.name}
        for row in rows:
            print(json.dumps(shown | row))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(shown | row | {"machine": machine.describe()}) + "\n")


if __name__ == "__main__":
    main()
