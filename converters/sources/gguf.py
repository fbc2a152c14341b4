"""GGUF files as a source: one file, or all parts of a split one, given by any of them.

What a file holds in blocks is taken over bit for bit unless other codes are asked for
(`converters/kept.py`); the graph is that of the model's family, from a config that the metadata
give (`gguf_config.py`). The tokenizer is rebuilt from the metadata too (`gguf_tokenizer.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ... import limits
from ...errors import BundleError, ConvertError
from ...roles import vocab_size
from ...storage.gguf_header import MAGIC
from ...storage.hash_cache import HashCache
from .. import families
from ..families.recipe import Part, Recipe
from ..match import same_values
from . import drafting, layouts
from .base import Image, PlannedPart, SourceTensor, Text
from .checkpoint import as_convert_error
from .gguf_config import (
    VECTORS,
    apart_of,
    architecture_of,
    change_of,
    config_of,
    drafting_name,
    experts_of,
    heads_of,
    hf_name,
    joined_name,
    pieces_of,
    sampling_of,
    told_of,
)
from .gguf_parts import SPLIT, files_of
from .gguf_tensors import (
    READ,
    Columns,
    GgufTensor,
    KeysAndValues,
    Told,
    changed,
    in_halves,
)
from .gguf_tokenizer import ROLES, Vocabulary, endings_of, tokenizer_of, vocabulary_of
from .hf_text import read_text

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHERS = re.compile("mmproj|imatrix", re.IGNORECASE)  # files beside a model that are none


def recognises(source: str | Path) -> bool:
    """Whether it is a GGUF file, or a folder without a config.json that holds some."""
    path = Path(source)
    if path.is_dir():
        return not (path / "config.json").exists() and bool(_inside(path))
    return path.is_file() and (path.suffix.lower() == ".gguf" or _begins(path) == MAGIC)


def opened(source: str | Path, *, ignore_remote_code: bool = False) -> GgufSource:
    """The source of a file, of one part of a split file, or of a folder with one model."""
    path = Path(source)
    return GgufSource(_only(path) if path.is_dir() else path)


def _begins(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC))
    except OSError:
        return b""


def _inside(folder: Path) -> list[Path]:
    """GGUF files of a folder that may be models; of a split one the first."""
    found = sorted(folder.glob("*.[gG][gG][uU][fF]"))
    parts = [(path, SPLIT.fullmatch(path.name)) for path in found if not OTHERS.search(path.name)]
    return [path for path, part in parts if part is None or int(part[2]) == 1]


def _only(folder: Path) -> Path:
    found = _inside(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:6]) + ", ..." * (len(found) > 6)
        raise ConvertError(
            f"{folder} holds {len(found)} GGUF models ({names}), expected one",
            code="gguf",
            hint=f"name the file: {found[0]}",
        )
    return found[0]


class GgufSource:
    """An open model, a `Source`, and what `read_text` reads of it as of a checkpoint's files."""

    kind = "text"
    advice = "general.sampling"
    taken_over = True  # in its own encodings, unless others are asked for
    options: Sequence[str] = ()
    sidecars: Mapping[str, bytes] = {}

    def __init__(self, path: Path) -> None:
        self.faults: list[str] = []
        self.files = files_of(path)
        try:
            self.path, self.meta = path, self.files[0].metadata
            part = SPLIT.fullmatch(path.name)
            self.name = part[1] if part else path.stem
            self.label = path.name
            self.nbytes = sum(file.nbytes for file in self.files)
            self.architecture, self.row = architecture_of(self.meta)
            self._plain = self._tensors()
            self.config = self._config()
            self.family = str(self.config["model_type"])
            named = self._named()
            self.drafting = drafting.drafting(self.config, named)
            self.tensors: Mapping[str, SourceTensor] = {
                name: t for name, t in named.items() if name not in self.drafting
            }
        except BundleError as error:
            self.close()
            raise as_convert_error(error) from None
        except BaseException:
            self.close()
            raise

    def _tensors(self) -> dict[str, GgufTensor]:
        """By GGUF's names. Types that are not read are faults."""
        found: dict[str, GgufTensor] = {}
        for file in self.files:
            for name, info in file.tensors.items():
                if name in found:
                    self.faults.append(f"tensor {name!r} is in two files")
                elif info.kind not in READ:
                    self.faults.append(
                        f"tensor {name!r} is {info.kind}, expected one of {list(READ)}"
                    )
                else:
                    found[name] = GgufTensor(file, info)
        total = self.meta.whole("split.tensors.count")
        if len(self.files) > 1 and total not in (None, len(found)) and not self.faults:
            self.faults.append(f"the parts hold {len(found)} tensors, expected {total}")
        return found

    def _config(self) -> dict[str, Any]:
        if self.faults:
            raise families.refused(self.faults)
        plain = self._plain
        for name in VECTORS:
            shape = plain[name].shape if name in plain else (1,)
            if len(shape) != 1 or shape[0] > limits.HEAD_DIM:
                self.faults.append(
                    f"tensor {name!r} is {list(shape)}, expected a vector of {limits.HEAD_DIM} "
                    "factors at most"
                )
        vectors = {
            name: lambda name=name: [float(x) for x in plain[name].rows(0, plain[name].shape[0])]
            for name in VECTORS
            if name in plain and len(plain[name].shape) == 1
            and plain[name].shape[0] <= limits.HEAD_DIM
        }  # fmt: skip
        config = config_of(
            self.meta, {name: t.shape for name, t in plain.items()}, vectors, self.faults
        )
        if self.faults:
            raise families.refused(self.faults)
        table, head = plain["token_embd.weight"], plain.get("output.weight")
        config["tie_word_embeddings"] = head is None or same_values(table, head)
        return config

    def _named(self) -> dict[str, SourceTensor]:
        """By the family's names, rows of interleaved heads in halves."""
        plain = {name: t for name, t in self._plain.items() if name not in VECTORS}
        self._both = self._joined(plain)
        named: dict[str, SourceTensor] = dict(self._both)
        named |= {name: Told(*told) for name, told in told_of(self.meta, self.row, self.config)}
        plain = self._apart(plain)
        for name, tensor in plain.items():
            stack = experts_of(self.row, name)
            if stack is not None and (pieces := tensor.pieces(len(stack[1]))):
                before, ends = stack
                for i, one in enumerate(pieces):
                    self._put(named, name, f"{before}{i // len(ends)}{ends[i % len(ends)]}", one)
                continue
            self._put(named, name, hf_name(self.row, name), self._in_order(name, tensor))
        if self.row.drafts:
            layers = self.config["num_hidden_layers"]
            more = self.meta.whole(f"{self.architecture}.nextn_predict_layers") or 0
            named = {drafting_name(ours, layers, more): t for ours, t in named.items()}
        return layouts.without_shared(self.config, named)

    def _put(
        self, named: dict[str, Any], name: str, ours: str, tensor: SourceTensor | GgufTensor
    ) -> None:
        """Add a tensor of the file under a name that none has yet; else it is a fault."""
        if ours in named:
            self.faults.append(f"tensor {name!r} is {ours!r}, which another one is as well")
        named[ours] = tensor

    def _in_order(self, name: str, tensor: GgufTensor) -> SourceTensor:
        """A tensor with its rows, columns, shape and values as the family has them."""
        heads, change = heads_of(self.row, name, self.config), change_of(self.row, name)
        count = tensor.shape[0]
        order = in_halves(count, heads) if heads else change.order_of(self.config, count)
        found = GgufTensor(tensor.file, tensor.info, order)
        columns = change.columns_of(self.config, tensor.shape)
        if columns is not None:
            return Columns(found, columns)
        shape = change.shape(tensor.shape) if change.shape else tensor.shape
        return changed(found, shape, change.values)

    def _joined(self, plain: dict[str, GgufTensor]) -> dict[str, KeysAndValues]:
        """Matrices that the file has in two, taken out of `plain`: those of latent attention."""
        joined: dict[str, KeysAndValues] = {}
        for name in list(plain):
            other, whole = joined_name(self.row, name)
            if other in plain and whole not in plain:
                keys, values = plain[name], plain[other]
                if KeysAndValues.fit(keys, values, self.config.get("qk_nope_head_dim", 0)):
                    joined[hf_name(self.row, whole)] = KeysAndValues(keys, values)
                    del plain[name], plain[other]
        return joined

    def _apart(self, plain: Mapping[str, GgufTensor]) -> dict[str, GgufTensor]:
        """Queries, keys and values that the file has in one, and the family has not."""
        apart: dict[str, GgufTensor] = {}
        for name, tensor in plain.items():
            pieces = apart_of(self.row, name, tensor.shape[0], self.config)
            for piece, span in pieces:
                self._put(apart, name, piece, tensor.cut(*span))
            if not pieces:
                self._put(apart, name, name, tensor)
        return apart

    def parts(self, faults: list[str]) -> tuple[PlannedPart, ...]:
        """The one part of a causal language model, and the layer that guesses for it."""
        found: list[str] = []

        def plan(config: Mapping[str, Any]) -> families.FamilyModel:
            found.clear()
            return families.plan(config, found)

        model = layouts.as_stored(plan, self.config, self.tensors)
        faults += found
        text = PlannedPart("model", "text", model.graph, model.tensors, model.tied)
        text = replace(text, weights={**self._as_held(text).weights, **self._by_head(model)})
        special: list[int] = []
        if self.drafting:
            vocab = self._vocabulary()
            special = [*vocab.special(), *endings_of(vocab)]
        draft = drafting.planned(self.config, model, self.drafting, self.tensors, special)
        self.tensors = {**self.tensors, **(draft[1] if draft else {})}
        return (text, self._as_held(draft[0])) if draft else (text,)

    def _as_held(self, part: PlannedPart) -> PlannedPart:
        """A part whose recipes read what the file has: norms with their 1, tensors cut in several,
        matrices upright."""
        weights = dict(part.weights)
        if self.row.shifted:
            weights = {name: replace(recipe, offset=0.0) for name, recipe in weights.items()}
        if self.row.split:
            weights = {name: self._split(recipe) for name, recipe in weights.items()}
        if self.row.turned:
            weights = {name: _upright(recipe) for name, recipe in weights.items()}
        return replace(part, weights=weights)

    def _vocabulary(self) -> Vocabulary:
        try:
            return vocabulary_of(self.meta)
        except BundleError as error:
            raise as_convert_error(error) from None

    def _by_head(self, model: families.FamilyModel) -> dict[str, Recipe]:
        """Recipes of matrices of single heads that the file has as the graph has them, whose
        tensors take the place of the joined ones."""
        found: dict[str, Recipe] = {}
        tensors = dict(self.tensors)
        for label in [n.weights["weight"] for n in model.graph.nodes if n.op == "head_linear"]:
            recipe, role = model.tensors[label], label.rpartition(".")[2]
            name = recipe.parts[0].name
            if name in self._both:
                own = name.replace("kv_b", role)
                found[label] = Recipe((Part(own, recipe.shape),))
                tensors[own] = self._both[name].apart()[role]
                tensors.pop(name, None)
        self.tensors = tensors
        return found

    def _split(self, recipe: Recipe) -> Recipe:
        """The recipe with the tensors that the file has for one of the family's."""
        parts = [piece for part in recipe.parts for piece in pieces_of(self.row, part)]
        return replace(recipe, parts=tuple(parts))

    def text(self, parts: Sequence[PlannedPart], faults: list[str]) -> Text | None:
        """Tokenizer, template, special tokens and sampling defaults, from the metadata."""
        try:
            vocab = self._vocabulary()
            data = tokenizer_of(self.meta, vocab, self.row.pre)
            config = self._tokenizer_config(vocab.tokens, vocab.ids)
            sampling = sampling_of(self.meta)
        except BundleError as error:
            raise as_convert_error(error) from None
        self.tokenizer: dict[str, Any] = msgspec.json.decode(data)
        self.tokenizer_config = config
        self.texts: dict[str, bytes] = {
            "tokenizer.json": data, "generation_config.json": b"",
        }  # fmt: skip
        self.generation: dict[str, Any] = {"eos_token_id": endings_of(vocab), **sampling}
        barred = self.meta.numbers("tokenizer.ggml.suppress_tokens")
        if barred is not None and barred.size:
            self.generation["suppress_tokens"] = barred[: limits.LISTED_FAULTS].tolist()
        if vocab.ids["bos"] is not None:
            self.generation["bos_token_id"] = vocab.ids["bos"]
        self.special_tokens: dict[str, Any] = {}
        self.added_tokens: dict[str, Any] = {}
        self.template_json: dict[str, Any] = {}
        return read_text(self, vocab_size(parts[0].graph), faults)

    def _tokenizer_config(
        self, tokens: Sequence[str], ids: Mapping[str, int | None]
    ) -> dict[str, Any]:
        """tokenizer_config.json: the special tokens by their roles, and the templates."""
        config: dict[str, Any] = {
            role: tokens[i] for role, name in ROLES.items() if (i := ids[name]) is not None
        }
        templates = {"default": self.meta.text("tokenizer.chat_template")}
        for name in self.meta.texts("tokenizer.chat_templates") or ():
            templates[name] = self.meta.text(f"tokenizer.chat_template.{name}")
        named = [{"name": n, "template": t} for n, t in templates.items() if t is not None]
        if named:
            config["chat_template"] = named
        return config

    def image(self, parts: Sequence[PlannedPart], faults: list[str]) -> Image | None:
        return None

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file, by its name."""
        cache = HashCache()
        found = {file.path.name: file.sha256(cache) for file in self.files}
        cache.save()
        return dict(sorted(found.items()))

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _upright(recipe: Recipe) -> Recipe:
    """The same of matrices that the file has as the graph has them."""
    turned = [part._replace(shape=part.meant, transposed=False) for part in recipe.parts]
    parts = zip(recipe.parts, turned, strict=True)
    return replace(recipe, parts=tuple(new if old.transposed else old for old, new in parts))
