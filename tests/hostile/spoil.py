"""How a good bundle is spoiled: the register of mutations, and the tools they are made with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tiny import reseal

WEIGHTS, GRAPH, MANIFEST = "weights.safetensors", "model.graph.json", "manifest.json"


@dataclass(frozen=True)
class Mutation:
    """One way to spoil a bundle, and what opening it must answer.

    says: texts that the message must hold: the offending thing, the value found, the one expected.
    """

    row: str
    name: str
    apply: Callable[[Path], None]
    code: str
    says: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name}"


CORPUS: list[Mutation] = []


def spoils(row: str, code: str, *says: str, name: str = "") -> Callable[..., Any]:
    """Register a mutation of the bundle folder it is given."""

    def register(apply: Callable[[Path], None]) -> Callable[[Path], None]:
        CORPUS.append(Mutation(row, name or apply.__name__.strip("_"), apply, code, says))
        return apply

    return register


def make(mutation: Mutation, good: Path, out: Path) -> Path:
    """A spoiled copy of `good` at `out`."""
    shutil.copytree(good, out)
    mutation.apply(out)
    return out


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """JSON header and data area of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def file_of(header: bytes | dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    """A safetensors file; `length` overrides the header length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if not isinstance(header, bytes):
        text += b" " * (-(8 + len(text)) % 64)
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def set_weights(bundle: Path, content: bytes) -> None:
    (bundle / WEIGHTS).write_bytes(content)
    reseal(bundle)


def edit_header(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    change(header)
    set_weights(bundle, file_of(header, data))


def edit_json(bundle: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((bundle / name).read_bytes())
    change(value)
    (bundle / name).write_text(json.dumps(value), encoding="utf-8")
    if name != MANIFEST:
        reseal(bundle)


def node(graph: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in graph["nodes"] if n["op"] == op)
    return found


def vector(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header["norm"]  # F32 [64]
    return found
