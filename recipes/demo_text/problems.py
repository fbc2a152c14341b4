"""Word problems with exact answers, as chats in which the answer is thought through first.

A question is two to five steps long and of one of the kinds in `sums.py` and `puzzles.py`. The
reply opens with `<think>`, works in short sentences, most of them led by a connective, closes with
`</think>` and states the result in one sentence. Everything is drawn from one seeded generator.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import puzzles, sums
from .grammar import pick, say
from .sources import Dialogue
from .working import Answer, Working

KINDS: dict[str, Callable[[Working, int], Answer]] = {
    kind.__name__: kind
    for kind in (
        sums.running, sums.chain, sums.shop, sums.groups, puzzles.order, puzzles.sort,
        puzzles.count, sums.clock, puzzles.weekday, sums.age, sums.distance, sums.queue,
        puzzles.moves, sums.saving,
    )
}  # fmt: skip
STEPS = (2, 5)
SEEDS = {"train": 101, "held out": 202}
# Connectives by place. An empty one leaves the clause alone; a doubled one is drawn twice as often.
OPENING = ("", "", "First, ", "Now ", "To begin, ")
INSIDE = ("So ", "So ", "Then ", "Then ", "Now ", "Also, ", "Next, ", "")
CLOSING = ("Therefore, ", "Therefore ", "Thus, ", "Thus ", "Hence ", "So ")
SYSTEMS = (
    "Think step by step before you answer.",
    "You are a careful assistant. Think first, then answer in one sentence.",
    "You are edgert's demo model. Think before you answer.",
)
SYSTEM_SHARE = 0.12
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """thoughts: the working, a sentence each. value: the exact answer. choices: for answers that
    are no numbers, what they are chosen from."""

    kind: str
    question: str
    thoughts: tuple[str, ...]
    answer: str
    value: str
    choices: tuple[str, ...] = ()

    @property
    def reply(self) -> str:
        """What the assistant says."""
        return thinking_reply(self.thoughts, self.answer)


def thinking_reply(thoughts: Sequence[str], answer: str) -> str:
    """Thoughts between their marks, an empty line, the answer."""
    return f"<think>\n{' '.join(thoughts)}\n</think>\n\n{answer}"


def final_words(text: str) -> str:
    """What follows the thoughts: all of a text without any, nothing of one that never ends them."""
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if "<think>" in text else text.strip()


def is_right(text: str, value: str, choices: Sequence[str] = ()) -> bool:
    """Whether a reply ends on `value`: as its last number, or as the choices it names, in order."""
    words = final_words(text)
    if not choices:
        numbers = NUMBER.findall(words.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(value)
    wanted = value.split(", ")
    named = re.findall(rf"\b(?:{'|'.join(map(re.escape, choices))})\b", words)
    if len(wanted) > 1:
        return named == wanted
    return bool(named) and set(named) == set(wanted)


def connected(rng: random.Random, clauses: Sequence[str]) -> tuple[str, ...]:
    """Sentences from clauses; no connective follows itself."""
    sentences, last = [], ""
    for place, clause in enumerate(clauses):
        words = OPENING if place == 0 else CLOSING if place == len(clauses) - 1 else INSIDE
        last = pick(rng, [word for word in words if not word or word != last])
        sentences.append(say(rng, "{text}.", text=last + clause))
    return tuple(sentences)


def make_problem(rng: random.Random, kind: str | None = None) -> Problem:
    """One problem; its kind (if none is named) and its length are drawn uniformly."""
    kind = kind or pick(rng, tuple(KINDS))
    working = Working(rng)
    answer = KINDS[kind](working, rng.randint(*STEPS))
    return Problem(
        kind=kind,
        question=" ".join(working.told),
        thoughts=connected(rng, working.thought),
        answer=say(rng, answer.text),
        value=str(answer.value),
        choices=answer.choices,
    )


def problems(count: int, seed: int, *, avoid: Collection[str] = ()) -> Iterator[Problem]:
    """`count` problems whose questions differ from one another and from those in `avoid`."""
    rng, seen = random.Random(seed), set(avoid)
    while count > 0:
        problem = make_problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            count -= 1
            yield problem


def held_out_problems(count: int) -> list[Problem]:
    """The first of the problems that training avoids."""
    return list(problems(count, SEEDS["held out"]))


def as_dialogue(rng: random.Random, question: str, reply: str) -> Dialogue:
    """One turn, now and then under a system message."""
    begin: Dialogue = [("system", pick(rng, SYSTEMS))] if rng.random() < SYSTEM_SHARE else []
    return [*begin, ("user", question), ("assistant", reply)]


def problem_dialogues(count: int, *, held_out: int = 1000, seed: int = 7) -> Iterator[Dialogue]:
    """`count` training problems; none asks what one of the held-out ones asks."""
    rng = random.Random(seed)
    avoid = {problem.question for problem in held_out_problems(held_out)}
    for problem in problems(count, SEEDS["train"], avoid=avoid):
        yield as_dialogue(rng, problem.question, problem.reply)


CALCULATOR = re.compile(r"<<[^>]*>>")
LED = re.compile(
    r"(so|then|now|also|thus|hence|therefore|next|first|to begin|finally|this means|that means"
    r"|since|if)\b",
    re.IGNORECASE,
)
LOWERED = frozenset(
    "The There He She It They In Each This That His Her A After If On At For".split()
)


def gsm8k_dialogues(data: Path, *, split: str = "train", seed: int = 5) -> Iterator[Dialogue]:
    """GSM8K's worked answers as thoughts: without calculator marks, and led by connectives."""
    rng = random.Random(seed)
    path = data / "bench-gsm8k" / f"{split}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            worked, _, value = CALCULATOR.sub("", row["answer"]).rpartition("####")
            thoughts = _led(rng, [_plain(line) for line in worked.split("\n") if line.strip()])
            answer = say(rng, "(The answer is|The answer is|So the answer is) {n}.",
                         n=value.strip().replace(",", ""))  # fmt: skip
            reply = thinking_reply(thoughts, answer)
            yield as_dialogue(rng, _plain(row["question"]), reply)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _led(rng: random.Random, lines: Sequence[str]) -> list[str]:
    """Lines of people as sentences, with a connective before those that lack one."""
    led = []
    for place, line in enumerate(lines):
        line = line.rstrip(".")
        words = OPENING if place == 0 else CLOSING if place == len(lines) - 1 else INSIDE
        word = "" if LED.match(line) else pick(rng, words)
        first = line.partition(" ")[0]
        if word and (first in LOWERED or re.fullmatch(r"[A-Z][a-z]+ing", first)):
            line = line[:1].lower() + line[1:]
        led.append(f"{word}{line}.")
    return led
