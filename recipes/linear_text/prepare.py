"""Token arrays for turning `lm-edgert-60m`, from the open texts that it was trained on.

    python -m recipes.linear_text.prepare --data ../shared/data --model DIR --out linear_text_work

`train.npy` and `held.npy` (uint16): documents of Wikipedia and novels, and chats that ask for facts
in 600 to 2,000 tokens of such text, in random order; the held ones are Wikipedia's validation
articles alone. `sizes.json`: tokens and bytes of the held text.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from recipes.demo_text.recall import encode, recall_documents
from recipes.demo_text.sources import read_text
from recipes.demo_text.tokenizer import END_OF_TEXT

SHARES = {"recall": 0.4, "wikipedia": 0.4, "novels": 0.2}
PIECE = 6000  # characters of a novel in one document
HELD = 200_000  # tokens


def articles(path: Path) -> list[str]:
    """Documents of plain text, which blank lines part."""
    return [text for text in read_text(path).split("\n\n") if len(text) > 400]


def pieces(path: Path) -> list[str]:
    """A long text in documents of some thousand characters."""
    found, lines, size = [], list[str](), 0
    for line in read_text(path).split("\n"):
        lines.append(line)
        size += len(line)
        if size > PIECE:
            found.append("\n".join(lines))
            lines, size = [], 0
    return found


def plain(tokenizer: Tokenizer, texts: list[str], seed: int) -> Iterator[list[int]]:
    """Documents as tokens, each behind the end of another, in random order."""
    random.Random(seed).shuffle(texts)
    end = tokenizer.token_to_id(END_OF_TEXT)
    for start in range(0, len(texts), 256):
        for one in tokenizer.encode_batch(texts[start : start + 256], add_special_tokens=False):
            yield [end, *one.ids]


def prepare(data: Path, model: Path, out: Path, tokens: int, *, held: int = HELD) -> None:
    """Write all arrays."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    wiki = data / "text-wikipedia-plain"
    texts = {
        "wikipedia": articles(wiki / "train_0.txt.xz"),
        "novels": pieces(data / "text-novels" / "train.txt.xz"),
    }
    documents = recall_documents(tokenizer, list(texts.values()), 1 << 30)
    sources = {
        "recall": (encode(tokenizer, document)[0] for document in documents),
        **{name: plain(tokenizer, list(found), 7) for name, found in texts.items()},
    }
    found: list[list[int]] = []
    for name, share in SHARES.items():
        count = 0
        for ids in sources[name]:
            found.append(ids)
            count += len(ids)
            if count >= share * tokens:
                break
    random.Random(11).shuffle(found)
    train = np.concatenate([np.asarray(ids, np.uint16) for ids in found])
    np.save(out / "train.npy", train)
    valid = articles(wiki / "valid.txt.xz")
    taken, size = list[list[int]](), 0
    for text in islice(valid, 4000):
        ids = [tokenizer.token_to_id(END_OF_TEXT), *tokenizer.encode(text).ids]
        taken.append(ids)
        size += len(text.encode("utf-8"))
        if sum(map(len, taken)) >= held:
            break
    kept = np.concatenate([np.asarray(ids, np.uint16) for ids in taken])
    np.save(out / "held.npy", kept)
    sizes = {"train": len(train), "held": len(kept), "held_bytes": size}
    (out / "sizes.json").write_text(json.dumps(sizes), "utf-8")
    print(json.dumps(sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("linear_text_work"))
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--held", type=int, default=HELD)
    asked = parser.parse_args()
    prepare(asked.data, asked.model, asked.out, asked.tokens, held=asked.held)


if __name__ == "__main__":
    main()
