"""Hugging Face checkpoints: a directory, or a hub id (`org/name`, `org/name@revision`).

Read are config.json, generation_config.json, the tokenizer's files and safetensors weights; the
model card and the licence travel with the weights. Code in a checkpoint is never run and pickles
are never opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import limits
from ...errors import ConvertError
from ...notices import notice
from ...roles import vocab_size
from ...storage.hash_cache import HashCache
from .. import families
from . import drafting, layouts
from .adapted import merged, opened_adapters
from .base import Image, PlannedPart, Source, Text
from .checkpoint import Checkpoint
from .files import index_faults, json_object, no_weights, read_file, shards, weight_map
from .hub import SIDECARS, local_folder, refuse_gguf
from .packed_formats import unpacked
from .stacked import unstacked
from .templates import SOURCES as TEMPLATES
from .wrappers import unwrapped, without_sure_wrappers

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def opened(
    source: str | Path, *, ignore_remote_code: bool = False, adapters: Sequence[Any] = ()
) -> Source:
    """The source for a directory or hub id; ConvertError for what is neither. adapters: folders of
    LoRA adapters, merged in order."""
    return HfSource(source, ignore_remote_code=ignore_remote_code, adapters=adapters)


class HfSource:
    """An open checkpoint, a `Source`: `config`, `generation`, `texts` (file name -> bytes),
    `sidecars` (likewise: model card and licence), `tensors`.

    ignore_remote_code: accept a config with `auto_map` that names another architecture than its
    model_type's own, using edgert's implementation instead of its code (never run either way).
    `label` is a hub id whole, or a folder without its place. `faults` holds what is wrong with the
    set of weights files, for the caller's one error. adapters: see `opened`.
    """

    kind = "text"
    advice = "generation_config"

    def __init__(
        self,
        source: str | Path,
        *,
        ignore_remote_code: bool = False,
        adapters: Sequence[Any] = (),
    ) -> None:
        self.path = local_folder(source)
        if self.path == Path(source):
            self.name = self.label = Path(os.path.abspath(self.path)).name
        else:
            self.name, self.label = str(source).split("@")[0].rpartition("/")[2], str(source)
        self.options: Sequence[str] = ()
        self.texts: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.index: dict[str, str] = {}  # tensor name -> shard, where there is an index
        self.config = self._json("config.json", required=True)
        self._refuse_remote_code(ignore=ignore_remote_code)
        self.generation = self._json("generation_config.json")
        self.tokenizer_config = self._json("tokenizer_config.json")
        self.special_tokens = self._json("special_tokens_map.json")
        self.template_json = self._json("chat_template.json")
        self.tokenizer = self._json("tokenizer.json", limit=limits.TOKENIZER_BYTES)
        self.added_tokens = self._json("added_tokens.json")
        for name in TEMPLATES.values():
            self._text(name, limits.TEMPLATE_BYTES)
        found = {name: self._read(name, limits.CONFIG_BYTES) for name in SIDECARS}
        self.sidecars = {name: data for name, data in found.items() if data is not None}
        self.adapters = opened_adapters(adapters)
        self.options = (*self.options, *(x for a in self.adapters for x in ("--adapter", a.name)))
        self.checkpoint = Checkpoint(list(self._weights()), self.faults)
        whole = without_sure_wrappers(self.checkpoint.tensors)
        self.drafting = drafting.drafting(self.config, whole)
        named = layouts.named(self.config, self.checkpoint.tensors)
        try:
            self.config, self.tensors = unpacked(str(self.path), self.config, named)
        except BaseException:
            self.close()
            raise
        packed = any(hasattr(t, "instead") for t in self.tensors.values())
        self.taken_over = packed and not self.adapters
        self.nbytes = sum(shard.nbytes for shard in self.checkpoint.shards)
        self.family = str(self.config.get("model_type"))
        self.faults += index_faults(self.path, self.index, self.checkpoint)

    def parts(self, faults: list[str]) -> tuple[PlannedPart, ...]:
        """The one part of a causal language model, and the layer that guesses for it."""
        config = layouts.float_config(str(self.path), self.config, self.tensors)
        found: list[str] = []

        def plan(config: Mapping[str, Any]) -> families.FamilyModel:
            found.clear()
            return families.plan(config, found)

        bare = plan(config)
        self.tensors = unwrapped(str(self.path), bare, unstacked(bare, self.tensors))
        misfits: list[str] = []
        self.tensors = merged(self.adapters, self.tensors, bare.tied, misfits)
        model = layouts.as_stored(plan, config, self.tensors)
        faults += [*found, *misfits]
        text = PlannedPart("model", "text", model.graph, model.tensors, model.tied)
        told = (families.text_config(config), self.generation)
        special = drafting.special_ids(self.tokenizer, *told)
        draft = drafting.planned(config, model, self.drafting, self.tensors, special)
        if draft is None:
            return (text,)
        self.tensors = {**self.tensors, **draft[1]}
        return (text, draft[0])

    def text(self, parts: Sequence[PlannedPart], faults: list[str]) -> Text | None:
        """Tokenizer, template, special tokens and sampling defaults."""
        from .hf_text import read_text

        return read_text(self, vocab_size(parts[0].graph), faults)

    def image(self, parts: Sequence[PlannedPart], faults: list[str]) -> Image | None:
        return None

    def close(self) -> None:
        self.checkpoint.close()
        for adapter in self.adapters:
            adapter.close()

    def __enter__(self) -> HfSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that a conversion depends on, by file name."""
        import hashlib

        cache = HashCache()
        out = {name: hashlib.sha256(data).hexdigest() for name, data in self.texts.items()}
        out |= {shard.path.name: shard.sha256(cache) for shard in self.checkpoint.shards}
        cache.save()
        out |= {f"{i}:{a.name}": a.key for i, a in enumerate(self.adapters, 1)}
        return dict(sorted(out.items()))

    def _text(self, name: str, limit: int) -> bytes | None:
        data = self._read(name, limit)
        if data is not None:
            self.texts[name] = data
        return data

    def _read(self, name: str, limit: int) -> bytes | None:
        return read_file(self.path / name, limit)

    def _json(
        self, name: str, *, required: bool = False, limit: int = limits.CONFIG_BYTES
    ) -> dict[str, Any]:
        data = self._text(name, limit)
        if data is None:
            if required:
                refuse_gguf(self.path)
                raise ConvertError(
                    f"{self.path} has no {name}, expected a Hugging Face checkpoint directory",
                    code="checkpoint-file",
                    hint="give the folder that holds config.json and model.safetensors",
                )
            return {}
        return json_object(data, self.path / name)

    def _refuse_remote_code(self, *, ignore: bool) -> None:
        if "auto_map" not in self.config:
            return
        if ignore:
            del self.config["auto_map"]
            self.options = ("--ignore-remote-code",)
            return
        if families.is_native(self.config):
            code = str(self.config.pop("auto_map"))[:120]
            notice(f"{self.path}: its own code (auto_map: {code}) is not used, the model is known")
            return
        raise ConvertError(
            f"{self.path / 'config.json'} asks for its own code (auto_map: "
            f"{str(self.config['auto_map'])[:120]}), expected a plain checkpoint",
            code="remote-code",
            hint="edgert never runs code from a checkpoint. If its model_type "
            f"{str(self.config.get('model_type'))[:40]!r} is one that edgert knows and you accept "
            "edgert's own implementation of it, convert with --ignore-remote-code",
        )

    def _weights(self) -> Iterator[Path]:
        if (self.path / SINGLE).is_file():
            yield self.path / SINGLE
        elif (self.path / INDEX).is_file():
            index = self._json(INDEX, limit=limits.TENSOR_HEADER_BYTES)
            placed = weight_map(index, self.path / INDEX)
            yield from shards(self.path, placed, self.faults)
            self.index = placed
        else:
            raise self._no_weights()

    def _no_weights(self) -> ConvertError:
        error = no_weights(self.path, SINGLE, INDEX)
        if error.code != "pickle" and not any(self.path.glob("*.safetensors")):
            refuse_gguf(self.path)
        return error
