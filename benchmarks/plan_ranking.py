"""Does a plan's ranking hold: its best three are converted, measured, and ranked again.

    python -m benchmarks.plan_ranking CHECKPOINT [CHECKPOINT ...] --data DIR [--text wikipedia]
        [--profile here.toml] [--tokens 6e9] [--total 2.0] [--documents 40]

Without a profile this machine is probed first (three to five minutes). Of every checkpoint 4, 8 and
16 bits are planned, in groups of 32, without COMPOT; the best three by the plan are converted
(rounded to nearest) and timed as the plan says it: a prompt of 512 and 128 tokens after it; and
their bits a byte are measured on the text. The ranking holds where no pair whose predicted scores
differ by more than a tie has its measured losses the other way round, and no pair whose predicted
times differ by more than 10 % its measured times. With lm-edgert-24m-think and lm-edgert-60m it
takes about four minutes besides the probe; it wants a quiet machine. Results are appended to
benchmarks/results/plan_ranking.jsonl.

    python -m benchmarks.plan_ranking ../shared/data/lm-edgert-24m-think \\
        ../shared/data/lm-edgert-60m --data ../shared/data
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from edgert.converters.convert import convert
from edgert.devices.load import load
from edgert.devices.profile import Profile

from benchmarks import machine
from edgert.bundle import Bundle
from edgert.evaluation.corpora import load_text
from edgert.evaluation.perplexity import score_text
from edgert.machine.bench import feed, random_tokens
from edgert.machine.probe import probe
from edgert.planning.candidates import Candidate
from edgert.planning.cards import Workload, card_of
from edgert.planning.decide import TIE, Option, prescribe
from edgert.session import Session, open_session
from edgert.text.tokenizer import Tokenizer

RESULTS = Path(__file__).resolve().parent / "results" / "plan_ranking.jsonl"
QUANTS = {4: "int4", 8: "int8", 16: "f16"}
BEST, APART, ROUNDS = 3, 0.10, 3


class Found(NamedTuple):
    """A candidate, planned and measured. score and seconds by the plan; loss (bits a byte) and time
    as measured."""

    label: str
    score: float
    seconds: float
    loss: float
    time: float


def made(checkpoint: Path, bits: int, work: Path) -> Path:
    """The bundle of a checkpoint at so many bits, converted once."""
    out = work / f"{checkpoint.name}-{bits}.edge"
    if not out.exists():
        convert(checkpoint, out, quant=QUANTS[bits], method="rtn", golden=False, progress=False)
    return out


def answered(session: Session, load_: Workload) -> float:
    """Median seconds of a prompt and its answer."""
    tokens = random_tokens(np.random.default_rng(0), load_.context, session.vocab_size)
    spent = []
    for _ in range(ROUNDS):
        state = session.new_state(load_.context)
        start = time.perf_counter()
        feed(session, state, tokens[: load_.prompt])
        for at in range(load_.prompt, load_.prompt + load_.new_tokens):
            feed(session, state, tokens[at : at + 1])
        spent.append(time.perf_counter() - start)
        state.close()
    return float(np.median(spent))


def measured(option: Option, path: Path, load_: Workload, texts: Sequence[str]) -> Found:
    """A candidate's bundle, timed and scored."""
    with Bundle.open(path) as bundle:
        text = bundle.manifest.text
        start = text.eos_token_ids[0] if text.bos_token_id is None else text.bos_token_id
        session = open_session(bundle)
        try:
            taken = answered(session, load_)
            score = score_text(session, Tokenizer.from_bundle(bundle), texts, start=start)
        finally:
            session.close()
    return Found(
        option.label, option.quality.mean, option.costs.total_s, score.bits_per_byte, taken
    )


def reversals(found: Sequence[Found]) -> list[str]:
    """Pairs that stand the other way round than the plan says."""
    out = []
    for a, b in itertools.combinations(found, 2):
        if abs(a.score - b.score) > TIE and (a.score > b.score) != (a.loss < b.loss):
            out.append(f"score: {a.label}, {b.label}")
        if abs(np.log(a.seconds / b.seconds)) > APART and (a.seconds < b.seconds) != (
            a.time < b.time
        ):
            out.append(f"time: {a.label}, {b.label}")
    return out


def best(
    checkpoints: Sequence[Path], tokens: float, profile: Profile, load_: Workload, work: Path
) -> list[Option]:
    """The plan's best candidates."""
    cards = []
    for checkpoint in checkpoints:
        with Bundle.open(made(checkpoint, 8, work)) as bundle:
            cards.append(card_of(bundle.graph(), checkpoint.name, tokens=tokens))
    grid: dict[str, Any] = {"bits": tuple(QUANTS), "groups": (32,), "ratios": (0.0,)}
    return list(prescribe(profile, load_, cards, kv_bits=(16,), **grid).ranked[:BEST])


def run(
    args: argparse.Namespace, profile: Profile, work: Path, say: Callable[[str], None]
) -> list[Found]:
    """The plan's best, converted and measured."""
    load_ = Workload(total_budget_s=args.total)
    texts = load_text(args.text, args.data)[: args.documents]
    named = {checkpoint.name: checkpoint for checkpoint in args.checkpoints}
    found = []
    for option in best(args.checkpoints, args.tokens, profile, load_, work):
        one = option.candidate
        if not isinstance(one, Candidate):
            raise TypeError("a plan of text names no candidate")
        found.append(measured(option, made(named[one.model], one.bits, work), load_, texts))
        say("  {:42} score {:.4f}  {:.3f} s planned  {:.3f} s measured  {:.4f} bits a byte".format(
            *(found[-1][i] for i in (0, 1, 2, 4, 3))))  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of texts")
    parser.add_argument("--text", default="wikipedia", help="of `edgert.evaluation.corpora`")
    parser.add_argument("--profile", help="of this machine; default: probe it now")
    parser.add_argument("--tokens", type=float, default=6e9, help="that all were trained on")
    parser.add_argument("--total", type=float, help="seconds that an answer may take")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    watch = machine.Watch()
    profile = load(args.profile) if args.profile else probe()
    with tempfile.TemporaryDirectory() as folder:
        found = run(args, profile, Path(folder), print)
    wrong = reversals(found)
    print("the ranking holds" if not wrong else f"the other way round: {wrong}")
    line = {
        "schema": 1, "kind": "plan_ranking", "rows": [one._asdict() for one in found],
        "reversals": wrong, "profile": profile.label, "machine": machine.describe(),
        "run": watch.summary(),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
