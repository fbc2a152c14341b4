"""Token ids of vocabularies that llama.cpp ships, against the ids that it ships with them.

    python -m tests.converters.gguf_vocabularies llama.cpp/models

Of every `ggml-vocab-NAME.gguf` with its `.inp` and `.out`: texts, and a line of ids for each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgert.converters.sources.gguf_tokenizer import tokenizer_of, vocabulary_of
from tokenizers import Tokenizer

from edgert.errors import EdgertError
from edgert.storage.gguf_header import read_gguf

BETWEEN = "\n__ggml_vocab_test__\n"


def differences(path: Path) -> tuple[int, list[str]]:
    """How many texts there are, and those that are cut otherwise."""
    texts = path.with_name(f"{path.name}.inp").read_bytes().decode("utf-8").split(BETWEEN)
    lines = path.with_name(f"{path.name}.out").read_text("utf-8").split("\n")
    meta = read_gguf(path).metadata
    tokenizer = Tokenizer.from_buffer(tokenizer_of(meta, vocabulary_of(meta)))
    found = []
    for text, line in zip(texts, lines, strict=False):
        expected = [int(n) for n in line.split()]
        got = tokenizer.encode(text, add_special_tokens=False).ids
        if got != expected:
            found.append(f"{text!r}: {got}, expected {expected}")
    return len(texts), found


def main() -> None:
    """Command line of this module."""
    for path in sorted(Path(sys.argv[1]).glob("ggml-vocab-*.gguf")):
        if not path.with_name(f"{path.name}.inp").exists():
            continue
        try:
            count, found = differences(path)
        except EdgertError as error:
            print(f"{path.name}: refused: {error.message.rpartition('/')[2][:100]}")
            continue
        print(f"{path.name}: {count - len(found)} of {count} texts", *found[:3], sep="\n    ")


if __name__ == "__main__":
    main()
