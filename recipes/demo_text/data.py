"""Clean, deduplicate and tokenise the training texts into flat arrays.

A prepared folder holds, per part, `<part>.tokens.npy` (uint16), `<part>.starts.npy` (int64, first
token of every document) and for dialogues `<part>.mask.npy` (uint8, 1 where the loss counts),
plus `corpus.json` with sizes and what was dropped. Every plain document begins with
<|endoftext|>.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import sources
from .dialogues import everyday_dialogues
from .problems import gsm8k_dialogues, held_out_problems, problem_dialogues
from .recall import encode, held_out_documents, recall_documents
from .sources import Dialogue
from .stories import everyday_stories
from .tokenizer import END_OF_TEXT, encode_dialogues

BATCH_DOCUMENTS = 512
SHARED_SENTENCE_WORDS = 8
LONE_PARAGRAPH_SHARE = 0.3
WORD = re.compile(r"[a-z0-9]+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Sample:
    """How much of everything to take; the defaults take all of it."""

    documents: int | None = None  # per text source
    dialogues: int = 160_000  # everyday dialogues to generate
    stories: int = 12_000  # everyday stories to generate
    problems: int = 100_000  # word problems to generate
    recall: int = 20_000  # documents with facts to generate
    held_out: int = 300  # problems, and documents with facts, to validate on while training
    parts: tuple[int, ...] = (0, 1, 2, 3)  # Wikipedia files


TINY = Sample(
    documents=60, dialogues=600, stories=60, problems=300, recall=20, held_out=30, parts=(0,)
)


@dataclass
class Cleaner:
    """Drops paragraphs seen before or sharing a long sentence with an evaluation text."""

    forbidden: set[bytes]
    seen: set[bytes] = field(default_factory=set)
    repeated: int = 0
    leaked: int = 0

    def clean(self, document: str) -> str:
        """The document less its dropped paragraphs; empty when only a title is left."""
        kept = [p for p in document.split("\n") if p.strip() and self._keep(p)]
        if not kept or (len(kept) == 1 and kept[0].startswith("= ")):
            return ""
        return "\n".join(kept)

    def _keep(self, paragraph: str) -> bool:
        words = WORD.findall(paragraph.lower())
        if len(words) < SHARED_SENTENCE_WORDS:
            return True
        key = _digest(words)
        if key in self.seen:
            self.repeated += 1
            return False
        self.seen.add(key)
        if any(s in self.forbidden for s in long_sentences(paragraph)):
            self.leaked += 1
            return False
        return True


def _digest(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()


def long_sentences(text: str) -> Iterator[bytes]:
    """Fingerprints (lower case, letters and digits) of the sentences of eight words or more."""
    for sentence in SENTENCE_END.split(text):
        words = WORD.findall(sentence.lower())
        if len(words) >= SHARED_SENTENCE_WORDS:
            yield _digest(words)


def evaluation_texts(data: Path) -> dict[str, list[str]]:
    """Documents of the four texts that bits per byte are measured on."""
    return {
        "wikipedia_valid": sources.wikipedia_valid(data),
        "wikitext2_valid": sources.wikitext2(data, "valid"),
        "wikitext2_test": sources.wikitext2(data, "test"),
        "novels_held_out": sources.novels_held_out(data),
    }


def new_cleaner(data: Path) -> Cleaner:
    """A cleaner that knows every evaluation text."""
    documents = (d for group in evaluation_texts(data).values() for d in group)
    return Cleaner({s for d in documents for p in d.split("\n") for s in long_sentences(p)})


def lone_paragraphs(articles: Iterable[str], *, seed: int = 0) -> Iterator[str]:
    """Pass most articles through; break some into untitled documents of one to three paragraphs.

    Why: the model must also judge text that starts without a title, as prompts do.
    """
    rng = random.Random(seed)
    for article in articles:
        if rng.random() >= LONE_PARAGRAPH_SHARE:
            yield article
            continue
        paragraphs = [p for p in article.split("\n") if not p.startswith("= ")]
        while paragraphs:
            take = rng.randint(1, 3)
            yield "\n".join(paragraphs[:take])
            paragraphs = paragraphs[take:]


def plain_parts(data: Path, sample: Sample) -> dict[str, Callable[[], Iterable[str]]]:
    """Readers of the plain text parts, in the order in which duplicates are resolved."""
    return {
        "storybooks": lambda: sources.storybooks(data),
        "fairytales": lambda: sources.fairytales(data),
        "novels": lambda: sources.novels(data),
        "wikipedia": lambda: sources.wikipedia(data, parts=sample.parts),
        "stories": lambda: everyday_stories(sample.stories),
    }


def dialogue_parts(data: Path, sample: Sample) -> dict[str, Callable[[], Iterable[Dialogue]]]:
    """Readers of the dialogue parts."""
    return {
        "questions": lambda: sources.fairytale_questions(data),
        "tasks": lambda: sources.task_dialogues(data),
        "everyday": lambda: everyday_dialogues(sample.dialogues),
        "reasoning": lambda: problem_dialogues(sample.problems),
        "gsm8k": lambda: gsm8k_dialogues(data),
    }


def tokenizer_texts(data: Path, *, characters: int, sample: Sample) -> Iterator[str]:
    """About `characters` of text, half Wikipedia and the rest shared by the other parts."""
    shares = {
        "wikipedia": 0.5,
        "novels": 0.35,
        "fairytales": 0.05,
        "storybooks": 0.03,
        "stories": 0.02,
    }
    for name, reader in plain_parts(data, sample).items():
        yield from _up_to(reader(), int(characters * shares[name]))
    turns = (text for dialogue in sources.task_dialogues(data) for _, text in dialogue)
    yield from _up_to(turns, int(characters * 0.03))
    turns = (text for dialogue in everyday_dialogues(4000) for _, text in dialogue)
    yield from _up_to(turns, int(characters * 0.02))


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def _batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def pack_plain(tokenizer: Tokenizer, documents: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens uint16 [n] and document starts int64 [documents]."""
    mark = np.array([tokenizer.token_to_id(END_OF_TEXT)], np.uint16)
    pieces: list[np.ndarray] = []
    starts, size = [], 0
    for batch in _batches(documents, BATCH_DOCUMENTS):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            starts.append(size)
            pieces += [mark, np.array(encoding.ids, np.uint16)]
            size += 1 + len(encoding.ids)
    return np.concatenate(pieces), np.array(starts, np.int64)


def pack_dialogues(
    tokenizer: Tokenizer, dialogues: Iterable[Dialogue]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens uint16 [n], loss mask uint8 [n] and dialogue starts int64 [dialogues]."""
    tokens: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    starts, size = [], 0
    for batch in _batches(dialogues, BATCH_DOCUMENTS):
        for ids, mask in encode_dialogues(tokenizer, batch):
            starts.append(size)
            tokens.append(np.array(ids, np.uint16))
            masks.append(np.array(mask, np.uint8))
            size += len(ids)
    return np.concatenate(tokens), np.concatenate(masks), np.array(starts, np.int64)


def pack_masked(
    encoded: Iterable[tuple[list[int], list[int]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `pack_dialogues`, of (ids, mask) that are encoded already."""
    tokens: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    sizes = [0]
    for ids, mask in encoded:
        tokens.append(np.array(ids, np.uint16))
        masks.append(np.array(mask, np.uint8))
        sizes.append(len(ids))
    return np.concatenate(tokens), np.concatenate(masks), np.cumsum(sizes[:-1], dtype=np.int64)


def prepare(data: Path, out: Path, tokenizer: Tokenizer, *, sample: Sample | None = None) -> dict:
    """Write every part below `out`; return the report that is also saved as corpus.json."""
    sample = sample or Sample()
    out.mkdir(parents=True, exist_ok=True)
    cleaner = new_cleaner(data)
    report: dict = {"parts": {}}
    fillers: list[list[str]] = []
    for name, reader in plain_parts(data, sample).items():
        before = (cleaner.repeated, cleaner.leaked)
        texts = (t for d in islice(reader(), sample.documents) if (t := cleaner.clean(d)))
        documents = list(lone_paragraphs(texts) if name == "wikipedia" else texts)
        tokens, starts = pack_plain(tokenizer, documents)
        _save(out, name, tokens=tokens, starts=starts)
        if name in ("wikipedia", "novels"):
            fillers.append(documents)
        report["parts"][name] = {
            "documents": len(documents),
            "bytes": sum(len(d.encode()) for d in documents),
            "tokens": len(tokens),
            "paragraphs_repeated": cleaner.repeated - before[0],
            "paragraphs_shared_with_evaluation": cleaner.leaked - before[1],
        }
        print(json.dumps({"part": name, **report["parts"][name]}), flush=True)
    for name, reader in dialogue_parts(data, sample).items():
        limit = None if name in ("everyday", "reasoning") else sample.documents
        dialogues = _distinct(islice(reader(), limit))
        report["parts"][name] = _save_masked(out, name, pack_dialogues(tokenizer, dialogues))
    facts = (encode(tokenizer, d) for d in recall_documents(tokenizer, fillers, sample.recall))
    report["parts"]["recall"] = _save_masked(out, "recall", pack_masked(facts))
    _prepare_held_out(data, out, tokenizer, sample)
    valid = sources.wikipedia_valid(data)
    tokens, _ = pack_plain(tokenizer, valid)
    _save(out, "validation", tokens=tokens)
    report["validation"] = {"tokens": len(tokens), "bytes": sum(len(d.encode()) for d in valid)}
    (out / "corpus.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _prepare_held_out(data: Path, out: Path, tokenizer: Tokenizer, sample: Sample) -> None:
    """Problems and recall documents that no training row shares, to validate on."""
    asked = [[("user", p.question), ("assistant", p.reply)]
             for p in held_out_problems(sample.held_out)]  # fmt: skip
    _save_masked(out, "reasoning_valid", pack_dialogues(tokenizer, asked))
    articles = sources.wikipedia_valid(data)
    each = -(-sample.held_out // 15)
    facts = (
        encode(tokenizer, document)
        for length in (500, 1000, 1900)
        for _, document in held_out_documents(
            tokenizer, articles, length, (0.1, 0.3, 0.5, 0.7, 0.9), each
        )
    )
    _save_masked(out, "recall_valid", pack_masked(facts))


def _save_masked(out: Path, name: str, packed: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict:
    """Write a part with a mask; returns, and prints, its sizes."""
    tokens, mask, starts = packed
    _save(out, name, tokens=tokens, mask=mask, starts=starts)
    sizes = {"documents": len(starts), "tokens": len(tokens), "answer_tokens": int(mask.sum())}
    print(json.dumps({"part": name, **sizes}), flush=True)
    return sizes


def _distinct(dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
    seen: set[bytes] = set()
    for dialogue in dialogues:
        key = _digest([text for _, text in dialogue])
        if dialogue and key not in seen:
            seen.add(key)
            yield dialogue


def _save(out: Path, name: str, **arrays: np.ndarray) -> None:
    for kind, array in arrays.items():
        np.save(out / f"{name}.{kind}.npy", array)
