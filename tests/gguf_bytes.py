"""GGUF files as bytes, good ones and others: every number of the header can be overridden."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
U8, I32, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


class Typed(NamedTuple):
    """A value of a chosen type: a number of FORMS, TEXT, or ARRAY with (type, entries)."""

    kind: int
    value: Any


class Tensor(NamedTuple):
    """A tensor of the list. sizes: the row's first. offset: None to have it laid out."""

    name: str
    sizes: Sequence[int]
    kind: int
    data: bytes
    offset: int | None = None
    rank: int | None = None


def text(value: str | bytes, size: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def typed(value: Any) -> Typed:
    """A value in the type that files usually have it in."""
    if isinstance(value, Typed):
        return value
    if isinstance(value, bool):
        return Typed(BOOL, int(value))
    if isinstance(value, int):
        return Typed(U32, value)
    if isinstance(value, float):
        return Typed(F32, value)
    if isinstance(value, (str, bytes)):
        return Typed(TEXT, value)
    inner = typed(value[0]).kind if len(value) else U32
    return Typed(ARRAY, (inner, value))


def packed(value: Typed) -> bytes:
    if value.kind == TEXT:
        return text(value.value)
    if value.kind == ARRAY:
        kind, entries = value.value
        whole = b"".join(packed(Typed(kind, entry)) for entry in entries)
        return struct.pack("<IQ", kind, len(entries)) + whole
    if value.kind not in FORMS:
        return bytes(value.value)
    return struct.pack("<" + FORMS[value.kind], value.value)


@dataclass
class Made:
    """A file in the making."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    tensors: Sequence[Tensor] = ()
    alignment: int = 32
    version: int = 3
    magic: bytes = b"GGUF"
    counts: tuple[int | None, int | None] = (None, None)
    more_keys: bytes = b""  # after the others, not counted
    tail: bytes = b""

    def header(self) -> bytes:
        tensors, keys = self.counts
        out = [self.magic, struct.pack("<I", self.version)]
        out.append(struct.pack("<Q", len(self.tensors) if tensors is None else tensors))
        out.append(struct.pack("<Q", len(self.keys) if keys is None else keys))
        for key, value in self.keys.items():
            found = typed(value)
            out += [text(key), struct.pack("<I", found.kind), packed(found)]
        out.append(self.more_keys)
        at = 0
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            out.append(text(tensor.name))
            out.append(struct.pack("<I", len(tensor.sizes) if tensor.rank is None else tensor.rank))
            out.append(struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes))
            out.append(struct.pack("<IQ", tensor.kind, offset))
            at += len(tensor.data) + -len(tensor.data) % self.alignment
        return b"".join(out)

    def bytes(self) -> bytes:
        head = self.header()
        out = [head, b"\0" * (-len(head) % self.alignment)]
        for tensor in self.tensors:
            out += [tensor.data, b"\0" * (-len(tensor.data) % self.alignment)]
        return b"".join(out) + self.tail


def small() -> Made:
    """A good file: some keys of every type, an F32 vector, a Q4_0 and a Q4_K matrix."""
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "\u2581a", "b"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": Typed(ARRAY, (I32, [2, 3, 3, 1, 1])),
        "general.file_size": Typed(U64, 1 << 40),
        "general.signed": Typed(11, -5),
        "general.wide": Typed(12, 0.25),
        "general.nothing": Typed(ARRAY, (TEXT, [])),
    }
    tensors = (
        Tensor("output_norm.weight", (5,), 0, struct.pack("<5f", *range(5))),
        Tensor("blk.0.ffn_up.weight", (32, 3), 2, bytes(range(54))),
        Tensor("token_embd.weight", (256, 2), 12, bytes(range(144)) * 2),
    )
    return Made(keys, tensors)
