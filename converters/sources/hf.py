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
from ...errors import BundleError, ConvertError
from ...notices import notice
from ...roles import vocab_size
from ...storage import strict_json
from ...storage.folder import check_name
from ...storage.hash_cache import HashCache
from .. import families
from . import layouts
from .base import PlannedPart, Source, Text
from .checkpoint import Checkpoint, as_convert_error, unreadable
from .hub import SIDECARS, local_folder, refuse_gguf
from .templates import SOURCES as TEMPLATES
from .wrappers import unwrapped

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def opened(source: str | Path, *, ignore_remote_code: bool = False) -> Source:
    """The source for a directory or hub id; ConvertError for what is neither."""
    return HfSource(source, ignore_remote_code=ignore_remote_code)


class HfSource:
    """An open checkpoint, a `Source`: `config`, `generation`, `texts` (file name -> bytes),
    `sidecars` (likewise: model card and licence), `tensors`.

    ignore_remote_code: accept a config with `auto_map` that names another architecture than its
    model_type's own, using edgert's implementation instead of its code (never run either way).
    `label` is a hub id whole, or a folder without its place. `faults` holds what is wrong with the
    set of weights files, for the caller's one error.
    """

    def __init__(self, source: str | Path, *, ignore_remote_code: bool = False) -> None:
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
        self.checkpoint = Checkpoint(list(self._weights()), self.faults)
        self.tensors = layouts.named(self.config, self.checkpoint.tensors)
        self.nbytes = sum(shard.nbytes for shard in self.checkpoint.shards)
        self.family = str(self.config.get("model_type"))
        self.faults += self._index_faults()

    def parts(self, faults: list[str]) -> tuple[PlannedPart, ...]:
        """The one part of a causal language model."""
        config = layouts.float_config(str(self.path), self.config, self.tensors)
        found: list[str] = []

        def plan(config: Mapping[str, Any]) -> families.FamilyModel:
            found.clear()
            return families.plan(config, found)

        self.tensors = unwrapped(str(self.path), plan(config), self.tensors)
        model = layouts.as_stored(plan, config, self.tensors)
        faults += found
        return (PlannedPart("model", "text", model.graph, model.tensors, model.tied),)

    def text(self, parts: Sequence[PlannedPart], faults: list[str]) -> Text | None:
        """Tokenizer, template, special tokens and sampling defaults."""
        from .hf_text import read_text

        return read_text(self, vocab_size(parts[0].graph), faults)

    def close(self) -> None:
        self.checkpoint.close()

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
        return dict(sorted(out.items()))

    def _text(self, name: str, limit: int) -> bytes | None:
        data = self._read(name, limit)
        if data is not None:
            self.texts[name] = data
        return data

    def _read(self, name: str, limit: int) -> bytes | None:
        path = self.path / name
        if not path.is_file():
            if os.path.lexists(path):  # leaving it out would change the model in silence
                raise ConvertError(
                    f"{path} is a link that leads nowhere or no regular file, expected a file",
                    code="checkpoint-file",
                    hint="download it again, or remove it if the model needs none",
                )
            return None
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(min(size, limit))
        except OSError as error:
            raise unreadable(path, error) from None
        if size > limit:
            raise ConvertError(
                f"{path}: {size} bytes, the limit is {limit}",
                code="checkpoint-file",
                hint="the file is damaged, or is not what its name says",
            )
        return data

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
        try:
            found = strict_json.parse(data, where=str(self.path / name), code="checkpoint-json")
        except BundleError as error:
            raise as_convert_error(error) from None
        if not isinstance(found, dict):
            raise ConvertError(
                f"{self.path / name} holds a JSON {type(found).__name__}, expected an object",
                code="checkpoint-json",
                hint="download the file again",
            )
        return found

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
            yield from self._shards()
        else:
            raise self._no_weights()

    def _shards(self) -> Iterator[Path]:
        placed = self._json(INDEX, limit=limits.TENSOR_HEADER_BYTES).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
            raise ConvertError(
                f"{self.path / INDEX}: weight_map is no map of tensor names to file names",
                code="checkpoint-index",
                hint="download the file again",
            )
        for name in sorted(set(placed.values())):
            try:
                check_name(name)
            except BundleError as error:
                raise as_convert_error(error) from None
            if "/" in name or not name.endswith(".safetensors"):
                self.faults.append(f"the shard index names {name!r}, expected a .safetensors file")
            elif not (self.path / name).is_file():
                count = sum(1 for file in placed.values() if file == name)
                self.faults.append(f"shard {name!r} is missing, with {count} tensors")
            else:
                yield self.path / name
        self.index = placed

    def _index_faults(self) -> list[str]:
        """Faults between a shard index and its shards: tensors that are not where it says."""
        out = []
        for name, file in self.index.items():
            found = self.checkpoint.tensors.get(name)
            if found is not None and found.shard.path.name != file:
                out.append(f"tensor {name!r} is in {found.shard.path.name}, the index says {file}")
            elif found is None and (self.path / file).is_file():
                out.append(f"the shard index names {name!r} in {file}, which does not hold it")
        return out

    def _no_weights(self) -> ConvertError:
        pickles = sorted(p.name for pattern in PICKLES for p in self.path.glob(pattern))
        others = sorted(p.name for p in self.path.glob("*.safetensors"))
        if not pickles and not others:
            refuse_gguf(self.path)
        if pickles:
            return ConvertError(
                f"{self.path} holds weights only as {pickles[:8]}, expected {SINGLE} or {INDEX}",
                code="pickle",
                hint="such files can run code when they are read, so edgert does not open them, "
                "and no flag makes it; take the model's safetensors version, or, where you trust "
                "the file, write one: model.save_pretrained(..., safe_serialization=True)",
            )
        return ConvertError(
            f"{self.path} holds {others[:8] or 'no weights'}, expected {SINGLE}, or {INDEX} and "
            "the shards it lists",
            code="checkpoint-weights",
            hint="download the whole checkpoint; where it has no safetensors at all, write them: "
            "model.save_pretrained(...)",
        )
