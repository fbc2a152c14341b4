"""What RelayGen gains and costs: right answers, seconds, and who wrote how much.

    python -m benchmarks.relay --large 60m.edge --small 24m-think.edge --cues cues.json [--page]

200 word problems with exact answers, thought through first (`problems_200.jsonl.gz` beside the
weights of lm-edgert-60m). Cues are calibrated on other problems of the same generator. Every
problem is answered in all ways in turn, in an order that moves on from problem to problem, on one
thread, and nothing of a prompt is known before: prefixes are forgotten between two answers.

random is the same automaton that hands over at any token of the large model with a chance that
gives the large model the share it has with calibrated cues; others takes the cues that occurred and
were not kept. Drafts may change no token: where they do, this ends with an error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import edgert
import edgert.text.model as text_model
from benchmarks.machine import describe, load_average
from benchmarks.relay_page import write_page
from edgert.text.model import TextModel
from edgert.text.relay import CUES, Relay, RelayOptions
from edgert.text.relay_calibrate import calibrate_relay
from edgert.text.relay_cues import CANDIDATES, RelayCues, read_cues, write_cues
from recipes.demo_text.problems import Problem, is_right
from recipes.demo_text.problems import problems as drawn

RESULTS = Path(__file__).parent / "results" / "relay.jsonl"
FILE = "lm-edgert-60m/problems_200.jsonl.gz"
SEED = 909  # of the problems for calibration
HELD = 20  # of these, what the chance of random hand-overs is fitted on
LONGEST = 320  # tokens of an answer
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
}


@dataclass(frozen=True)
class Way:
    """How problems are answered. model: who is asked. relay, draft: as the model takes them.
    chance: of a hand-over at any token, instead of cues. same: the way whose tokens it gives."""

    model: TextModel
    relay: RelayOptions | None = None
    draft: Any = "none"
    chance: float | None = None
    same: str = ""


@dataclass
class Sums:
    """What is counted of a way."""

    right: list[bool] = field(default_factory=list)
    tokens: int = 0
    large: int = 0
    switches: int = 0
    refused: int = 0
    steps: int = 0  # of the large model that gave tokens, and these
    stepped: int = 0
    drafted: int = 0
    accepted: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def row(self) -> dict[str, Any]:
        tau = self.stepped / self.steps if self.steps else None
        found = {**vars(self), "right": sum(self.right), "answers": len(self.right), "tau": tau}
        return found | {"hits": "".join("01"[hit] for hit in self.right)}


class Coin(Relay):
    """Hands over by chance instead of at cues."""

    def __init__(self, options: RelayOptions, chance: float, seed: int) -> None:
        super().__init__(options)
        self.chance, self.rng = chance, random.Random(seed)

    def _cue(self, before: str, piece: str) -> bool:
        return self.rng.random() < self.chance


@contextmanager
def tossing(chance: float | None, seed: int) -> Iterator[None]:
    """Relays of requests made meanwhile hand over by chance, where one is given."""
    if chance is None:
        yield
        return
    text_model.Relay = lambda options: Coin(options, chance, seed)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        text_model.Relay = Relay  # type: ignore[attr-defined]


def answered(
    way: Way, question: str, seed: int, options: dict[str, Any]
) -> tuple[Any, float, float]:
    """An answer, and its CPU and wall seconds from the first token of the prompt on."""
    for model in (way.model, way.relay.small if way.relay is not None else None):
        if isinstance(model, TextModel) and model.engine.prefixes is not None:
            model.engine.prefixes.clear()
    with tossing(way.chance, seed):
        cpu, wall = time.process_time(), time.perf_counter()
        found = way.model.chat(
            [{"role": "user", "content": question}],
            relay=way.relay, draft=way.draft, max_tokens=LONGEST, seed=seed, **options,
        )  # fmt: skip
        return found, time.process_time() - cpu, time.perf_counter() - wall


def measured(
    ways: dict[str, Way],
    asked: Sequence[dict[str, Any]],
    first: int,
    options: dict[str, Any],
    seconds: float,
) -> dict[str, Sums]:
    """Problems from `first` on in all ways, as many as so many seconds allow."""
    sums, names = {name: Sums() for name in ways}, list(ways)
    end = time.perf_counter() + seconds
    for at, problem in enumerate(asked, first):
        if time.perf_counter() > end:
            break
        tokens = dict[str, tuple[int, ...]]()
        turn = at % len(names)
        for name in names[turn:] + names[:turn]:
            way, mine = ways[name], sums[name]
            found, cpu, wall = answered(way, problem["question"], at, options)
            tokens[name] = found.token_ids
            mine.right.append(is_right(found.text, problem["value"], problem["choices"]))
            mine.tokens += len(found.token_ids)
            mine.cpu_s, mine.wall_s = mine.cpu_s + cpu, mine.wall_s + wall
            if found.relay is not None:
                mine.large += found.relay.large
                mine.switches += found.relay.switches
                mine.refused += found.relay.refused
            elif name != "small":
                mine.large += len(found.token_ids)
            if found.drafting is not None:
                mine.steps += found.drafting.steps
                mine.stepped += found.drafting.tokens
                mine.drafted += found.drafting.proposed
                mine.accepted += found.drafting.accepted
        for name, way in ways.items():
            if way.same and tokens[name] != tokens[way.same]:
                raise SystemExit(f"{name}, problem {at}: other tokens than {way.same}")
        if at % 20 == 19:
            print(f"problem {at}", flush=True)
    return sums


def share(way: Way, asked: Sequence[dict[str, Any]], options: dict[str, Any]) -> float:
    """Of all tokens, what the large model writes."""
    large = small = 0
    for at, problem in enumerate(asked):
        found, _, _ = answered(way, problem["question"], at, options)
        large, small = large + found.relay.large, small + found.relay.small
    return large / (large + small)


def fitted(make: Callable[[float], Way], wanted: float, measure: Callable[[Way], float]) -> float:
    """The chance of a hand-over that gives the large model a share of about `wanted`."""
    low, high = 0.0, 0.6
    for _ in range(6):
        middle = (low + high) / 2
        if measure(make(middle)) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def ways_of(
    large: TextModel, small: TextModel, cues: RelayCues, held: Sequence[dict[str, Any]],
    options: dict[str, Any], chance: float | None,
) -> dict[str, Way]:  # fmt: skip
    """All ways. held: problems that the chance of random hand-overs is fitted on, if it is not
    given."""

    def relay(some: Sequence[str], draft: Any = "none", same: str = "") -> Way:
        return Way(large, RelayOptions(small, cues=tuple(some)), draft, same=same)

    def toss(chance: float) -> Way:
        return Way(large, RelayOptions(small), chance=chance)

    if chance is None:
        wanted = share(relay(cues.cues), held, options)
        chance = fitted(toss, wanted, lambda way: share(way, held, options))
    others = [one.cue for one in cues.scores if one.cue not in cues.cues]
    found = {
        "small": Way(small),
        "large": Way(large),
        "large, ngram": Way(large, draft="ngram", same="large"),
        "large, small drafts": Way(large, draft=("ngram", small), same="large"),
        "relay": relay(cues.cues),
        "relay, ngram": relay(cues.cues, "ngram", "relay"),
        "relay, small drafts": relay(cues.cues, ("ngram", small), "relay"),
        "relay, guard": Way(large, RelayOptions(small, cues=cues.cues, guard=-3.0)),
        "published cues": relay(CUES),
        "all candidates": relay(CANDIDATES),
        "others": relay(others),
        "random": toss(chance),
        "answer only": relay(()),
    }
    if not others:
        del found["others"]
    return found


def calibrated(large: TextModel, small: TextModel, asked: Sequence[Problem]) -> RelayCues:
    """Cues of two models from four answers to each problem, and what that takes."""
    chats = [[{"role": "user", "content": problem.question}] for problem in asked]
    return calibrate_relay(large, small, problems=chats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", type=Path, help="a bundle, as of lm-edgert-60m")
    parser.add_argument("--small", type=Path, help="a bundle of the same tokenizer")
    parser.add_argument("--problems", type=Path, help=f"default: {FILE} of the shared data")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="greedy")
    parser.add_argument("--ways", nargs="*", help="some of them; default: all")
    parser.add_argument("--cues", type=Path, help="a file of cues; where there is none, it is made")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of the answers, at most")
    parser.add_argument("--first", type=int, default=0, help="problem; lines of other ones join")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--chance", type=float, help="of random hand-overs; default: fitted")
    parser.add_argument("--calibrate", type=int, default=40, metavar="PROBLEMS")
    parser.add_argument("--page", action="store_true", help="write the page from all results")
    args = parser.parse_args()
    if args.large and args.small:
        shared = Path(os.environ.get("EDGERT_SHARED_DATA", "../shared/data"))
        with gzip.open(args.problems or shared / FILE, "rt", encoding="utf-8") as file:
            asked = [json.loads(line) for line in file]
        line = compared(args, asked)
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(json.dumps(line) + "\n")
    if args.page:
        write_page(RESULTS)


def compared(args: Any, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of results."""
    known = {problem["question"] for problem in asked}
    other = list(drawn(args.calibrate, SEED, avoid=known))
    held = [{"question": problem.question} for problem in other[:HELD]]
    options = SAMPLERS[args.sampler]
    line: dict[str, Any] = {
        "large": args.large.stem, "small": args.small.stem, "sampler": args.sampler,
        "first": args.first,
        "machine": describe(), "load": load_average(), "time": time.strftime("%F"),
    }  # fmt: skip
    with edgert.load(args.large, threads=1, draft="none") as large, \
            edgert.load(args.small, threads=1, draft="none") as small:  # fmt: skip
        began = time.process_time()
        if args.cues.exists():
            cues = read_cues(args.cues)
        else:
            cues = calibrated(large, small, other)
            line["calibration_s"] = time.process_time() - began
            write_cues(args.cues, cues)
        line["calibration"] = msgspec.to_builtins(cues)
        ways = ways_of(large, small, cues, held, options, args.chance)
        line["chance"] = ways["random"].chance
        ways = {name: way for name, way in ways.items() if name in (args.ways or ways)}
        some = asked[args.first : args.first + args.count]
        sums = measured(ways, some, args.first, options, args.seconds)
    line["rows"] = [{"way": name, **one.row()} for name, one in sums.items()]
    for row in line["rows"]:
        print(json.dumps(row), flush=True)
    return line | {"load_end": load_average()}


if __name__ == "__main__":
    main()
