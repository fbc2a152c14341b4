"""What drafts gain: costs of checking them, how many stand, speed foretold and measured.

    python -m benchmarks.speculation --target lm-60m.edge --small lm-24m.edge [--page]
    python -m benchmarks.speculation --shapes 0.5b-llama 1.1b --work FOLDER [--page]

Times are CPU seconds of the process on one thread, drafted and plain answers in turn, so that a
neighbour on the machine counts little. Every drafted answer is compared with the plain one.

Chat, stories and problems are the model's own answers. A small model does not copy or edit when it
is asked to; there its logits are replaced by those of the text that was asked for, after a step
that costs what it costs (`Told`). Models of random weights are given drafts of which a known share
is right (`Replayed`), and a text that they copy with changes; llama.cpp, where llama-cpp-python is
installed, gets the same drafts, and its own prompt lookup, on the same weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from benchmarks import speculation_llama
from benchmarks.machine import describe, load_average
from benchmarks.random_bundle import random_bundle
from benchmarks.speculation_page import write_page
from benchmarks.speculation_prompts import PROMPTS, Prompt
from edgert.bundle import Bundle
from edgert.session.base import Feed, StepResult
from edgert.text.model import TextModel
from edgert.text.speculative.head import has_head
from edgert.text.speculative.options import DraftOptions

RESULTS = Path(__file__).parent / "results" / "speculation.jsonl"
WIDTHS = [*range(1, 10), 13, 17]
TEMPERATURES = (0.0, 0.7, 1.0)
LONG = {0: -100.0, 2: -100.0}  # answers go on, for short ones cannot be timed
ACCEPTED = (0.5, 0.7, 0.9)
GAMMAS = (1, 3, 7)
FIXED = (2, 4)  # guesses of a head that are always made
DRAFTS = ("ngram", "model", "both", "head", "ngram+head", *(f"head-{n}" for n in FIXED))
CHANGED = 12  # of so many tokens of a copy one is another


class Told:
    """A session whose likeliest tokens are those of a text, at the cost of its real steps."""

    def __init__(self, model: TextModel, tokens: Sequence[int], start: int) -> None:
        self.session: Any = model.session
        self.tokens, self.start = tokens, start
        self.step = model.session.step

    def __enter__(self) -> Told:
        self.session.step = self._told
        return self

    def __exit__(self, *_: object) -> None:
        self.session.step = self.step

    def _told(self, feeds: Sequence[Feed]) -> list[StepResult]:
        found = self.step(feeds)
        for feed, result in zip(feeds, found, strict=True):
            first = feed.state.length + feed.rows - len(result.logits) + 1 - self.start
            for at, row in enumerate(result.logits, first):
                row[self.tokens[at] if at < len(self.tokens) else 2] = row.max() + 30
        return found


class Replayed:
    """Drafts from a known text, each token right with probability `share` by itself."""

    def __init__(self, text: Sequence[int], share: float, gamma: int, vocab: int) -> None:
        rng = np.random.default_rng(5)
        self.right = rng.random(len(text)) < share
        self.text, self.gamma, self.vocab = text, gamma, vocab

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        start = len(tokens)
        stop = min(start + min(self.gamma, limit), len(self.text))
        found = range(start, stop)
        return [self.text[i] if self.right[i] else (self.text[i] + 1) % self.vocab for i in found]

    def observe(self, proposed: int, accepted: int) -> None:
        pass


def written(model: TextModel, tokens: Sequence[int], **options: Any) -> tuple[float, Any]:
    """CPU seconds of an answer behind its first piece, and the answer. The prompt is read anew: a
    head sees nothing of a beginning that is known already."""
    if model.engine.prefixes is not None:
        model.engine.prefixes.clear()
    stream = model.stream(tokens, **options)
    next(stream, None)
    return cpu(stream.finish)


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of `work`, and what it gives."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def widths(model: TextModel, depth: int = 256, rounds: int = 12) -> dict[str, float]:
    """v(m): what a step of m rows costs, in steps of one, behind `depth` tokens."""
    session, rng = model.session, np.random.default_rng(0)
    vocab = model.tokenizer.size
    state = session.new_state()
    for _ in range(depth // 64):
        session.step([Feed(state, rng.integers(3, vocab, 64).astype(np.int32), "none")])
        state.commit(64)
    spent: dict[int, list[float]] = {m: [] for m in WIDTHS}
    for _ in range(rounds):
        for m in WIDTHS:
            feed = Feed(state, rng.integers(3, vocab, m).astype(np.int32), "all")
            for _ in range(3):
                seconds, _ = cpu(lambda feed=feed: session.step([feed]))  # type: ignore[misc]
                state.discard()
                spent[m].append(seconds)
    state.close()
    quick = {m: float(np.percentile(times, 25)) for m, times in spent.items()}
    return {"t1_ms": quick[1] * 1e3} | {f"v{m}": quick[m] / quick[1] for m in WIDTHS}


def tokens_of(model: TextModel, prompt: Prompt) -> list[int]:
    return model.chat_ids([{"role": "user", "content": prompt.text}])


class Widths:
    """Rows of each step of a session, while it is entered."""

    def __init__(self, session: Any) -> None:
        self.session, self.step, self.rows = session, session.step, list[int]()

    def __enter__(self) -> list[int]:
        self.session.step = self._noted
        return self.rows

    def __exit__(self, *_: object) -> None:
        self.session.step = self.step

    def _noted(self, feeds: Sequence[Feed]) -> list[StepResult]:
        self.rows.append(sum(feed.rows for feed in feeds))
        return list(self.step(feeds))


def counted(rows: Sequence[int], tokens: int, costs: dict[str, Any], guesses: float) -> float:
    """Speed by what steps of so many rows cost on their own (`costs`), and guesses, all of one
    cost: without the neighbours on the machine, and without what Python does."""
    return tokens / (sum(costs.get(f"v{n}", costs["v9"] * n / 9) for n in rows) + guesses)


def compared(
    model: TextModel, ask: Callable[[Any], tuple[float, Any]], drafts: dict[str, Any], rounds: int,
    costs: dict[str, Any],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Each draft against plain decoding: medians of the ratios of answers one after the other."""
    found = {}
    for name, draft in drafts.items():
        ratios, spent, answer = [], 0.0, None
        for _ in range(rounds):
            plain, expected = ask("none")
            with Widths(model.session) as rows:
                seconds, answer = ask(draft)
            ratios.append(plain / max(seconds, 1e-9))
            spent = min(spent or seconds, seconds)
            if answer.token_ids != expected.token_ids:
                raise SystemExit(f"{name}: another text than without drafts")
        assert answer is not None
        stats, tokens = answer.drafting, len(answer.token_ids)
        steps = rows[-stats.steps :]
        cost = "c_head" if "head" in name else "c" if name in ("model", "both") else ""
        guesses = stats.proposed * costs.get(cost, 0.0)
        found[name] = {
            "counted": counted(steps, tokens - 1, costs, guesses),
            "speed": statistics.median(ratios), "tau": stats.tau, "alpha": stats.acceptance,
            "drafted": stats.proposed, "foretold": stats.predicted_speed,
            "draft_share": stats.draft_s / max(1e-9, answer.timings.generation_s),
            "tokens": tokens, "rate": (tokens - 1) / max(spent, 1e-9),
        }  # fmt: skip
    return found


def measure_prompts(
    model: TextModel, small: TextModel | None, costs: dict[str, Any], args: Any
) -> list[dict[str, Any]]:
    """A line for each prompt, temperature and draft."""
    lines = []
    for prompt in PROMPTS:
        tokens = tokens_of(model, prompt)
        drafts: dict[str, Any] = {"ngram": "ngram"}
        if "c_head" in costs and not prompt.answer:
            drafts |= {"head": "head", "ngram+head": ("ngram", "head")}
            drafts |= {f"head-{n}": DraftOptions("head", max_tokens=n, adapt=False) for n in FIXED}
        if small is not None and not prompt.answer:
            drafts |= {"model": small, "both": ("ngram", small)}
        drafts = {name: drafts[name] for name in drafts if name in args.drafts}
        if not drafts or prompt.kind not in args.kinds:
            continue
        for temperature in TEMPERATURES:
            options: dict[str, Any] = {"temperature": temperature, "top_p": 1.0, "seed": 7}
            if not prompt.answer:
                options["logit_bias"] = LONG

            def ask(draft: Any, tokens: Any = tokens, options: Any = options) -> Any:
                return written(model, tokens, draft=draft, max_tokens=args.tokens, **options)

            if prompt.answer:
                with Told(model, model.tokenizer.encode(prompt.answer), len(tokens)):
                    found = compared(model, ask, drafts, args.rounds, costs)
            else:
                found = compared(model, ask, drafts, args.rounds, costs)
            for name, values in found.items():
                line = {
                    "what": "prompt", "kind": prompt.kind, "prompt": prompt.name,
                    "temperature": temperature, "draft": name, **values,
                }  # fmt: skip
                print(json.dumps(line), flush=True)
                lines.append(line)
    return lines


def head_ms(model: TextModel, depth: int = 256, rounds: int = 40) -> float:
    """What a guess of a model's head takes, in milliseconds behind `depth` tokens, after a step of
    the model, which takes the head's weights out of the caches."""
    head, mine = model.drafting.head(), model.session.new_state()
    rng, state, times = np.random.default_rng(0), head.session.new_state(), []
    rows = rng.standard_normal((depth, head.read)).astype(np.float32)
    blank = np.zeros((depth, head.width), np.float32)
    head.session.step([head.feed(state, rows, blank, [5] * depth)])
    state.commit(depth)
    for _ in range(rounds):
        model.session.step([Feed(mine, np.array([5], np.int32), "all")])
        mine.discard()
        feed = head.feed(state, 0 * rows[:1], rows[:1, : head.width], [5])
        seconds, _ = cpu(lambda feed=feed: head.session.step([feed]))  # type: ignore[misc]
        state.discard()
        times.append(seconds)
    state.close()
    mine.close()
    return float(np.percentile(times, 25)) * 1e3


def measure_costs(
    model: TextModel, name: str, small: TextModel | None, args: Any, *, headed: bool = False
) -> dict[str, Any]:
    """v of the target, c of the small model's guesses and of the head's, o of a cycle besides."""
    found: dict[str, Any] = {
        "what": "costs",
        "model": name,
        **widths(model, rounds=4 * args.rounds),
    }
    if small is not None:
        found["c"] = widths(small, rounds=4 * args.rounds)["t1_ms"] / found["t1_ms"]
    if headed:
        found["c_head"] = head_ms(model) / found["t1_ms"]
    prompt = list(range(5, 69))
    options: dict[str, Any] = {"max_tokens": args.tokens, "temperature": 0.0, "logit_bias": LONG}
    plain = model.generate(prompt, draft="none", **options)
    gamma, times = 3, []
    proposer = Replayed([*prompt, *plain.token_ids], 1.0, gamma, model.tokenizer.size)
    for _ in range(min(5, args.steps)):
        seconds, answer = written(model, prompt, proposer=proposer, **options)
        times.append(seconds / answer.drafting.steps)
    cycle = statistics.median(times) / (found["t1_ms"] / 1e3)
    found["o"] = cycle - found[f"v{gamma + 1}"]
    print(json.dumps(found), flush=True)
    return found


def measure_replayed(
    model: TextModel, name: str, args: Any
) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    """Fixed lengths with a known share of right drafts: foretold by tau / (v + o) and measured.
    Also the prompt and what the model writes behind it."""
    costs = measure_costs(model, name, None, args)
    options: dict[str, Any] = {"max_tokens": args.tokens, "temperature": 0.0, "logit_bias": LONG}
    prompt, lines = list(range(5, 69)), [costs]
    plain = list(model.generate(prompt, draft="none", **options).token_ids)
    for share in args.shares:
        for gamma in args.gammas:
            proposer = Replayed([*prompt, *plain], share, gamma, model.tokenizer.size)

            def ask(draft: Any) -> tuple[float, Any]:
                given = {"draft": draft} if draft == "none" else {"proposer": draft}
                return written(model, prompt, **given, **options)

            (found,) = compared(model, ask, {"replayed": proposer}, args.rounds, costs).values()
            foretold = found["tau"] / (costs[f"v{gamma + 1}"] + costs["o"])
            line = {
                "what": "replayed", "model": name, "share": share, "gamma": gamma,
                "tau": found["tau"], "alpha": found["alpha"], "foretold": foretold,
                "speed": found["speed"], "rate": found["rate"],
            }  # fmt: skip
            print(json.dumps(line), flush=True)
            lines.append(line)
    return lines, prompt, plain


def measure_copied(
    model: TextModel, name: str, args: Any
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Lookup in the text itself, of a text that is told: a copy of the prompt with changes. Also
    the prompt and the copy."""
    rng, vocab = np.random.default_rng(9), model.tokenizer.size
    prompt = rng.integers(5, vocab, args.tokens).tolist()
    copy = [rng.integers(5, vocab).item() if i % CHANGED == 5 else t for i, t in enumerate(prompt)]
    options: dict[str, Any] = {"max_tokens": len(copy), "temperature": 0.0, "logit_bias": LONG}
    with Told(model, copy, len(prompt)):
        (found,) = compared(
            model, lambda draft: written(model, prompt, draft=draft, **options),
            {"ngram": "ngram"}, args.rounds, {"v9": 1.0},
        ).values()  # fmt: skip
    line = {"what": "copied", "model": name, **{n: found[n] for n in ("speed", "rate", "tau")}}
    print(json.dumps(line), flush=True)
    return line, prompt, copy


def measure_shape(shape: str, args: Any) -> list[dict[str, Any]]:
    """Replayed drafts and lookup with random weights of a shape, llama.cpp beside."""
    path = args.work / f"random-{shape}.edge"
    if not path.exists():
        random_bundle(shape, path)
    with edgert.load(path, threads=1, ctx_size=1024, draft="none") as model:
        lines, *texts = measure_replayed(model, shape, args)
        line, *copied = measure_copied(model, shape, args)
        vocab = model.tokenizer.size
        lines.append(line)
    if not speculation_llama.importable():
        return lines
    from benchmarks.text_models import gguf_of

    with Bundle.open(path) as bundle:
        gguf = gguf_of(bundle, args.work)
    peer, (prompt, plain) = speculation_llama.Peer(gguf, args.rounds), texts
    costs = speculation_llama.widths(peer.runner, WIDTHS, args.steps)
    theirs = [{"what": "costs", "model": f"{shape} llama.cpp", **costs}]
    for line in [line for line in lines if line["what"] == "replayed"]:
        draft = Replayed([*prompt, *plain], line["share"], line["gamma"], vocab)
        theirs.append({
            "what": "llama", "model": shape, "share": line["share"], "gamma": line["gamma"],
            **peer.compared(prompt, plain, draft.propose),
        })  # fmt: skip
    theirs.append({"what": "llama-copied", "model": shape, **peer.looked_up(*copied)})
    peer.close()
    for line in theirs:
        print(json.dumps(line), flush=True)
    return lines + theirs


def short(line: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", type=Path, help="a bundle, as of lm-edgert-60m at int4")
    parser.add_argument("--small", type=Path, help="a bundle of the same tokenizer")
    parser.add_argument("--shapes", nargs="*", default=[], help="0.5b-llama, 1.1b, 4b")
    parser.add_argument("--work", type=Path, help="where random bundles are written")
    parser.add_argument("--drafts", nargs="*", default=DRAFTS)
    parser.add_argument("--kinds", nargs="*", default=["chat", "story", "think", "edit", "copy"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="rounds of steps of each width")
    parser.add_argument("--shares", type=float, nargs="*", default=ACCEPTED)
    parser.add_argument("--gammas", type=int, nargs="*", default=GAMMAS)
    parser.add_argument("--page", action="store_true", help="write the page from all results")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    if args.target:
        small = edgert.load(args.small, threads=1, draft="none") if args.small else None
        with Bundle.open(args.target) as bundle:
            headed = has_head(bundle)
        with edgert.load(args.target, threads=1, draft="none") as model:
            costs = measure_costs(model, args.target.stem, small, args, headed=headed)
            lines += [costs, *measure_prompts(model, small, costs, args)]
    for shape in args.shapes:
        lines += measure_shape(shape, args)
    if lines:
        head = {"machine": describe(), "load": load_average(), "time": time.strftime("%F")}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(head | {"lines": [short(line) for line in lines]}) + "\n")
    if args.page:
        write_page(RESULTS)


if __name__ == "__main__":
    main()
