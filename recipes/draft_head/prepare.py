"""Prompts for `lm-edgert-60m`, as token arrays: what its answers are written to.

    python -m recipes.draft_head.prepare --data ../shared/data --model DIR --out draft_head_work

`prompts.npz`: `train`, prompts end to end (uint16), and `train_sizes`; as `held` the ones to
measure on, which share no document or seed with the others, with their kind in `held_kinds`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from recipes.demo_text import problems, sources
from recipes.demo_text.dialogues import everyday_dialogues
from recipes.demo_text.sources import Dialogue
from recipes.demo_text.tokenizer import END_OF_TEXT, render

SHARES = {
    "problems": 0.32, "everyday": 0.25, "wikipedia": 0.16, "novels": 0.09, "gsm8k": 0.08,
    "questions": 0.05, "tasks": 0.05,
}  # fmt: skip
HELD = ("problems", "everyday", "wikipedia", "novels")
LONGEST = 320  # tokens of a prompt
BEGINNING = (24, 96)  # tokens of plain text that are to be continued
SEED = 11


def asked(dialogues: Iterable[Dialogue], rng: random.Random) -> Iterator[str]:
    """Each dialogue up to one of its answers."""
    for dialogue in dialogues:
        answers = [i for i, (role, _) in enumerate(dialogue) if role == "assistant" and i]
        if answers:
            yield render(dialogue[: rng.choice(answers)], prompt=True)


def begun(tokenizer: Tokenizer, texts: Iterable[str], rng: random.Random) -> Iterator[list[int]]:
    """The beginnings of texts, tokens."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    for text in texts:
        ids = tokenizer.encode(text[:2000], add_special_tokens=False).ids
        count = rng.randint(*BEGINNING)
        if len(ids) > count:
            yield [end, *ids[:count]]


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Prompts that are not too long, as tokens."""
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) <= LONGEST:
            yield ids


def trained(data: Path, tokenizer: Tokenizer, count: int) -> dict[str, Iterator[list[int]]]:
    """Endless enough sources of prompts, by name."""
    rng = random.Random(SEED)
    dialogues: dict[str, Iterable[Dialogue]] = {
        "problems": problems.problem_dialogues(count),
        "everyday": everyday_dialogues(count),
        "gsm8k": problems.gsm8k_dialogues(data),
        "questions": sources.fairytale_questions(data),
        "tasks": sources.task_dialogues(data),
    }
    found = {name: encoded(tokenizer, asked(each, rng)) for name, each in dialogues.items()}
    plain = {"wikipedia": sources.wikipedia(data, parts=(0,)), "novels": sources.novels(data)}
    return found | {name: begun(tokenizer, texts, rng) for name, texts in plain.items()}


def held(data: Path, tokenizer: Tokenizer, count: int) -> dict[str, list[list[int]]]:
    """Prompts to measure on."""
    rng = random.Random(SEED + 1)
    questions = [[("user", p.question)] for p in problems.held_out_problems(count)]
    texts = (render(dialogue, prompt=True) for dialogue in questions)
    everyday = asked(everyday_dialogues(2 * count, seed=9001), rng)
    novels = [text[at : at + 3000] for text in sources.novels_held_out(data)
              for at in range(0, 60_000, 1500)]  # fmt: skip
    found = {
        "problems": encoded(tokenizer, texts), "everyday": encoded(tokenizer, everyday),
        "wikipedia": begun(tokenizer, sources.wikipedia_valid(data), rng),
        "novels": begun(tokenizer, novels, rng),
    }  # fmt: skip
    return {name: list(islice(each, count)) for name, each in found.items()}


def packed(prompts: Iterable[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens end to end and how many each prompt has."""
    rows = [np.asarray(ids, np.uint16) for ids in prompts]
    return np.concatenate(rows), np.asarray([len(ids) for ids in rows], np.uint16)


def prepare(data: Path, model: Path, out: Path, count: int, *, each_held: int) -> None:
    """Write `prompts.npz`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    found: list[list[int]] = []
    for name, prompts in trained(data, tokenizer, count).items():
        some = list(islice(prompts, int(SHARES[name] * count)))
        print(f"{name}: {len(some)} prompts, {sum(map(len, some))} tokens")
        found += some
    random.Random(SEED).shuffle(found)
    kept = held(data, tokenizer, each_held)
    arrays = dict(zip(("train", "train_sizes"), packed(found), strict=True))
    rows = [ids for name in HELD for ids in kept[name]]
    arrays |= dict(zip(("held", "held_sizes"), packed(rows), strict=True))
    arrays["held_kinds"] = np.repeat(np.arange(len(HELD)), [len(kept[n]) for n in HELD])
    np.savez_compressed(out / "prompts.npz", **arrays)
    told = {"train": len(found), "held": len(rows), "tokens": int(arrays["train_sizes"].sum())}
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("draft_head_work"))
    parser.add_argument("--prompts", type=int, default=60_000)
    parser.add_argument("--held", type=int, default=64, help="of each kind")
    asked = parser.parse_args()
    prepare(asked.data, asked.model, asked.out, asked.prompts, each_held=asked.held)


if __name__ == "__main__":
    main()
