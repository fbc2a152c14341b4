"""One tokenizer.json from what a checkpoint says in several files, joined as transformers joins it.

- Tokens of tokenizer_config.json's added_tokens_decoder belong to the tokenizer; their flags win.
- Special tokens that tokenizer_config.json names (bos_token, ..., additional_special_tokens), and
  that the vocabulary holds as ordinary text, become special.
- Added tokens past the logits, which no row of the embedding stands for (image placeholders of a
  model's larger relatives, padding tokens of its training), are left out where nothing names them.

A file to which none of this applies keeps its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
Entry = dict[str, Any]


class TokenizerFile(NamedTuple):
    """tokenizer.json's bytes, and the texts of tokens that were left out of it."""

    data: bytes
    left_out: tuple[str, ...]


def tokenizer_file(
    data: bytes,
    parsed: Mapping[str, Any],
    config: Mapping[str, Any],
    special: Mapping[str, str],
    *,
    ids: Mapping[str, int],
    width: int,
    template: str,
    faults: list[str],
) -> TokenizerFile:
    """data, parsed: tokenizer.json; config: tokenizer_config.json; special: its named tokens;
    ids: all tokens of tokenizer.json; width: of the logits; template: the chat template.

    Entries that are no tokens, or that the two files number differently, go into `faults`.
    """
    before = parsed.get("added_tokens")
    listed = before if isinstance(before, list) else []
    if not all(isinstance(e, dict) and type(e.get("id")) is int for e in listed):
        return TokenizerFile(data, ())  # damaged: the tokenizer's own check says how
    entries = {str(e.get("content")): e for e in listed}
    if len(entries) < len(listed):
        return TokenizerFile(data, ())
    _merge(entries, _decoder(config, special.values(), faults), dict(ids), faults)
    for text in [*special.values(), *_more_special(config)]:
        if text in ids and text not in entries:
            flags = {**FLAGS, "normalized": False, "special": True}
            entries[text] = {"id": ids[text], "content": text, **flags}
    names = template + json.dumps(parsed.get("post_processor"), ensure_ascii=False)
    needed = {special.get(key) for key in ("bos_token", "eos_token", "unk_token")}
    left_out = [
        text for text, e in entries.items()
        if e["id"] >= width and text not in needed and text not in names
    ]  # fmt: skip
    added = sorted((e for t, e in entries.items() if t not in left_out), key=lambda e: e["id"])
    if not left_out and added == sorted(listed, key=lambda e: e["id"]):
        return TokenizerFile(data, ())
    whole = {**parsed, "added_tokens": added}
    return TokenizerFile(
        json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogatepass"), tuple(left_out)
    )


def _more_special(config: Mapping[str, Any]) -> Iterable[str]:
    """Texts of the special tokens without a role, in the old list or the new one."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        found = config.get(key)
        values = found.values() if isinstance(found, dict) else found
        for value in values if isinstance(values, Iterable) else ():
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                yield text


def _decoder(
    config: Mapping[str, Any], named: Iterable[str], faults: list[str]
) -> Iterable[tuple[int, Entry]]:
    """added_tokens_decoder as (id, entry) in the order of ids; named tokens are special anyway."""
    found = config.get("added_tokens_decoder") or {}
    out = []
    for key, value in found.items() if isinstance(found, dict) else [("", found)]:
        text = value.get("content") if isinstance(value, dict) else None
        flags = {f: value.get(f, d) for f, d in FLAGS.items()} if isinstance(value, dict) else {}
        good = str(key).isascii() and str(key).isdigit() and len(key) < 10
        if not good or not isinstance(text, str) or set(map(type, flags.values())) != {bool}:
            faults.append(
                f"tokenizer_config 'added_tokens_decoder' has {str(key)[:20]!r}: "
                f"{str(value)[:60]}, expected a token's id and its content"
            )
            continue
        special = value.get("special") is True or text in named
        out.append((int(key), {"id": int(key), "content": text, **flags, "special": special}))
    return sorted(out, key=lambda pair: pair[0])


def _merge(
    entries: dict[str, Entry],
    decoder: Iterable[tuple[int, Entry]],
    ids: dict[str, int],
    faults: list[str],
) -> None:
    """Put the decoder's tokens among the entries; a new one must come right after the last id."""
    free = max(ids.values(), default=-1) + 1
    for token, entry in decoder:
        text = entry["content"]
        expected = ids.get(text, free)
        if expected != token:
            known = "its next id would be" if text not in ids else "the id there is"
            faults.append(
                f"tokenizer_config 'added_tokens_decoder' gives {text[:40]!r} the id {token}, "
                f"tokenizer.json differs: {known} {expected}"
            )
            continue
        if text not in ids:
            ids[text], free = token, token + 1
        if entries.get(text) != entry:
            entries[text] = entry
