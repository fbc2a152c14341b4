"""One tokenizer.json from what a checkpoint says in several files, joined as transformers joins it.

- Steps of classes that build them (`tokenizer_class`).
- Tokens of tokenizer_config.json's added_tokens_decoder belong to the tokenizer; their flags win.
  Where there is no such table, those of added_tokens.json belong to it.
- Special tokens that tokenizer_config.json names (bos_token, ..., additional_special_tokens) become
  special where the vocabulary holds them as ordinary text; where it does not hold them at all they
  are appended, in the order of their roles.
- Added tokens past the logits, which no row of the embedding stands for (image placeholders of a
  model's larger relatives, padding tokens of its training), are left out where nothing names them.

A new token's id is the number of the vocabulary's tokens, or the next after the highest added
token. Other ids than those are faults. Where the vocabulary has holes, new tokens become part of
it, for the library would number them otherwise when it reads the file.

A file to which none of this applies keeps its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
NEEDED = ("bos_token", "eos_token", "unk_token")
Entry = dict[str, Any]


@dataclass(frozen=True)
class TokenizerFile:
    """tokenizer.json's bytes, the ids of its tokens by text, and tokens that were left out."""

    data: bytes
    ids: Mapping[str, int]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the other files say. config: tokenizer_config.json; special: named tokens by role;
    more: further special tokens, in order; flags: of those that are given as objects, by text;
    added: added_tokens.json; template: all chat templates; width: of the logits."""

    config: Mapping[str, Any]
    special: Mapping[str, str]
    more: Sequence[str]
    flags: Mapping[str, Entry]
    added: Mapping[str, Any]
    template: str
    width: int


def tokenizer_file(
    data: bytes,
    parsed: Mapping[str, Any],
    ids: Mapping[str, int],
    asked: Asked,
    faults: list[str],
    *,
    changed: bool = False,
) -> TokenizerFile:
    """data: tokenizer.json; parsed: the same, or `changed`: with other steps; ids: all its tokens.

    Entries that are no tokens, or that the files number differently, go into `faults`.
    """
    before = parsed.get("added_tokens")
    listed = before if isinstance(before, list) else []
    entries = {str(e.get("content")): e for e in listed if isinstance(e, dict)}
    damaged = len(entries) < len(listed) or any(type(e.get("id")) is not int for e in listed)
    if damaged:  # the tokenizer's own check says how
        return TokenizerFile(data, ids)
    table = _Table(entries, dict(ids), _size(parsed), faults)
    named = {*asked.special.values(), *asked.more}
    for token, entry in _decoder(asked.config, asked.special.values(), faults):
        table.put(token, entry, "tokenizer_config 'added_tokens_decoder'")
    if "added_tokens_decoder" not in asked.config:
        for token, entry in _older(asked.added, named, faults):
            if entry["content"] not in entries:
                table.put(token, entry, "added_tokens.json")
    appended = table.name([*asked.special.values(), *asked.more], asked.flags)
    names = asked.template + json.dumps(parsed.get("post_processor"), ensure_ascii=False)
    needed = {asked.special.get(key) for key in NEEDED} - appended
    left_out = tuple(
        text for text, e in entries.items()
        if e["id"] >= asked.width and text not in needed and text not in names
    )  # fmt: skip
    kept = {text: token for text, token in table.ids.items() if text not in left_out}
    added = sorted((e for t, e in entries.items() if t not in left_out), key=lambda e: e["id"])
    if not left_out and not changed and added == sorted(listed, key=lambda e: e["id"]):
        return TokenizerFile(data, ids)
    whole = {**_holding(parsed, table, added), "added_tokens": added}
    text = json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return TokenizerFile(text, kept, left_out)


def flags_of(token: Any, *, special: bool = True) -> Entry | None:
    """Flags of a special token that is given as an object; None where it is only a text.

    special: whether it is one whatever the object says."""
    if not isinstance(token, dict):
        return None
    flags = {flag: bool(token.get(flag, False)) for flag in FLAGS}
    return flags | {"special": special or token.get("special") is True}


def _holding(parsed: Mapping[str, Any], table: _Table, added: list[Entry]) -> Mapping[str, Any]:
    """The tokenizer with new tokens in its vocabulary, where the library would renumber them."""
    new = {e["content"]: e["id"] for e in added if e["content"] in table.new}
    straight = all(token == table.size + i for i, token in enumerate(new.values()))
    model = parsed.get("model")
    if straight or not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return parsed
    return {**parsed, "model": {**model, "vocab": {**model["vocab"], **new}}}


def _size(parsed: Mapping[str, Any]) -> int:
    """Tokens of the model's own vocabulary."""
    model = parsed.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    return len(vocab) if isinstance(vocab, (dict, list)) else 0


class _Table:
    """The added tokens while they are collected. entries: by text; ids: of all tokens; size: of
    the model's own vocabulary."""

    def __init__(
        self, entries: dict[str, Entry], ids: dict[str, int], size: int, faults: list[str]
    ) -> None:
        self.entries, self.ids, self.size, self.faults = entries, ids, size, faults
        self.taken = set(ids.values())
        self.new: set[str] = set()

    def free(self) -> int:
        highest = max((entry["id"] for entry in self.entries.values()), default=-1)
        return highest + 1 if highest >= self.size else self.size

    def put(self, token: int, entry: Entry, where: str) -> None:
        """A token with its id; a new one must have the id that the library gives it."""
        text = entry["content"]
        expected = self.ids.get(text, self.free())
        if expected != token:
            known = "its next id would be" if text not in self.ids else "the id there is"
            self.faults.append(
                f"{where} gives {text[:40]!r} the id {token}, "
                f"tokenizer.json differs: {known} {expected}"
            )
        elif self._place(text, token) and self.entries.get(text) != entry:
            self.entries[text] = entry

    def name(self, texts: Iterable[str], flags: Mapping[str, Entry]) -> set[str]:
        """Make tokens special, those that are missing new; returns the new ones."""
        new = set()
        for text in texts:
            if not text or text in self.entries:
                continue
            if text not in self.ids:
                new.add(text)
            token = self.ids.get(text, self.free())
            if self._place(text, token):
                own = {**FLAGS, "normalized": False, "special": True} | flags.get(text, {})
                self.entries[text] = {"id": token, "content": text, **own}
        return new

    def _place(self, text: str, token: int) -> bool:
        """Whether the id is free for this text."""
        if text in self.ids:
            return True
        if token in self.taken:
            owner = next(other for other, i in self.ids.items() if i == token)
            self.faults.append(
                f"token {text[:40]!r} is not in tokenizer.json and would get the id {token}, "
                f"which {owner[:40]!r} has"
            )
            return False
        self.ids[text] = token
        self.taken.add(token)
        self.new.add(text)
        return True


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


def _older(
    added: Mapping[str, Any], named: Iterable[str], faults: list[str]
) -> Iterable[tuple[int, Entry]]:
    """added_tokens.json, text -> id, as (id, entry) in the order of ids."""
    out = []
    for text, token in added.items():
        if type(token) is not int or token < 0 or not text:
            faults.append(
                f"added_tokens.json gives {text[:40]!r} the id {str(token)[:20]!r}, expected a "
                "text and a number from 0"
            )
            continue
        special = text in named
        flags = {**FLAGS, "normalized": not special, "special": special}
        out.append((token, {"id": token, "content": text, **flags}))
    return sorted(out, key=lambda pair: pair[0])
