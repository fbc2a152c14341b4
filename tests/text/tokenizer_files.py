"""Real tokenizers as transformers loads them, from the shared data folder."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from edgert.text.template import ChatTemplate
from edgert.text.tokenizer import Tokenizer

NAMES = ("phi-3-mini", "qwen2", "qwen2.5", "smollm3")  # those that carry a template


def unpack(source: Path, target: Path) -> Path:
    """A copy of a tokenizer folder with its .gz files decompressed."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".gz":
            (target / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, target / file.name)
    return target


def reference(data: Path, name: str, work: Path) -> Any:
    """transformers' tokenizer with the template of `name`.

    qwen2.5 and smollm3 come without a vocabulary: qwen2's takes their added tokens, renumbered.
    """
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    tokenizers = data / "tokenizers"
    if name == "phi-3-mini":
        return PreTrainedTokenizerFast.from_pretrained(unpack(tokenizers / name, work / name))
    tokenizer = Qwen2Tokenizer.from_pretrained(unpack(tokenizers / "qwen2", work / name))
    if name == "qwen2":
        return tokenizer
    config = json.loads((tokenizers / name / "tokenizer_config.json").read_text("utf-8"))
    added = [row for row in config["added_tokens_decoder"].values()]
    for special in (True, False):
        texts = [row["content"] for row in added if row["special"] is special][:40]
        tokenizer.add_tokens(texts, special_tokens=special)
    jinja = tokenizers / name / "chat_template.jinja"
    tokenizer.chat_template = config.get("chat_template") or jinja.read_text("utf-8")
    return tokenizer


@cache
def pair(data: Path, name: str, work: Path) -> tuple[Any, Tokenizer, ChatTemplate]:
    """transformers' tokenizer, and ours with its template from the same files."""
    theirs = reference(data, name, work)
    raw = theirs.backend_tokenizer.to_str().encode()
    if name == "phi-3-mini":
        raw = (work / name / "tokenizer.json").read_bytes()
    special = {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}
    width = max(theirs.get_vocab().values()) + 1
    ours = Tokenizer(
        raw, vocab_size=width, eos_token_ids=(theirs.eos_token_id,), special=special.values()
    )
    template = ChatTemplate(
        theirs.chat_template, special, control=ours.control, added=ours.vocabulary.added
    )
    return theirs, ours, template
