"""Real text with facts among its sentences, and questions about them at the end.

A fact is one of five kinds (a pass key, a colour, a name, a place, a number), is stated somewhere
in a given stretch of the text, and is asked for after all of it: as a chat, or as plain text with
`Question:` and `Answer:` lines. Only the answers count for the loss.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import Tokenizer

from .grammar import pick, say
from .sources import Dialogue
from .tokenizer import END_OF_TEXT, encode_dialogues
from .working import NAMES

SEEDS = {"train": 102, "held out": 203}
LENGTHS = (600, 2000)  # tokens of a training document
STATED = (0.0, 0.6)  # where training documents state their facts, as shares of the text
PLAIN_SHARE = 0.2
LEAST_FILLER = 80  # tokens
SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])|(?<=[.!?]\") (?=[A-Z])")
REQUESTS = (
    "Read this text and answer my questions.",
    "Here is a text. Please remember the facts in it.",
    "Please read this.",
    "",
)
COLOURS = tuple("red blue green yellow white black brown".split())
PETS = tuple(
    "Pip Momo Biscuit Coco Dot Pepper Nutmeg Tilly Bramble Sunny Button Rusty Hazel Ollie Poppy"
    .split()
)  # fmt: skip
SPOTS = (
    "under the bed", "behind the clock", "in the barn", "in the blue box", "under the stairs",
    "in the old oak", "behind the mirror", "in the cellar",
)  # fmt: skip
# statement, question, answer; {v} is the value that is asked for
FORMS = {
    "passkey": (
        "(Remember this: the|The) pass key is {v}.( Remember it.|)",
        "(What is the pass key?|Tell me the pass key.|What was the pass key?)",
        "The pass key is {v}.",
    ),
    "colour": ("{who}'s {thing} is {v}.", "What colour is {who}'s {thing}?",
               "{who}'s {thing} is {v}."),
    "name": ("{who} has a {thing} called {v}.", "What is {who}'s {thing} called?",
             "{who}'s {thing} is called {v}."),
    "place": ("{who} hid the {thing} {v}.", "Where did {who} hide the {thing}?",
              "{who} hid the {thing} {v}."),
    "number": ("The number of {who}'s {thing} is {v}.", "What is the number of {who}'s {thing}?",
               "The number of {who}'s {thing} is {v}."),
}  # fmt: skip
SUBJECTS = {
    "passkey": "key",
    "colour": "lamp coat door kite boat scarf bicycle umbrella hat cup",
    "name": "dog cat horse parrot goat",
    "place": "key ring letter coin map",
    "number": "ticket locker room cabin boat",
}


@dataclass(frozen=True)
class Fact:
    """value: the part of the answer that must be right."""

    kind: str
    statement: str
    question: str
    answer: str
    value: str


@dataclass(frozen=True)
class Document:
    """text: filler with all facts stated. asked: those that are asked for, in order."""

    text: str
    asked: tuple[Fact, ...]
    others: tuple[Fact, ...]
    plain: bool


def make_fact(rng: random.Random, kind: str) -> Fact:
    """One fact of a kind."""
    values = {
        "passkey": lambda: str(rng.randint(10_000, 99_999)),
        "colour": lambda: pick(rng, COLOURS),
        "name": lambda: pick(rng, PETS),
        "place": lambda: pick(rng, SPOTS),
        "number": lambda: str(rng.randint(10, 999)),
    }
    slots = {"who": pick(rng, NAMES), "thing": pick(rng, SUBJECTS[kind].split())}
    value = values[kind]()
    statement, question, answer = (say(rng, form, v=value, **slots) for form in FORMS[kind])
    return Fact(kind, statement, question, answer, value)


def make_facts(rng: random.Random, kinds: Sequence[str]) -> list[Fact]:
    """Facts of these kinds, a kind once."""
    return [make_fact(rng, kind) for kind in dict.fromkeys(kinds)]


class Filler:
    """Running text of given length in tokens, from documents that follow one another."""

    def __init__(self, documents: Sequence[str], tokenizer: Tokenizer) -> None:
        self.documents, self.tokenizer = documents, tokenizer

    def sentences(self, rng: random.Random, length: int) -> list[tuple[str, int]]:
        """Sentences (with the line breaks inside them) and their lengths, about `length` in all."""
        found: list[tuple[str, int]] = []
        at, room = rng.randrange(len(self.documents)), length
        while room > 0:
            pieces = SENTENCE.split(self.documents[at])
            encodings = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            for piece, encoding in zip(pieces, encodings, strict=True):
                room -= len(encoding.ids)
                if room < 0:
                    return found
                found.append((piece, len(encoding.ids)))
            found[-1] = (found[-1][0] + "\n", found[-1][1] + 1)
            at = (at + 1) % len(self.documents)
        return found


def place(
    rng: random.Random,
    sentences: Sequence[tuple[str, int]],
    facts: Sequence[Fact],
    stated: tuple[float, float],
) -> str:
    """The text with each fact before a sentence that begins in the stretch `stated` of it."""
    begins = [0, *accumulate(size for _, size in sentences)]
    total, (low, high) = max(1, begins[-1]), stated
    inside = [i for i, begin in enumerate(begins) if low <= begin / total <= high]
    wanted = (low + high) / 2 * total
    inside = inside or [min(range(len(begins)), key=lambda i: abs(begins[i] - wanted))]
    at: dict[int, list[str]] = {}
    for fact in facts:
        at.setdefault(pick(rng, inside), []).append(fact.statement)
    pieces = []
    for i, (sentence, _) in enumerate([*sentences, ("", 0)]):
        pieces += [*at.get(i, []), sentence]
    return re.sub(r"\n ", "\n", " ".join(pieces)).strip()


def make_document(
    rng: random.Random,
    filler: Filler,
    length: int,
    *,
    kinds: Sequence[str] | None = None,
    stated: tuple[float, float] = STATED,
    ask: int | None = None,
    plain: bool = False,
) -> Document:
    """A document of about `length` tokens with its questions; the first `ask` facts are asked."""
    pool = ["passkey", "passkey", "colour", "name", "place", "number"]
    facts = make_facts(rng, kinds or rng.sample(pool, rng.randint(1, 4)))
    ask = ask or rng.randint(1, min(3, len(facts)))
    said = [*(f.statement for f in facts), *(f.question + f.answer for f in facts[:ask])]
    words = filler.tokenizer.encode_batch_fast(said, add_special_tokens=False)
    reserved = 20 + 8 * ask + sum(len(e.ids) for e in words)
    sentences = filler.sentences(rng, max(LEAST_FILLER, length - reserved))
    text = place(rng, sentences, rng.sample(facts, len(facts)), stated)
    request = "" if plain else pick(rng, REQUESTS)
    text = f"{request}\n{text}" if request else text
    return Document(text, tuple(facts[:ask]), tuple(facts[ask:]), plain)


def as_dialogue(document: Document) -> Dialogue:
    """The first question stands below the text, the others are turns of their own."""
    first, *rest = document.asked
    turns: Dialogue = [("user", f"{document.text}\n{first.question}"), ("assistant", first.answer)]
    for fact in rest:
        turns += [("user", fact.question), ("assistant", fact.answer)]
    return turns


def encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[int]]:
    """(ids, mask); a plain document's mask covers the words of its answers."""
    if not document.plain:
        return encode_dialogues(tokenizer, [as_dialogue(document)])[0]
    pieces = [(document.text, 0)]
    for fact in document.asked:
        pieces += [(f"\nQuestion: {fact.question}\nAnswer:", 0), (f" {fact.answer}", 1)]
    ids, mask = [tokenizer.token_to_id(END_OF_TEXT)], [0]
    for text, wanted in pieces:
        new = tokenizer.encode(text, add_special_tokens=False).ids
        ids, mask = ids + new, mask + [wanted] * len(new)
    return ids, mask


def recall_documents(
    tokenizer: Tokenizer, texts: Sequence[Sequence[str]], count: int
) -> Iterator[Document]:
    """`count` training documents, each with filler from one of `texts`."""
    rng = random.Random(SEEDS["train"])
    fillers = [Filler(documents, tokenizer) for documents in texts]
    for _ in range(count):
        filler, length = pick(rng, fillers), rng.randint(*LENGTHS)
        yield make_document(rng, filler, length, plain=rng.random() < PLAIN_SHARE)


def held_out_documents(
    tokenizer: Tokenizer, articles: Sequence[str], length: int, depths: Sequence[float], each: int
) -> Iterator[tuple[float, Document]]:
    """(depth, document): `each` documents a depth, their facts stated within a tenth of it.

    The one fact that is asked for is a pass key in every second document and another kind in the
    others; two more facts stand beside it.
    """
    rng = random.Random(SEEDS["held out"] + length)
    filler, others = Filler(articles, tokenizer), [k for k in FORMS if k != "passkey"]
    for depth in depths:
        stated = (max(0.0, depth - 0.1), min(1.0, depth + 0.1))
        for number in range(each):
            kinds = rng.sample(others, 3)
            if number % 2 == 0:
                kinds = ["passkey", *kinds[:2]]
            yield depth, make_document(rng, filler, length, kinds=kinds, stated=stated, ask=1)
