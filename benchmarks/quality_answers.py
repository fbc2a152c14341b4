"""What the demo model is asked to answer: word problems with and without thinking, and facts in
long texts. Greedy, one turn, no system message; training saw none of these texts and questions.

problems         held-out problems of the recipe's fourteen kinds, two to five steps each
problems_direct  the same without thinking: `<think>` and `</think>` with nothing in between are put
                 into its mouth, and the first sentence that follows counts
gsm8k            GSM8K's test set, of which the recipe saw the training part
recall_N         a fact in about N tokens of Wikipedia articles that training did not see, asked for
                 at the end; half are pass keys, stated within a tenth of each of five depths
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from edgert.text.model import TextModel
from recipes.demo_text import recall, sources
from recipes.demo_text.problems import final_words, gsm8k_dialogues, held_out_problems, is_right
from recipes.demo_text.tokenizer import load_tokenizer

PROBLEMS, GRADE_SCHOOL, EACH_DEPTH = 280, 100, 12
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
LENGTHS = (500, 1000, 1900)
LONGEST = 320  # tokens
CLOSED = "<think>\n\n</think>\n\n"
MEASURES = ("problems", "problems_direct", "gsm8k", *(f"recall_{n}" for n in LENGTHS))


class Item(NamedTuple):
    """group: what accuracies are also counted by; begun: how the answer begins, if not freely."""

    question: str
    value: str
    choices: tuple[str, ...]
    group: str
    begun: str = ""


def _problems(data: Path, begun: str) -> Iterator[Item]:
    for p in held_out_problems(PROBLEMS):
        yield Item(p.question, p.value, p.choices, p.kind, begun)


def _gsm8k(data: Path) -> Iterator[Item]:
    for dialogue in islice(gsm8k_dialogues(data, split="test"), GRADE_SCHOOL):
        question, reply = dialogue[-2][1], dialogue[-1][1]
        value = final_words(reply).removesuffix(".").split()[-1]
        yield Item(question, value, (), "")


def _recall(data: Path, tokenizer: Tokenizer, length: int) -> Iterator[Item]:
    articles = sources.wikipedia_valid(data)
    found = recall.held_out_documents(tokenizer, articles, length, DEPTHS, EACH_DEPTH)
    for depth, document in found:
        fact = document.asked[0]
        question = recall.as_dialogue(document)[0][1]
        yield Item(question, fact.value, (fact.value,), f"{depth:.0%} {fact.kind}")


@lru_cache(maxsize=8)
def items(data: Path, checkpoint: Path, name: str) -> tuple[Item, ...]:
    """All items of a measure."""
    if name == "gsm8k":
        return tuple(_gsm8k(data))
    if name.startswith("recall_"):
        length = int(name.removeprefix("recall_"))
        return tuple(_recall(data, load_tokenizer(checkpoint), length))
    return tuple(_problems(data, CLOSED if name == "problems_direct" else ""))


def reply(model: TextModel, item: Item) -> str:
    """The greedy answer, without how it was made to begin."""
    messages = [{"role": "user", "content": item.question}]
    ids = model.chat_ids(messages) + (model.tokenize(item.begun, bos=False) if item.begun else [])
    room = min(LONGEST, model.context - len(ids))
    options: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": room}
    if item.begun:
        options["stop"] = ". "
    return model.generate(ids, **options).text


def measure(
    model: TextModel, data: Path, checkpoint: Path, name: str, cut: tuple[int, int]
) -> dict[str, Any]:
    """Part `cut[1]` of `cut[0]` parts: `acc`, and right answers and items of each group."""
    parts, part = cut
    some = items(data, checkpoint, name)[part::parts]
    groups: dict[str, list[int]] = {}
    tokens = 0
    for item in some:
        text = reply(model, item)
        hit = is_right(text, item.value, item.choices)
        right, asked = groups.get(item.group, (0, 0))
        groups[item.group] = [right + hit, asked + 1]
        tokens += len(model.tokenize(text, bos=False))
    acc = sum(right for right, _ in groups.values()) / len(some)
    return {"value": acc, "acc": acc, "examples": len(some), "groups": groups,
            "answer_tokens": tokens}  # fmt: skip
