"""What a conversion reads from: the `Source` protocol, and the choice of the one that fits.

A source is opened from a path or an id. It names the parts of a model, each with a graph in float
encodings and, for every weight, where its values come from; tensors are read by rows. What is wrong
is collected in lists of faults, so that one error can name all of it.

A new kind of source is one file with two functions, `recognises(source) -> bool` and
`opened(source, **options) -> Source`, and one row of SOURCES.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ...bundle.image_spec import ImageSpec
from ...bundle.manifest import TextSpec
from ...errors import ConvertError
from ...graph import Graph
from ..families.recipe import F32, Recipe

# Modules tried in this order. The last one is not asked: it opens what is left, or says why not.
SOURCES: tuple[str, ...] = (".diffusers", ".gguf", ".hf")


class SourceTensor(Protocol):
    """A stored tensor; safe to read from several threads. dtype: safetensors' name of its type."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) of the first axis as float32 [stop - start, ...]."""
        ...


@dataclass(frozen=True)
class PlannedPart:
    """A part of a model: its graph with all weights f32, and the recipe of each weight.

    role: one of `edgert.roles.ROLES`. tied: tensors that may be stored too, and whose values must
    then equal those of another, by name. taps, ids: of a part that is a draft head, what it reads
    of the text part and the tokens that its logits are of.
    """

    name: str
    role: str
    graph: Graph
    weights: Mapping[str, Recipe]
    tied: Mapping[str, str] = field(default_factory=dict)
    taps: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Text(msgspec.Struct, frozen=True):
    """`spec` for the manifest, the bundle's text files by name, and tokens that have no logits.

    tokenizer_path: where the tokenizer was read, for error messages.
    """

    spec: TextSpec
    files: dict[str, bytes]
    left_out: tuple[str, ...] = ()
    tokenizer_path: str = ""


class Image(msgspec.Struct, frozen=True):
    """`spec` for the manifest, the bundle's tokenizers by file name, and how many tokens the
    encoder of each has rows for, by part."""

    spec: ImageSpec
    files: dict[str, bytes]
    rows: dict[str, int]


class Source(Protocol):
    """An open model to convert; a context manager that closes its files.

    kind: of the bundle that it becomes, text or image. name: what the bundle is called unless told
    otherwise. label: names the source in a command line that anyone can repeat. family: the
    architecture, for the report. options: command line options
    that this source was opened with. faults: what opening found wrong with the files. tensors: by
    the names that recipes use. sidecars: files that travel with the weights (model card, licence)
    by name. nbytes: size of the weights files.
    """

    kind: str
    name: str
    label: str
    family: str
    options: Sequence[str]
    faults: list[str]
    nbytes: int

    @property
    def sidecars(self) -> Mapping[str, bytes]: ...

    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...

    def parts(self, faults: list[str]) -> Sequence[PlannedPart]:
        """The parts of the model; what does not fit goes into `faults`, or raises ConvertError
        where nothing can be planned."""
        ...

    def text(self, parts: Sequence[PlannedPart], faults: list[str]) -> Text | None:
        """How text becomes tokens; None for a model without text, or where `faults` got why."""
        ...

    def image(self, parts: Sequence[PlannedPart], faults: list[str]) -> Image | None:
        """How pictures are sampled; None for a model that makes none."""
        ...

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that a conversion depends on, by file name."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Source: ...

    def __exit__(self, *_: object) -> None: ...


def open_source(source: str | Path, *, adapters: Sequence[Any] = (), **options: Any) -> Source:
    """Open a checkpoint directory or hub id by the first kind of source that recognises it.

    adapters: folders of LoRA adapters to merge, in order. options: those of the kinds, such as
    `ignore_remote_code`. Raises ConvertError (source, download, checkpoint-file, ... with what was
    found).
    """
    if not os.fspath(source):
        raise ConvertError(
            "the source is an empty path, expected a folder or hub id", code="source"
        )
    *others, last = (import_module(name, __package__) for name in SOURCES)
    for module in others:
        if module.recognises(source):
            if adapters:
                raise ConvertError(
                    f"adapters {[str(path) for path in adapters][:4]} for {source}, expected a "
                    "Hugging Face checkpoint, whose tensors they name",
                    code="adapter",
                    hint="give the checkpoint that the adapter was trained on",
                )
            found: Source = module.opened(source, **options)
            return found
    found = last.opened(source, adapters=adapters, **options)
    return found
